"""One lock per lab, held by the process that changes it; two labs never wait for each other."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labctl.errors import Busy, LabError
from labctl.home import write_hint


@contextmanager
def locked(path: Path, doing: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the body runs; `doing` tells others what we are at.

    The kernel drops flock(2) locks with the process, so that a kill leaves none.  `wait` is in
    seconds.  Raises Busy, naming the holder, when another process has it for longer than that.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LabError(
            f"cannot open the lock {path}: {error.strerror}", hint=write_hint(path, error)
        ) from error
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        _holder(fd, path), hint="wait for it to end, or end it, then try again"
                    ) from None
                time.sleep(0.05)
        note = json.dumps({"pid": os.getpid(), "doing": doing, "since": time.time()})
        with suppress(OSError):  # on a full disk others only hear less of who holds it
            os.ftruncate(fd, 0)
            os.pwrite(fd, note.encode(), 0)
        yield
    finally:
        os.close(fd)


def _holder(fd: int, path: Path) -> str:
    try:
        note = json.loads(os.pread(fd, 4096, 0) or b"{}")
        seconds = time.time() - note["since"]
        return f"`labctl {note['doing']}` (pid {note['pid']}) is at work on this lab since {seconds:.0f} s"
    except (ValueError, KeyError, TypeError):
        return f"another labctl holds {path}"
