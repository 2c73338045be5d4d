"""A process that runs in a container and is a child of ours."""

from __future__ import annotations

import fcntl
import os
import struct

from labctl.linux import pidfds
from labctl.linux import syscalls as sc
from labctl.runtime import signals

GRACE_SECONDS = 2.0  # for a program to end by itself after a Ctrl-C, before it is killed


class ExecProcess:
    """A process that runs in a container, a child of ours.  `master` is its terminal's other end, or -1."""

    def __init__(self, pid: int, pidfd: int, master: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.master = master
        self._status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, 128 + n for a signal.  Raises TimeoutError."""
        if self._status is None:
            if timeout is not None and not pidfds.ended(self.pidfd, timeout):
                raise TimeoutError(f"process {self.pid} still runs after {timeout:g} s")
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            assert info is not None
            killed = info.si_code != os.CLD_EXITED
            self._status = 128 + info.si_status if killed else info.si_status
            os.close(self.pidfd)
            self.pidfd = -1
        return self._status

    def kill(self, number: int) -> None:
        """Send a signal; one that has ended is fine."""
        if self.pidfd >= 0:
            pidfds.send(self.pidfd, number)

    def end(self, number: int) -> None:
        """Send a signal to the process and all of its group, kill those when it does not end of it, reap it.

        It leads a group of its own, as a shell's job does, so that `sh -c "a; b"` ends as a whole.
        """
        if self.pidfd < 0:
            return
        try:
            self.signal_group(number)
            if not pidfds.ended(self.pidfd, GRACE_SECONDS):
                self.signal_group(signals.BY_NAME["KILL"])
        except KeyboardInterrupt:
            self.signal_group(signals.BY_NAME["KILL"])
        try:
            self.wait(GRACE_SECONDS)
        except TimeoutError:
            return  # frozen with its container: it ends with that

    def signal_group(self, number: int) -> None:
        """Send a signal to it and all of its group; one that has ended is fine."""
        if self.pidfd < 0:
            return
        # Not reaped yet, so the number can't mean another group.
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self.kill(number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        if self.master >= 0:
            fcntl.ioctl(self.master, sc.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Close the terminal (its processes get SIGHUP)."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
