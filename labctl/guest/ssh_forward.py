"""A TCP port of this machine that leads to a port as a node sees it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any, Self

from labctl.errors import LabError
from labctl.guest.ssh_connection import Connection
from labctl.guest.ssh_session import close_channel

_BLOCK = 1 << 16


class Forward:
    """Listens on the loopback address while it is open; use as a context manager.

    `host` and `port` are where the node connects to; `port` of the instance is ours.
    """

    def __init__(
        self, connection: Connection, host: str, port: int, *, listen: str = "127.0.0.1", listen_port: int = 0
    ) -> None:
        self._connection = connection
        self._target = (host, port)
        try:
            self._socket = socket.create_server((listen, listen_port))
        except OSError as error:
            raise LabError(f"cannot listen on {listen}:{listen_port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="forward", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more; connections that are open go on until a side ends."""
        # shutdown wakes the thread in accept(2); close alone would leave it there.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._thread.is_alive():
            self._thread.join(2)

    def wait(self) -> None:
        """Until it is closed (from another thread, or by Ctrl-C)."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), name="forwarded", daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            channel = self._connection.tunnel(*self._target)
        except LabError:
            peer.close()  # the port is closed in the node: so it is here
            return
        back = threading.Thread(target=_backward, args=(channel, peer), name="forwarded", daemon=True)
        back.start()
        _forward(peer, channel)
        back.join()
        close_channel(channel)
        peer.close()


def _forward(peer: socket.socket, channel: Any) -> None:
    with suppress(OSError, EOFError):
        while chunk := peer.recv(_BLOCK):
            view = memoryview(chunk)
            while view and not channel.closed:
                with suppress(TimeoutError):
                    view = view[channel.send(view) :]
        channel.shutdown_write()


def _backward(channel: Any, peer: socket.socket) -> None:
    with suppress(OSError, EOFError):
        while True:
            try:
                chunk = channel.recv(_BLOCK)
            except TimeoutError:
                continue
            if not chunk:
                break
            peer.sendall(chunk)
    with suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
