"""Layers from strangers: nothing leaves the folder, everything kept that a tree has."""

# ruff: noqa: E501 - tables of scripts and of what they print read better whole

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.image.merge import merge
from labctl.image.model import BadImage
from labctl.image.pack import Packing, pack
from labctl.image.unpack import Limits, unpack

root_only = pytest.mark.needs("root")


def member(name: str, data: bytes | None = None, **fields: object) -> tuple[tarfile.TarInfo, bytes | None]:
    info = tarfile.TarInfo(name)
    info.uid, info.gid = os.geteuid(), os.getegid()
    info.mode = 0o644
    if data is not None:
        info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    if info.isdir():
        info.mode = 0o755
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes | None]:
    return member(name, type=kind, linkname=target)


def folder(name: str) -> tuple[tarfile.TarInfo, bytes | None]:
    return member(name, type=tarfile.DIRTYPE)


def layer(*members: tuple[tarfile.TarInfo, bytes | None]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    out.seek(0)
    return out


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to unpack into, with a secret beside it that must stay as it is."""
    (tmp_path / "secret").write_text("untouched")
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def outside_is_clean(place: Path) -> bool:
    above = place.parent
    return (above / "secret").read_text() == "untouched" and not any((above / "outside").iterdir())


@pytest.mark.parametrize(
    "members",
    [
        [member("../secret", b"x")],
        [member("a/../../secret", b"x")],
        [link("a", "secret"), link("b", "../secret", tarfile.LNKTYPE)],
        [member("x/.wh...", b"")],
        [link("a", "/nowhere"), member("a/b", b"x")],
        [member("a", b"x"), member("a/b", b"x")],
        [link("l", "missing", tarfile.LNKTYPE)],
        [link("l", "", tarfile.LNKTYPE)],
        [link("loop", "loop"), member("loop/x", b"x")],
        [member("n" * 300, b"x")],
    ],
    ids=["dotdot", "inner", "hard-out", "whiteout-dotdot", "dangling", "file-parent", "no-target", "root-link",
         "loop", "long"],
)  # fmt: skip
def test_refused(place: Path, members: list[tuple[tarfile.TarInfo, bytes | None]]) -> None:
    with pytest.raises(BadImage):
        unpack(layer(*members), place)
    assert outside_is_clean(place)


def test_links_never_lead_out(place: Path) -> None:
    outside = str(place.parent / "outside")
    inside = place / outside.lstrip("/")
    unpack(
        layer(
            folder(outside.lstrip("/")),
            link("abs", outside),
            member("abs/one", b"1"),
            link("rel", "../../../../../../.." + outside),
            member("rel/two", b"2"),
            link("chain", "abs"),
            link("chain2", "chain/../outside"),
            member("chain2/three", b"3"),
            link("chain/hard", "abs/one", tarfile.LNKTYPE),
            member("/absolute", b"4"),
        ),
        place,
    )
    assert outside_is_clean(place)
    assert {path.name for path in inside.iterdir()} == {"one", "two", "three", "hard"}
    assert (inside / "hard").stat().st_ino == (inside / "one").stat().st_ino
    assert (place / "absolute").read_bytes() == b"4"


def test_a_link_is_replaced_not_followed(place: Path) -> None:
    secret = place.parent / "secret"
    unpack(layer(link("a", str(secret)), member("a", b"mine"), link("d", "/etc"), folder("d")), place)
    assert outside_is_clean(place)
    assert (place / "a").read_bytes() == b"mine" and not (place / "a").is_symlink()
    assert (place / "d").is_dir() and not (place / "d").is_symlink()


def test_parent_replaced_by_link_midway(place: Path) -> None:
    outside = str(place.parent / "outside")
    with pytest.raises(BadImage):
        unpack(layer(folder("a"), member("a/x", b"1"), link("a", outside), member("a/evil", b"2")), place)
    assert outside_is_clean(place)


def test_duplicates_the_last_one_wins(place: Path) -> None:
    unpack(
        layer(member("a", b"1"), member("a", b"22"), folder("b"), member("b/c", b"x"), member("b", b"f")),
        place,
    )
    assert (place / "a").read_bytes() == b"22"
    assert (place / "b").read_bytes() == b"f"


def test_times_modes_and_odd_names(place: Path) -> None:
    odd = b"caf\xe9 \n'\"$".decode("utf-8", "surrogateescape")
    info, data = member(odd, b"x", mode=0o4750, mtime=1234567890)
    info.pax_headers = {"mtime": "1234567890.123456789"}
    dir_info = folder("d")[0]
    dir_info.mtime = 86400
    unpack(layer((dir_info, None), (info, data), member("d/late", b"y")), place)
    status = (place / odd).lstat()
    assert stat.S_IMODE(status.st_mode) == 0o4750
    assert status.st_mtime_ns == 1234567890_123456789
    assert (place / "d").stat().st_mtime == 86400


def test_sparse(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.seek(200 << 20)
        file.write(b"end")
    archive = tmp_path / "sparse.tar"
    assert os.system(f"tar -C {tmp_path} --sparse -cf {archive} sparse") == 0
    with archive.open("rb") as file:
        unpack(file, place)
    assert (place / "sparse").stat().st_size == (200 << 20) + 3
    assert (place / "sparse").stat().st_blocks < 1000
    with (place / "sparse").open("rb") as file:
        file.seek(200 << 20)
        assert file.read() == b"end"


def test_limits(place: Path) -> None:
    with pytest.raises(BadImage, match="more than 3 members"):
        unpack(layer(*[member(f"f{n}", b"") for n in range(9)]), place, limits=Limits(entries=3))
    with pytest.raises(BadImage, match="more than 100 bytes"):
        unpack(layer(member("big", b"x" * 101)), place, limits=Limits(size=100))


def test_huge_header_is_not_read(place: Path) -> None:
    info = tarfile.TarInfo("./PaxHeaders/x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(BadImage, match="header"):
        unpack(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096), place)


@pytest.mark.parametrize("cut", [0, 100, 512, 600, 1500])
def test_truncated_or_garbage(place: Path, cut: int) -> None:
    whole = layer(member("a", b"x" * 3000)).getvalue()
    with pytest.raises(BadImage):
        unpack(io.BytesIO(whole[:cut] if cut else os.urandom(2048)), place)


@root_only
def test_whiteouts_merge_and_pack_again(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    low.mkdir()
    high.mkdir()
    unpack(
        layer(folder("d"), member("d/old", b"1"), member("gone", b"2"), folder("k"), member("k/stay", b"3")),
        low,
    )
    upper = layer(
        folder("d"), member("d/.wh..wh..opq", b""), member("d/new", b"4"), member(".wh.gone", b""),
        member("k/.wh.nothing", b""), member(".wh..wh.plnk", b""), member("both", b"5"), member(".wh.both", b""),
    )  # fmt: skip
    unpack(upper, high)
    assert stat.S_ISCHR((high / "gone").lstat().st_mode) and (high / "gone").lstat().st_rdev == 0
    assert os.getxattr(high / "d", "trusted.overlay.opaque") == b"y"
    merge([low, high], tmp_path / "merged")
    names = sorted(str(path.relative_to(tmp_path / "merged")) for path in (tmp_path / "merged").rglob("*"))
    assert names == ["both", "d", "d/new", "k", "k/stay"]
    assert (tmp_path / "merged/k/stay").stat().st_ino == (low / "k/stay").stat().st_ino

    out = io.BytesIO()
    pack(high, out, Packing(epoch=0))
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        packed = {info.name for info in archive}
    assert {"d/.wh..wh..opq", ".wh.gone", "k/.wh.nothing"} <= packed and "gone" not in packed


@root_only
def test_kernel_and_merge_agree(tmp_path: Path) -> None:
    """overlayfs, mounted over what we unpack, shows the same tree as `merge`."""
    trees = []
    for number, members in enumerate(
        [
            [
                folder("a"),
                member("a/x", b"1"),
                member("a/y", b"1"),
                link("s", "a/x"),
                folder("e"),
                member("e/f", b"1"),
            ],
            [folder("a"), member("a/.wh.x", b""), member(".wh.e", b""), member("z", b"2")],
            [folder("e"), member("e/g", b"3"), member(".wh.s", b"")],
        ]
    ):
        trees.append(tmp_path / f"l{number}")
        trees[-1].mkdir()
        unpack(layer(*members), trees[-1])
    merge(trees, tmp_path / "merged")
    lower = ":".join(str(tree) for tree in reversed(trees))
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    script = f"mount -t overlay overlay -o lowerdir={lower} {mounted} && cd {mounted} && find . | sort"
    shown = os.popen(f"unshare -m sh -c '{script}'").read().split()
    ours = os.popen(f"cd {tmp_path}/merged && find . | sort").read().split()
    assert shown == ours and "./e/g" in ours and "./e/f" not in ours


@root_only
def test_pack_unpack_keeps_everything(tmp_path: Path) -> None:
    tree, again = tmp_path / "tree", tmp_path / "again"
    (tree / "d").mkdir(parents=True)
    again.mkdir()
    (tree / "d/f").write_bytes(b"data" * 1000)
    (tree / "d/f").chmod(0o2751)
    os.chown(tree / "d/f", 1234, 4321)
    (tree / "d/f").chmod(0o6751)
    os.setxattr(tree / "d/f", "user.note", b"\xff\x00bin")
    os.setxattr(
        tree / "d/f", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    )
    os.link(tree / "d/f", tree / "d/hard")
    (tree / "soft").symlink_to("/d/f")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(tree / "pipe")
    os.utime(tree / "d", (5, 5))
    first, second = io.BytesIO(), io.BytesIO()
    pack(tree, first)
    first.seek(0)
    unpack(first, again)
    pack(again, second)
    assert first.getvalue() == second.getvalue()
    status = (again / "d/f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o6751)
    assert status.st_ino == (again / "d/hard").stat().st_ino
    assert os.getxattr(again / "d/f", "user.note") == b"\xff\x00bin"
    assert os.getxattr(again / "d/f", "security.capability") == os.getxattr(
        tree / "d/f", "security.capability"
    )
    assert (again / "d").stat().st_mtime == 5


def test_overlay_attributes_of_strangers_are_dropped(place: Path) -> None:
    info, _ = folder("d")
    info.pax_headers = {
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    unpack(layer((info, None)), place)
    assert not [key for key in os.listxattr(place / "d") if "overlay" in key]


def test_disk_full_says_so(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=64k none {tmp_path}"
    code = (
        "import io,sys,tarfile;from pathlib import Path;from labctl.image.unpack import unpack;"
        "from labctl.errors import LabError\n"
        "i=tarfile.TarInfo('f');i.size=1<<20;o=io.BytesIO();t=tarfile.open(fileobj=o,mode='w');"
        "t.addfile(i,io.BytesIO(b'x'*(1<<20)));t.close();o.seek(0)\n"
        f"try: unpack(o,Path('{tmp_path}'))\nexcept LabError as e: print(e)"
    )
    import subprocess
    import sys

    # Root of a user namespace could not look into another user's home, where the checkout may be.
    own = "-m" if os.geteuid() == 0 else "-Urm"
    done = subprocess.run(
        ["unshare", own, "sh", "-c", f'{script} && exec "{sys.executable}" -c "$1"', "sh", code],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "disk is full" in done.stdout, done.stderr
    assert issubclass(BadImage, LabError)
