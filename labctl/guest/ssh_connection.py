"""One SSH connection to a node: host key pinned, every wait bounded, made again when it broke."""

from __future__ import annotations

import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labctl.errors import LabError, TimedOut
from labctl.guest.ssh_session import CLOSE, REQUEST, TICK, close_channel, note_close, note_exit_signal
from labctl.records import dataclass

_KEEPALIVE = 15  # seconds
_DEAD = 45_000  # milliseconds without an acknowledgement (tcp(7), TCP_USER_TIMEOUT)
_IDLE = 4  # connections kept open per node
_WINDOW = 2 << 20  # bytes in flight
_SILENCE = 1.0  # seconds without an answer before somebody is asked why


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """How to reach a node by SSH.  JSON types only, so that a resource can carry it.

    `host_key` is the node's public key as OpenSSH writes it ("ssh-ed25519 AAAA…"): made by labctl and pinned,
    never learnt from the network.
    """

    host: str
    port: int = 22
    user: str = "root"
    key_file: str = ""
    host_key: str = ""
    node: str = ""  # what messages call it

    @property
    def where(self) -> str:
        """The name for messages."""
        return self.node or f"{self.user}@{self.host}:{self.port}"


def banner_up(host: str, port: int = 22, timeout: float = 2.0) -> bool:
    """Whether an SSH server greets there.  A plain socket: cheap enough to ask ten times a second."""
    try:
        with socket.create_connection((host, port), timeout) as sock:
            sock.settimeout(timeout)
            return sock.recv(16).startswith(b"SSH-")
    except OSError:
        return False


class _HungUp(LabError):
    """The server closed the connection before it said anything."""


class Connection:
    """The connections of one process to one endpoint; safe to use from many threads.

    A connection carries one command at a time and is then kept for the next.  (dropbear 2022.83 looks at all
    sessions of a connection when any child ends, and closes those whose command it hasn't read yet.)
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float = 20.0) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._lock = threading.Lock()
        self._greeting = threading.Lock()
        self._idle: list[Any] = []
        self._tunnels: Any = None
        # Asked when nobody answers: raises LabError when it knows why, as of a machine that is paused.
        self.on_silence: Callable[[], None] = lambda: None

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A new session channel.  Raises LabError, TimedOut."""
        channel = self._open()
        clean = False
        try:
            yield channel
            clean = True
        finally:
            clean = close_channel(channel) and clean
            self._give_back(channel.transport, clean)

    def tunnel(self, host: str, port: int) -> Any:
        """A channel to a TCP port as the node sees it (RFC 4254, 7.2); the caller closes it."""
        with self._lock:
            if self._tunnels is None or not self._tunnels.is_active():
                self._tunnels = self._connect()
            transport = self._tunnels
        return self._channel(transport, "direct-tcpip", (host, port), ("127.0.0.1", 0))

    def close(self) -> None:
        """End the connections that are idle; closed already is fine."""
        with self._lock:
            transports = [*self._idle, *([self._tunnels] if self._tunnels else [])]
            self._idle, self._tunnels = [], None
        for transport in transports:
            transport.close()

    def _give_back(self, transport: Any, clean: bool) -> None:
        with self._lock:
            if clean and transport.is_active() and len(self._idle) < _IDLE:
                self._idle.append(transport)
                return
        transport.close()

    def _open(self) -> Any:
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            if kept is None:
                break
            # A connection that was kept may have died with a reboot of the node.
            try:
                if kept.is_active():
                    return self._channel(kept, "session")
            except LabError:
                kept.close()
        transport = self._connect()
        try:
            return self._channel(transport, "session")
        except BaseException:
            transport.close()
            raise

    def _channel(self, transport: Any, kind: str, *addresses: tuple[str, int]) -> Any:
        from paramiko import ChannelException, SSHException

        where = self.endpoint.where
        try:
            channel = transport.open_channel(kind, *addresses, timeout=self.timeout)
        except ChannelException as error:
            raise LabError(f"{where} refuses the channel: {error.text}") from error
        except (SSHException, EOFError, OSError) as error:
            raise LabError(f"the connection to {where} broke: {error}") from error
        channel.settimeout(TICK)
        return channel

    def _connect(self) -> Any:
        """One at a time: dropbear hangs up on the sixth client that hasn't shown its key yet."""
        with self._greeting:
            for pause in (0.1, 0.3, 0.9):
                try:
                    return self._connect_once()
                except _HungUp:
                    time.sleep(pause)  # other processes may be greeting as well
            return self._connect_once()

    def _connect_once(self) -> Any:
        from paramiko import SSHException

        end = self.endpoint
        sock = self._socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = _transport_class()(sock, default_window_size=_WINDOW)
        try:
            self._handshake(transport)
        except (SSHException, EOFError, OSError) as error:
            transport.close()
            early = isinstance(error, (EOFError, ConnectionError)) or "banner" in str(error)
            raise (_HungUp if early else LabError)(
                f"no SSH with {end.where} on {end.host}:{end.port}: {error or 'it hung up'}"
            ) from error
        except BaseException:
            transport.close()
            raise
        return transport

    def _socket(self) -> socket.socket:
        """A TCP connection.  Raises LabError, TimedOut."""
        end = self.endpoint
        place = (end.host, end.port)
        soon = min(_SILENCE, self.timeout)
        try:
            try:
                return socket.create_connection(place, soon)
            except TimeoutError:
                self.on_silence()
                return socket.create_connection(place, max(self.timeout - soon, 0.1))
        except TimeoutError as error:
            raise TimedOut(
                f"{end.where} gave no answer on {end.host}:{end.port} within {self.timeout:g} s",
                hint="is the node running, and not paused? (labctl status)",
            ) from error
        except OSError as error:
            self.on_silence()
            raise LabError(
                f"cannot reach {end.where} on {end.host}:{end.port}: {error.strerror or error}",
                hint="is the node running? (labctl status)",
            ) from error

    def _handshake(self, transport: Any) -> None:
        from paramiko import AuthenticationException

        end = self.endpoint
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = self.timeout
        expected = end.host_key.split()[:2]
        if len(expected) != 2:
            raise LabError(f"the host key of {end.where} is not known", hint="labctl never trusts one unseen")
        kind = expected[0]
        options = transport.get_security_options()
        kinds = ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]
        options.key_types = kinds
        transport.start_client(timeout=self.timeout)
        shown = transport.get_remote_server_key()
        if [shown.get_name(), shown.get_base64()] != expected:
            raise LabError(
                f"{end.where} on {end.host}:{end.port} has another host key than the one labctl made for it",
                hint="something else answers on that address; nothing was sent to it",
            )
        try:
            transport.auth_publickey(end.user, _private_key(end.key_file))
        except AuthenticationException as error:
            raise LabError(f"{end.where} does not accept the key {end.key_file} for {end.user}") from error
        transport.set_keepalive(_KEEPALIVE)


def _private_key(path: str) -> Any:
    from paramiko import PKey, SSHException

    try:
        return PKey.from_path(Path(path))
    except FileNotFoundError as error:
        raise LabError(f"there is no SSH key {path}") from error
    except (OSError, ValueError, SSHException) as error:
        raise LabError(f"cannot read the SSH key {path}: {error}") from error


@functools.cache
def _transport_class() -> Any:
    """paramiko's Transport, which also understands "exit-signal" and says nothing on stderr."""
    import paramiko
    from paramiko.channel import Channel

    logger = logging.getLogger("labctl.ssh")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False

    def request(channel: Any, message: Any) -> None:
        if not note_exit_signal(channel, message):
            Channel._handle_request(channel, message)  # type: ignore[attr-defined]

    table = {**paramiko.Transport._channel_handler_table, REQUEST: request, CLOSE: note_close}  # type: ignore[attr-defined]

    class Transport(paramiko.Transport):
        _channel_handler_table = table

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.set_log_channel("labctl.ssh")

    return Transport
