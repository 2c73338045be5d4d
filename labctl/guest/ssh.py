"""A node that is reached by SSH: a virtual machine of any tier.

labctl's machines take commands in words of labctl's own (`labctl-exec`, templates/init/exec), so that argv,
environment, folder and user arrive exactly in any image, even one without a shell.  Any other SSH server
gets the same as a POSIX shell command line.
"""

from __future__ import annotations

import io
import math
import os
import queue
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, cast

from labctl.errors import LabError, UsageError
from labctl.guest import copying, trees
from labctl.guest.machine import (
    NOT_EXECUTABLE,
    NOT_FOUND,
    Completed,
    Copied,
    LogChunk,
    Process,
    Sink,
    Source,
    Stream,
    check_command,
)
from labctl.guest.pipes import collect
from labctl.guest.ssh_connection import Connection, Endpoint, banner_up
from labctl.guest.ssh_session import Session, raw, terminal_of, terminal_size

__all__ = ["Endpoint", "SshMachine", "banner_up", "command_line", "ssh_command"]

Protocol = Literal["labctl", "shell"]
_LONGEST = 8000  # bytes; dropbear refuses commands above 9000
_LOGS = "/run/labctl/log"
BUSYBOX = "/run/labctl/bin/busybox"
_CLOUD_LOG = "/var/log/cloud-init-output.log"
# Not at once: the session would end without an exit code.
_POWER_OFF = "nohup sh -c 'sleep 0.3; exec poweroff' >/dev/null 2>&1 </dev/null &"
# Neither the server nor tail notices that nobody reads any more until the next line; the end of the input is.
_FOLLOW = '"$@" & read -r _; kill $!'
_LOOK = """
if [ -d "$1" ]; then kind=dir; elif [ -e "$1" ]; then kind=file
elif [ -h "$1" ]; then kind=link; else kind=absent; fi
real=$(readlink -f "$1"; echo x)
printf '%s\\n%s' $kind "${real%?x}"
"""


def command_line(
    argv: Sequence[str],
    *,
    protocol: Protocol = "labctl",
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    own_tools: bool = False,
) -> tuple[str, bytes]:
    """What to send for argv: the command, and what to send before the command's own input.

    `own_tools`: argv[0] is an applet of labctl's busybox.  Raises UsageError for what can't be sent.
    """
    check_command(argv, env, cwd, user)
    if protocol == "shell":
        return _shell_line(argv, env, cwd, user), b""
    words = (["-b"] if own_tools else []) + (["-C", cwd] if cwd else []) + (["-u", user] if user else [])
    for name, value in (env or {}).items():
        words += ["-e", f"{name}={value}"]
    text = shlex.join([*words, "--", *argv])
    raw_text = os.fsencode(text)
    if len(raw_text) <= _LONGEST:
        return f"labctl-exec {text}", b""
    return f"labctl-exec @{len(raw_text)}", raw_text


def _shell_line(argv: Sequence[str], env: Mapping[str, str] | None, cwd: str, user: str) -> str:
    words = list(argv)
    if env:
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *words]
    line = shlex.join(words)
    if user not in ("", "0", "root"):
        line = f"{_as_user(user)} {line}"
    return f"cd {shlex.quote(cwd)} || exit 126; exec {line}" if cwd else f"exec {line}"


def _as_user(user: str) -> str:
    name, _, group = user.partition(":")
    word = shlex.quote(name)
    regid = shlex.quote(group) if group else f'"$(id -g {word} 2>/dev/null || echo 0)"'
    groups = "--clear-groups" if group or name.isdigit() else "--init-groups"
    return f"setpriv --reuid {word} --regid {regid} {groups}"


def ssh_command(
    endpoint: Endpoint, known_hosts: str, words: Sequence[str] = (), *, program: str = "ssh"
) -> list[str]:
    """The plain OpenSSH command line for a person, and the known_hosts file that it needs (written here).

    The user's own configuration and known hosts are left out.  Raises LabError when it can't be written.
    """
    alias = endpoint.node.replace("/", ".") or endpoint.host
    path = Path(known_hosts)
    line = f"{alias} {' '.join(endpoint.host_key.split()[:2])}\n"
    try:
        if not path.exists() or path.read_text() != line:
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_text(line)
            fresh.replace(path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}") from error
    options = {
        "UserKnownHostsFile": f'"{known_hosts}"' if " " in known_hosts else known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": alias,
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "PasswordAuthentication": "no",
        "LogLevel": "ERROR",
    }
    argv = [program, "-F", "none", "-i", endpoint.key_file, "-p", str(endpoint.port)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return [*argv, f"{endpoint.user}@{endpoint.host}", *words]


class SshMachine:
    """Commands, files and logs of a machine over one SSH connection, which this process keeps.

    Has the shape of Executes, Copies and HasLogs.
    """

    def __init__(self, endpoint: Endpoint, *, protocol: Protocol = "labctl", timeout: float = 20.0) -> None:
        self.endpoint = endpoint
        self.protocol: Protocol = protocol
        self.connection = Connection(endpoint, timeout=timeout)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def power_off(self) -> None:
        """Ask the machine to end: its command gets its stop signal, disks are flushed, the power goes off.

        Works on machines without a power button as well.  Raises LabError, TimedOut when it isn't heard.
        """
        own = self.protocol == "labctl"
        self._run("labctl-poweroff" if own else _POWER_OFF, b"", None, None, None, False, -1, 10.0)

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
        own_tools: bool = False,
    ) -> int:
        """See `Executes.exec`.  With `own_tools` argv[0] is an applet of labctl's busybox in the machine."""
        if timeout is not None and not tty and self.protocol == "labctl" and not own_tools:
            # A server that loses its client leaves the command running: let the machine end it, a bit later.
            argv, own_tools = ["timeout", "-s", "KILL", str(math.ceil(timeout) + 2), *argv], True
        command, head = command_line(
            argv, protocol=self.protocol, env=env, cwd=cwd, user=user, own_tools=own_tools
        )
        terminal = terminal_of(stdin) if tty else -1
        if tty and head:
            raise UsageError(
                "the command is too long for a terminal", hint="put it into a script in the node"
            )
        return self._run(command, head, stdin, stdout, stderr, tty, terminal, timeout)

    def _run(
        self,
        command: str,
        head: bytes,
        stdin: Source,
        stdout: Sink,
        stderr: Sink,
        tty: bool,
        terminal: int,
        timeout: float | None,
    ) -> int:
        from paramiko import SSHException

        with self.connection.session() as channel:
            try:
                if tty:
                    columns, lines = terminal_size(terminal)
                    channel.get_pty(os.environ.get("TERM", "xterm"), columns, lines)
                channel.exec_command(os.fsencode(command))
            except (SSHException, EOFError, OSError) as error:
                raise LabError(
                    f"{self.endpoint.where} did not start the command: {error or 'it hung up'}"
                ) from error
            with raw(terminal):
                session = Session(channel, self.endpoint.where, tty)
                return session.wait(stdin, stdout, stderr, head=head, terminal=terminal, timeout=timeout)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
        own_tools: bool = False,
    ) -> Completed:
        """See `Executes.run`."""
        settings = {"env": env, "cwd": cwd, "user": user, "timeout": timeout, "own_tools": own_tools}
        return collect(self.exec, argv, input, **settings)

    def run_script(self, script: str, timeout: float) -> Completed:
        """Run a script by its shell, or by labctl's own where it has none.  Raises LabError, TimedOut."""
        argv = ["sh", "-c", script]
        done = self.run(argv, user="0:0", timeout=timeout)
        if done.code in (NOT_FOUND, NOT_EXECUTABLE) and not done.stdout and self.protocol == "labctl":
            # This way has no time limit inside the machine, so it gets one.
            words = ["timeout", "-s", "KILL", str(math.ceil(timeout) + 2), *argv]
            done = self.run(words, timeout=timeout, own_tools=True)
        return done

    def processes(self, timeout: float = 30.0) -> list[Process]:
        """See `Lists.processes`."""
        from labctl.guest import processes

        done = self.run_script(processes.SCRIPT, timeout)
        found = processes.parse(done.text)
        if found is None:
            said = done.errors.strip().splitlines()[-1:] or [f"its shell ended with {done.code}"]
            raise LabError(f"{self.endpoint.where}: its processes can't be listed: {said[0]}")
        return found

    def copy_in(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_in`."""
        return copying.copy_in(_SshTree(self), src, dest, stream, self.endpoint.where)

    def copy_out(self, src: str, dest: str, *, stream: IO[bytes] | None = None) -> Copied:
        """See `Copies.copy_out`."""
        return copying.copy_out(_SshTree(self), src, dest, stream, self.endpoint.where)

    def logs(
        self, stream: Stream | None = None, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[LogChunk]:
        """See `HasLogs.logs`."""
        lines = ["-n", "+1" if tail is None else str(max(tail, 0))]
        chosen: tuple[Stream, ...] = (stream,) if stream else ("stdout", "stderr")
        argvs: dict[Stream, list[str]] = {name: ["tail", *lines, f"{_LOGS}/{name}"] for name in chosen}
        if self.protocol == "shell":  # a cloud image: what its cloud-init's modules and scripts said
            argvs = {name: ["tail", *lines, _CLOUD_LOG] for name in chosen if name == "stdout"}
        if not follow:
            for name, argv in argvs.items():
                done = self.run(argv, user="0", cwd="/", timeout=60, own_tools=True)
                if done.stdout:
                    yield LogChunk(name, done.stdout)
            return
        yield from self._followed(argvs)

    def _followed(self, argvs: Mapping[Stream, list[str]]) -> Iterator[LogChunk]:
        chunks: queue.Queue[LogChunk | None] = queue.Queue(64)
        files = {name: _Chunks(name, chunks) for name in argvs}
        tool = [BUSYBOX] if self.protocol == "labctl" else []

        def follow(name: Stream) -> None:
            tail, *words = argvs[name]
            argv = ["sh", "-c", _FOLLOW, "sh", *tool, tail, "-F", *words]
            sink = cast(IO[bytes], files[name])
            with suppress(LabError):  # the node went away: the log ends
                self.exec(argv, stdin=files[name].reader, stdout=sink, user="0", cwd="/", own_tools=True)
            files[name].end()

        for name in argvs:
            threading.Thread(target=follow, args=(name,), name="log", daemon=True).start()
        left = len(argvs)
        try:
            while left:
                chunk = chunks.get()
                if chunk is None:
                    left -= 1
                else:
                    yield chunk
        finally:
            for file in files.values():
                file.stop()


class _Chunks(io.RawIOBase):
    """A file whose writes become log chunks in a queue, until nobody reads it any more.

    `reader` is a pipe that ends then: the command that follows the log has it as its input.
    """

    def __init__(self, name: Stream, chunks: queue.Queue[LogChunk | None]) -> None:
        self._name: Stream = name
        self._chunks = chunks
        self._stopped = threading.Event()
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        if not self._put(LogChunk(self._name, block)):
            raise BrokenPipeError(32, "nobody reads the log any more")
        return len(block)

    def end(self) -> None:
        """Say that no more comes; the command has ended."""
        os.close(self.reader)
        self._put(None)

    def stop(self) -> None:
        """Nobody reads any more."""
        self._stopped.set()
        os.close(self._writer)

    def _put(self, chunk: LogChunk | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._chunks.put(chunk, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False


class _SshTree:
    """The file tree of a machine, by busybox's tar (labctl's machines) or its own tar."""

    def __init__(self, machine: SshMachine) -> None:
        self._machine = machine
        self._own = machine.protocol == "labctl"

    def look(self, path: str) -> tuple[str, str]:
        done = self._run(["sh", "-c", _LOOK, "sh", path])
        if done.code:
            raise LabError(f"cannot look at {path} in {self._machine.endpoint.where}: {done.errors.strip()}")
        kind, _, real = os.fsdecode(done.stdout).partition("\n")
        return kind, real or path

    def pack(self, out: IO[bytes], directory: str, name: str) -> None:
        errors = io.BytesIO()
        argv = ["tar", "-c", "-f", "-", "-C", directory, f"./{name}"]
        code = self._machine.exec(argv, stdout=out, stderr=errors, user="0", cwd="/", own_tools=self._own)
        self._check(code, errors, "read", f"{directory}/{name}")

    def unpack(self, stream: IO[bytes], directory: str) -> None:
        errors = io.BytesIO()
        argv = ["tar", "-x", "-p", "--numeric-owner", "-f", "-", "-C", directory]

        def receive(source: IO[bytes]) -> None:
            code = self._machine.exec(
                argv, stdin=source, stderr=errors, user="0", cwd="/", own_tools=self._own
            )
            self._check(code, errors, "write to", directory)

        copying.through_pipe(lambda out: trees.folders_last(stream, out), receive)

    def _run(self, argv: list[str]) -> Completed:
        return self._machine.run(argv, user="0", cwd="/", own_tools=self._own)

    def _check(self, code: int, errors: io.BytesIO, verb: str, path: str) -> None:
        if code:
            words = errors.getvalue().decode("utf-8", "replace").strip().splitlines()
            reason = words[-1] if words else f"tar ended with {code}"
            raise LabError(f"cannot {verb} {path} in {self._machine.endpoint.where}: {reason}")
