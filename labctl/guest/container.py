"""A container on this host as a machine: commands by joining its namespaces, files through its own root.

Every file operation enters the container first (labctl.guest.trees), so that no link of its can lead to
the host.
"""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from labctl.errors import LabError, TimedOut
from labctl.guest import copying, pipes
from labctl.guest.machine import Completed, Copied, LogChunk, Sink, Source, Stats, Stream
from labctl.runtime.client import ContainerState, KeeperClient
from labctl.runtime.errors import ContainerError

_BLOCK = 1 << 16
_POLL_SECONDS = 0.1
_TREE_SECONDS = 3600.0  # a copy is as long as its data; what hangs is ended with labctl
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    " from labctl.guest.trees import main; sys.exit(main(sys.argv[1:]))"
)


class ContainerMachine:
    """Commands, files, logs, figures and pauses of one container of a lab.

    `root` is the lab's keeper folder, `container` the id in it, `name` what messages call it.
    """

    def __init__(self, root: Path, container: str, name: str = "") -> None:
        self.client = KeeperClient(root)
        self.container = container
        self.name = name or container

    def state(self) -> ContainerState:
        """What it is now.  Raises LabError when it doesn't exist."""
        found = self.client.states().get(self.container)
        if found is None:
            raise LabError(f"container {self.name} does not exist", hint="labctl up")
        return found

    def _running(self) -> ContainerState:
        found = self.state()
        if found.status == "paused":
            raise LabError(f"container {self.name} is paused", hint=f"labctl resume {self.name}")
        if found.status not in ("running", "created"):
            code = "" if found.exit_code is None else f" with {found.exit_code}"
            raise LabError(
                f"container {self.name} is not running: its command ended{code}",
                hint=f"labctl logs {self.name} tells why; labctl start {self.name} runs it again",
            )
        return found

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
        from labctl.runtime.execute import exec_in

        found = self._running()
        with pipes.standard_streams(stdin, stdout, stderr) as (source, out, err):
            try:
                return exec_in(
                    found,
                    argv,
                    env=env,
                    cwd=cwd or None,
                    user=user or None,
                    tty=tty,
                    stdin=source,
                    stdout=out,
                    stderr=err,
                    timeout=timeout,
                )
            except TimeoutError as error:
                raise TimedOut(
                    f"{self.name}: {argv[0]} ran for more than {timeout:g} s and was killed"
                ) from error
            except (ContainerError, OSError) as error:
                raise LabError(f"container {self.name}: {error}") from error

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
        out, err = io.BytesIO(), io.BytesIO()
        source = io.BytesIO(input) if input else None
        code = self.exec(
            argv, stdin=source, stdout=out, stderr=err, env=env, cwd=cwd, user=user, timeout=timeout
        )
        return Completed(code, out.getvalue(), err.getvalue())

    def copy_in(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_in`."""
        return copying.copy_in(_Tree(self), src, dest, stream, self.name)

    def copy_out(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_out`."""
        return copying.copy_out(_Tree(self), src, dest, stream, self.name)

    def logs(
        self, stream: Stream | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogChunk]:
        """See `HasLogs.logs`.  The files are the command's own, so nothing is ever lost on the way."""
        base = Path(self.state().bundle, "log")
        names: tuple[Stream, ...] = (stream,) if stream else ("stdout", "stderr")
        files = {}
        try:
            for name in names:
                if (base / name).exists():
                    files[name] = (base / name).open("rb", buffering=0)
            for name, file in files.items():
                if tail is not None:
                    file.seek(tail_offset(file, tail))
                while chunk := file.read(_BLOCK):
                    yield LogChunk(name, chunk)
            while follow:
                ended = self.state().status == "stopped"
                quiet = True
                for name, file in files.items():
                    while chunk := file.read(_BLOCK):
                        quiet = False
                        yield LogChunk(name, chunk)
                if quiet:
                    if ended:
                        return
                    time.sleep(_POLL_SECONDS)
        finally:
            for file in files.values():
                file.close()

    def stats(self) -> Stats:
        """See `Measures.stats`."""
        found = self.client.stats([self.container]).get(self.container)
        if found is None:
            raise LabError(f"container {self.name} does not exist")
        cpu = None if found.cpu_ns is None else found.cpu_ns / 1e9
        return Stats(found.memory_bytes, found.memory_limit_bytes, cpu, found.pids, found.oom_kills)

    def pause(self) -> None:
        """See `Pauses.pause`."""
        self._told(self.client.pause([self.container]))

    def resume(self) -> None:
        """See `Pauses.resume`."""
        self._told(self.client.resume([self.container]))

    def _told(self, errors: Mapping[str, str]) -> None:
        if text := errors.get(self.container):
            raise LabError(f"container {self.name}: {text}")


def tail_offset(file: IO[bytes], lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    end = file.seek(0, os.SEEK_END)
    if lines <= 0:
        return end
    left, place = lines, end
    while place:
        step = min(_BLOCK, place)
        place -= step
        file.seek(place)
        block = file.read(step)
        # The line break at the very end of the file ends the last line; it begins no other.
        at = len(block) - 1 if place + step == end and block.endswith(b"\n") else len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            left -= 1
            if not left:
                return place + at + 1
    return 0


class _Tree:
    """The container's files, by a process of their own that is inside when it opens a path."""

    def __init__(self, machine: ContainerMachine) -> None:
        self._machine = machine

    def look(self, path: str) -> tuple[str, str]:
        kind, real = json.loads(self._call(["look", path], None, None))
        return str(kind), str(real)

    def pack(self, out: IO[bytes], directory: str, name: str) -> None:
        self._call(["pack", directory, name], None, out)

    def unpack(self, stream: IO[bytes], directory: str) -> None:
        self._call(["unpack", directory], stream, None)

    def _call(self, words: list[str], source: IO[bytes] | None, sink: IO[bytes] | None) -> bytes:
        pid = self._machine._running().pid
        base = str(Path(__file__).resolve().parents[2])
        argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, base, str(pid), *words]
        with pipes.standard_streams(source, None, None) as (inp, _, _):
            process = subprocess.Popen(argv, stdin=inp, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            said: list[bytes] = []
            assert process.stdout is not None
            assert process.stderr is not None
            errors = process.stderr
            reader = threading.Thread(target=lambda: said.append(errors.read()), daemon=True)
            reader.start()
            answer = self._pour(process.stdout, sink)
            try:
                code = process.wait(_TREE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise TimedOut(f"{self._machine.name}: {words[0]} did not end") from None
            reader.join(1.0)
        if code:
            text = b"".join(said).decode("utf-8", "replace").strip().splitlines()
            raise LabError(
                f"cannot {words[0]} {words[1]} in {self._machine.name}: {text[-1] if text else code}"
            )
        return answer

    @staticmethod
    def _pour(source: IO[bytes], sink: IO[bytes] | None) -> bytes:
        kept: list[bytes] = []
        fd = source.fileno()
        while True:
            select.select([fd], [], [])
            chunk = os.read(fd, _BLOCK)
            if not chunk:
                return b"".join(kept)
            if sink is None:
                kept.append(chunk)
            else:
                pipes.write_all(sink, chunk)
