"""Waiting for nodes, against real sockets and a real HTTP server on the loopback address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from labctl.errors import Interrupted, TimedOut, UsageError
from labctl.guest import ready
from labctl.guest.machine import Completed


class _Answers(BaseHTTPRequestHandler):
    statuses: dict[str, int] = {}  # noqa: RUF012
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        warming = type(self).asked < 3 and self.path == "/later"
        self.send_response(503 if warming else self.statuses.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    _Answers.statuses = {"/": 200, "/later": 204, "/moved?a=1": 301, "/broken": 500}
    _Answers.asked = 0
    httpd = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    httpd.server_close()


def test_http(server: int) -> None:
    for url in (
        f"http://:{server}/",
        f"http://:{server}",
        f":{server}/moved?a=1",
        f"http://127.0.0.1:{server}/",
    ):
        ready.wait_http("127.0.0.1", url, timeout=5, interval=0.05)
    ready.wait_http("127.0.0.1", f"http://:{server}/later", timeout=5, interval=0.05)
    with pytest.raises(TimedOut, match=r"web did not become ready within 0\.2 s: .* status 500"):
        ready.wait_http("127.0.0.1", f"http://:{server}/broken", timeout=0.2, interval=0.05, what="web")


def test_http_addresses() -> None:
    assert ready._address_of("/", "10.0.0.1") == (False, "10.0.0.1", 80, "/")
    assert ready._address_of("https://:8443/a?b=c", "fd00::1") == (True, "fd00::1", 8443, "/a?b=c")
    assert ready._address_of("http://[fd00::2]:81", "x") == (False, "fd00::2", 81, "/")
    with pytest.raises(UsageError):
        ready._address_of("ftp://x/", "y")
    with pytest.raises(UsageError, match="no address"):
        ready._address_of("/", "")
    with pytest.raises(UsageError, match="is no URL"):
        ready._address_of("http://x:99999/", "")


def test_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        ready.wait_port("127.0.0.1", port, timeout=2)
    with pytest.raises(TimedOut, match=f"port {port} of 127.0.0.1: Connection refused"):
        ready.wait_port("127.0.0.1", port, timeout=0.2, interval=0.05)
    with pytest.raises(UsageError, match="no address"):
        ready.wait_port("", 80, timeout=1)


class _Counts:
    def __init__(self) -> None:
        self.left = 2

    def exec(self, argv: object, **_more: object) -> int:
        return self.run(argv).code

    def run(self, _argv: object, **_more: object) -> Completed:
        self.left -= 1
        return Completed(0 if self.left <= 0 else 7, b"", b"not yet\n")


def test_command() -> None:
    ready.wait_command(_Counts(), ["check"], timeout=2, interval=0.01)
    hard = _Counts()
    hard.left = 10**6
    with pytest.raises(TimedOut, match="check ended with 7: not yet"):
        ready.wait_command(hard, ["check"], timeout=0.1, interval=0.02)


def test_a_wait_can_be_cancelled() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Interrupted, match="last seen: no"):
        ready.wait_for("x", lambda _seconds: "no", timeout=7200, interval=3600, cancel=stop)
