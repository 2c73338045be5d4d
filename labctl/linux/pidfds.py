"""Processes held by descriptor: a pidfd never points at another process that got the same number."""

from __future__ import annotations

import fcntl
import os
import select
import struct

from labctl.linux import proc
from labctl.linux import syscalls as sc

_PIDFD_GET_INFO = 0xC0000000 | (72 << 16) | (0xFF << 8) | 11  # _IOWR(0xFF, 11, 72 bytes), Linux 6.13
_INFO_EXIT = 1 << 3  # Linux 6.15


def open_pid(pid: int, start: int | None = None) -> int:
    """A pidfd of `pid`, or -1 when it is gone or, by its start time in ticks, is not the one meant."""
    try:
        fd = sc.pidfd_open(pid)
    except OSError as error:
        if error.errno in (3, 22):  # ESRCH, EINVAL
            return -1
        raise
    if start is not None and proc.start_ticks(pid) != start:
        os.close(fd)
        return -1
    return fd


def ended(fd: int, timeout: float = 0.0) -> bool:
    """Whether the process has ended, after at most `timeout` seconds (it may be a zombie)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout * 1000 + 0.999))))


def wait_status(fd: int) -> int | None:
    """The wait status of a process that has ended and been reaped, child or not.

    From Linux 6.15 on (PIDFD_GET_INFO with PIDFD_INFO_EXIT); None on an older kernel, or while it lives.
    """
    buffer = bytearray(72)
    struct.pack_into("Q", buffer, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None  # ENOTTY before 6.13, ESRCH when the information is gone: the answer is "not known"
    (answered,) = struct.unpack_from("Q", buffer, 0)
    if not answered & _INFO_EXIT:
        return None
    (status,) = struct.unpack_from("i", buffer, 60)
    return int(status)


def send(fd: int, signal: int) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        sc.pidfd_send_signal(fd, signal)
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno == 3:
            return False
        raise
    return True


def exit_code(status: int) -> int:
    """A wait status as a shell says it: the code, or 128 + the signal."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
