"""Disks of images: what is in them, the same bytes twice, two makers at once, no room."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.image.disk import disk, estimate, make_ext4, node_disk, prune_disks

pytestmark = pytest.mark.needs("root", "overlay")
MIB = 1 << 20


class Image:
    """As much of an image and of a store as a disk needs."""

    def __init__(self, digest: str, layers: list[Path]) -> None:
        self.digest = digest
        self.layers = layers
        self.asked = 0

    def rootfs(self, image: object) -> list[Path]:
        self.asked += 1
        return self.layers


def layers(base: Path) -> list[Path]:
    """Three layers: the second deletes a file and hides a folder's old content, the third has owners."""
    low, middle, top = (base / name for name in ("low:1", "middle,2", "top"))
    for path in (low / "etc", low / "opt", middle / "etc", middle / "opt", top / "home/app"):
        path.mkdir(parents=True)
    (low / "etc/gone").write_text("x")
    (low / "etc/kept").write_text("kept")
    (low / "opt/old").write_text("x")
    os.mknod(middle / "etc/gone", 0o020000, 0)
    os.setxattr(middle / "opt", "trusted.overlay.opaque", b"y")
    (middle / "opt/new").write_text("new")
    (top / "home/app/run").write_text("#!/bin/sh\n")
    os.chown(top / "home/app/run", 1234, 4321)
    (top / "home/app/run").chmod(0o4751)
    os.setxattr(top / "home/app/run", "user.note", b"kept")
    os.mknod(top / "home/app/null", 0o020666, os.makedev(1, 3))
    (top / "home/app/link").symlink_to("run")
    return [low, middle, top]


def debugfs(image: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, str(image)], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_layers_become_one_tree(tmp_path: Path) -> None:
    target = tmp_path / "out/root.ext4"
    make_ext4(layers(tmp_path), target, seed="x", size=128 * MIB)
    assert target.stat().st_size == 128 * MIB and target.stat().st_blocks * 512 < 16 * MIB
    names = {line.split("/")[5] for line in debugfs(target, "ls -p /etc").split() if line.count("/") > 5}
    assert "kept" in names and "gone" not in names
    assert "new" in debugfs(target, "ls -p /opt") and "old" not in debugfs(target, "ls -p /opt")
    stat = debugfs(target, "stat /home/app/run")
    assert "Mode:  04751" in stat and "User:  1234" in stat and "Group:  4321" in stat
    assert "kept" in debugfs(target, "ea_get /home/app/run user.note")
    assert "Device major/minor number: 01:03" in debugfs(target, "stat /home/app/null")
    assert 'Fast link dest: "run"' in debugfs(target, "stat /home/app/link")
    subprocess.run(["e2fsck", "-fn", target], timeout=30, check=True, capture_output=True)


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    found = layers(tmp_path)
    for name in ("a", "b"):
        make_ext4(found, tmp_path / name, seed="x", size=64 * MIB)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_two_makers_make_one_disk(tmp_path: Path) -> None:
    image = Image("sha256:" + "ab" * 32, layers(tmp_path))
    made: list[Path] = []
    workers = [
        threading.Thread(
            target=lambda: made.append(disk(image, image, tmp_path / "cache", 64 * MIB))  # type: ignore[arg-type]
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(made) == 4 and len(set(made)) == 1 and image.asked == 1
    assert not list((tmp_path / "cache/boot/disks").glob(".*.ext4.*"))


def test_too_small_a_disk_says_what_is_needed(tmp_path: Path) -> None:
    image = Image("sha256:" + "cd" * 32, layers(tmp_path))
    (image.layers[0] / "big").write_bytes(os.urandom(40 * MIB))
    least = estimate(image.layers)
    with pytest.raises(LabError, match=f"needs {least >> 20} MiB"):
        disk(image, image, tmp_path / "cache", 32 * MIB)  # type: ignore[arg-type]
    disk(image, image, tmp_path / "cache", least)  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], timeout=20, check=True)
    try:
        found = layers(tmp_path)
        (found[0] / "big").write_bytes(os.urandom(4 * MIB))
        with pytest.raises(LabError, match="make a disk"):
            make_ext4(found, small / "root.ext4", seed="x", size=64 * MIB)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], timeout=20, check=True)


def test_a_nodes_layer_is_thin(tmp_path: Path) -> None:
    make_ext4(layers(tmp_path), tmp_path / "root.ext4", seed="x", size=64 * MIB)
    node_disk(tmp_path / "node.qcow2", tmp_path / "root.ext4", 1024 * MIB)
    assert (tmp_path / "node.qcow2").stat().st_blocks * 512 < MIB
    shown = subprocess.run(
        ["qemu-img", "info", tmp_path / "node.qcow2"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    assert f"{tmp_path}/root.ext4" in shown and "backing file format: raw" in shown and "1 GiB" in shown
    with pytest.raises(LabError, match="short"):
        node_disk(tmp_path / "other.qcow2", tmp_path / "root.ext4", 32 * MIB)


def test_pruning_keeps_what_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "boot/disks"
    folder.mkdir(parents=True)
    for name in ("sha256-aa.64M.1.ext4", "sha256-aa.128M.1.ext4", "sha256-bb.64M.1.ext4"):
        (folder / name).write_bytes(bytes(4096))
    assert prune_disks(tmp_path, {"sha256:aa"}) == 4096
    assert sorted(path.name for path in folder.iterdir()) == ["sha256-aa.128M.1.ext4", "sha256-aa.64M.1.ext4"]


@pytest.mark.needs("userns")
def test_a_plain_user_makes_one_too(tmp_path: Path) -> None:
    """What the user unpacked belongs to root in the disk."""
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    home = tmp_path / "user"
    for name in ("a/etc", "b/etc"):
        (home / name).mkdir(parents=True)
    (home / "a/etc/one").write_text("1")
    (home / "b/etc/two").write_text("2")
    for path in (home, *home.rglob("*")):
        os.chown(path, 65534, 65534)
    code = (
        "from pathlib import Path; from labctl.image.disk import make_ext4; import os; os.chdir('/');"
        f"h = Path({str(home)!r}); make_ext4([h / 'a', h / 'b'], h / 'root.ext4', seed='x', size={64 * MIB})"
    )
    # The checkout may be in a home that the user can't look into.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parents[2] / "labctl", home / "labctl", ignore=ignored)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code]
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(home), "PYTHONPATH": str(home)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        assert "User:     0   Group:     0" in debugfs(home / "root.ext4", f"stat /etc/{name}")
