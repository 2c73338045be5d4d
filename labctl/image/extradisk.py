"""Further disks of a machine: empty ones, with a file system or without, and layers over a file of the host.

Of qcow2 only the header is read here (QEMU, docs/interop/qcow2.txt), so that planning starts no program.
"""

from __future__ import annotations

import struct
from pathlib import Path

from labctl.errors import LabError, UsageError
from labctl.image.boot_files import fresh_file, run
from labctl.records import dataclass

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, backing file's offset and length, cluster bits, size
_EXTERNAL_DATA = 1 << 2  # of the incompatible features, 8 bytes at 72 from version 3 on
_SECONDS = 300.0


@dataclass(frozen=True)
class Header:
    """What a disk file says of itself.  `size` in bytes, as a machine sees it."""

    format: str  # raw or qcow2
    size: int
    whole: bool  # whether all its content is in the file itself


def header(path: Path) -> Header:
    """Read it.  Raises LabError when the file can't be read, UsageError for a qcow2 cut short."""
    try:
        with path.open("rb") as file:
            head = file.read(104)
        length = path.stat().st_size
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror}") from error
    if not head.startswith(_MAGIC):
        return Header("raw", length, True)
    if len(head) < 72:
        raise UsageError(f"{path} is no sound qcow2 disk: it ends in its header")
    _, version, backing, _, _, size = _HEADER.unpack_from(head)
    features = struct.unpack_from(">Q", head, 72)[0] if version > 2 and len(head) >= 80 else 0
    return Header("qcow2", size, not backing and not features & _EXTERNAL_DATA)


def refuse_unusable(path: Path, place: str) -> None:
    """Refuse a file that can't be below a layer of the lab's.  `place` is where the profile names it.

    Raises UsageError, LabError.
    """
    found = header(path)
    if not found.whole:
        raise UsageError(
            f"{place}: {path} takes its content from another file",
            hint="make it whole: qemu-img convert -O qcow2 LAYER WHOLE",
        )
    if found.size < 512:
        raise UsageError(f"{place}: {path} has {found.size} bytes, which is no disk", hint="512 at least")


def blank(path: Path, size: int, form: str, *, label: str = "") -> None:
    """An empty disk of `size` bytes; with a `label`, with an ext4 file system of root's on it.

    Raises LabError, HostCannot without mke2fs or qemu-img.
    """
    size = -(-size // 4096) * 4096
    with fresh_file(path, 0o600) as work:
        if not label:
            argv = ["qemu-img", "create", "-q", "-f", form, str(work), str(size)]
            run(argv, timeout=_SECONDS, what=f"make the disk {path.name}", package="qemu-utils")
        elif form == "raw":
            _ext4(work, size, label)
        else:
            with fresh_file(path.with_suffix(".ext4")) as raw:
                _ext4(raw, size, label)
                argv = ["qemu-img", "convert", "-f", "raw", "-O", form, str(raw), str(work)]
                run(argv, timeout=_SECONDS, what=f"make the disk {path.name}", package="qemu-utils")
            path.with_suffix(".ext4").unlink()


def _ext4(path: Path, size: int, label: str) -> None:
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096" if size > 32 << 20 else "1024"]
    argv += ["-L", label[-16:], "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard"]
    argv += [str(path), f"{size // 1024}k"]
    run(argv, timeout=_SECONDS, what=f"make the file system of {path.name}", package="e2fsprogs")


def layer(path: Path, below: Path, form: str) -> None:
    """A qcow2 layer over the file `below` of the format `form`.  Raises LabError, HostCannot."""
    with fresh_file(path, 0o600) as work:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", str(below.absolute()), str(work)]
        run(argv, timeout=60, what=f"make the disk {path.name}", package="qemu-utils")
