"""OCI hooks: programs that get the container's state on stdin, bounded by their timeout."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import time

from labctl.linux import pidfds
from labctl.linux import syscalls as sc
from labctl.runtime import jsonio
from labctl.runtime.errors import ContainerError, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def run_all(
    rows: Iterable[dict[str, Any]], state: dict[str, Any], kind: str, *, only_warn: bool = False
) -> None:
    """Run hooks in order; the first that fails ends it.  Raises ContainerError.

    With `only_warn`, as the spec has it for poststart and poststop, a failure is a warning and all are run.
    """
    for index, row in enumerate(rows or ()):
        try:
            _run_one(row, state, f"error running {kind} hook #{index}: {row['path']}")
        except (ContainerError, OSError) as error:
            if not only_warn:
                raise
            warn(str(error))


def _run_one(row: dict[str, Any], state: dict[str, Any], failed: str) -> None:
    """Run one hook.  Raises ContainerError with the end of its stderr when it fails or takes too long."""
    timeout = row.get("timeout")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    said, say = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(reader, 0)
            os.dup2(say, 1)  # as runc: what a hook prints is no output of the container
            os.dup2(say, 2)
            sc.close_range(3, cloexec=True)
            for number in (_signal.SIGPIPE, _signal.SIGINT):  # which Python handles or ignores
                _signal.signal(number, _signal.SIG_DFL)
            os.execve(row["path"], list(row.get("args") or [row["path"]]), _environment(row))
        except OSError as error:
            os.write(2, str(error).encode())
        finally:
            os._exit(127)
    os.close(reader)
    os.close(say)
    fd = sc.pidfd_open(pid)
    try:
        try:
            os.write(writer, jsonio.dumps(state).encode())
        except BrokenPipeError:
            os.write(2, b"")  # a hook need not read its state
        os.close(writer)
        text = _read_until_end(fd, said, timeout)
        if text is None:
            pidfds.send(fd, 9)
            os.waitpid(pid, 0)
            raise ContainerError(f"{failed}: hook ran past specified timeout of {timeout} s")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(fd)
        os.close(said)
    if status:
        raise ContainerError(f"{failed}: exit status {pidfds.exit_code(status)}, stderr: {text[-500:]}")


def _environment(row: dict[str, Any]) -> dict[str, str]:
    """What the hook lists; without a list the runtime's own, as in runc and crun: hooks count on PATH."""
    if row.get("env") is None:
        return dict(os.environ)
    return dict(pair.partition("=")[::2] for pair in row["env"])


def _read_until_end(pidfd: int, fd: int, timeout: float | None) -> str | None:
    """What it said on stderr until it ended; None after the timeout."""
    end = time.monotonic() + (timeout if timeout else 3600.0)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(fd, select.POLLIN)
    said = b""
    while True:
        left = end - time.monotonic()
        ready = dict(poll.poll(max(0, int(left * 1000)))) if left > 0 else {}
        if not ready:
            return None
        if fd in ready:
            part = os.read(fd, 4096)
            said = (said + part)[-4096:]
            if not part:
                poll.unregister(fd)
        elif pidfd in ready:
            return said.decode(errors="replace").strip()
