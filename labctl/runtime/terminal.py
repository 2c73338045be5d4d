"""A process's terminal joined to our own two streams."""

from __future__ import annotations

import os
import select
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from labctl.runtime.child import ExecProcess


def _copy_size(source: int, running: ExecProcess, known: tuple[int, int]) -> tuple[int, int]:
    """Pass the size of our terminal on when it has changed."""
    try:
        size = os.get_terminal_size(source)
    except OSError:
        return known
    if (size.lines, size.columns) != known and size.lines:
        running.resize(size.lines, size.columns)
    return size.lines, size.columns


def relay(running: ExecProcess, stdin: int, stdout: int, timeout: float | None = None) -> int:
    """Join a terminal to our stdin and stdout until the process ends; its exit code.

    Our own terminal is raw meanwhile.  Its size is looked at four times a second, so that this works in any
    thread, where SIGWINCH would reach only the main one.
    """
    before = termios.tcgetattr(stdin) if os.isatty(stdin) else None
    try:
        if before is not None:
            _make_raw(stdin)
        return _relay(running, stdin, stdout, timeout)
    finally:
        if before is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _make_raw(fd: int) -> None:
    """cfmakeraw(3)."""
    mode = termios.tcgetattr(fd)
    mode[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)


def _relay(running: ExecProcess, stdin: int, stdout: int, timeout: float | None) -> int:
    end = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(running.master, select.POLLIN)
    poll.register(running.pidfd, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    size = _copy_size(stdout, running, (0, 0))
    while True:
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"process {running.pid} still runs after {timeout:g} s")
        ready = dict(poll.poll(250))
        size = _copy_size(stdout, running, size)
        if running.master in ready:
            part = _read_terminal(running.master)
            _write_all(stdout, part)
            if not part:
                break
        elif running.pidfd in ready:
            break  # all it said has been read: the terminal had nothing more
        if stdin in ready:
            typed = os.read(stdin, 65536)
            if typed:
                _write_all(running.master, typed)
            else:
                poll.unregister(stdin)
                _write_all(running.master, b"\x04")  # end of file, as a terminal says it
    return running.wait(None if end is None else max(0.1, end - time.monotonic()))


def _read_terminal(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError as error:
        if error.errno == 5:  # EIO: nobody has the other end open any more
            return b""
        raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
