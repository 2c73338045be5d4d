"""A container that another engine runs: commands through the engine's own tool, the rest as for ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from labctl.engines import calls
from labctl.engines.model import Box, Command, Engine
from labctl.errors import LabError, TimedOut
from labctl.guest import copying
from labctl.guest.container import K8sLog, ProcessTree, chunks
from labctl.guest.machine import (
    LAST_LINES,
    NOT_EXECUTABLE,
    NOT_FOUND,
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
from labctl.guest.processes import processes_of
from labctl.linux import limits, pidfds, proctable, traffic
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import actions, signals
from labctl.runtime.logbook import GrowingFile

_KILL_SECONDS = 10.0
_REFUSED = (  # runc's words and crun's
    "permission denied",
    "open executable: operation not permitted",
    "exec format error",
    "is a directory",
)
_ABSENT = ("executable file not found", "no such file or directory", "not found in $path")


class EngineMachine:
    """A container of another engine.  Has the shape of Executes, Copies, HasLogs, Measures and Pauses.

    `stop_signal` asks its first process to end; `node` is what messages call it.
    """

    def __init__(self, engine: Engine, box: Box, node: str = "", stop_signal: str = "") -> None:
        self.engine = engine
        self.box = box
        self.node = node or box.id
        self._stop_signal = stop_signal or "SIGTERM"

    @property
    def pid(self) -> int:
        """The first process, as the host numbers it.  Raises LabError when it doesn't run."""
        found = self.engine.state(self.box)
        if found is None or not found.pid or found.status == "stopped":
            raise LabError(
                f"{self.node} is {found.status if found else 'gone'}", hint=f"labctl start {self.node}"
            )
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
        check_command(argv, env, cwd, user)
        variables = dict(env or {})
        if tty:
            variables.setdefault("TERM", os.environ.get("TERM", "xterm"))
        try:
            command = self.engine.command(self.box, argv, env=variables, cwd=cwd, user=user, tty=tty)
        except LabError as error:
            hint = error.hint or f"labctl status, or labctl start {self.node}"
            raise LabError(f"{self.node}: {error.message}", hint=hint) from error
        try:
            with standard_streams(stdin, stdout, stderr) as (inp, out, err):
                return self._run(command, inp, out, err, timeout)
        finally:
            shutil.rmtree(command.folder, ignore_errors=True)

    def _run(self, command: Command, inp: int, out: int, err: int, timeout: float | None) -> int:
        try:
            running = subprocess.Popen(command.argv, stdin=inp, stdout=out, stderr=err, cwd="/")
        except OSError as error:
            raise LabError(f"{command.argv[0]} can't be run: {error.strerror}") from error
        try:
            code = running.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self._kill(command, running)
            raise TimedOut(f"the command in {self.node} did not end within {timeout:g} s") from error
        finally:
            if running.poll() is None:
                running.kill()
                running.wait(_KILL_SECONDS)
        if code and (failure := calls.logged(command.errors)):
            return self._refused(failure)
        return code if code >= 0 else 128 - code

    def _kill(self, command: Command, tool: subprocess.Popen[bytes]) -> None:
        """End what runs in the container: the engine's tool would leave it behind.

        It may only just be starting it: that is waited for.
        """
        ends = time.monotonic() + _KILL_SECONDS
        while not (number := self.engine.running(self.box, command)):
            if tool.poll() is not None or time.monotonic() > ends:
                return
            time.sleep(0.02)
        try:
            fd = os.pidfd_open(number)
        except OSError:
            return  # ended just now
        pidfds.send(fd, 9)
        pidfds.ended(fd, _KILL_SECONDS)
        os.close(fd)

    def _refused(self, failure: str) -> int:
        """The exit code of a command that the engine could not run, as a shell has it.  Raises LabError."""
        text = failure.lower()
        if any(words in text for words in _REFUSED):
            return NOT_EXECUTABLE
        if any(words in text for words in _ABSENT):
            return NOT_FOUND
        raise LabError(f"{self.node}: {self.engine.name}: {failure}")

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
        wanted: tuple[Stream, ...] = (stream,) if stream else ("stdout", "stderr")
        files: dict[Stream, GrowingFile | K8sLog]
        if self.engine.log_format == "k8s":
            files = {name: K8sLog(self.box.log["podman"], name) for name in wanted}
        else:
            files = {name: GrowingFile(str(self.box.log[name])) for name in wanted}
        yield from chunks(files, self._runs, follow=follow, tail=tail)

    def _runs(self) -> bool:
        found = self.engine.state(self.box)
        return found is not None and found.status != "stopped"

    def stats(self) -> Stats:
        """See `Measures.stats`: the figures of its control group."""
        group = self._group()
        found = limits.stats(group)
        if not found:
            raise LabError(f"{self.node} does not run", hint=f"labctl start {self.node}")
        cpu = found.get("cpu_ns")
        net, blocks = traffic.network(self.pid), traffic.blocks(group, group.procs())
        return Stats(
            memory_bytes=found.get("memory"),
            memory_limit_bytes=found.get("memory_limit"),
            cpu_seconds=None if cpu is None else cpu / 1e9,
            pids=found.get("pids"),
            oom_kills=found.get("oom_kills"),
            net_received_bytes=net[0] if net else None,
            net_sent_bytes=net[1] if net else None,
            block_read_bytes=blocks[0] if blocks else None,
            block_written_bytes=blocks[1] if blocks else None,
        )

    def _group(self) -> Cgroup:
        return Cgroup(self.engine.group(self.box), Layout.detect())

    def status(self) -> str:
        """created, running, paused or stopped; absent when there is none."""
        found = self.engine.state(self.box)
        return found.status if found else "absent"

    def processes(self, timeout: float = 30.0) -> list[Process]:
        """See `Lists.processes`."""
        return [processes_of(row) for row in proctable.of_container(self._group().procs(), self.pid)]

    def ended(self) -> str:
        """ "" while its command runs, else how it ended, as far as its engine knows."""
        found = self.engine.state(self.box)
        if found and found.status != "stopped":
            return ""
        if found and found.exit_code is not None:
            return how_it_ended(found.exit_code, self.logs(tail=LAST_LINES))
        return f"its command ended; {self.engine.name} keeps no exit code"

    def exit_code(self) -> int | None:
        """How its command ended; None while it runs, and where its engine keeps no exit code."""
        found = self.engine.state(self.box)
        return found.exit_code if found else None

    def stop(self, timeout: float) -> None:
        """Ask its command to end, and kill it after `timeout` seconds; its files are kept."""
        if not self._runs():
            return
        self.engine.freeze(self.box, False)
        number = signals.parse(self._stop_signal)
        with self.pidfd() as fd:
            if timeout > 0 and actions.heeds(self.pid, number):
                self.engine.signal(self.box, number)
                pidfds.ended(fd, timeout)
            if not pidfds.ended(fd):
                self.engine.signal(self.box, 9)
            if not pidfds.ended(fd, _KILL_SECONDS):
                raise TimedOut(f"{self.node} is still there {_KILL_SECONDS:g} s after SIGKILL")

    def pause(self) -> None:
        """See `Pauses.pause`."""
        self.engine.freeze(self.box, True)

    def resume(self) -> None:
        """See `Pauses.resume`."""
        self.engine.freeze(self.box, False)

    @contextmanager
    def pidfd(self) -> Iterator[int]:
        """The first process, held so that its number can't come to mean another.  Raises LabError."""
        pid = self.pid
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            raise LabError(f"{self.node} does not run", hint=f"labctl start {self.node}") from error
        try:
            yield fd
        finally:
            os.close(fd)
