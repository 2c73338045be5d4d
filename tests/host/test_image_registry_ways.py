"""Ways to a registry: logins, tokens, TLS, redirects, mounts, proxies, lines that break while pushing."""

from __future__ import annotations

import base64
import http.server
import json
import random
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.image.registry import RegistryError, pull, push, tags
from labctl.image.registry.client import Client, _pause
from labctl.image.store import Store
from labctl.looks import Owner
from labctl.tiers.registry_server import RegistryServer
from tests.chaos_images import BreakingLine, put, registry

pytestmark = pytest.mark.needs("docker-registry")

#: user "me", password "secret", as `htpasswd -B` writes it.
HTPASSWD = "me:$2y$05$SgSW3CUtZ9Bui4yShIWA8Omq3iGkPJAh60xOgxmJUSrpBYOOQhb0i\n"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "images")
    put(made, "app:1", 7, 200_000)
    return made


class Gate(http.server.BaseHTTPRequestHandler):
    """Stands before a registry and does what `act` says; passes on what that leaves (returns False)."""

    backend = ""
    act: Callable[[Gate], bool] = staticmethod(lambda gate: False)
    seen: list[tuple[str, str]] = []  # noqa: RUF012 - of one test, see `gate`
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> bool:
        """Say that, and that it is said."""
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")
        return True

    def handle_any(self) -> None:
        """Any request."""
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size) if size else None
        self.close_connection = True
        self.seen.append((self.command, self.path))
        if type(self).act(self):
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization")}
        url = f"http://{self.backend}{self.path}"
        asked = urllib.request.Request(url, data=data, headers=headers, method=self.command)
        try:
            answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            host = self.headers["Host"]
            for key, value in answer.headers.items():
                if key.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(key, value.replace(self.backend, host))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815


@pytest.fixture
def gate(backend: str) -> Iterator[str]:
    Gate.backend, Gate.seen, Gate.act = backend, [], staticmethod(lambda gate: False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def login(monkeypatch: pytest.MonkeyPatch, folder: Path, host: str, entry: dict[str, str]) -> None:
    (folder / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def round_trip(store: Store, host: str, tmp_path: Path, **options: str) -> None:
    """Push there and pull from there into a store of its own."""
    digest = push(store, "app:1", target=f"{host}/ways/app:1", **options)  # type: ignore[arg-type]
    other = Store(tmp_path / f"other-{len(list(tmp_path.iterdir()))}")
    assert pull(other, f"{host}/ways/app:1", **options).digest == digest  # type: ignore[arg-type]
    assert other.verify(deep=True) == []


@pytest.mark.parametrize("kind", ["password", "identity", "anonymous"])
def test_tokens(gate: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A token server that gives each scope its own token, and lets nobody push without a login."""
    right = "Basic " + base64.b64encode(b"me:secret").decode()

    def act(gate: Gate) -> bool:
        path, _, query = gate.path.partition("?")
        host = gate.headers["Host"]
        if path == "/token":
            fields = urllib.parse.parse_qs(query)
            known = gate.headers.get("Authorization") == right or gate.command == "POST"
            if not known and any("push" in scope for scope in fields.get("scope", [])):
                return gate.answer(401, b"{}")
            return gate.answer(200, json.dumps({"access_token": "tok"}).encode())
        if gate.headers.get("Authorization") == "Bearer tok":
            return False
        challenge = f'Bearer realm="http://{host}/token",service="lab"'
        return gate.answer(401, b"{}", WWW_Authenticate=challenge)

    Gate.act = staticmethod(act)
    entry = {
        "password": {"auth": base64.b64encode(b"me:secret").decode()},
        "identity": {"auth": "", "identitytoken": "refresh"},
        "anonymous": {},
    }[kind]
    login(monkeypatch, tmp_path, gate, entry)
    if kind == "anonymous":
        with pytest.raises(RegistryError, match="refuses a token") as caught:
            round_trip(store, gate, tmp_path)
        assert "docker login" in caught.value.hint
        return
    round_trip(store, gate, tmp_path)
    assert sum(path.startswith("/token") for _, path in Gate.seen) <= 4


def test_blobs_from_another_host(gate: str, backend: str, store: Store, tmp_path: Path) -> None:
    push(store, "app:1", target=f"{backend}/ways/app:1")
    leaks = []

    def act(gate: Gate) -> bool:
        leaks.append(gate.headers.get("Authorization"))
        if "/blobs/" in gate.path and gate.command == "GET":
            return gate.answer(307, Location=f"http://{backend}{gate.path}")
        return False

    Gate.act = staticmethod(act)
    other = Store(tmp_path / "other")
    pull(other, f"{gate}/ways/app:1")
    assert other.verify(deep=True) == [] and leaks


def test_other_answers(gate: str, store: Store) -> None:
    """429 that lasts, circles, and 401 whatever one sends: an error soon, never a loop."""
    for act, words in (
        (lambda gate: gate.answer(429, b"", Retry_After="3600"), "429"),
        (lambda gate: gate.answer(302, b"", Location=gate.path + "x"), "redirects in circles"),
        (lambda gate: gate.answer(401, b"", WWW_Authenticate='Basic realm="x"'), "401"),
        (lambda gate: gate.answer(200, b"<html>", Content_Type="text/html"), "not JSON"),
        (lambda gate: gate.answer(308, b"", Location="file:///etc/passwd"), "not safe to follow"),
    ):
        Gate.act, Gate.seen = staticmethod(act), []
        with pytest.raises(Exception, match=words):
            pull(store, f"{gate}/x/y:1")
        assert len(Gate.seen) < 12
    assert _pause("7") == 7 and _pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and _pause("soon") == 0


def test_tags_in_pages(gate: str) -> None:
    """Pages by Link headers, relative and whole."""

    def act(gate: Gate) -> bool:
        _, _, last = gate.path.partition("last=")
        pages = {
            "": (["a", "b"], "</v2/p/tags/list?last=b>"),
            "b": (["c"], f"<http://{host}/v2/p/tags/list?last=c>"),
        }
        names, link = pages.get(last, (["d"], ""))
        more = {"Link": f'{link}; rel="next"'} if link else {}
        return gate.answer(200, json.dumps({"name": "p", "tags": names}).encode(), **more)

    host = gate
    Gate.act = staticmethod(act)
    assert tags(f"{gate}/p") == ["a", "b", "c", "d"]


def test_proxies(gate: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that only the proxy can reach; NO_PROXY keeps from it, and this machine needs none."""
    far = "registry.invalid:5000"

    def act(gate: Gate) -> bool:
        gate.path = gate.path.removeprefix(f"http://{far}")
        gate.headers.replace_header("Host", far)
        return False

    Gate.act = staticmethod(act)
    monkeypatch.setenv("HTTP_PROXY", f"http://{gate}")
    monkeypatch.setenv("http_proxy", f"http://{gate}")
    digest = push(store, "app:1", target=f"{far}/ways/app:1", insecure=True)
    assert pull(Store(tmp_path / "far"), f"{far}/ways/app:1", insecure=True).digest == digest
    assert Gate.seen and all(path.startswith(f"http://{far}/v2/") for _, path in Gate.seen)
    Gate.seen.clear()
    assert pull(Store(tmp_path / "near"), f"{Gate.backend}/ways/app:1").digest == digest
    assert Gate.seen == []
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with pytest.raises(RegistryError, match="cannot reach"):
        Client(far, insecure=True).call("GET", "/v2/", "ways/app", tries=1)
    assert Gate.seen == []


def test_uploads_that_get_lost(gate: str, store: Store, tmp_path: Path) -> None:
    """The session is forgotten, the last answer is lost, the registry is busy: the push goes through."""
    put(store, "app:1", 99, 200_000)  # none of whose blobs the registry has
    done: dict[str, int] = {}

    def act(gate: Gate) -> bool:
        kind = f"{gate.command} {'manifest' if '/manifests/' in gate.path else 'upload'}"
        done[kind] = done.get(kind, 0) + 1
        if kind == "PATCH upload" and done[kind] in (1, 4):
            return gate.answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        if done[kind] == 1 and gate.command in ("PUT", "POST"):
            return gate.answer(503)
        return False

    Gate.act = staticmethod(act)
    round_trip(store, gate, tmp_path)
    assert done["PATCH upload"] > 3


def test_blobs_are_taken_over(gate: str, store: Store, tmp_path: Path) -> None:
    push(store, "app:1", target=f"{gate}/ways/first:1")
    Gate.seen.clear()
    push(store, "app:1", target=f"{gate}/ways/second:1")
    sent = [command for command, _ in Gate.seen if command == "PATCH"]
    mounted = [path for command, path in Gate.seen if command == "POST" and "mount=" in path]
    assert sent == [] and len(mounted) == 4  # three layers and the configuration
    pulled = Store(tmp_path / "pulled")
    pull(pulled, f"{gate}/ways/second:1")
    Gate.seen.clear()
    push(pulled, f"{gate}/ways/second:1", target=f"{gate}/ways/third:1")
    assert [command for command, _ in Gate.seen if command == "PATCH"] == []


def test_lines_that_break_while_pushing(backend: str, store: Store, tmp_path: Path) -> None:
    line = BreakingLine(backend, 2)
    chance = random.Random(2)
    line.chance = chance
    for number in range(3):
        put(store, "app:1", number, 400_000)
        for _ in range(40):
            try:
                digest = push(store, "app:1", target=f"{line.address}/ways/line:{number}")
                break
            except RegistryError:
                continue
        line_free = Store(tmp_path / f"n{number}")
        assert pull(line_free, f"{backend}/ways/line:{number}").digest == digest
    line.close()
    assert line.cuts


def test_logins_and_own_authority(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with TLS and logins, as `registry serve` starts it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    port = int(BreakingLine("127.0.0.1:1", 0).address.rpartition(":")[2]) + 1
    server = RegistryServer(
        owner=Owner("test", "ways"), name="tls", directory=str(tmp_path / "serve"), data=str(tmp_path / "d"),
        port=port, certificate=str(certificate), key=str(key), htpasswd=str(tmp_path / "htpasswd"),
    )  # fmt: skip
    server.make()
    try:
        host = f"localhost:{port}"
        login(monkeypatch, tmp_path, host, {"auth": base64.b64encode(b"me:wrong").decode()})
        # Plain HTTP is allowed here, but this one speaks TLS: found out, and its certificate is not known.
        with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED") as unknown:
            pull(store, f"{host}/ways/app:1")
        assert "--ca" in unknown.value.hint
        with pytest.raises(RegistryError, match="401"):
            push(store, "app:1", target=f"{host}/ways/app:1", ca=str(certificate))
        login(monkeypatch, tmp_path, host, {"auth": base64.b64encode(b"me:secret").decode()})
        round_trip(store, host, tmp_path, ca=str(certificate))
    finally:
        server.unmake()
    assert not server.pid() and not (tmp_path / "serve").exists()
