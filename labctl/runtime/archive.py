"""The runtime as one file that runs in a guest: `python3 -I -S labrun.pyz …` with any Python from 3.9 on."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

_ROOMS = ("linux", "runtime")
# Code in a zip file is compiled anew at every start, which takes a second in an emulated guest: so the first
# start unpacks it beside the guest's other runtime files (or in LABRUN_UNPACK), where Python keeps the
# compiled form.
_MAIN = """\
import os, sys
archive = os.path.abspath(sys.argv[0])
place = os.path.join(os.environ.get("LABRUN_UNPACK") or "/run/labctl", "labrun-DIGEST")
if not os.path.isdir(place):
    import zipfile
    fresh = "%s.%d" % (place, os.getpid())
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(fresh)
        os.rename(fresh, place)
    except OSError:
        pass  # a read-only or full /run, or another start was first: the zip file itself serves
if os.path.isdir(place):
    sys.path.insert(0, place)
from labctl.runtime.main import program
program()
"""


def runtime_zip(dest: Path) -> Path:
    """Write linux and runtime as one zip application; `dest` is replaced by rename.  Returns `dest`.

    The same sources give the same bytes.  Raises OSError.
    """
    base = Path(__file__).resolve().parents[1]
    files = {"labctl/__init__.py": (base / "__init__.py").read_bytes()}
    for room in _ROOMS:
        for path in sorted((base / room).glob("*.py")):
            files[f"labctl/{room}/{path.name}"] = path.read_bytes()
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(name.encode() + b"\0" + data + b"\0")
    files["__main__.py"] = _MAIN.replace("DIGEST", digest.hexdigest()[:16]).encode()
    dest = Path(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=dest.parent, prefix=f".{dest.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in files.items():
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, data, zipfile.ZIP_DEFLATED)
        os.chmod(temporary, 0o755)
        os.replace(temporary, dest)
    except OSError:
        os.unlink(temporary)
        raise
    return dest
