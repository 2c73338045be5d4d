"""Further disks: what their files say of themselves, and which can't be below a layer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.image.extradisk import blank, header, layer, refuse_unusable


def test_an_empty_disk_and_one_with_a_file_system(tmp_path: Path) -> None:
    empty, plain, full = tmp_path / "disk-e.qcow2", tmp_path / "disk-p.raw", tmp_path / "disk-f.qcow2"
    blank(empty, 5 << 20, "qcow2")
    blank(plain, (1 << 20) + 1, "raw")
    blank(full, 64 << 20, "qcow2", label="node.full")
    assert (header(empty).format, header(empty).size) == ("qcow2", 5 << 20)
    assert (header(plain).format, header(plain).size) == ("raw", (1 << 20) + 4096), "whole blocks"
    assert header(full).size == 64 << 20 and full.stat().st_mode & 0o777 == 0o600
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(full), str(raw)], check=True, timeout=60)
    assert raw.read_bytes()[1080:1082] == b"\x53\xef", "ext4's magic"
    assert sorted(path.name for path in tmp_path.iterdir()) == [empty.name, full.name, plain.name, "raw"]


def test_a_layer_leaves_the_file_below_as_it_is(tmp_path: Path) -> None:
    below, above = tmp_path / "below", tmp_path / "above"
    below.write_bytes(bytes(1 << 20))
    refuse_unusable(below, "x")
    layer(above, below, header(below).format)
    assert header(above).size == 1 << 20 and not header(above).whole
    with pytest.raises(UsageError, match=r"^x: .*/above takes its content from another file$"):
        refuse_unusable(above, "x")


@pytest.mark.parametrize("content", [b"QFI\xfb\0\0\0\3", b"", b"x" * 511])
def test_what_is_no_disk_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"no sound qcow2|no disk"):
        refuse_unusable(path, "nodes.a.disks.d.source")
    with pytest.raises(LabError, match="No such file"):
        refuse_unusable(tmp_path / "none", "x")
