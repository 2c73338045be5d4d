"""What a command reads on the way to a plan, noted by the reading itself.

While `watching`, every file that is opened, every folder that is listed (PEP 578's audit events) and every
question to stat(2) leaves its path and what was there at that moment; a program that is started, or a
connection that is opened, leaves the answer in doubt.  So nobody has to list what a plan depends on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labctl.lab import again

_LISTS = {"os.listdir", "os.scandir"}
_DOUBTS = {
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"),
    *("socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.Request", "pty.spawn"),
}
# Not statvfs: the room on a disk decides whether something may be made, and a quick answer makes nothing.
_ASKED = ("stat", "lstat", "access", "readlink")
_TICK = 20_000_000  # ns: the kernel stamps files by its clock's ticks, of 10 ms at most


class Watch:
    """What was read, by (path, how); `doubt` says why that isn't all."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.found: dict[tuple[str, str], Any] = {}
        self.doubt = "planning is not finished"
        self.reasons: list[str] = []
        self.own = threading.local()

    def note(self, path: object, how: str) -> None:
        """Something was read, or looked for, at this path."""
        if isinstance(path, int):
            return  # an open file: whoever opened it was noted
        name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "."
        if "__pycache__" in name or name.endswith(f"/{again.FOLDER}"):
            return  # of programs the sources are noted; the notes themselves are no input
        if name.startswith(("/proc/", "/sys/")) and how == "o":
            how = "v"
        place = name, "s" if how == "o" else how
        if place not in self.found and not getattr(self.own, "reading", False):
            self.own.reading = True  # what the note itself reads is none of it
            try:
                self.found[place] = seen = again.fingerprint(*place)
            finally:
                self.own.reading = False
            if isinstance(seen, list) and len(seen) > 5 and _fresh(seen):
                self.reasons.append(f"{name} changed just now")

    def opened(self, path: object, flags: int) -> None:
        """A file is opened: what is only written is no input, and what is written too is a lock."""
        kind = flags & os.O_ACCMODE
        if kind == os.O_RDONLY:
            self.note(path, "o")
        elif kind == os.O_RDWR and "/locks/" not in str(path):
            self.reasons.append(f"{path} is read and written")


def _fresh(found: list[int]) -> bool:
    """Whether a file was written so lately that another write might leave the same time."""
    newest = max(found[-2:])
    whole = found[-2] % 1_000_000_000 == 0  # a file system that counts seconds
    return newest > time.time_ns() - (2_000_000_000 if whole else _TICK)


_watch: Watch | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    watch = _watch
    if watch is None:
        return
    if event == "open":
        watch.opened(args[0], args[2] or 0)
    elif event in _LISTS:
        watch.note(args[0], "d")
    elif event in _DOUBTS:
        watch.reasons.append(event)


def _noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def ask(path: Any, *args: Any, **more: Any) -> Any:
        watch = _watch
        if watch is not None:
            if more.get("dir_fd") is not None:
                watch.reasons.append(f"{name} of {path}")
            else:
                link = name in ("lstat", "readlink") or more.get("follow_symlinks") is False
                watch.note(path, "l" if link else "s")
        return real(path, *args, **more)

    return ask


@contextmanager
def watching(words: list[str]) -> Iterator[None]:
    """Note what is read from now on, until `enough`; nothing without words to answer later."""
    global _watch, _hooked
    if not words:
        yield
        return
    if not _hooked:
        sys.addaudithook(_hook)  # there is no way to take one away
        _hooked = True
    real = {name: getattr(os, name) for name in _ASKED}
    watch = _watch = Watch(words)
    try:
        for name, function in real.items():
            setattr(os, name, _noting(name, function))
        yield
    finally:
        if _watch is watch:
            _watch = None
        for name, function in real.items():
            setattr(os, name, function)


@contextmanager
def choosing() -> Iterator[None]:
    """What is read to choose something that the ledger then keeps is read once, and decides nothing later."""
    global _watch
    watch, _watch = _watch, None
    try:
        yield
    finally:
        _watch = watch


def enough() -> Watch | None:
    """The plan is made: what was read for it, or None when nobody watched."""
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.doubt = "; ".join(watch.reasons)
    return watch


def doubt(reason: str) -> None:
    """Say why what is being planned can't be answered for quickly; nothing when nobody watches."""
    if _watch is not None:
        _watch.reasons.append(reason)


def programs() -> list[list[Any]]:
    """The files of every module that is loaded, as inputs: what is done with all the others."""
    found = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file:
            found.append([file, "s", again.fingerprint(file, "s")])
    return found
