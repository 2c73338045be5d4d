"""Layers that mean harm or cost too much: one clear error each, and a store that is whole afterwards."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.image.archive import load
from labctl.image.model import BadImage
from labctl.image.store import Store
from tests.unit.test_image_unpack import folder, layer, link, member

pytestmark = pytest.mark.needs("root")

ZSTD = ["zstd", "-cq"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def whole(store: Store) -> bool:
    """Nothing is wrong, nothing lies about, and no name was given."""
    litter = list((store.root / "tmp").iterdir()) if (store.root / "tmp").is_dir() else []
    return store.verify(deep=True) == [] and store.list() == [] and litter == []


def _zstd(data: bytes) -> bytes:
    return subprocess.run(ZSTD, input=data, capture_output=True, check=True, timeout=60).stdout


def _as_it_is(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("../../evil", b"x")], "outside"),
        ([member("/a/../../evil", b"x")], "outside"),
        ([link("up", "/etc"), link("h", "../../etc/passwd", tarfile.LNKTYPE)], "outside"),
        ([link("h", "/etc/passwd", tarfile.LNKTYPE)], "hard link to etc/passwd"),
        ([link("a", "b"), link("b", "a"), member("a/x", b"x")], "symbolic links"),
        ([member("d/.wh...", b"")], "no usable deletion"),
        ([member("d/.wh.", b"")], "no usable deletion"),
        ([member("../.wh.etc", b"")], "outside"),
        ([member("zero", type=tarfile.CHRTYPE, devmajor=0, devminor=0)], "device 0/0"),
        ([member("f", b"x", uid=2**32 - 1)], "impossible user"),
        ([member("/".join(["d" * 200] * 30), b"x")], "no usable file name"),
    ],
)
def test_refused(
    store: Store, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes | None]], said: str
) -> None:
    (tmp_path / "evil.tar").write_bytes(layer(folder("d"), *members).getvalue())
    with pytest.raises(LabError, match=said):
        load(store, tmp_path / "evil.tar", ref="evil")
    store.prune()
    assert whole(store) and not (tmp_path / "evil").exists()


def test_taken_as_it_is(store: Store, tmp_path: Path) -> None:
    """Odd, and harmless in a layer: devices, set-uid, case clashes, links that point anywhere, long names."""
    long = "/".join(["x" * 90] * 20)
    out = io.BytesIO()
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(fileobj=out, mode="a" if out.getvalue() else "w", format=form) as archive:
            for info, data in (member(f"{form}/{long}", b"long"), link(f"{form}-l", "/" + long)):
                archive.addfile(info, io.BytesIO(data) if data is not None else None)
        out.seek(0)
    with tarfile.open(fileobj=out, mode="a") as archive:
        for info, data in (
            member("Name", b"1"), member("name", b"2"), member("name", b"3"), link("loop", "loop"),
            link("away", "../../../../etc/shadow"), member("su", b"x", mode=0o6755),
            member("sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0), folder("k"),
            member("k/.wh..wh..opq", b""),
            member(".wh.gone", b""), member(".wh.k", b""),
        ):  # fmt: skip
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    (tmp_path / "odd.tar").write_bytes(out.getvalue())
    image = load(store, tmp_path / "odd.tar", ref="odd")[0]
    tree = store.rootfs(image)[0]
    assert (tree / str(tarfile.GNU_FORMAT) / long).read_text() == "long"
    assert (tree / str(tarfile.PAX_FORMAT) / long).read_text() == "long"
    assert [(tree / name).read_text() for name in ("Name", "name")] == ["1", "3"]
    assert (tree / "sda").is_block_device() and (tree / "su").stat().st_mode & 0o7777 == 0o6755
    assert (tree / "k").is_dir()  # what a layer brings itself, its own deletions leave alone
    assert store.root.joinpath("layers").stat().st_mode & 0o077 == 0
    assert store.verify(deep=True) == []


@pytest.mark.parametrize("pack", [gzip.compress, _zstd, _as_it_is], ids=["gzip", "zstd", "tar"])
def test_cut_short(store: Store, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = pack(layer(member("a", os.urandom(60_000)), member("b", b"x" * 9000)).getvalue())
    for cut in (1, 300, len(data) // 2):
        path = tmp_path / "cut"
        path.write_bytes(data[:cut])
        with pytest.raises(LabError):
            load(store, path, ref="cut")
    store.prune()
    assert whole(store)


@pytest.mark.parametrize("pack", [gzip.compress, _zstd], ids=["gzip", "zstd"])
def test_bombs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "bomb").write_bytes(pack(layer(member("zeros", bytes(30 << 20))).getvalue()))
    monkeypatch.setenv("LABCTL_MAX_LAYER", str(10 << 20))
    with pytest.raises(BadImage, match="unpacks to more than") as caught:
        load(store, tmp_path / "bomb", ref="bomb")
    assert "LABCTL_MAX_LAYER" in caught.value.hint
    monkeypatch.setenv("LABCTL_MAX_LAYER", str(40 << 20))
    (tmp_path / "many").write_bytes(pack(layer(*[member(f"f{n}", b"") for n in range(50)]).getvalue()))
    monkeypatch.setenv("LABCTL_MAX_ENTRIES", "49")
    with pytest.raises(BadImage, match="more than 49 members") as caught:
        load(store, tmp_path / "many", ref="many")
    assert "LABCTL_MAX_ENTRIES" in caught.value.hint
    store.prune()
    assert whole(store)
    image = load(store, tmp_path / "bomb", ref="bomb")[0]
    zeros = (store.rootfs(image)[0] / "zeros").stat()
    assert zeros.st_size == 30 << 20 and zeros.st_blocks < 1000  # zeros are holes


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_eight_gigabytes_with_holes(store: Store, tmp_path: Path, form: str) -> None:
    with (tmp_path / "big").open("wb") as file:
        for at in (0, 5 << 30, (8 << 30) + 7):
            file.seek(at)
            file.write(b"data")
    argv = ["tar", "-C", tmp_path, f"--format={form}", "--sparse", "-cf", tmp_path / "big.tar", "big"]
    subprocess.run(argv, check=True, timeout=60)
    image = load(store, tmp_path / "big.tar", ref="big")[0]
    path = store.rootfs(image)[0] / "big"
    assert path.stat().st_size == (8 << 30) + 11 and path.stat().st_blocks < 1000
    with path.open("rb") as file:
        for at in (5 << 30, (8 << 30) + 7):
            file.seek(at)
            assert file.read(4) == b"data"
    assert store.verify(deep=True) == []


FULL = """
mount -t tmpfs -o size=$4 none "$1" && export LABCTL_HOME="$1/home"
for words in "import $2 full" "import $2 full" prune "verify --deep" ls; do
    "$3" -m labctl.cli image $words 2>&1; echo "code $?"
done
"""


@pytest.mark.parametrize(("size", "said"), [("12m", "cannot store a blob"), ("20m", "the disk is full")])
def test_disk_full(tmp_path: Path, size: str, said: str) -> None:
    """On a small file system of its own, while the layer is stored and while it is unpacked."""
    (tmp_path / "place").mkdir()
    data = layer(*[member(f"f{n}", os.urandom(1 << 20)) for n in range(8)]).getvalue()
    (tmp_path / "big.tar.gz").write_bytes(gzip.compress(data, 1))
    words = [str(tmp_path / "place"), str(tmp_path / "big.tar.gz"), sys.executable, size]
    argv = ["unshare", "-m", "sh", "-c", FULL, "sh", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert said in done.stdout and "Traceback" not in done.stdout, done
    assert "the store is whole" in done.stdout and "full:latest" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        "code 1", "code 1", "code 0", "code 0", "code 0",
    ]  # fmt: skip


@pytest.mark.long
def test_two_hundred_thousand_files(store: Store, tmp_path: Path) -> None:
    """Empty ones, in a thousand folders: unpacked whole, and packed again with the same names."""
    with (tmp_path / "many.tar").open("wb") as out:
        for number in range(200_000):
            name = f"d{number // 200}/f{number}"
            out.write(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
        out.write(bytes(1024))
    image = load(store, tmp_path / "many.tar", ref="many")[0]
    tree = store.rootfs(image)[0]
    assert sum(len(files) for _, _, files in os.walk(tree)) == 200_000
    assert (tree / "d995/f199007").is_file() and store.verify(deep=True) == []
