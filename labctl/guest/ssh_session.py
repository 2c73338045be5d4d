"""One command over one SSH channel: streams in all directions at once, signals, a terminal (RFC 4254, 6).

paramiko's channels are typed as Any here: they are only ever handed in, so that this module costs no import.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from labctl.errors import LabError, TimedOut
from labctl.guest.machine import Sink, Source
from labctl.guest.pipes import descriptor_of, write_all

_BLOCK = 1 << 16
TICK = 0.25  # seconds between looks at the clock and at the terminal's size
_LINGER = 5.0  # seconds of silence after the exit code, while something in the background holds the output
_END_OF_FILE = b"\x04"  # VEOF of termios(3), as every terminal has it
CLOSE, REQUEST = 97, 98  # SSH_MSG_CHANNEL_CLOSE, SSH_MSG_CHANNEL_REQUEST


class Session:
    """A command that was started on a channel; `wait` moves its streams and gives the exit code."""

    def __init__(self, channel: Any, where: str, tty: bool = False) -> None:
        self.channel = channel
        self.where = where
        self.tty = tty
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC)
        self._stop = threading.Event()
        self._broken: list[OSError] = []

    def wait(
        self,
        stdin: Source,
        stdout: Sink,
        stderr: Sink,
        *,
        head: bytes = b"",
        terminal: int = -1,
        timeout: float | None = None,
    ) -> int:
        """Move the streams until the command has ended.

        `head` is sent before what stdin holds.  `terminal` is our own terminal, whose size the command's
        follows.  On Ctrl-C the command is told (SIGINT) and the channel closed.  Raises TimedOut (the
        command is killed), LabError when the connection is lost or a file of ours can't be written.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        threads = [
            threading.Thread(target=self._feed, args=(stdin, head), name="ssh-stdin", daemon=True),
            threading.Thread(target=self._drain_errors, args=(stderr,), name="ssh-stderr", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._drain(stdout, terminal, ends, timeout)
            code = 0 if self._broken else self._status(ends, timeout)
            threads[1].join(_LINGER)
            self._await_close()
        except KeyboardInterrupt:
            self.signal("INT")
            raise
        finally:
            self._end(threads)
        if self._broken:
            raise LabError(f"the output of {self.where} can't be written: {self._broken[0]}")
        return code

    def _await_close(self) -> None:
        """The server closes right after the exit code; when it doesn't, something is left there."""
        ends = time.monotonic() + 1.0
        with self.channel.lock:
            while not self.channel.closed and not self._broken and time.monotonic() < ends:
                self.channel.out_buffer_cv.wait(TICK)

    def _end(self, threads: list[threading.Thread]) -> None:
        self._stop.set()
        os.write(self._woken, b"x")
        for thread in threads:
            thread.join(2 * TICK)
        if not threads[0].is_alive():
            os.close(self._wake)
        os.close(self._woken)

    def signal(self, name: str) -> None:
        """Send a signal to the command (RFC 4254, 6.9); a connection that is gone is fine."""
        send_signal(self.channel, name)

    def _feed(self, source: Source, head: bytes) -> None:
        from paramiko import SSHException

        with suppress(OSError, EOFError, SSHException, ValueError):  # the command may end before its input
            self._send(head)
            found = descriptor_of(source)
            while source is not None:
                if found is None:
                    assert not isinstance(source, int)
                    chunk = source.read(_BLOCK)
                else:
                    ready, _, _ = select.select([found, self._wake], [], [])
                    if self._wake in ready:
                        return
                    chunk = os.read(found, _BLOCK)
                if not chunk:
                    break
                self._send(chunk)
            self._end_input(source)

    def _end_input(self, source: Source) -> None:
        """Say that there is no more input.

        On a terminal that is its end-of-file character: dropbear since 2024 hangs the terminal up when the
        channel's input ends, and the command with it.
        """
        if not self.tty:
            self.channel.shutdown_write()
        elif source is not None:
            self._send(_END_OF_FILE)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = self.channel.send(view)
            except TimeoutError:  # the command reads slowly
                if self._stop.is_set():
                    return
                continue
            if not sent:
                return
            view = view[sent:]

    def _drain_errors(self, sink: Sink) -> None:
        while True:
            try:
                chunk = self.channel.recv_stderr(_BLOCK)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            if not chunk:
                return
            self._write(sink, chunk)

    def _write(self, sink: Sink, chunk: bytes) -> None:
        try:
            write_all(sink, chunk)
        except OSError as error:
            self._broken.append(error)
            self._stop.set()

    def _drain(self, sink: Sink, terminal: int, ends: float | None, timeout: float | None) -> None:
        size = _size(terminal)
        silent_since = time.monotonic()
        while True:
            try:
                chunk = self.channel.recv(_BLOCK)
            except TimeoutError:
                self._check_time(ends, timeout)
                if terminal >= 0 and (now := _size(terminal)) != size:
                    size = now
                    self.channel.resize_pty(*size)
                ended = self.channel.exit_status_ready()
                if ended and time.monotonic() - silent_since > _LINGER:
                    return
                if self._stop.is_set():
                    return
                continue
            if not chunk or self._stop.is_set():
                return
            self._write(sink, chunk)
            silent_since = time.monotonic()
            self._check_time(ends, timeout)

    def _check_time(self, ends: float | None, timeout: float | None) -> None:
        if ends is not None and time.monotonic() > ends:
            self.signal("TERM")
            self.signal("KILL")
            raise TimedOut(f"the command in {self.where} did not end within {timeout:g} s")

    def _status(self, ends: float | None, timeout: float | None) -> int:
        while not self.channel.status_event.wait(TICK):
            self._check_time(ends, timeout)
        code = int(self.channel.exit_status)
        if code < 0:
            raise LabError(
                f"the connection to {self.where} was lost before the command ended",
                hint="is the node still running? (labctl status)",
            )
        return code


def send_signal(channel: Any, name: str) -> None:
    """Ask for a signal by its name without SIG.  paramiko has no call for this message of the protocol."""
    from paramiko import Message, SSHException

    message = Message()
    message.add_byte(bytes([REQUEST]))
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)
    message.add_string(name)
    with suppress(SSHException, OSError, EOFError):
        channel.transport._send_user_message(message)


def note_close(channel: Any, _message: Any) -> None:
    """The server closes a channel.  paramiko would answer at once, from its own thread.

    The server then gives the channel's number to the next one, and a message that another thread of ours
    was about to send (the end of input) would reach that one.  So the answer waits for `close_channel`.
    """
    with channel.lock:
        if channel.closed:  # we were first: all is said
            channel.transport._unlink_channel(channel.chanid)
            return
        channel.answer_close = True
        channel._set_closed()


def close_channel(channel: Any) -> bool:
    """Close a channel, or answer the server that closed it; no thread may send on it any more.

    True when the server closed it: then nothing of the command is left in the server.
    """
    from paramiko import Message, SSHException

    answers = False
    with channel.lock:
        if not channel.closed:
            messages = list(channel._close_internal())
        elif getattr(channel, "answer_close", False):
            channel.answer_close, answers = False, True
            answer = Message()
            answer.add_byte(bytes([CLOSE]))
            answer.add_int(channel.remote_chanid)
            messages = [answer]
            channel.transport._unlink_channel(channel.chanid)
        else:
            return False
    with suppress(SSHException, OSError, EOFError):
        for message in messages:
            if message is not None:
                channel.transport._send_user_message(message)
    return answers


def note_exit_signal(channel: Any, message: Any) -> bool:
    """Understand "exit-signal", which paramiko passes over: the exit code becomes 128 + n.

    True when the message was one; else it is as it was.
    """
    start = message.packet.tell()
    if message.get_text() != "exit-signal":
        message.packet.seek(start)
        return False
    message.get_boolean()
    number = getattr(signal, "SIG" + message.get_text(), None)
    channel.exit_status = 128 + (int(number) if number else 0)
    channel.status_event.set()
    return True


def _size(terminal: int) -> tuple[int, int]:
    if terminal < 0:
        return 80, 24
    try:
        columns, lines = os.get_terminal_size(terminal)
    except OSError:
        return shutil.get_terminal_size()
    return columns, lines


def terminal_of(stdin: Source) -> int:
    """The descriptor of the terminal that a person sits at, or -1."""
    found = descriptor_of(stdin)
    return found if found is not None and os.isatty(found) else -1


def terminal_size(terminal: int) -> tuple[int, int]:
    """Columns and lines of a terminal; 80 × 24 where there is none."""
    return _size(terminal)


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """The terminal passes every key on while the block runs (cfmakeraw(3)); -1: nothing to do."""
    if terminal < 0:
        yield
        return
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
