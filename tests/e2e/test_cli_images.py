"""The verbs about images as a person uses them: build, move, look at, and run what is built."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.image.store import Store
from tests.e2e.labs import CONTAINERS, Lab
from tests.shared_images import share

pytestmark = [pytest.mark.needs(*CONTAINERS, "docker-registry", "skopeo")]

PROFILE = """
name: NAME
nodes:
  built: {image: ./web}
  pulled: {image: "ADDRESS/class/web:1"}
  read: {image: ./web.tar}
"""


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    lab = Lab(home, tmp_path, "images", "name: images\nnodes: {}\n")
    # A store of its own: images are removed here, and other tests use the shared one.
    store = home.cache.resolve()
    home.cache.unlink()
    home.cache.mkdir()
    assert store.is_dir()
    share(Store(home.cache / "images"), "micro")
    return lab


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def web(folder: Path) -> Path:
    made = folder / "web"
    made.mkdir()
    (made / "Dockerfile").write_text(
        'FROM micro\nARG WHO=world\nRUN echo "hello $WHO" > /greeting\nCOPY page /srv/\n'
        'CMD ["cat", "/greeting", "/srv/page"]\n'
    )
    (made / "page").write_text("a page\n")
    return made


def test_an_image_goes_round(lab: Lab, tmp_path: Path) -> None:
    folder, address = web(tmp_path), f"127.0.0.1:{free_port()}"
    built = json.loads(lab.good("image", "build", str(folder), "-t", "class/web:1", "--json"))["images"][0]
    again = json.loads(lab.good("image", "build", str(folder), "-t", "class/web:1", "--json"))["images"][0]
    assert again["digest"] == built["digest"]
    lab.good("registry", "serve", "--listen", address)
    try:
        ref = f"{address}/class/web:1"
        lab.good("image", "push", "class/web:1", ref)
        raw = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{ref}"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert len(json.loads(raw.stdout)["Layers"]) == len(built["layers"])
        assert lab.good("image", "tags", f"{address}/class/web").split() == ["1"]
        file = tmp_path / "web.tar"
        lab.good("image", "export", "class/web:1", str(file))
        lab.good("image", "rm", "class/web:1")
        assert lab.run("image", "inspect", "class/web:1").returncode == 2
        lab.write(PROFILE.replace("ADDRESS", address).replace("NAME", lab.name))
        planned = lab.good("plan", str(lab.file))
        assert "pulled from" in planned and "to be read" in planned and "to be built" in planned
        lab.good("up", str(lab.file))
        for node in ("built", "pulled", "read"):
            lab.good("wait", f"{lab.name}/{node}", "--for", "stopped")
            assert lab.good("logs", f"{lab.name}/{node}") == "hello world\na page\n"
        assert "in use" in lab.run("image", "rm", ref).stderr or "other" in lab.good("image", "ls")
        kept = lab.good("image", "prune", "--cache", "--unnamed")
        assert "freed" in kept
        assert "nothing to do" in lab.good("plan", str(lab.file)).lower() or lab.good("status", lab.name)
        (folder / "page").write_text("another page\n")
        lab.good("up", str(lab.file))
        lab.good("wait", f"{lab.name}/built", "--for", "stopped")
        assert lab.good("logs", f"{lab.name}/built").endswith("another page\n")
        assert lab.good("image", "verify", "--deep").strip() == "the store is whole"
    finally:
        lab.good("down", "--all")
    assert json.loads(lab.good("registry", "ls", "--json"))["registries"] == []
    assert "leftover" not in lab.good("gc")


def test_archives_through_pipes(lab: Lab, tmp_path: Path) -> None:
    environment = {**os.environ}
    labctl = [shutil.which("labctl") or "", "image"]
    if not labctl[0]:
        labctl = [str(Path(os.sys.executable).with_name("labctl")), "image"]  # type: ignore[attr-defined]
    out = subprocess.run(
        [*labctl, "export", "micro", "-", "--format", "docker-archive"],
        capture_output=True, timeout=60, env=environment, check=True,
    )  # fmt: skip
    done = subprocess.run(
        [*labctl, "import", "-", "copy:1"], input=out.stdout, capture_output=True, timeout=60,
        env=environment, check=True,
    )  # fmt: skip
    assert b"copy:1" in done.stdout
    ids = [json.loads(lab.good("image", "inspect", name))["id"] for name in ("micro", "copy:1")]
    assert ids[0] == ids[1]
    cut = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{' '.join(labctl)} export micro - | head -c 100 | wc -c"],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert cut.returncode == 141 and "Traceback" not in cut.stderr


BAD = [
    ("image build nonesuch", 2, "neither a recipe nor a folder"),
    ("image build ./nonesuch", 2, "there is no ./nonesuch"),
    ("image build micro -t x", 2, "is a recipe, which knows no --tag"),
    ("image pull ./x", 2, "is no name at a registry"),
    ("image push micro x --compress lzma", 2, "gzip, zstd or none"),
    ("image import /nonesuch", 2, "there is no /nonesuch"),
    ("image export micro /dev/null --format zip", 2, "there is no format zip"),
    ("registry serve --listen here", 2, "ADDRESS:PORT"),
    ("registry serve --name a/b", 2, "no name for a registry"),
    ("registry serve --tls-cert /nonesuch", 2, "there is no certificate"),
]


def test_bad_words(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "bad", "name: bad\nnodes: {}\n")
    running = [lab.begin(*words.split()) for words, _, _ in BAD]
    for process, (words, code, said) in zip(running, BAD, strict=True):
        _, error = process.communicate(timeout=120)
        assert (process.returncode, said in error, "Traceback" in error) == (code, True, False), words + error
