"""A container inside a virtual machine of the lab, as a machine: all through the VM's SSH connection.

What the container is now is asked in the VM, where `labctl.guest.inside_driver` runs next to the runtime.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn

from labctl.errors import LabError
from labctl.guest import copying
from labctl.guest.container import stats_of
from labctl.guest.inside_driver import NO_CONTAINER, REASON
from labctl.guest.inside_link import Link
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
    how_it_ended,
)
from labctl.guest.pipes import collect, write_all
from labctl.guest.ssh import SshMachine
from labctl.runtime import logbook

_COPY_SECONDS = 3600.0
_STREAMS: dict[int, Stream] = {logbook.OUT: "stdout", logbook.ERR: "stderr"}


class InsideMachine:
    """Commands, files, logs, figures and pauses of a container inside the VM behind `ssh`.

    `name` is what messages call it.
    """

    def __init__(self, ssh: SshMachine, container_id: str, name: str = "") -> None:
        self.link = Link(ssh)
        self.container = container_id
        self.name = name or container_id

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
        request = {
            "id": self.container,
            "argv": list(argv),
            "env": dict(env or {}),
            "cwd": cwd or None,
            "user": user or None,
            "tty": tty,
            # Ours comes first, so that the error is ours; the command is ended in any case.
            "timeout": None if timeout is None else timeout + 1.0,
        }
        return self._streamed("exec", request, stdin, stdout, stderr, tty=tty, timeout=timeout)

    def _streamed(
        self,
        operation: str,
        request: dict[str, Any],
        stdin: Source,
        stdout: Sink,
        stderr: Sink,
        *,
        tty: bool = False,
        timeout: float | None = None,
    ) -> int:
        # With a terminal all output is on one stream.
        held = _Held(stdout if tty else stderr)
        code = self.link.ssh.exec(
            self.link.words(operation, json.dumps(request)),
            stdin=stdin,
            stdout=held if tty else stdout,  # type: ignore[arg-type]
            stderr=None if tty else held,  # type: ignore[arg-type]
            tty=tty,
            user="0",
            cwd="/",
            timeout=timeout,
        )
        held.settle()
        if code == NO_CONTAINER and held.reason:
            self._fail(held.reason)
        return code

    def _fail(self, reason: str) -> NoReturn:
        where = f"container {self.name} in {self.link.where}"
        if reason == "is paused":
            raise LabError(f"{where} is paused", hint=f"labctl resume {self.name}")
        if reason == "is stopped":
            raise LabError(
                f"{where} is not running: its command ended",
                hint=f"labctl logs {self.name} tells why; labctl start {self.name} runs it again",
            )
        if "does not exist" in reason:
            raise LabError(f"{where} does not exist", hint="labctl up")
        raise LabError(f"{where}: {reason}")

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
        return copying.copy_in(_Tree(self), src, dest, stream, self.name)

    def copy_out(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_out`."""
        return copying.copy_out(_Tree(self), src, dest, stream, self.name)

    def logs(
        self, stream: Stream | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogChunk]:
        """See `HasLogs.logs`.  Following ends with the container."""
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
        """See `HasTimedLogs.timed_logs`; times are those of the VM's clock."""
        request = {
            "id": self.container,
            "streams": [stream] if stream else ["stdout", "stderr"],
            "follow": follow,
            "tail": tail,
            "since": since,
            "until": until,
        }
        read, write = os.pipe2(os.O_CLOEXEC)
        failed: list[LabError] = []

        def fetch() -> None:
            try:
                self._streamed("logs", request, None, write, None)
            except LabError as error:
                failed.append(error)
            finally:
                os.close(write)

        thread = threading.Thread(target=fetch, name="inside-logs", daemon=True)
        thread.start()
        with open(read, "rb") as frames:  # noqa: PTH123
            while len(head := frames.read(logbook.HEAD.size)) == logbook.HEAD.size:
                at, length, number = logbook.HEAD.unpack(head)
                yield LogChunk(
                    _STREAMS.get(number, "stderr"), frames.read(length), at, number == logbook.NOTE
                )
        thread.join(5.0)
        if failed:
            raise failed[0]

    def ended(self) -> str:
        """ "" while its command runs, else how that ended and what it printed last.  Raises LabError."""
        found = self.link.call("keep", {"operation": "states"}).get(self.container)
        if found is None or found["status"] != "stopped":
            return ""
        return how_it_ended(found["exit_code"], self.logs(tail=LAST_LINES))

    def stats(self) -> Stats:
        """See `Measures.stats`."""
        found = self._keep("stats").get(self.container)
        if found is None:
            raise LabError(f"container {self.name} does not exist", hint="labctl up")
        return stats_of(found)

    def processes(self, timeout: float = 30.0) -> list[Process]:
        """See `Lists.processes`: read by the machine that it is inside of."""
        from labctl.guest.processes import processes_of

        answer = self.link.call("processes", {"id": self.container}, timeout)
        return [processes_of(row) for row in answer.get("processes", ())]

    def exit_code(self) -> int | None:
        """How its command ended; None while it runs, and where nobody knows."""
        found = self.link.call("keep", {"operation": "states"}).get(self.container)
        code: int | None = found["exit_code"] if found else None
        return code

    def stop(self, timeout: float) -> None:
        """Ask its command to end, and kill all of it after `timeout` seconds; its files are kept."""
        self._told(self._keep("stop", timeout=timeout))

    def pause(self) -> None:
        """See `Pauses.pause`."""
        self._told(self._keep("pause"))

    def resume(self) -> None:
        """See `Pauses.resume`."""
        self._told(self._keep("resume"))

    def _keep(self, operation: str, **more: float) -> dict[str, Any]:
        request = {"operation": operation, "ids": [self.container], **more}
        answer: dict[str, Any] = self.link.call("keep", request, 60.0 + more.get("timeout", 0.0))
        return answer

    def _told(self, errors: Mapping[str, str]) -> None:
        if text := errors.get(self.container):
            self._fail(text)


class _Held(io.RawIOBase):
    """A file that keeps back what begins with the driver's own word, and passes on all else."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._begin: bytearray | None = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        if self._begin is None:
            write_all(self._sink, block)
            return len(block)
        self._begin += block
        word = REASON.encode()
        if not (self._begin.startswith(word) or word.startswith(self._begin)):
            self._pass_on()
        return len(block)

    def _pass_on(self) -> None:
        held, self._begin = bytes(self._begin or b""), None
        write_all(self._sink, held)

    def settle(self) -> None:
        """Pass on what turned out not to be the driver's."""
        if self._begin is not None and not self.reason:
            self._pass_on()

    @property
    def reason(self) -> str:
        """What the driver said, "" for nothing."""
        text = bytes(self._begin or b"").decode("utf-8", "replace")
        return text[len(REASON) :].strip() if text.startswith(REASON) else ""


class _Tree:
    """The container's files, by a process of the VM that is inside when it opens a path."""

    def __init__(self, machine: InsideMachine) -> None:
        self._machine = machine

    def look(self, path: str) -> tuple[str, str]:
        out = io.BytesIO()
        self._call(["look", path], None, out)
        kind, real = json.loads(out.getvalue())
        return str(kind), str(real)

    def pack(self, out: IO[bytes], directory: str, name: str) -> None:
        self._call(["pack", directory, name], None, out)

    def unpack(self, stream: IO[bytes], directory: str) -> None:
        self._call(["unpack", directory], stream, None)

    def _call(self, words: list[str], source: IO[bytes] | None, sink: IO[bytes] | None) -> None:
        errors = io.BytesIO()
        request = {"id": self._machine.container, "words": words}
        code = self._machine._streamed("tree", request, source, sink, errors, timeout=_COPY_SECONDS)
        if code:
            said = errors.getvalue().decode("utf-8", "replace").strip().splitlines()
            raise LabError(
                f"cannot {words[0]} {words[1]} in {self._machine.name}: {said[-1] if said else code}"
            )
