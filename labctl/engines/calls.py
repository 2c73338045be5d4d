"""Running an engine's tool: where it is, what it must not see, what it says when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from labctl.engines.model import SECONDS
from labctl.errors import HostCannot, LabError, TimedOut
from labctl.linux.cgroups import Layout

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WITHOUT = 'umount "$0" && exec "$@"'


def program(name: str, package: str = "") -> str:
    """The path of an installed program.  Raises HostCannot with the package that has it."""
    found = shutil.which(name, path=_PATH)
    if not found:
        raise HostCannot(f"{name} is not installed", hint=f"apt-get install {package or name}")
    return found


def hidden(layout: Layout | None = None) -> str:
    """The mount that crun, podman and what is built on them must not see, "" where there is none.

    They take a cgroup2 that is mounted beside v1 hierarchies for one that has all controllers.
    """
    where = layout or Layout.detect()
    return where.v2 if where.kind == "hybrid" else ""


def apart(argv: Sequence[str], hide: str) -> list[str]:
    """The command in a mount namespace of its own, without the mount `hide`; as it is when that is ""."""
    if not hide:
        return [*argv]
    own = ["unshare", "--mount", "--propagation", "private", "--"]
    return [*own, "sh", "-c", _WITHOUT, hide, *argv]


def call(argv: Sequence[str], *, seconds: float = SECONDS, data: str = "") -> str:
    """What a command prints.  Raises LabError with its last words, TimedOut."""
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv, input=data, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{name} did not answer within {seconds:g} s") from error
    except OSError as error:
        raise LabError(f"{argv[0]} can't be run: {error.strerror}") from error
    if done.returncode:
        raise LabError(last_words(done.stderr) or f"{name} ended with {done.returncode}")
    return done.stdout


def last_words(text: str) -> str:
    """The message in the last line of a log: of its JSON form, or the line itself."""
    return _last(text, plain=True)


def _last(text: str, *, plain: bool) -> str:
    for line in reversed(text.strip().splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            if plain:
                return line.strip()[:500]
            continue
        if isinstance(row, dict) and row.get("level") in ("error", "fatal"):
            return str(row.get("msg", ""))[:500]
    return ""


def logged(path: Path) -> str:
    """The last error in an engine's log file; "" when there is none.

    Only what has the form of the log counts: crun 1.8 also writes there what it read from the terminal of a
    command that ended meanwhile.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 16)), os.SEEK_SET)
            return _last(file.read().decode("utf-8", "replace"), plain=False)
    except OSError:
        return ""
