"""Pull and push against Debian's docker-registry, with skopeo on the other side; and against bad lines."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.image.archive import load, save
from labctl.image.model import CONFIG, LAYER, LAYER_GZIP, MANIFEST, BadImage, Descriptor, ImageConfig
from labctl.image.registry import RegistryError, delete, pull, push, tags
from labctl.image.registry.auth import challenges, credentials
from labctl.image.store import Store
from tests.unit.test_image_unpack import folder, layer, link, member

pytestmark = pytest.mark.needs("docker-registry", "skopeo")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("registry")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
    (root / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}'}}\nlog: {{level: error}}\n"
    )
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "config.yml")], stdout=log, stderr=log
        )
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
            break
        except OSError:
            time.sleep(0.05)
    yield host
    process.terminate()
    process.wait(10)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def put(store: Store, ref: str, arch: str = "amd64", size: int = 300_000) -> str:
    """A small image with two layers."""
    noise = random.Random(ref + arch).randbytes(size)
    with store.adding():
        tars = [
            layer(folder("d"), member("d/big", noise), link("l", "d/big")).getvalue(),
            layer(folder("d"), member("d/.wh.gone", b""), member("new", b"x")).getvalue(),
        ]
        layers = [store.add_layer([tar]) for tar in tars]
        return store.add_image(ref, ImageConfig(cmd=("/new",), architecture=arch), layers).config_digest


def skopeo(*argv: str) -> str:
    done = subprocess.run(["skopeo", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_push_and_pull_keep_the_image(registry: str, store: Store, tmp_path: Path) -> None:
    ref = f"{registry}/class/app:1"
    config = put(store, ref)
    digest = push(store, ref)
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{ref}"))
    assert seen["Digest"] == digest and seen["Architecture"] == "amd64" and len(seen["Layers"]) == 2
    assert push(store, ref) == digest  # again: the same, and quick
    other = Store(tmp_path / "other")
    image = pull(other, ref)
    assert image.digest == digest and image.config_digest == config
    assert image.layers[0].media_type == LAYER_GZIP
    assert other.verify(deep=True) == []
    assert (other.rootfs(image)[0] / "d/big").stat().st_size == 300_000
    assert push(other, ref, target=f"{registry}/class/other:1") == digest
    assert tags(ref) == ["1"]
    by_digest = pull(Store(tmp_path / "third"), f"{registry}/class/app@{digest}")
    assert by_digest.digest == digest


def sha512(store: Store, data: bytes) -> Descriptor:
    """A blob under its SHA-512 digest."""
    digest = f"sha512:{hashlib.sha512(data).hexdigest()}"
    return Descriptor("", store.blobs.put([data], digest=digest).digest, len(data))


def test_sha512(registry: str, store: Store, tmp_path: Path) -> None:
    """An image all of whose digests are SHA-512, through archive and registry; a wrong byte is found."""
    with store.adding():
        tar = sha512(store, layer(folder("d"), member("d/f", b"x" * 70_000)).getvalue())
        config = sha512(
            store, json.dumps(ImageConfig(cmd=("/f",), diff_ids=(tar.digest,)).to_json()).encode()
        )
        document = {
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER, "digest": tar.digest, "size": tar.size}],
        }  # fmt: skip
        manifest = sha512(store, json.dumps(document).encode())
        store.name(replace(manifest, media_type=MANIFEST), "long")
    assert store.verify(deep=True) == [] and (store.rootfs(store.resolve("long"))[0] / "d/f").is_file()
    save(store, "long", tmp_path / "long.tar", "oci-archive")
    other = Store(tmp_path / "other")
    assert load(other, tmp_path / "long.tar")[0].digest == manifest.digest
    ref = f"{registry}/class/long:1"
    push(other, "long", target=ref, compress="")
    third = Store(tmp_path / "third")
    image = pull(third, ref)
    assert image.layers[0].digest == tar.digest and third.verify(deep=True) == []
    assert (third.rootfs(image)[0] / "d/f").read_bytes() == b"x" * 70_000
    assert pull(Store(tmp_path / "fourth"), f"{registry}/class/long@{image.digest}").layers == image.layers
    third.blobs.path(tar.digest).write_bytes(b"y")
    assert any("has the content of sha512:" in said for said in third.verify())


@pytest.mark.needs("root")
def test_skopeo_pushes_we_pull(registry: str, store: Store, tmp_path: Path) -> None:
    put(store, "app")
    for name, extra in [("gz", ["--format=v2s2"]), ("zst", ["--dest-compress-format=zstd", "--format=oci"])]:
        target = f"docker://{registry}/{name}:1"
        skopeo("copy", "--dest-tls-verify=false", *extra, f"oci:{store.root}:app:latest", target)
        other = Store(tmp_path / name)
        image = pull(other, f"{registry}/{name}:1")
        assert other.verify(deep=True) == [] and image.config.cmd == ("/new",)
        assert (other.rootfs(image)[1] / "new").read_bytes() == b"x"


def test_many_platforms(registry: str, store: Store, tmp_path: Path) -> None:
    ref = f"{registry}/multi:1"
    put(store, ref)
    put(store, ref, "arm64")
    digest = push(store, ref, all_platforms=True)
    raw = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{ref}"))
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]
    other = Store(tmp_path / "other")
    assert pull(other, ref, arch="arm64").architecture == "arm64"
    assert pull(other, f"{registry}/multi@{digest}", arch="amd64").architecture == "amd64"
    with pytest.raises(UsageError, match="no image for riscv64") as caught:
        pull(other, ref, arch="riscv64")
    assert "amd64, arm64" in caught.value.hint


def test_delete_and_unknown(registry: str, store: Store) -> None:
    ref = f"{registry}/gone:1"
    put(store, ref)
    push(store, ref)
    delete(ref)
    with pytest.raises(RegistryError) as caught:
        pull(store, ref)
    assert caught.value.status == 404
    with pytest.raises(RegistryError, match="404"):
        store.ensure(f"{registry}/never/was:1")


class Bad(http.server.BaseHTTPRequestHandler):
    """Stands before the registry and spoils what comes from it, as `fault` says."""

    backend = ""
    fault = ""
    chance = random.Random(1)
    ranges: list[str] = []  # noqa: RUF012
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """Fetch it from the registry, and pass on what the fault leaves of it."""
        if self.fault == "busy" and self.chance.random() < 0.5:
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        if self.fault in ("401", "redirect"):
            self.send_response(401 if self.fault == "401" else 307)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Location", self.path)
            self.end_headers()
            return
        request = urllib.request.Request(
            f"http://{self.backend}{self.path}", headers=dict(self.headers.items())
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                if key.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(key, value)
            self.end_headers()
        if "/blobs/" in self.path:
            self.ranges.append(self.headers.get("Range", ""))
            if self.fault == "cut" and len(body) > 1000:
                body = body[: self.chance.randrange(len(body))]
            if self.fault == "flip":
                body = bytes([body[0] ^ 1]) + body[1:]
        if self.fault == "flip-manifest" and "/manifests/" in self.path:
            body = body.replace(b"size", b"sizf", 1)
        if self.fault == "huge" and "/manifests/" in self.path:
            body = b" " * (10 << 20)
        self.wfile.write(body)


@pytest.fixture
def bad(registry: str) -> Iterator[str]:
    Bad.backend, Bad.ranges = registry, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bad)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["cut", "busy"])
def test_bad_lines_are_survived(registry: str, bad: str, store: Store, tmp_path: Path, fault: str) -> None:
    put(store, f"{registry}/line:1", size=600_000)
    push(store, f"{registry}/line:1")
    Bad.fault, Bad.chance = fault, random.Random(3)
    other = Store(tmp_path / "other")
    image = pull(other, f"{bad}/line:1")
    assert other.verify(deep=True) == [] and len(image.layers) == 2
    if fault == "cut":
        assert any(start.startswith("bytes=") for start in Bad.ranges)
    assert not list((other.root / "partial").iterdir())


@pytest.mark.parametrize("fault", ["flip", "flip-manifest", "huge", "401", "redirect"])
def test_what_is_wrong_is_refused(registry: str, bad: str, store: Store, tmp_path: Path, fault: str) -> None:
    put(store, f"{registry}/wrong:1")
    push(store, f"{registry}/wrong:1")
    Bad.fault = fault
    other = Store(tmp_path / "other")
    with pytest.raises(LabError) as caught:
        pull(other, f"{bad}/wrong:1")
    if fault in ("flip", "flip-manifest", "huge"):
        assert isinstance(caught.value, BadImage)
    assert other.verify() == [] and other.list() == []


PULL = """
import sys
from pathlib import Path
from labctl.image.registry import pull
from labctl.image.store import Store
pull(Store(Path(sys.argv[1])), sys.argv[2])
"""


def test_killed_pulls(registry: str, store: Store, tmp_path: Path) -> None:
    ref = f"{registry}/kill:1"
    put(store, ref, size=20 << 20)
    push(store, ref)
    other = Store(tmp_path / "other")
    chance, killed = random.Random(11), 0
    for _ in range(15):
        process = subprocess.Popen([sys.executable, "-c", PULL, str(other.root), ref], start_new_session=True)
        try:
            process.wait(chance.uniform(0.1, 0.5))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        assert other.verify(deep=True) == []
        if other.find(ref):
            other.remove(ref)
    assert killed
    pull(other, ref)
    other.prune()
    assert other.verify(deep=True) == [] and not list((other.root / "tmp").iterdir())


def test_two_pulls_at_once(registry: str, store: Store, tmp_path: Path) -> None:
    ref = f"{registry}/two:1"
    put(store, ref, size=4 << 20)
    push(store, ref)
    root = tmp_path / "other"
    both = [subprocess.Popen([sys.executable, "-c", PULL, str(root), ref]) for _ in range(3)]
    assert [process.wait(60) for process in both] == [0, 0, 0]
    assert Store(root).verify(deep=True) == []


def test_logins(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"auths": {"https://r.example/v1/": {"auth": "bWU6cDpx"}}, "credHelpers": {"h.example": "lab"}}
        )
    )
    helper = tmp_path / "docker-credential-lab"
    helper.write_text('#!/bin/sh\nread host\necho "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"s\\"}"\n')
    helper.chmod(0o755)
    env = {"DOCKER_CONFIG": str(tmp_path), "HOME": "/nowhere"}
    found = credentials("r.example", env)
    assert found and (found.user, found.secret) == ("me", "p:q")
    assert credentials("other.example", env) is None
    old = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{old}"
    try:
        asked = credentials("h.example", env)
    finally:
        os.environ["PATH"] = old
    assert asked and asked.user == "h.example"
    (bearer,) = challenges('Bearer realm="https://a/t",service="s s",scope="repository:x:pull,push"')
    assert bearer.parameters == {"realm": "https://a/t", "service": "s s", "scope": "repository:x:pull,push"}
    assert shutil.which("docker-registry")
