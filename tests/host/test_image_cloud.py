"""Cloud images from a server that breaks off, changes, lies and goes away."""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.errors import HostCannot, LabError, UsageError
from labctl.image import cloud
from labctl.image.model import BadImage

BODY = random.Random(4).randbytes(3_000_000)


class Server(http.server.BaseHTTPRequestHandler):
    """One file and lists of its checksums; `cuts` says after how many bytes each answer ends."""

    body = BODY
    lists: dict[str, str] = {}  # noqa: RUF012 - set anew by the fixture
    cuts: list[int] = []  # noqa: RUF012
    starts: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """The list, or the file from where it is asked for."""
        name = self.path.rpartition("/")[2]
        if name not in (*self.lists, "box%201.qcow2"):
            self.send_error(404)
            return
        if name in self.lists:
            blob, start = self.lists[name].encode(), 0
        else:
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            blob = self.body[start:]
            self.starts.append(str(start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(blob)))
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts and name not in self.lists else len(blob)
        self.wfile.write(blob[:cut])


@pytest.fixture
def site() -> Iterator[str]:
    sha, long = hashlib.sha256(BODY).hexdigest(), hashlib.sha512(BODY).hexdigest()
    Server.body, Server.cuts, Server.starts = BODY, [], []
    Server.lists = {
        "SHA256SUMS": f"{'0' * 64} *other.qcow2\n{sha} *box 1.qcow2\n",
        "SHA512SUMS": f"{long}  box 1.qcow2\n",
        "CHECKSUM": f"# Fedora's form\nSHA256 (box 1.qcow2) = {sha}\n",
        "lone.sha512": f"{long}\n",
        "wrong": f"{'0' * 64}  box 1.qcow2\n",
        "empty": "nothing\n",
        "old": f"{hashlib.sha1(BODY).hexdigest()}  box 1.qcow2\n",
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("sums", ["SHA256SUMS", "SHA512SUMS", "CHECKSUM", "lone.sha512"])
def test_every_form_of_list(site: str, tmp_path: Path, sums: str) -> None:
    image = cloud.named(f"{site}/box%201.qcow2", sums=f"{site}/{sums}")
    path = cloud.fetch(tmp_path, image)
    assert path.name == "box 1.qcow2" and path.read_bytes() == BODY


def test_broken_off_and_kept(site: str, tmp_path: Path) -> None:
    image = cloud.named(f"{site}/box%201.qcow2", sums=f"{site}/SHA256SUMS")
    Server.cuts = [1_000_000, 10, 500_000]
    assert cloud.fetch(tmp_path, image).read_bytes() == BODY
    assert Server.starts == ["0", "1000000", "1000010", "1500010"]
    cloud.fetch(tmp_path, image)
    assert len(Server.starts) == 4  # the copy of the cache is good
    Server.body = BODY[::-1]
    Server.lists["SHA256SUMS"] = f"{hashlib.sha256(Server.body).hexdigest()}  box 1.qcow2\n"
    assert cloud.fetch(tmp_path, image).read_bytes() == BODY[::-1]


@pytest.mark.parametrize(
    ("sums", "kind", "words"),
    [
        ("wrong", BadImage, "is not what its checksums say"),
        ("empty", BadImage, "no SHA-256 or SHA-512 of box 1.qcow2"),
        ("old", BadImage, "no SHA-256 or SHA-512"),
        ("missing", LabError, "404"),
    ],
)
def test_what_is_wrong(site: str, tmp_path: Path, sums: str, kind: type[LabError], words: str) -> None:
    image = cloud.named(f"{site}/box%201.qcow2", sums=f"{site}/{sums}")
    with pytest.raises(kind, match=words):
        cloud.fetch(tmp_path, image)
    assert not list(tmp_path.rglob("*.qcow2")) and not list(tmp_path.rglob("*.part"))


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "TRIES", 1)
    digest = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    lost = cloud.named("http://127.0.0.1:1/box.qcow2", digest=digest)
    with pytest.raises(HostCannot, match=r"cannot reach 127\.0\.0\.1:1") as caught:
        cloud.fetch(tmp_path, lost)
    assert "network" in caught.value.hint
    listed = cloud.named("http://127.0.0.1:1/box.qcow2", sums="http://127.0.0.1:1/SUMS")
    (folder,) = (tmp_path / "cloud").iterdir()
    (folder / "box.qcow2").write_bytes(BODY)
    said: list[str] = []
    kept = cloud.fetch(tmp_path, listed, lambda event: said.append(str(event)))
    assert kept.read_bytes() == BODY and "of the cache is used" in said[0]


def test_names() -> None:
    known = cloud.catalog()
    assert {"debian-12", "debian-13", "ubuntu-24.04", "fedora-41", "alpine-3.20"} <= set(known)
    assert all(image.url.startswith("https://") and image.sums and image.arch for image in known.values())
    for text, more, words in (
        ("debian-21", {}, "no cloud image debian-21"),
        ("https://example.org/", {}, "no URL of a file"),
        ("https://example.org/x.img", {}, "what must it be"),
        ("https://example.org/x.img", {"digest": "sha256:12"}, "is no checksum"),
    ):
        with pytest.raises(UsageError, match=words):
            cloud.named(text, **more)
