"""The process that writes down what a lab's containers say: one for all of them, a child of the keeper.

Each container's stdout and stderr are pipes that the container and the keeper hold open for reading and
writing, so that nothing in them is lost, and no container is ended by a SIGPIPE, when this process dies: the
keeper starts another at once.  When the keeper dies, this one goes on until its last container has ended or
the next keeper tells it to make way.  A container that writes faster than the disk waits, as at any pipe.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import fcntl
import os
import select
import struct
import termios
import time

from labctl.linux import pidfds, proc
from labctl.runtime import logbook
from labctl.runtime.channel import Channel
from labctl.runtime.logbook import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCK = "collector.lock"
_MOST = 1 << 18  # bytes of one frame
_TURN = 1 << 22  # bytes of one pipe before the others have their turn
_SECONDS = 10.0  # for a former collector to make way
_FULL_SECONDS = 0.5  # between two tries on a full disk


class _Log:
    """One container's log, and the pipes that still feed it."""

    def __init__(self, folder: str, max_size: int, max_files: int) -> None:
        self.folder = folder
        self.pipes = 0
        self.lost = 0  # bytes that there was no room for
        self._bounds = max_size, max_files
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """Its files, made for the first words: most containers are silent.  Raises OSError."""
        if self._writer is None:
            self._writer = Writer(self.folder, *self._bounds)
        return self._writer

    def close(self) -> None:
        """Close its files."""
        if self._writer is not None:
            self._writer.close()


class Collector:
    """The loop."""

    def __init__(self, channel: Channel) -> None:
        self.channel: Channel | None = channel
        self.poll = select.poll()
        self.poll.register(channel.fileno(), select.POLLIN)
        self.pipes: dict[int, tuple[int, _Log]] = {}  # pipe → (stream, log)
        self.logs: dict[str, _Log] = {}  # by folder
        self.ended = False
        self.wake, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.poll.register(self.wake, select.POLLIN)
        _signal.set_wakeup_fd(end)
        _signal.signal(_signal.SIGTERM, self._leave)

    def _leave(self, *_: object) -> None:
        self.ended = True

    def run(self) -> None:
        """Write down until told to end, or until nobody is left: no keeper and no container."""
        while not self.ended and (self.channel is not None or self.pipes):
            for fd, _ in self.poll.poll():
                if self.ended:
                    break
                if self.channel is not None and fd == self.channel.fileno():
                    self._hear()
                elif fd in self.pipes:
                    self._drain(fd)
        for fd in list(self.pipes):  # the last words of those that have ended, before another one takes over
            self._drain(fd)

    def _hear(self) -> None:
        assert self.channel is not None
        message, fds = self.channel.receive()
        if message is None:  # the keeper has ended
            self.poll.unregister(self.channel.fileno())
            self.channel.close()
            self.channel = None
        elif "folder" in message:
            self._add(message, fds)
        else:
            for fd in list(self.pipes):
                self._drain(fd)
            self.channel.send({"flushed": True})

    def _add(self, message: dict[str, Any], fds: list[int]) -> None:
        folder = message["folder"]
        try:
            log = self.logs.get(folder)
            if log is None:
                log = self.logs[folder] = _Log(folder, message["max_size"], message["max_files"])
            for stream, fd in zip(message["streams"], fds):  # noqa: B905 - Python 3.9 has no `strict`
                pipe = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self.pipes[pipe] = (stream, log)
                log.pipes += 1
                self.poll.register(pipe, select.POLLIN)
        except OSError as error:
            say(f"the log {folder} can't be written: {error}")
        finally:
            for fd in fds:
                os.close(fd)

    def _drain(self, pipe: int) -> None:
        """Write down what there is in a pipe; one whose last writer has gone is closed."""
        stream, log = self.pipes[pipe]
        left = _TURN
        while left > 0:
            count = _waiting(pipe)
            if not count:
                if _hung_up(pipe) and not _waiting(pipe):
                    self._close(pipe, log)
                return
            try:
                left -= _move(log, stream, pipe, min(count, _MOST))
            except BlockingIOError:
                return
            except OSError as error:
                _trouble(log, pipe, error)
                return

    def _close(self, pipe: int, log: _Log) -> None:
        self.poll.unregister(pipe)
        del self.pipes[pipe]
        os.close(pipe)
        log.pipes -= 1
        if not log.pipes:
            log.close()
            self.logs.pop(log.folder, None)


def _trouble(log: _Log, pipe: int, error: OSError) -> None:
    """Rather a gap that is told than a container that stands still."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        say(f"the log {log.folder} can't be written: {error}")
        log.lost += _drop(pipe)
    elif not logbook.shed(log.folder):
        log.lost += _drop(pipe)
        time.sleep(_FULL_SECONDS)


def _move(log: _Log, stream: int, pipe: int, count: int) -> int:
    """From the pipe into the log: how many bytes.  Raises OSError."""
    writer = log.writer
    if log.lost:
        text = f"{log.lost} bytes are missing here: they could not be written\n"
        writer.add(logbook.NOTE, time.time_ns(), text.encode())
        log.lost = 0
    now = time.time_ns()
    if hasattr(os, "splice"):  # from Python 3.10 on
        try:
            return writer.take(stream, now, pipe, count)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without splice(2)
                raise
    data = os.read(pipe, count)
    writer.add(stream, now, data)
    return len(data)


def _waiting(pipe: int) -> int:
    buffer = fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0")
    (count,) = struct.unpack("i", buffer)
    return int(count)


def _hung_up(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _drop(pipe: int) -> int:
    try:
        return len(os.read(pipe, 1 << 20))
    except BlockingIOError:
        return 0


def say(text: str) -> None:
    """Into the keeper's own log."""
    os.write(2, f"collector: {text}\n".encode())


def start(root: str) -> tuple[int, Channel]:
    """Fork a collector from the keeper of `root`: (pid, our end).  A former one makes way first."""
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        held = (
            theirs.fileno()
        )  # nothing else of the keeper's: its lock, its clients and its pipes are its own
        os.closerange(3, held)
        os.closerange(held + 1, os.sysconf("SC_OPEN_MAX"))
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        collector = Collector(theirs)
        lock = _take_place(root)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {proc.start_ticks(os.getpid())}".encode(), 0)
        collector.run()
        code = 0
    except Exception as error:  # noqa: BLE001 - a forked child must end here, whatever it was
        say(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _take_place(root: str) -> int:
    """The lock of those who write the logs of `root`; who has it is told to make way.

    Raises TimeoutError, OSError.
    """
    lock = os.open(f"{root}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            pass
        if time.monotonic() > end:
            raise TimeoutError("another collector does not make way")
        fd = _process(os.pread(lock, 64, 0))
        if fd >= 0:
            pidfds.send(fd, 15)
            pidfds.ended(fd, 0.2)
            os.close(fd)
        else:
            time.sleep(0.002)


def open_process(root: str) -> int:
    """A pidfd of the collector of `root`, -1 when there is none."""
    return _process((proc.read(f"{root}/{LOCK}") or "").encode())


def _process(note: bytes) -> int:
    words = note.split()
    return pidfds.open_pid(int(words[0]), int(words[1])) if len(words) == 2 else -1
