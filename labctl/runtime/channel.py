"""The socket between a container's process and its parent: whole messages, with descriptors."""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from labctl.runtime import jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST = 200  # the kernel takes 253 descriptors a message
_SIZE = 65536


class Channel:
    """One end.  Messages are JSON objects; an end that is gone reads as None."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends."""
        left, right = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        return cls(left), cls(right)

    @classmethod
    def of_fd(cls, fd: int) -> Channel:
        """An end that is already open."""
        return cls(_socket.socket(fileno=fd))

    def fileno(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send one message; the descriptors go ahead in as many as it takes."""
        rest = list(fds or [])
        while len(rest) > _MOST:
            self._send({"more": True}, rest[:_MOST])
            rest = rest[_MOST:]
        self._send(message, rest)

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        data = jsonio.dumps(message).encode()
        ancillary: list[tuple[int, int, bytes]] = []
        if fds:
            ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds)))
        self.sock.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any] | None, list[int]]:
        """(message, descriptors); (None, []) when the other end is closed.  Raises TimeoutError."""
        got: list[int] = []
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if end is not None:
                poll = select.poll()
                poll.register(self.sock.fileno(), select.POLLIN)
                if not poll.poll(max(0, int((end - time.monotonic()) * 1000))):
                    raise TimeoutError("no answer")
            space = _socket.CMSG_SPACE(4 * 253)
            data, ancillary, _, _ = self.sock.recvmsg(_SIZE, space, _socket.MSG_CMSG_CLOEXEC)
            for _, _, payload in ancillary:
                got += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
            if not data:
                for fd in got:
                    os.close(fd)
                return None, []
            message = jsonio.loads(data.decode())
            if not message.get("more"):
                return message, got
