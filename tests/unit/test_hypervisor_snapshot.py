"""Save images with another domain's XML, and which snapshots go when there are too many."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.hypervisor import saveimage
from labctl.hypervisor.snapshot import evict

STATE = os.urandom(3_000_000)


def image(path: Path, xml: str = "<domain/>", cookie: str = "<cookie/>") -> Path:
    text = xml.encode() + b"\0"
    data = text + (cookie.encode() + b"\0" if cookie else b"") + bytes(100)
    head = struct.pack("=16s5I56s", b"LibvirtQemudSave", 2, len(data), 1, 0, len(text) if cookie else 0, b"")
    path.write_bytes(head + data + STATE)
    return path


@pytest.mark.parametrize("cookie", ["<cookie/>", ""])
def test_the_state_is_kept_and_the_xml_is_the_new_one(tmp_path: Path, cookie: str) -> None:
    source, target = image(tmp_path / "a", cookie=cookie), tmp_path / "b"
    longer = "<domain>" + "é" * 5000 + "</domain>"
    saveimage.write_as(source, target, longer)
    found = saveimage.read(target)
    raw = target.read_bytes()
    assert raw[found.start :] == STATE
    assert raw[92 : found.start].split(b"\0")[0].decode() == longer
    assert found.cookie == cookie.encode() and found.running == 1
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"x" * 50, b"LibvirtQemudPart" + bytes(200)])
def test_no_save_image(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a").write_bytes(damage)
    with pytest.raises(LabError, match="a"):
        saveimage.read(tmp_path / "a")


def test_a_header_that_lies(tmp_path: Path) -> None:
    path = image(tmp_path / "a")
    raw = bytearray(path.read_bytes())
    raw[20:24] = struct.pack("=I", 1 << 30)
    path.write_bytes(raw)
    with pytest.raises(LabError, match="no save image"):
        saveimage.read(path)


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "mid", "old")):
        path = tmp_path / f"{name}.save"
        path.write_bytes(bytes(1 << 20))
        os.utime(path, (1000 - age, 1000 - age))
    evict(tmp_path, limit=2 << 20)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["mid", "new"]
    evict(tmp_path, limit=0, keep=tmp_path / "mid.save")
    assert [p.stem for p in tmp_path.iterdir()] == ["mid"]
