"""Waiting until a node is ready: a port accepts, a command ends with 0, a URL answers below 400.

Every wait is bounded, and a wait that ends in vain tells what was seen last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from labctl.errors import Interrupted, LabError, TimedOut, UsageError
from labctl.guest import asking
from labctl.guest.machine import Executes
from labctl.linux import netns as namespaces

if TYPE_CHECKING:
    from labctl.guest.inside_link import Link

_ONE_TRY = 10.0  # seconds that a single try may take
_THERE = 20.0  # more seconds, to get into a machine and start the question there

Over = Callable[[], str]
"""Why what is waited for will never come; "" while it may."""

Ask = Callable[[dict[str, Any]], str]
"""Puts a question (see asking.asked) somewhere: "" or the reason why not."""


def wait_for(
    what: str,
    probe: Callable[[float], str],
    *,
    timeout: float,
    interval: float = 1.0,
    cancel: threading.Event | None = None,
    over: Over | None = None,
) -> None:
    """Call `probe(seconds it may take)` every `interval` seconds until it says "" (ready).

    Anything else it says is the reason why not yet.  Raises TimedOut with the last reason after `timeout`
    seconds, Interrupted as soon as `cancel` is set, LabError when `over` knows that it never will be.
    """
    stop = cancel or threading.Event()
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        reason = probe(min(_ONE_TRY, max(left, 0.1)))
        if not reason:
            return
        if over and (why := over()):
            raise LabError(f"{what} can't become ready: {why}", hint=f"labctl logs {what}")
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
    over: Over | None = None,
    ask: Ask = asking.asked,
) -> None:
    """Wait until a TCP port accepts a connection; `ask` puts the question, from here unless stated.

    Raises TimedOut, Interrupted, UsageError.
    """
    if not address:
        raise UsageError(f"{what or 'the node'} has no address, so no port of it can be waited for")

    def probe(seconds: float) -> str:
        return ask({"url": "", "address": address, "port": port, "seconds": seconds})

    wait_for(what or address, probe, timeout=timeout, interval=interval, cancel=cancel, over=over)


def wait_command(
    machine: Executes,
    argv: Sequence[str],
    *,
    timeout: float,
    interval: float = 1.0,
    what: str = "",
    cancel: threading.Event | None = None,
    over: Over | None = None,
) -> None:
    """Wait until a command in the node ends with 0.  Raises TimedOut, Interrupted, LabError."""

    def probe(seconds: float) -> str:
        try:
            done = machine.run(argv, timeout=seconds)
        except LabError as error:
            return str(error)
        if done.code == 0:
            return ""
        said = (done.errors.strip() or done.text.strip()).splitlines()
        return f"{argv[0]} ended with {done.code}" + (f": {said[-1]}" if said else "")

    wait_for(what or "the node", probe, timeout=timeout, interval=interval, cancel=cancel, over=over)


def wait_http(
    address: str,
    url: str,
    *,
    timeout: float,
    interval: float = 1.0,
    what: str = "",
    cancel: threading.Event | None = None,
    over: Over | None = None,
    ask: Ask = asking.asked,
) -> None:
    """Wait until a URL answers with a status below 400; `ask` puts the question, from here unless stated.

    `url` may be a path alone (port 80 of the node) or leave out the host (`http://:8080/health`).
    See asking.http.  Raises TimedOut, Interrupted, UsageError.
    """
    place = _address_of(url, address)

    def probe(seconds: float) -> str:
        return ask({"url": url, "place": place, "seconds": seconds})

    wait_for(what or address, probe, timeout=timeout, interval=interval, cancel=cancel, over=over)


def in_netns(path: str) -> Ask:
    """Questions put in the network namespace at `path`; one that is gone is a reason like another."""

    def ask(question: dict[str, Any]) -> str:
        try:
            return namespaces.run_in(path, lambda: asking.asked(question))
        except OSError as error:
            return f"cannot enter {path}: {error.strerror or error}"

    return ask


def in_container_of(link: Link, path: str) -> Ask:
    """Questions put in the network namespace at `path` of the machine behind `link`."""

    def ask(question: dict[str, Any]) -> str:
        try:
            answer = link.call("ask", {"netns": path, "question": question}, _ONE_TRY + _THERE)
        except LabError as error:
            return str(error)
        return str(answer.get("reason", "its machine has no runtime yet"))

    return ask


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
