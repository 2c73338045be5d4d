"""Temporary files and folders that a later process can tell from litter.

Each lies in one folder and is flock()ed by its maker for as long as it works on it.  A process that
was killed has lost its lock, so `sweep` may take what it left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl.image.locks import locked, try_lock

_TRIES = 5  # to remove a tree to which a process that is being ended still writes


class Scratch:
    """The folder `root`; it must be on the file system that things are renamed to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Kept beside the folder, so that what lies in the folder is temporary without exception.
        self._gate = root.with_name(root.name + ".lock")

    @contextmanager
    def folder(self, what: str) -> Iterator[Path]:
        """A new empty folder (mode 0700), removed at the end unless it was renamed away."""
        with self._made(what, folder=True) as (path, _):
            yield path

    @contextmanager
    def file(self, what: str) -> Iterator[tuple[Path, int]]:
        """A new file and a descriptor to write to it, removed at the end unless renamed away."""
        with self._made(what, folder=False) as made:
            yield made

    @contextmanager
    def _made(self, what: str, *, folder: bool) -> Iterator[tuple[Path, int]]:
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{what}-{os.getpid()}-{os.urandom(4).hex()}"
        # The gate closes the gap between making it and locking it.
        with locked(self._gate, shared=True):
            if folder:
                path.mkdir(mode=0o700)
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
            remove(path)

    def sweep(self) -> int:
        """Remove what killed processes left; returns how many things that were."""
        if not self.root.is_dir():
            return 0
        count = 0
        with locked(self._gate):
            for path in list(self.root.iterdir()):
                try:
                    descriptor = try_lock(path)
                except FileNotFoundError:
                    continue
                except OSError:
                    descriptor = os.open("/", os.O_PATH)  # a link or a device: nobody works on those
                if descriptor is None:
                    continue
                try:
                    remove(path)
                    count += 1
                except OSError as error:
                    # Somebody still writes to it: it stays litter, and the next sweep takes it.
                    if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                        raise
                finally:
                    os.close(descriptor)
        return count


def remove(path: Path) -> None:
    """Remove a file or a whole tree; absence is fine, and so is somebody who puts things there meanwhile."""
    for left in reversed(range(_TRIES)):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            return
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
            if not left:
                raise
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not left:
                raise


def sync_folder(path: Path) -> None:
    """Make a rename in this folder durable (fsync(2) of the directory)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
