"""Images in files, both ways, with skopeo and umoci as the other side."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.image.archive import load, save
from labctl.image.model import BadImage
from labctl.image.store import Store
from tests.host.test_image_registry import put, skopeo

pytestmark = pytest.mark.needs("root", "skopeo")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "images")
    put(store, "app")
    return store


def tree(path: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for place in sorted(path.rglob("*")):
        status = place.lstat()
        content = place.readlink() if place.is_symlink() else place.read_bytes() if place.is_file() else b""
        found.append(
            (str(place.relative_to(path)), oct(status.st_mode), status.st_uid, int(status.st_mtime), content)
        )
    return found


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_round_trip_with_skopeo(store: Store, tmp_path: Path, kind: str) -> None:
    image = store.resolve("app")
    save(store, "app", tmp_path / "ours.tar", kind)
    seen = json.loads(skopeo("inspect", "--config", f"{kind}:{tmp_path}/ours.tar"))
    assert seen["config"]["Cmd"] == ["/new"] and seen["rootfs"]["diff_ids"] == list(image.config.diff_ids)
    other = Store(tmp_path / "other")
    (back,) = load(other, tmp_path / "ours.tar")
    assert back.config_digest == image.config_digest and back.ref == "app:latest"
    skopeo("copy", f"oci:{store.root}:app:latest", f"{kind}:{tmp_path}/theirs.tar:named:1")
    subprocess.run(["gzip", "-k", str(tmp_path / "theirs.tar")], check=True, timeout=60)
    (theirs,) = load(other, tmp_path / "theirs.tar.gz", ref="theirs")
    assert theirs.config.diff_ids == image.config.diff_ids
    assert other.verify(deep=True) == [] and not list((other.root / "tmp").iterdir())


def test_the_store_is_a_layout_that_others_read(store: Store, tmp_path: Path) -> None:
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{store.root}:app:latest", str(tmp_path / "bundle")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store.merged_tree(store.resolve("app"), tmp_path / "merged")
    assert tree(tmp_path / "bundle/rootfs") == tree(tmp_path / "merged")
    (folder,) = load(Store(tmp_path / "other"), store.root, ref="again")
    assert folder.digest == store.resolve("app").digest


def test_root_file_systems(store: Store, tmp_path: Path) -> None:
    save(store, "app", tmp_path / "root.tar", "rootfs")
    (image,) = load(store, tmp_path / "root.tar", ref="flat")
    assert len(image.layers) == 1
    store.merged_tree(store.resolve("app"), tmp_path / "a")
    store.merged_tree(image, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    (tmp_path / "dir/etc").mkdir(parents=True)
    (tmp_path / "dir/etc/.wh.name").write_text("a file like any other")
    with pytest.raises(UsageError, match="no name"):
        load(store, tmp_path / "dir")
    (made,) = load(store, tmp_path / "dir", ref="dir", arch="aarch64")
    assert made.architecture == "arm64"


def test_bad_files(store: Store, tmp_path: Path) -> None:
    save(store, "app", tmp_path / "good.tar")
    data = (tmp_path / "good.tar").read_bytes()
    other = Store(tmp_path / "other")
    with pytest.raises(UsageError, match="there is no"):
        load(other, tmp_path / "nothing")
    for number, broken in enumerate([os.urandom(3000), b"", data[: len(data) // 2], b"\x1f\x8b" + data[:50]]):
        path = tmp_path / f"bad{number}"
        path.write_bytes(broken)
        with pytest.raises(LabError):
            load(other, path, ref="bad")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../evil"))
    with pytest.raises(BadImage, match="outside"):
        load(other, evil, ref="evil")
    image = store.resolve("app")
    turned = data.replace(image.layers[1].digest[7:].encode(), image.layers[0].digest[7:].encode())
    (tmp_path / "turned.tar").write_bytes(turned)
    with pytest.raises(LabError):
        load(other, tmp_path / "turned.tar", ref="x")
    assert other.list() == [] and other.verify() == []
    with pytest.raises(UsageError, match="no format"):
        save(store, "app", tmp_path / "x", "vhs")


def test_store_keeps_what_is_used(store: Store, tmp_path: Path) -> None:
    image = store.resolve("app")
    store.tag("app", "second:2")
    assert sorted(one.ref for one in store.list()) == ["app:latest", "second:2"]
    store.remove("second:2")
    store.rootfs(image)
    put(store, "more")
    store.pin(image, "lab web")
    store.pin(store.resolve("more"), "lab web")
    with pytest.raises(LabError, match="in use by lab web"):
        store.remove("more")
    with pytest.raises(LabError, match="in use by lab web"):
        store.remove("app")
    store.unpin("lab web")
    store.remove("more")
    put(store, "other")
    removed = store.remove("app")
    assert image.digest in removed and not store.layers.path(image.layers[0].diff_id).exists()
    assert store.verify(deep=True) == [] and [one.ref for one in store.list()] == ["other:latest"]
    blob = store.blobs.path(store.resolve("other").layers[0].digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    assert any("has the content of" in line for line in store.verify())
    with pytest.raises(BadImage, match=r"instead of|damaged|ends"):
        store.rootfs(store.resolve("other"))
    assert not list((store.root / "tmp").iterdir())
