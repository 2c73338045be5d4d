"""Trees as tar streams: what is kept, what is refused, and that no name leads out of the folder."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from labctl.guest import trees
from labctl.guest.trees import Unpacker


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    """A tar of (name, type, content or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size, info.mode = len(text), 0o6755
            else:
                info.linkname, info.mode = text, 0o755
            tar.addfile(info, io.BytesIO(text.encode()))
    out.seek(0)
    return out


def unpack(
    stream: io.BytesIO, folder: Path, rename: tuple[str, str] | None = None, *, trusted: bool = False
) -> None:
    Unpacker(str(folder), trusted=trusted, owners=False).unpack(stream, rename)


REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", REG, "x")],
        [("a/../../evil", REG, "x")],
        [("link", SYM, "../outside"), ("link/evil", REG, "x")],
        [("link", SYM, "/"), ("link/tmp/evil", REG, "x")],
        [("a", DIR, ""), ("a/b", SYM, "../../outside"), ("a/b/evil", REG, "x")],
        [("link", SYM, "../outside"), ("link/sub", DIR, "")],
        [("hard", LNK, "../outside/file")],
    ],
)
def test_nothing_leads_out(place: Path, members: list[tuple[str, bytes, str]]) -> None:
    (place.parent / "outside/file").write_text("mine")
    with pytest.raises((ValueError, OSError)):
        unpack(archive(*members), place)
    assert [p.name for p in (place.parent / "outside").iterdir()] == ["file"]
    assert not (place.parent / "evil").exists()


def test_a_file_replaces_a_link_and_does_not_write_through_it(place: Path) -> None:
    target = place.parent / "outside/file"
    target.write_text("mine")
    (place / "f").symlink_to(target)
    unpack(archive(("f", REG, "new")), place)
    assert (
        target.read_text() == "mine" and not (place / "f").is_symlink() and (place / "f").read_text() == "new"
    )


def test_absolute_names_count_from_the_folder(place: Path) -> None:
    unpack(archive(("/etc/x", REG, "x")), place)
    assert (place / "etc/x").read_text() == "x"


def test_only_what_was_asked_for(place: Path) -> None:
    unpack(archive(("dir", DIR, ""), ("dir/f", REG, "x")), place, ("dir", "other"))
    assert (place / "other/f").read_text() == "x"
    unpack(archive(("./dir", DIR, ""), ("./dir/g", REG, "x")), place, ("dir", "."))
    assert (place / "g").read_text() == "x"
    unpack(
        archive(
            ("./h", REG, "x"),
        ),
        place,
        (".", "put"),
    )
    assert (place / "put/h").read_text() == "x"
    with pytest.raises(ValueError, match="not part of 'dir'"):
        unpack(archive(("dir", DIR, ""), (".bashrc", REG, "x")), place, ("dir", "other"))


def test_bits_and_devices_stay_out_of_the_host(place: Path) -> None:
    done = Unpacker(str(place), trusted=False, owners=False)
    stream = archive(("f", REG, "x"), ("dev", tarfile.CHRTYPE, ""))
    assert done.unpack(stream).skipped == ["dev"]
    assert (place / "f").stat().st_mode & 0o7777 == 0o755
    unpack(archive(("g", REG, "x")), place, trusted=True)
    assert (place / "g").stat().st_mode & 0o7777 == 0o6755


def test_a_trusted_folder_may_be_a_link(place: Path) -> None:
    (place / "usr").mkdir()
    (place / "lib").symlink_to("usr")
    stream = archive(("lib", DIR, ""), ("lib/f", REG, "x"))
    unpack(stream, place, trusted=True)
    assert (place / "usr/f").read_text() == "x" and (place / "lib").is_symlink()


def test_an_archive_that_breaks_off(place: Path) -> None:
    whole = archive(("f", REG, "x" * 5000)).getvalue()
    for cut in (600, 3000):
        with pytest.raises((ValueError, OSError)):
            unpack(io.BytesIO(whole[:cut]), place)
    with pytest.raises(ValueError, match="not a whole tar"):
        unpack(io.BytesIO(b"no tar at all" * 1000), place)
    assert list(place.iterdir()) == []


def test_there_and_back(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    name = os.fsdecode(b"no-utf8-\xff")
    (source / name).write_bytes(b"1")
    (source / ("long" * 60)).write_text("2")
    (source / "sub" / ("x" * 200)).mkdir()
    (source / "sub").chmod(0o750)
    os.link(source / name, source / "twin")
    with socket.socket(socket.AF_UNIX) as sock:
        cwd = Path.cwd()
        os.chdir(source)
        try:
            sock.bind("sock")
        finally:
            os.chdir(cwd)
        out = io.BytesIO()
        done = trees.pack(out, str(tmp_path), "source", "copy")
    assert done.skipped == [str(source / "sock")]
    out.seek(0)
    assert Unpacker(str(place), trusted=False, owners=False).unpack(out).entries == done.entries == 6
    assert (place / "copy" / name).read_bytes() == b"1"
    assert (place / "copy/twin").stat().st_ino == (place / "copy" / name).stat().st_ino
    assert (place / "copy/sub").stat().st_mode & 0o777 == 0o750
    assert (place / "copy/sub").stat().st_mtime == int((source / "sub").stat().st_mtime)


def test_looks(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    (tmp_path / "link").symlink_to("none/x")
    (tmp_path / "to").symlink_to("f")
    assert trees.look(str(tmp_path)) == ("dir", str(tmp_path))
    assert trees.look(f"{tmp_path}/to") == ("file", f"{tmp_path}/f")
    assert trees.look(f"{tmp_path}/link") == ("link", f"{tmp_path}/none/x")
    assert trees.look(f"{tmp_path}/no") == ("absent", f"{tmp_path}/no")
