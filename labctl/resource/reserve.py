"""Room on the disk that is kept for a full one, so that a lab can still be looked at and taken down.

SQLite writes its log and the log's index beside the ledger even to read it.  Where the disk has no room for
them the reserve is given up; it is taken again as soon as there is room.
"""

from __future__ import annotations

import os
from pathlib import Path

LEAST = 512 * 1024  # bytes
SOME = 128 * 1024  # what a small lab's end takes


class Reserve:
    """The file that holds the room; beside the ledger, and as large as two of it."""

    def __init__(self, ledger: Path) -> None:
        self.path = ledger.with_name(ledger.name + ".reserve")
        self._ledger = ledger

    def keep(self) -> None:
        """See that the room is there; a disk that has none for it is fine."""
        try:
            wanted = max(LEAST, 2 * self._ledger.stat().st_size)
            if self.path.exists() and self.path.stat().st_size >= wanted:
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            while wanted >= SOME:
                try:
                    os.posix_fallocate(fd, 0, wanted)
                    return
                except OSError:
                    os.ftruncate(fd, 0)
                    wanted //= 2  # what others left of it is better than nothing
            self.release()
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Give the room up; whether there was any."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def missing(self) -> int:
        """How many bytes of it are given up, or not taken yet."""
        return 0 if self.path.exists() else LEAST

    def short(self) -> bool:
        """Whether the disk has less room than a change of the whole ledger may take."""
        try:
            there = os.statvfs(self._ledger.parent)
            return there.f_bavail * there.f_frsize < max(LEAST, 2 * self._ledger.stat().st_size)
        except OSError:
            return False
