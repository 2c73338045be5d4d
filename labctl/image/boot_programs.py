"""The programs of labctl's own that go into every machine, for any architecture, from Debian packages.

busybox is static.  dropbear, resize2fs, setpriv and env come with their loader and libraries, which are found
by what their ELF files ask for, in the packages that their packages depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path

from labctl.errors import LabError
from labctl.events import Emit, Note, silent
from labctl.image.boot_apt import AptRoot
from labctl.image.boot_elf import is_elf, needs
from labctl.image.boot_files import fresh_dir, fresh_file, locked, run
from labctl.records import dataclass

_FORMAT = 2
# target in the machine's /run/labctl → package, paths in it (the first that is there)
_PROGRAMS = {
    # busybox starts background commands with SIGINT and SIGQUIT ignored; this one puts them back
    "bin/env": ("coreutils", ("usr/bin/env",)),
    "bin/busybox": ("busybox-static", ("bin/busybox", "usr/bin/busybox")),
    "bin/setpriv": ("util-linux", ("usr/bin/setpriv", "bin/setpriv")),
    "sbin/dropbear": ("dropbear-bin", ("usr/sbin/dropbear", "sbin/dropbear")),
    "sbin/resize2fs": ("e2fsprogs", ("sbin/resize2fs", "usr/sbin/resize2fs")),
}


@dataclass(frozen=True)
class Programs:
    """A folder to copy into a machine as it is, and a digest of what is in it."""

    folder: Path
    digest: str


def place(cache: Path, debian: str) -> Path:
    """Where the programs for a Debian architecture are, or will be."""
    return cache / "boot" / "programs" / debian / "tree"


def programs(cache: Path, debian: str, emit: Emit = silent) -> Programs:
    """labctl's programs for a Debian architecture (amd64, arm64…), from the cache or from packages.

    Raises HostCannot when they have to be downloaded and can't be.
    """
    base = cache / "boot" / "programs" / debian
    if found := _cached(base):
        return found
    with locked(base / ".lock"):
        if found := _cached(base):
            return found
        emit(Note("", f"downloading busybox and dropbear for {debian}"))
        apt = AptRoot.at(cache, debian)
        apt.update()
        with (
            fresh_dir(base / "tree") as work,
            tempfile.TemporaryDirectory(dir=base, prefix=".tree.") as scratch,
        ):
            packages = _Packages(apt, Path(scratch))
            _collect(packages, work)
            digest = _digest(work)
        with fresh_file(base / "programs.json") as path:
            record = {"format": _FORMAT, "digest": digest, "packages": packages.versions}
            path.write_text(json.dumps(record, indent=1) + "\n")
            return Programs(base / "tree", digest)


def _cached(base: Path) -> Programs | None:
    try:
        record = json.loads((base / "programs.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if record.get("format") != _FORMAT or not (base / "tree").is_dir():
        return None
    return Programs(base / "tree", str(record["digest"]))


@dataclass
class _Packages:
    """Packages unpacked one over the other into `scratch`/root, and where to look for missing libraries."""

    apt: AptRoot
    scratch: Path
    versions: dict[str, str] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.scratch / "root"

    def add(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if name not in self.versions]
        for name in wanted:
            self.versions[name] = self.apt.version(name)
        for deb in self.apt.download(wanted, self.scratch):
            run(["dpkg-deb", "-x", str(deb), str(self.root)], timeout=120, what=f"unpack {deb.name}")
            deb.unlink()
        for name in wanted:
            self.candidates += [other for other in self.apt.depends(name) if other not in self.candidates]

    def library(self, soname: str) -> Path:
        """The file of a library, from a package further down the dependencies when none has it yet."""
        while True:
            for folder in (self.root / "lib", self.root / "usr/lib", self.root / "lib64"):
                for path in folder.rglob(soname):
                    return path
            left = [name for name in self.candidates if name not in self.versions and _is_library(name)]
            if not left:
                raise LabError(f"no Debian package for {self.apt.arch} brought {soname}")
            self.add(left)


def _is_library(package: str) -> bool:
    return package.startswith(("lib", "zlib"))


def _collect(packages: _Packages, work: Path) -> None:
    packages.add(package for package, _ in _PROGRAMS.values())
    waiting: list[Path] = []
    for target, (package, paths) in _PROGRAMS.items():
        source = next((packages.root / path for path in paths if (packages.root / path).exists()), None)
        if source is None:
            raise LabError(f"package {package} for {packages.apt.arch} has no {paths[0]}")
        _copy(source, work / target)
        waiting.append(work / target)
    done: set[str] = set()
    while waiting:
        wanted = needs(waiting.pop().read_bytes())
        if wanted.interpreter and wanted.interpreter not in done:
            done.add(wanted.interpreter)
            loader = work / wanted.interpreter.lstrip("/")
            _copy(packages.library(loader.name), loader)
            # One path to the loader on every architecture, for programs started in the image's root.
            (work / "lib").mkdir(exist_ok=True)
            (work / "lib/ld.so").symlink_to(os.path.relpath(loader, work / "lib"))
        for soname in wanted.libraries:
            if soname in done or soname.startswith("ld-linux"):
                continue
            done.add(soname)
            _copy(packages.library(soname), work / "lib" / soname)
            waiting.append(work / "lib" / soname)


def _copy(source: Path, target: Path) -> None:
    """Copy a program or library, following links within the unpacked packages."""
    real = source.resolve()
    if not is_elf(real.read_bytes()[:6]):
        raise LabError(f"{source.name} is not a 64-bit program")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(real, target)
    target.chmod(0o755)


def _digest(folder: Path) -> str:
    summary = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            summary.update(
                f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
            )
    return summary.hexdigest()
