"""Network namespaces of a thread: made, entered, and kept by a bind mount.  Standard library only.

setns(2) and unshare(2) with CLONE_NEWNET change the calling *thread* alone, so that all of this works in
a program with many threads, if it is done in a thread of its own (`in_thread`) that ends afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_SELF = "/proc/thread-self/ns/net"  # not /proc/self: that is the main thread's
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare_net() -> None:
    """Put the calling thread into a new network namespace."""
    _check(_libc.unshare(CLONE_NEWNET), "cannot make a network namespace")


def enter_fd(fd: int) -> None:
    """Put the calling thread into the network namespace of an open file."""
    _check(_libc.setns(fd, CLONE_NEWNET), "cannot enter the network namespace")


def enter(path: str) -> None:
    """Put the calling thread into the network namespace at a path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_fd(fd)
    finally:
        os.close(fd)


def current_fd() -> int:
    """An open file of the calling thread's network namespace; the caller closes it."""
    return os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)


def bind(path: str) -> None:
    """Keep the calling thread's network namespace alive by a bind mount on `path` (made when missing)."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444))
    result = _libc.mount(_SELF.encode(), os.fsencode(path), None, _MS_BIND, None)
    _check(result, f"cannot keep the network namespace at {path}")


class Owned:
    """A new network namespace owned by a new user namespace, held by a process until it is kept.

    The kernel makes it meanwhile, so that many may be begun before the first is kept.  Forks: use it in a
    small process without threads.  Whoever is root in the user namespace may configure the network.
    """

    def __init__(self) -> None:
        self._ready, tell = os.pipe2(os.O_CLOEXEC)
        hold, self._release = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _owned_child(tell, hold, self._release)
        os.close(tell)
        os.close(hold)

    def keep(self, path: str, base: int, count: int) -> int:
        """Map ids 0..count-1 to base and up, and keep the user namespace by a bind mount on `path`.

        Returns an open file of the network namespace; the process ends.  Raises OSError.
        """
        try:
            answer = os.read(self._ready, 16)
            if answer != b"ok":
                number = int(answer or b"5")
                reason = os.strerror(number)
                if number == errno.EPERM and os.geteuid() == 0:
                    reason += " (the kernel refuses it in a chroot: user_namespaces(7))"
                raise OSError(number, f"cannot make a user namespace for {path}: {reason}")
            for kind in ("uid_map", "gid_map"):
                fd = os.open(f"/proc/{self._pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, f"0 {base} {count}\n".encode())
                finally:
                    os.close(fd)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444))
            source = f"/proc/{self._pid}/ns/user".encode()
            result = _libc.mount(source, os.fsencode(path), None, _MS_BIND, None)
            _check(result, f"cannot keep the user namespace at {path}")
            return os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            self.end()

    def end(self) -> None:
        """Let the process end; what is not kept goes with it.  Fine twice."""
        if self._pid:
            os.close(self._release)
            os.close(self._ready)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _owned_child(tell: int, hold: int, release: int) -> None:
    """Make both namespaces, say so, and wait until they are kept.  Never returns."""
    try:
        # The ends of those begun before us too: each must see the end of its own pipe.
        low, high = sorted((tell, hold))
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, max(high, release) + 1)
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0:
            os.write(tell, str(ctypes.get_errno()).encode())
        else:
            os.write(tell, b"ok")
            os.read(hold, 1)
    finally:
        os._exit(0)


def is_bound(path: str) -> bool:
    """Whether a namespace is mounted there (all of them live on one device, nsfs)."""
    try:
        return os.stat(path).st_dev == os.stat(_SELF).st_dev
    except OSError:
        return False


def unbind(path: str) -> None:
    """Take the bind mount and its file away; absence is fine."""
    for _ in range(16):  # a kill between two makes may leave mounts on top of each other
        if _libc.umount2(os.fsencode(path), _MNT_DETACH) < 0:
            number = ctypes.get_errno()
            if number in (errno.EINVAL, errno.ENOENT):
                break
            raise OSError(number, f"cannot unmount {path}: {os.strerror(number)}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, whose namespace may be changed at will; its result or error."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            errors.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def run_in(path: str | None, work: Callable[[], T]) -> T:
    """Run `work` inside the network namespace at `path` (None: the present one), in its own thread."""

    def inside() -> T:
        if path is not None:
            enter(path)
        return work()

    return in_thread(inside)
