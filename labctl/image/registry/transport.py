"""The connection to a registry: TLS with whose certificates, plain HTTP where it is allowed, proxies.

Plain HTTP is spoken with this machine, and with others when a person says so (`insecure`).  Where it is
allowed, TLS is still found out: a server that answers plain HTTP as one of TLS does is asked again in TLS.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from labctl.errors import UsageError

TIMEOUT = 30.0  # seconds without a byte
LOST = (ConnectionError, TimeoutError, http.client.HTTPException, socket.timeout, ssl.SSLError)
#: Where docker and podman keep a registry's own certificates: HOST:PORT/{*.crt, *.cert with *.key}.
CERTIFICATES = ("/etc/docker/certs.d", "/etc/containers/certs.d")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Redirects are followed by hand: their number and what they may carry are the client's to say."""


class Transport:
    """How one registry is spoken to.  `settled` once it has answered: its scheme is known then."""

    def __init__(self, registry: str, host: str, *, insecure: bool, ca: str) -> None:
        self.host = host
        here = is_loopback(registry)
        known = any(list((Path(folder) / registry).glob("*.crt")) for folder in CERTIFICATES)
        self.may_be_plain = insecure or here
        plain = self.may_be_plain and not ca and not (here and known)
        self.base = f"{'http' if plain else 'https'}://{host}"
        self.settled = not plain
        self._context = _tls(registry, ca, insecure)
        handlers: list[Any] = [_NoRedirect(), urllib.request.HTTPSHandler(context=self._context)]
        if here:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def open(self, request: urllib.request.Request) -> Any:
        """Send it.  Raises urllib's and http.client's errors."""
        return self._opener.open(request, timeout=TIMEOUT)

    def turned_to_tls(self) -> bool:
        """Whether the registry, asked in plain HTTP so far, speaks TLS; from now on it is spoken to so."""
        if self.settled:
            return False
        self.settled = True
        name, _, port = (
            self.host.rpartition(":") if self.host.rpartition(":")[2].isdigit() else (self.host, "", "443")
        )
        name = name.strip("[]")
        blind = ssl.create_default_context()
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE  # only to hear whether it is TLS; nothing is sent
        try:
            with (
                socket.create_connection((name, int(port)), timeout=5) as sock,
                blind.wrap_socket(sock, server_hostname=name),
            ):
                self.base = f"https://{self.host}"
                return True
        except OSError:
            return False


def is_loopback(registry: str) -> bool:
    """Whether the registry is on this machine, so that plain HTTP is allowed."""
    host = registry.rpartition(":")[0] if registry.rpartition(":")[2].isdigit() else registry
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(registry: str, ca: str, insecure: bool) -> ssl.SSLContext:
    """The system's certificates, the registry's own as docker and podman keep them, and `ca`."""
    context = ssl.create_default_context()
    for folder in CERTIFICATES:
        for path in sorted((Path(folder) / registry).glob("*.crt")):
            _trust(context, path)
        for path in sorted((Path(folder) / registry).glob("*.cert")):
            try:
                context.load_cert_chain(path, path.with_suffix(".key"))
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"cannot use the client certificate {path}: {error}") from error
    if ca:
        _trust(context, Path(ca).expanduser())
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        words = error.strerror or error if isinstance(error, OSError) else error
        raise UsageError(f"cannot use the certificates of {path}: {words}") from error
