"""Locks between processes (flock(2)): the kernel drops them when a process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl.errors import Busy


@contextmanager
def locked(path: Path, *, shared: bool = False, timeout: float = 600.0, what: str = "") -> Iterator[None]:
    """Hold the lock file `path`; raises Busy when another process keeps it for `timeout` seconds.

    The file stays: removing it would let two processes lock two inodes of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout, what or str(path))
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, kind: int, timeout: float, what: str) -> None:
    end = time.monotonic() + timeout
    pause = 0.001
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise Busy(
                    f"another process holds {what} for more than {timeout:g} s", hint="wait for it, or end it"
                ) from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


def try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock on an existing file or folder, or None when it is taken."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
