"""A container on this host: commands by joining its namespaces, files through them, its logs, its cgroup."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from labctl.errors import LabError, TimedOut
from labctl.guest import copying
from labctl.guest.machine import (
    LAST_LINES,
    Completed,
    Copied,
    LogChunk,
    Process,
    Sink,
    Source,
    Stats,
    Stream,
    check_command,
    how_it_ended,
)
from labctl.guest.pipes import collect, standard_streams
from labctl.records import dataclass
from labctl.runtime.logbook import GrowingFile

if TYPE_CHECKING:
    from labctl.runtime import logread

_LOOK_SECONDS = 30.0
_POLL_SECONDS = 0.1
_TREES = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from labctl.guest.trees import main; sys.exit(main(sys.argv[2:]))"
)
# The log files' names in a container's configuration (labctl.runtime.spec).
_LOG_KEYS: dict[Stream, str] = {"stdout": "org.labctl.log.stdout", "stderr": "org.labctl.log.stderr"}


def stats_of(found: Mapping[str, int | None]) -> Stats:
    """The runtime's figures of a container (labctl.runtime.client.ContainerStats) as a machine's."""
    cpu = found.get("cpu_ns")
    return Stats(
        memory_bytes=found.get("memory_bytes"),
        memory_limit_bytes=found.get("memory_limit_bytes"),
        cpu_seconds=None if cpu is None else cpu / 1e9,
        pids=found.get("pids"),
        oom_kills=found.get("oom_kills"),
        net_received_bytes=found.get("net_received_bytes"),
        net_sent_bytes=found.get("net_sent_bytes"),
        block_read_bytes=found.get("block_read_bytes"),
        block_written_bytes=found.get("block_written_bytes"),
    )


@dataclass(frozen=True)
class _Name:
    """What names a container to the runtime."""

    id: str
    root: str


class ContainerMachine:
    """A container of a lab.  Has the shape of Executes, Copies, HasLogs, Measures and Pauses.

    `run_root` is the folder of the lab's keeper, `id` the container's name there, `node` the messages' name.
    """

    def __init__(self, run_root: Path, id: str, node: str = "") -> None:
        from labctl.runtime.client import KeeperClient

        self.id = id
        self.node = node or id
        self._client = KeeperClient(run_root)

    @property
    def pid(self) -> int:
        """The first process, as the host numbers it.  Raises LabError when it doesn't run."""
        from labctl.runtime.client import state_of
        from labctl.runtime.errors import ContainerError

        try:
            found = state_of(self._client.root, self.id, self._client.layout)
        except (ContainerError, OSError) as error:
            raise self._error(error) from error
        if not found.pid:
            raise LabError(f"{self.node} is {found.status}", hint=f"labctl start {self.node}")
        return found.pid

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
        """See `Executes.exec`."""
        from labctl.runtime.errors import ContainerError
        from labctl.runtime.execute import exec_in

        check_command(argv, env, cwd, user)
        variables = dict(env or {})
        if tty:
            variables.setdefault("TERM", os.environ.get("TERM", "xterm"))
        with standard_streams(stdin, stdout, stderr) as (inp, out, err):
            try:
                return exec_in(
                    _Name(self.id, self._client.root),
                    argv,
                    env=variables or None,
                    cwd=cwd or None,
                    user=user or None,
                    tty=tty,
                    stdin=inp,
                    stdout=out,
                    stderr=err,
                    timeout=timeout,
                )
            except TimeoutError as error:
                raise TimedOut(f"the command in {self.node} did not end within {timeout:g} s") from error
            except (ContainerError, OSError) as error:
                raise self._error(error) from error

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
        """See `Executes.run`."""
        return collect(self.exec, argv, input, env=env, cwd=cwd, user=user, timeout=timeout)

    def leaves_root(self) -> bool:
        """Whether a process of its root gets out of its / by chroot(2), tried without touching any file.

        Raises LabError when it can't be tried.
        """
        from labctl.runtime.errors import ContainerError
        from labctl.runtime.wayout import leaves_root

        try:
            return leaves_root(self._client.root, self.id)
        except (ContainerError, OSError) as error:
            raise self._error(error) from error

    def copy_in(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_in`."""
        return copying.copy_in(ProcessTree(self), src, dest, stream, self.node)

    def copy_out(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_out`."""
        return copying.copy_out(ProcessTree(self), src, dest, stream, self.node)

    def logs(
        self, stream: Stream | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogChunk]:
        """See `HasLogs.logs`; following ends when the container has ended."""
        return self.timed_logs(stream, follow=follow, tail=tail)

    def timed_logs(
        self,
        stream: Stream | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: int = 0,
        until: int = 0,
    ) -> Iterator[LogChunk]:
        """See `HasTimedLogs.timed_logs`."""
        from labctl.runtime.errors import ContainerError

        notes = self._config().get("annotations") or {}
        path = notes.get(_LOG_KEYS["stdout"]) or notes.get(_LOG_KEYS["stderr"])
        if not path:
            return
        wanted = log_wanted(stream, tail, since, until)
        try:
            self._client.flush(start=self._runs())
            yield from logged(str(Path(path).parent), wanted, self._said_all, follow=follow)
        except ContainerError as error:
            raise self._error(error) from error

    def _said_all(self) -> bool:
        """Whether it has ended, with its last words in the log."""
        if self._runs():
            return False
        self._client.flush()
        return True

    def ended(self) -> str:
        """ "" while its command runs, else how that ended and what it printed last."""
        from labctl.runtime.client import state_of
        from labctl.runtime.errors import ContainerError

        try:
            found = state_of(self._client.root, self.id, self._client.layout)
            code = found.exit_code
            if found.status == "stopped" and code is None:  # only the keeper knows, and says so when asked
                code = self._client.states()[self.id].exit_code
        except (ContainerError, OSError, KeyError):
            return ""  # it can't be asked now: no reason to say that it has ended
        return how_it_ended(code, self.logs(tail=LAST_LINES)) if found.status == "stopped" else ""

    def stats(self) -> Stats:
        """See `Measures.stats`: the figures of its control group."""
        found = self._client.stats([self.id]).get(self.id)
        if found is None:
            raise LabError(f"there is no container {self.node}")
        return stats_of(vars(found))

    def processes(self, timeout: float = 30.0) -> list[Process]:
        """See `Lists.processes`: read from outside, so that an image without a shell can be asked too."""
        from labctl.guest.processes import processes_of
        from labctl.runtime.errors import ContainerError

        try:
            return [processes_of(row) for row in self._client.processes(self.id)]
        except (ContainerError, OSError) as error:
            raise self._error(error) from error

    def exit_code(self) -> int | None:
        """How its command ended; None while it runs, and where nobody knows."""
        found = self._client.states().get(self.id)
        return found.exit_code if found else None

    def stop(self, timeout: float) -> None:
        """Ask its command to end, and kill all of it after `timeout` seconds; its files are kept."""
        self._raise(self._client.stop([self.id], timeout=timeout))

    def pause(self) -> None:
        """See `Pauses.pause`."""
        self._raise(self._client.pause([self.id]))

    def resume(self) -> None:
        """See `Pauses.resume`."""
        self._raise(self._client.resume([self.id]))

    def _raise(self, errors: Mapping[str, str]) -> None:
        if text := errors.get(self.id):
            raise LabError(f"{self.node}: {text}")

    def _error(self, error: Exception) -> LabError:
        return LabError(f"{self.node}: {error}", hint=f"labctl status, or labctl start {self.node}")

    def _config(self) -> dict[str, dict[str, str]]:
        from labctl.runtime.errors import ContainerError

        try:
            return self._client.store.config(self.id)
        except (ContainerError, OSError) as error:
            raise self._error(error) from error

    def _runs(self) -> bool:
        from labctl.runtime.client import state_of
        from labctl.runtime.errors import NotFoundError

        try:
            return state_of(self._client.root, self.id, self._client.layout).status != "stopped"
        except NotFoundError:
            return False

    @contextmanager
    def pidfd(self) -> Iterator[int]:
        """The first process, held so that its number can't come to mean another.  Raises LabError."""
        from labctl.runtime import actions
        from labctl.runtime.errors import ContainerError

        try:
            fd = actions.open_process(self._client.store.read(self.id))
        except (ContainerError, OSError) as error:
            raise self._error(error) from error
        if fd < 0:
            raise LabError(f"{self.node} does not run", hint=f"labctl start {self.node}")
        try:
            yield fd
        finally:
            os.close(fd)


class HasProcess(Protocol):
    """A node whose first process this host's kernel runs."""

    @property
    def node(self) -> str:
        """What messages call it."""

    def pidfd(self) -> AbstractContextManager[int]:
        """The first process, held so that its number can't come to mean another.  Raises LabError."""


class ProcessTree:
    """The file tree of a container as its first process sees it (labctl.guest.trees)."""

    def __init__(self, machine: HasProcess) -> None:
        self._machine = machine

    def look(self, path: str) -> tuple[str, str]:
        out = io.BytesIO()
        self._run(["look", path], None, out, _LOOK_SECONDS)
        kind, real = json.loads(out.getvalue())
        return str(kind), str(real)

    def pack(self, out: IO[bytes], directory: str, name: str) -> None:
        self._run(["pack", directory, name], None, out, None)

    def unpack(self, stream: IO[bytes], directory: str) -> None:
        self._run(["unpack", directory], stream, None, None)

    def _run(self, words: list[str], stdin: Source, stdout: Sink, timeout: float | None) -> None:
        base = str(Path(__file__).resolve().parents[2])
        errors = io.BytesIO()
        with (
            self._machine.pidfd() as fd,
            standard_streams(stdin, stdout, errors) as (inp, out, err),
        ):
            argv = [sys.executable, "-I", "-S", "-c", _TREES, base, str(-fd), *words]
            try:
                done = subprocess.run(
                    argv,
                    stdin=inp,
                    stdout=out,
                    stderr=err,
                    pass_fds=(fd,),
                    cwd="/",
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise TimedOut(f"{self._machine.node}: no answer within {timeout:g} s") from error
        if done.returncode:
            said = errors.getvalue().decode("utf-8", "replace").strip().splitlines()
            raise LabError(f"{self._machine.node}: {said[-1] if said else 'the copy was killed'}")


def log_wanted(stream: Stream | None, tail: int | None, since: int = 0, until: int = 0) -> logread.Wanted:
    """What of a log is to be read; times in nanoseconds since the epoch, 0: no bound."""
    from labctl.runtime import logbook, logread

    streams = logbook.STREAMS[stream] if stream else logbook.OUT | logbook.ERR
    return logread.Wanted(streams, tail, since, until)


def logged(
    folder: str, wanted: logread.Wanted, ended: Callable[[], bool], *, follow: bool
) -> Iterator[LogChunk]:
    """What a container's log holds; with `follow` on until it has `ended`.  Raises LabError."""
    from labctl.runtime import logbook, logread

    names: dict[int, Stream] = {logbook.OUT: "stdout", logbook.ERR: "stderr"}
    try:
        for number, at, data in logread.read(folder, wanted, follow=follow, ended=ended, pause=_POLL_SECONDS):
            yield LogChunk(names.get(number, "stderr"), data, at, number == logbook.NOTE)
    except OSError as error:
        raise LabError(f"cannot read {error.filename or folder}: {error.strerror}") from error


def chunks(
    files: Mapping[Stream, GrowingFile | K8sLog], runs: Callable[[], bool], *, follow: bool, tail: int | None
) -> Iterator[LogChunk]:
    """What log files hold (the last `tail` lines of each); with `follow` on until the node doesn't run.

    Raises LabError for a file that can't be read.
    """
    try:
        for name, file in files.items():
            for data in file.start(tail):
                yield LogChunk(name, data)
        while follow:
            ended = not runs()  # asked before reading, so that its last words are not missed
            for name, file in files.items():
                for data in file.more():
                    yield LogChunk(name, data)
            if ended:
                return
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise LabError(f"cannot read {error.filename or 'its log'}: {error.strerror}") from error


class K8sLog:
    """One stream of a log whose lines begin with time, stream and F, or P where the line goes on.

    That is the form of the Kubernetes container runtime interface, which podman and others write.
    """

    def __init__(self, path: Path, stream: Stream) -> None:
        self._file = GrowingFile(str(path))
        self._stream = stream.encode()
        self._rest = b""

    def start(self, tail: int | None) -> Iterator[bytes]:
        """What is there, or its last `tail` lines."""
        text = b"".join(self._rows(self._file.start(None)))
        lines = text.splitlines(keepends=True)
        found = b"".join(lines if tail is None else lines[len(lines) - tail :] if tail > 0 else [])
        if found:
            yield found

    def more(self) -> Iterator[bytes]:
        """What has come since.  Raises OSError."""
        yield from self._rows(self._file.more())

    def _rows(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                _, stream, kind, text = [*line.split(b" ", 3), b"", b"", b""][:4]
                if stream == self._stream:
                    yield text + (b"\n" if kind == b"F" else b"")
