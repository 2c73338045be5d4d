"""Waiting until a node is ready: a port accepts, a command ends with 0, a URL answers below 400.

Every wait is bounded, and a wait that ends in vain tells what was seen last.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from labctl.errors import Interrupted, LabError, TimedOut, UsageError
from labctl.guest.machine import Executes
from labctl.linux import netns as namespaces

_ONE_TRY = 10.0  # seconds that a single try may take


def wait_for(
    what: str,
    probe: Callable[[float], str],
    *,
    timeout: float,
    interval: float = 1.0,
    cancel: threading.Event | None = None,
) -> None:
    """Call `probe(seconds it may take)` every `interval` seconds until it says "" (ready).

    Anything else it says is the reason why not yet.  Raises TimedOut with the last reason after `timeout`
    seconds, Interrupted as soon as `cancel` is set.
    """
    stop = cancel or threading.Event()
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        reason = probe(min(_ONE_TRY, max(left, 0.1)))
        if not reason:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"{what} did not become ready within {timeout:g} s: {reason}",
                hint=f"allow it more time in the profile (ready: timeout), or see `labctl logs {what}`",
            )
        if stop.wait(min(interval, left)):
            raise Interrupted(f"the wait for {what} was cancelled; last seen: {reason}")


def wait_port(
    address: str,
    port: int,
    *,
    timeout: float,
    interval: float = 1.0,
    what: str = "",
    cancel: threading.Event | None = None,
    netns: str | None = None,
) -> None:
    """Wait until a TCP port accepts a connection, made in the network namespace `netns` (None: this one).

    Raises TimedOut, Interrupted, UsageError.
    """
    if not address:
        raise UsageError(f"{what or 'the node'} has no address, so no port of it can be waited for")

    def probe(seconds: float) -> str:
        try:
            socket.create_connection((address, port), seconds).close()
        except OSError as error:
            return f"port {port} of {address}: {error.strerror or error}"
        return ""

    asked = _within(netns, probe)
    wait_for(what or address, asked, timeout=timeout, interval=interval, cancel=cancel)


def wait_command(
    machine: Executes,
    argv: Sequence[str],
    *,
    timeout: float,
    interval: float = 1.0,
    what: str = "",
    cancel: threading.Event | None = None,
) -> None:
    """Wait until a command in the node ends with 0.  Raises TimedOut, Interrupted."""

    def probe(seconds: float) -> str:
        try:
            done = machine.run(argv, timeout=seconds)
        except LabError as error:
            return str(error)
        if done.code == 0:
            return ""
        said = (done.errors.strip() or done.text.strip()).splitlines()
        return f"{argv[0]} ended with {done.code}" + (f": {said[-1]}" if said else "")

    wait_for(what or "the node", probe, timeout=timeout, interval=interval, cancel=cancel)


def wait_http(
    address: str,
    url: str,
    *,
    timeout: float,
    interval: float = 1.0,
    what: str = "",
    cancel: threading.Event | None = None,
    netns: str | None = None,
) -> None:
    """Wait until a URL answers with a status below 400; redirects are not followed.

    It is asked for in the network namespace `netns` (None: this one).

    `url` may be a path alone (port 80 of the node) or leave out the host (`http://:8080/health`).
    A certificate is not checked: a lab signs its own.  Raises TimedOut, Interrupted, UsageError.
    """
    secure, host, port, path = _address_of(url, address)

    def probe(seconds: float) -> str:
        link: http.client.HTTPConnection
        if secure:
            # Not for secrets: only whether something answers.
            context = ssl._create_unverified_context()
            link = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
        else:
            link = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            link.request("GET", path, headers={"User-Agent": "labctl", "Connection": "close"})
            status = link.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"{url} on {host}:{port}: {error or type(error).__name__}"
        finally:
            link.close()
        return "" if status < 400 else f"{url} on {host}:{port}: status {status}"

    asked = _within(netns, probe)
    wait_for(what or address, asked, timeout=timeout, interval=interval, cancel=cancel)


def _within(path: str | None, probe: Callable[[float], str]) -> Callable[[float], str]:
    """The probe, made in the network namespace at `path`; one that is gone is a reason like another."""

    def inside(seconds: float) -> str:
        try:
            return namespaces.run_in(path, lambda: probe(seconds))
        except OSError as error:
            return f"cannot enter {path}: {error.strerror or error}"

    return probe if path is None else inside


def _address_of(url: str, address: str) -> tuple[bool, str, int, str]:
    """(https or not, host, port, path with its query)."""
    text = url if "://" in url else f"http://{url if url.startswith(('/', ':')) else '/' + url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or address, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is neither http nor https")
    if not host:
        raise UsageError(f"{url!r} names no host, and the node has no address")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = parts.scheme == "https"
    return secure, host, port or (443 if secure else 80), path
