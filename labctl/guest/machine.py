"""What can be done with a node, as small protocols: a machine has one or it hasn't.

No method raises "not supported": who wants a console asks `isinstance(machine, HasConsole)`.
Exit codes are a shell's (POSIX XCU 2.8.2): the command's own, 127 when it was not found, 126 when it
could not be executed, 128 + n when signal n ended it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Literal, Protocol, runtime_checkable

from labctl.errors import UsageError
from labctl.records import dataclass

Source = IO[bytes] | int | None
"""Where input comes from: a binary file, a descriptor, or None for no input at all."""

Sink = IO[bytes] | int | None
"""Where output goes: a binary file, a descriptor, or None to drop it."""

Stream = Literal["stdout", "stderr"]
NOT_FOUND = 127
NOT_EXECUTABLE = 126
LAST_LINES = 5  # of a log, in which the last words are looked for
_LAST_WORDS = 200  # characters


@dataclass(frozen=True)
class Completed:
    """A command that ended, and everything it said."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        """The standard output as text; bytes that are no UTF-8 become U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def errors(self) -> str:
        """The standard error as text."""
        return self.stderr.decode("utf-8", "replace")


@dataclass(frozen=True)
class Copied:
    """What a copy did: `skipped` are the entries that can't travel (sockets; devices onto the host).

    All is 0 where a tar archive went straight through.
    """

    entries: int = 0
    size: int = 0  # bytes in regular files
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogChunk:
    """A piece of a log: the bytes as they were written, no line is cut.

    `at` is when they (of a line: its first byte) arrived, in nanoseconds since the epoch; 0: not known.
    """

    stream: Stream
    data: bytes
    at: int = 0
    note: bool = False  # what the log itself has to say, such as that something is missing


@dataclass(frozen=True)
class Stats:
    """What a node uses now.  None means that the tier can't say."""

    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu_seconds: float | None = None
    pids: int | None = None
    oom_kills: int | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None


@dataclass(frozen=True)
class Process:
    """A process as its node numbers it.  `host_pid` is this host's number, 0 where it has none."""

    pid: int
    ppid: int
    uid: int
    state: str  # a letter of proc(5): R S D Z T I
    threads: int
    memory_bytes: int  # resident
    cpu_seconds: float
    command: str
    kernel: bool = False  # a task of the kernel itself
    host_pid: int = 0


@runtime_checkable
class Executes(Protocol):
    """A node that runs commands."""

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: Source = None,
        stdout: Sink = None,
        stderr: Sink = None,
        tty: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
    ) -> int:
        """Run argv, word for word, and give its exit code.

        `tty` gives it a terminal (stdin then is one here, and goes raw meanwhile); `env` adds to the node's
        own variables; `user` is user, user:group or numbers.  Raises TimedOut after `timeout` seconds
        (the command is killed), LabError when the node can't be reached.
        """

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
    ) -> Completed:
        """The same, with everything it says kept in memory."""


@runtime_checkable
class Copies(Protocol):
    """A node that files go into and come out of, by `docker cp`'s rules for what lands where.

    Modes, numeric owners (where we may set them), times and links are kept.  `SRC/.` means the content
    of the folder SRC; `-` is a tar archive on `stream`.
    """

    def copy_in(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """Copy a file or folder of the host into the node.  Raises UsageError for paths that don't fit."""

    def copy_out(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """Copy a file or folder of the node to the host.  Nothing is ever written through a link."""


@runtime_checkable
class HasConsole(Protocol):
    """A node with a console to sit at."""

    def console(self, stdin: int, stdout: int) -> None:
        """Join two descriptors to the console until one side ends or Ctrl-] is typed."""


@runtime_checkable
class HasLogs(Protocol):
    """A node whose command's output is kept."""

    def logs(
        self, stream: Stream | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogChunk]:
        """What the node's command wrote: one stream or both; its last `tail` lines; then what comes."""


@runtime_checkable
class HasTimedLogs(HasLogs, Protocol):
    """A node whose log says when each line came."""

    def timed_logs(
        self,
        stream: Stream | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: int = 0,
        until: int = 0,
    ) -> Iterator[LogChunk]:
        """The same from `since` to `until` (nanoseconds since the epoch, 0: no bound), and with its times."""


@runtime_checkable
class Measures(Protocol):
    """A node whose use of the host is known."""

    def stats(self) -> Stats:
        """What it uses now."""


@runtime_checkable
class Lists(Protocol):
    """A node whose processes can be listed, whatever its image has."""

    def processes(self, timeout: float = 30.0) -> list[Process]:
        """All its processes by their numbers.  Raises LabError, TimedOut."""


@runtime_checkable
class Pauses(Protocol):
    """A node that can be frozen and thawed."""

    def pause(self) -> None:
        """Freeze it; paused already is fine."""

    def resume(self) -> None:
        """Let it go on; running already is fine."""


class Machine(Executes, Copies, Protocol):
    """What every tier gives: commands and files."""


def check_command(argv: Sequence[str], env: Mapping[str, str] | None, cwd: str, user: str) -> None:
    """Raise UsageError for what no tier can run: no command, or a NUL in its words (execve(2))."""
    if not argv:
        raise UsageError("no command given")
    if any("\0" in word for word in (*argv, cwd, user, *(env or {}), *(env or {}).values())):
        raise UsageError("a command can't hold a NUL character")


def how_it_ended(code: int | None, log: Iterable[LogChunk]) -> str:
    """A sentence about a container whose command has ended, from its exit code and the end of its log."""
    text = b"".join(chunk.data for chunk in log).decode("utf-8", "replace")
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    said = f": {last[0][:_LAST_WORDS]}" if last else ""
    return f"its command ended{'' if code is None else f' with {code}'}{said}"
