"""The descriptor of a seccomp filter with SCMP_ACT_NOTIFY, on its way to the agent that answers the calls.

The process says which number its listener will have, loads the filter and waits; from then on any of its
calls may be one that only the agent can answer, so its parent takes the descriptor out of it
(pidfd_getfd(2)) and hands it over, without the process doing anything.  Source: the runtime spec's
`linux.seccomp.listenerPath` and "The Container Process State".
"""

from __future__ import annotations

import os
import time

from labctl.linux import seccomp
from labctl.linux import syscalls as sc
from labctl.runtime import jsonio, state
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from labctl.runtime.channel import Channel

_SECONDS = 10.0  # that the process may take from its word to the loaded filter


def load_and_wait(program: bytes, flags: Sequence[str], channel: Channel) -> None:
    """In the process: load the filter, and go on when the agent has its listener.  Raises ContainerError."""
    number = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    bits = seccomp.flag_bits(flags)  # what can go wrong goes wrong before the word
    channel.send({"listener": number, "flags": bits})
    os.close(number)  # the lowest free number is what the kernel will take
    got = seccomp.load(program, flags, listener=True)
    message, _ = channel.receive()
    os.close(got)
    if message is None or "go" not in message:
        raise ContainerError((message or {}).get("error") or "the seccomp agent was not reached")


def hand_over(pidfd: int, number: int, profile: dict[str, Any], pid: int, oci: dict[str, Any]) -> None:
    """In the parent: fetch the listener and send it with the state.  Raises ContainerError, OSError."""
    path = profile.get("listenerPath")
    if not path:
        raise ContainerError("linux.seccomp: SCMP_ACT_NOTIFY needs listenerPath")
    fd = _fetch(pidfd, number)
    try:
        document = {"ociVersion": state.OCI_VERSION, "fds": ["seccompFd"], "pid": pid, "state": oci}
        if metadata := profile.get("listenerMetadata"):
            document["metadata"] = metadata
        _send(path, jsonio.dumps(document).encode(), fd)
    finally:
        os.close(fd)


def _fetch(pidfd: int, number: int) -> int:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            fd = sc.pidfd_getfd(pidfd, number)
        except OSError as error:
            if error.errno != 9 or time.monotonic() > end:  # EBADF: the filter isn't loaded yet
                raise
        else:
            if "seccomp" in os.readlink(f"/proc/self/fd/{fd}"):
                return fd
            os.close(fd)
            if time.monotonic() > end:
                raise ContainerError("the process did not load its seccomp filter")
        time.sleep(0.001)


def _send(path: str, data: bytes, fd: int) -> None:
    import _socket
    import struct

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_SECONDS)
        sock.connect(path)
        sent = sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))])
        if sent < len(data):
            sock.sendall(data[sent:])
    except OSError as error:
        raise ContainerError(f"seccomp agent at {path}: {error.strerror or error}") from error
    finally:
        sock.close()
