"""Where labctl keeps its state and its cache.

LABCTL_HOME moves both (state in $LABCTL_HOME/state, cache in $LABCTL_HOME/cache), so that tests and
two users never meet.  As root: /var/lib/labctl and /var/cache/labctl.  Otherwise the XDG folders
(XDG Base Directory Specification 0.8).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from labctl.errors import LabError
from labctl.records import dataclass


def free_bytes(path: Path) -> int:
    """What is free on the disk that `path` is on or would be on; 0 when that can't be asked."""
    for place in (path, *path.parents):
        try:
            there = os.statvfs(place)
        except OSError:
            continue
        return there.f_bavail * there.f_frsize
    return 0


def write_hint(path: Path, error: OSError | None = None) -> str:
    """What to do when something below `path` can't be written: for a full disk, which and how full it is."""
    if error is not None and error.errno == errno.EROFS:
        return "its file system is mounted read-only: mount -o remount,rw, or set LABCTL_HOME"
    if error is not None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return "run as root, or set LABCTL_HOME"
    place = next((p for p in (path, *path.parents) if p.exists()), path)
    there = os.statvfs(place)
    free, total = there.f_bavail * there.f_frsize >> 10, there.f_blocks * there.f_frsize >> 20
    return (
        f"the disk of {place} has {free} KiB free of {total} MiB: make room there, or move labctl with"
        " LABCTL_HOME; `labctl down` works all the same"
    )


def read_only(path: Path) -> bool:
    """Whether the file system of a path, or of what there is of it, is mounted read-only (statvfs(3))."""
    place = next((p for p in (path, *path.parents) if p.exists()), path)
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


@dataclass(frozen=True)
class Home:
    """The two folders of one labctl: what must not be lost, and what can be made again."""

    state: Path
    cache: Path

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> Home:
        """The home that the environment asks for; nothing is made."""
        env = os.environ if environ is None else environ
        if moved := env.get("LABCTL_HOME"):
            base = Path(moved).absolute()
            return cls(base / "state", base / "cache")
        if os.geteuid() == 0:
            return cls(Path("/var/lib/labctl"), Path("/var/cache/labctl"))
        user = Path(env.get("HOME") or "~").expanduser()
        state = Path(env.get("XDG_STATE_HOME") or user / ".local/state")
        cache = Path(env.get("XDG_CACHE_HOME") or user / ".cache")
        return cls(state / "labctl", cache / "labctl")

    @property
    def ledger(self) -> Path:
        """The SQLite file that names every object labctl made."""
        return self.state / "ledger.db"

    def used(self) -> bool:
        """Whether a ledger is there.  Raises LabError when the folder can't be looked into."""
        try:
            return self.ledger.exists()
        except OSError as error:
            raise LabError(
                f"cannot read {self.state}: {error.strerror}", hint="run as root, or set LABCTL_HOME"
            ) from error

    def lab(self, lab_id: str) -> Path:
        """The folder of one lab: keys, node disks, logs, sockets."""
        return self.state / "labs" / lab_id

    def instance(self) -> str:
        """The random id of this home, made on first use; part of every ownership mark.

        Raises LabError when the folder can't be written.
        """
        path = self.state / "instance"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise LabError(
                f"cannot read {path}: {error.strerror}", hint="run as root, or set LABCTL_HOME"
            ) from error
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"instance.{os.getpid()}")
            fresh.write_text(os.urandom(4).hex() + "\n")
            try:
                # link(2) fails when another process was first, so that both end up with one id.
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
            return path.read_text().strip()
        except OSError as error:
            raise LabError(
                f"cannot write {path}: {error.strerror}", hint="run as root, or set LABCTL_HOME"
            ) from error
