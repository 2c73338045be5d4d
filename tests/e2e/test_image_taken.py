"""An image that is removed while labs that use it are being made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from labctl.events import Event, Note
from labctl.home import Home
from labctl.hypervisor.connection import close_all
from labctl.image.store import Store
from labctl.lab import api
from labctl.lab.model import Options
from labctl.profile.loader import load
from tests.e2e.labs import CONTAINERS, Lab
from tests.shared_images import share, shared_cache

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel")]

PROFILE = """
name: taken
nodes:
  box: {image: mine, command: sleep 999}
  vm: {image: mine, tier: emulation}
  last: {image: ./late, command: sleep 999}
"""


def own_cache(home: Home) -> None:
    """A store and disks of the test's own, since it prunes; kernels and programs are everyone's."""
    home.cache.unlink()
    (home.cache / "boot").mkdir(parents=True)
    for path in (shared_cache() / "boot").iterdir():
        if path.name != "disks":
            (home.cache / "boot" / path.name).symlink_to(path)
    share(Store(home.cache / "images"), "micro")


def folder(path: Path, word: str) -> Path:
    path.mkdir()
    (path / "Dockerfile").write_text(f"FROM micro\nRUN echo {word} > /word\n")
    return path


def test_rm_and_prune_while_up_is_at_work(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "taken", PROFILE)
    own_cache(home)
    digest = json.loads(
        lab.good("image", "build", str(folder(tmp_path / "mine", "mine")), "-t", "mine", "--json")
    )["images"][0]["digest"]
    folder(tmp_path / "late", "late")
    prunes: list[subprocess.Popen[str]] = []

    def meanwhile(event: Event) -> None:
        """The lab's first image was found; the other one is being built."""
        if isinstance(event, Note) and not prunes:
            lab.good("image", "rm", "mine")
            prunes.append(lab.begin("image", "prune", "--unnamed", "--cache"))

    try:
        api.up(load(lab.file), Options(home), meanwhile)
        assert prunes and prunes[0].wait(60) == 0, prunes and prunes[0].communicate()
        assert {lab.sh(node, "cat /word") for node in ("box", "vm")} == {"mine"}
        assert lab.sh("last", "cat /word") == "late"
        assert "no image mine" in lab.fails(2, "image", "inspect", "mine")
        lab.good("image", "prune", "--unnamed", "--cache")
        lab.good("restart", "taken/vm", "taken/box")
        assert lab.sh("vm", "cat /word") == "mine" == lab.sh("box", "cat /word")
        assert lab.good("image", "verify", "--deep").strip() == "the store is whole"
    finally:
        close_all()  # the lab's libvirtd ends with the last who is connected
        lab.down()
    store = Store(home.cache / "images")
    assert store.held(digest) is not None
    lab.good("image", "prune", "--unnamed")
    assert store.held(digest) is None and store.verify(deep=True) == []
    left = [path.name for path in (home.cache / "boot" / "disks").glob("*.ext4")]
    assert not any(name.startswith(digest.replace(":", "-")) for name in left)
