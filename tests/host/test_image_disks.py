"""Images as disks of other hypervisors and back, and disks that a stranger made."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.image import diskfile
from labctl.image.archive import load
from labctl.image.disk import make_ext4
from labctl.image.model import BadImage
from labctl.image.store import Store

pytestmark = pytest.mark.needs("root")

MIB = 1 << 20
#: cap_net_bind_service=p, as the kernel keeps it.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "etc").mkdir(parents=True)
    (made / "etc/name").write_text("box\n")
    (made / "etc/name").chmod(0o640)
    os.chown(made / "etc/name", 12, 34)
    (made / "bin").mkdir()
    (made / "bin/su").write_bytes(b"x" * 3000)
    (made / "bin/su").chmod(0o4755)
    (made / "bin/link").symlink_to("su")
    (made / "bin/again").hardlink_to(made / "bin/su")
    os.setxattr(made / "bin/su", "security.capability", CAPABILITY)
    os.setxattr(made / "etc", "user.note", b'a "word"\n\x00\xff')
    return made


@pytest.fixture
def raw(tree: Path, tmp_path: Path) -> Path:
    """A disk with a partition table, whose second partition has the files."""
    make_ext4([tree], tmp_path / "part.ext4", seed="sha256:test", size=48 * MIB)
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as out:
        out.truncate(64 * MIB)
    with disk.open("r+b") as out:
        out.seek(446)
        for kind, start, count in ((0x82, 2048, 8192), (0x83, 16384, 98304)):
            out.write(struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), start, count))
        out.seek(510)
        out.write(b"\x55\xaa")
        out.seek(16384 * 512)
        out.write((tmp_path / "part.ext4").read_bytes())
    return disk


def digest(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


@pytest.mark.parametrize("kind", diskfile.FORMATS)
def test_there_and_back(raw: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"disk.{kind}"
    diskfile.convert(raw, out, kind, name="box")
    assert diskfile.kind_of(out) == kind and not list(tmp_path.glob(".*"))
    store = Store(tmp_path / "images")
    with diskfile.as_raw(store.scratch, out, kind) as back:
        size = raw.stat().st_size
        assert back.stat().st_size >= size and digest(back, size) == digest(raw, size)
    (image,) = load(store, out, ref=f"box:{kind}")
    layer = store.rootfs(image)[0]
    name, su = (layer / "etc/name").stat(), (layer / "bin/su").stat()
    assert (name.st_uid, name.st_gid, name.st_mode & 0o7777) == (12, 34, 0o640)
    assert su.st_mode & 0o7777 == 0o4755 and (layer / "bin/link").readlink() == Path("su")
    assert su.st_ino == (layer / "bin/again").stat().st_ino and su.st_nlink == 2
    assert os.getxattr(layer / "bin/su", "security.capability") == CAPABILITY
    assert os.getxattr(layer / "etc", "user.note") == b'a "word"\n\x00\xff'
    assert not (layer / "lost+found").exists() and store.verify(deep=True) == []


def test_an_ova_is_one(raw: Path, tmp_path: Path) -> None:
    """Description first, then the manifest, then the disk; the digests are right."""
    from xml.etree import ElementTree

    out = tmp_path / "box.ova"
    diskfile.convert(raw, out, "ova", name="box")
    with tarfile.open(out) as archive:
        assert archive.getnames() == ["box.ovf", "box.mf", "box-disk1.vmdk"]
        ovf, manifest, disk = (archive.extractfile(name).read() for name in archive.getnames())  # type: ignore[union-attr]
    for name, data in (("box.ovf", ovf), ("box-disk1.vmdk", disk)):
        assert f"SHA256({name})= {hashlib.sha256(data).hexdigest()}" in manifest.decode()
    root = ElementTree.fromstring(ovf)
    space = "{http://schemas.dmtf.org/ovf/envelope/1}"
    (found,) = root.iter(f"{space}Disk")
    assert found.get(f"{space}capacity") == str(raw.stat().st_size)
    (file,) = root.iter(f"{space}File")
    assert file.get(f"{space}size") == str(len(disk))


def test_disks_that_reach_for_other_files(raw: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "images")
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"s" * MIB)
    layer = tmp_path / "layer.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(layer)]
    subprocess.run(make, timeout=30, check=True)
    flat = tmp_path / "flat.vmdk"
    flat.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
        f"RW 2048 FLAT \"{secret}\" 0\nddb.adapterType = \"ide\"\n"
    )  # fmt: skip
    for path, words in ((layer, "only a layer over"), (flat, "takes part of its content|no sound")):
        with pytest.raises(BadImage, match=words):
            load(store, path, ref="bad:1")
    assert store.list() == [] and store.verify() == []


@pytest.mark.parametrize("name", ["../stolen", "AAAAAAAAA"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    """An entry that is a path, and one that comes twice, the first time as a link to a file of the host."""
    store, tree, victim = Store(tmp_path / "images"), tmp_path / "tree", tmp_path / "victim"
    tree.mkdir()
    victim.write_text("mine")
    (tree / "ZZZZZZZZZ").write_text("theirs")
    (tree / "AAAAAAAAA").symlink_to(victim)
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    plain = "^metadata_csum,^dir_index"  # so that nothing guards the names
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", plain, "-d", tree, disk], check=True, timeout=60)
    disk.write_bytes(disk.read_bytes().replace(b"ZZZZZZZZZ", name.encode()))
    with pytest.raises(BadImage, match="impossible name"):
        load(store, disk, ref="evil")
    assert victim.read_text() == "mine" and not list(tmp_path.rglob("stolen"))
    assert store.list() == [] and store.verify() == []


def test_disks_that_are_none(raw: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "images")
    good = tmp_path / "good.qcow2"
    diskfile.convert(raw, good, "qcow2")
    cut = tmp_path / "cut.qcow2"
    cut.write_bytes(good.read_bytes()[:70_000])
    ova = tmp_path / "box.ova"
    diskfile.convert(raw, ova, "ova", name="box")
    with tarfile.open(ova) as archive, tarfile.open(tmp_path / "wrong.ova", "w") as out:
        for member in archive:
            data = archive.extractfile(member)
            if member.name.endswith(".mf"):
                import io

                text = data.read().replace(b"= ", b"= 0")  # type: ignore[union-attr]
                member.size, data = len(text), io.BytesIO(text)
            out.addfile(member, data)
    empty = tmp_path / "empty.raw"
    empty.write_bytes(raw.read_bytes()[:512] + bytes(64 * MIB - 512))
    swap = tmp_path / "box.xfs"
    swap.write_bytes(b"XFSB" + bytes(506) + b"\x55\xaa" + bytes(MIB))
    cases = [
        (cut, "is no sound|no ext2"),
        (tmp_path / "wrong.ova", "manifest"),
        (empty, "no ext2"),
        (swap, "found: xfs"),
    ]
    for path, words in cases:
        with pytest.raises(LabError, match=words):
            load(store, path, ref="bad:1")
    with pytest.raises(UsageError, match="no name"):
        load(store, good)
    assert store.list() == [] and store.verify() == []
    assert [diskfile.size_of(text) for text in ("8GiB", "1.5G", "512m", "100")] == [
        8 << 30, 3 << 29, 512 << 20, 100,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="is no size"):
        diskfile.size_of("big")
