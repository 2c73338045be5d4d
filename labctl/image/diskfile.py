"""Disks of other hypervisors: written from a raw disk, and read into images (qemu-img does the formats).

OVA is a tar of a description (OVF 1.1), a manifest of digests and stream-optimized VMDKs (DMTF DSP0243).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import HostCannot, LabError, UsageError
from labctl.image.boot_files import run
from labctl.image.model import BadImage
from labctl.image.ovf import description
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.image.scratch import Scratch

#: Our names of the formats and qemu-img's.
QEMU_NAMES = {
    "raw": "raw",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhdx": "vhdx",
    "vhd": "vpc",
}
FORMATS = (*QEMU_NAMES, "ova")
CONVERT_SECONDS = 3600.0
_MAX_MEMBER = 4 << 40


def format_of(name: str) -> str:
    """The format that a file's name asks for; "" when it is no disk's."""
    suffix = name.rpartition(".")[2].lower()
    return {"img": "raw", "raw": "raw"}.get(suffix, suffix if suffix in FORMATS else "")


# -- out --------------------------------------------------------------------------------------------


def convert(raw: Path, out: Path, kind: str, *, name: str = "labctl", memory: int = 512) -> None:
    """Write a raw disk as `kind` to `out`, which appears when it is complete.

    `name` and `memory` (MiB) are what an OVA says of its machine.  Raises HostCannot without qemu-img,
    LabError when the disk is full.
    """
    fresh = out.with_name(f".{out.name}.part")
    try:
        if kind == "ova":
            _ova(raw, fresh, name, memory)
        elif kind == "raw":
            run(["cp", "--sparse=always", str(raw), str(fresh)], timeout=CONVERT_SECONDS, what="copy a disk")
        else:
            _qemu(raw, fresh, kind)
        fresh.replace(out)
    except OSError as error:
        raise LabError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _qemu(raw: Path, out: Path, kind: str, *options: str) -> None:
    argv = ["qemu-img", "convert", "-f", "raw", "-O", QEMU_NAMES[kind], *options, str(raw), str(out)]
    run(argv, timeout=CONVERT_SECONDS, what=f"write a disk as {kind}", package="qemu-utils")


def _ova(raw: Path, out: Path, name: str, memory: int) -> None:
    disk = out.with_name(f"{out.name}.vmdk")
    try:
        _qemu(raw, disk, "vmdk", "-o", "subformat=streamOptimized")
        file = f"{name}-disk1.vmdk"
        text = description(name, file, disk.stat().st_size, raw.stat().st_size, memory).encode()
        with disk.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        manifest = (
            f"SHA256({name}.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA256({file})= {digest}\n".encode()
        )
        with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
            for member, data in ((f"{name}.ovf", text), (f"{name}.mf", manifest)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(file)
            info.size = disk.stat().st_size
            with disk.open("rb") as opened:
                archive.addfile(info, opened)
    finally:
        disk.unlink(missing_ok=True)


# -- in ---------------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """Which disk format a file has, by its content; "" when it is no disk."""
    try:
        with path.open("rb") as file:
            head = file.read(65536)
            file.seek(max(0, path.stat().st_size - 512))
            tail = file.read(512)
    except OSError:
        return ""
    if head[257:262] == b"ustar":
        return "ova" if head[:100].split(b"\0")[0].endswith(b".ovf") else ""
    marks = [
        ("qcow2", head[:4] == b"QFI\xfb"),
        ("vmdk", head[:4] in (b"KDMV", b"COWD") or head.startswith(b"# Disk DescriptorFile")),
        ("vdi", head[0x40:0x44] == b"\x7f\x10\xda\xbe"),
        ("vhdx", head[:8] == b"vhdxfile"),
        ("vhd", head[:8] == b"conectix" or tail[:8] == b"conectix"),
        ("raw", head[510:512] == b"\x55\xaa" or head[1080:1082] == b"\x53\xef"),
    ]
    return next((kind for kind, found in marks if found), "")


@contextmanager
def as_raw(scratch: Scratch, path: Path, kind: str) -> Iterator[Path]:
    """The disk as a raw file, which is gone afterwards.  Raises BadImage, LabError, HostCannot."""
    with scratch.folder("disk") as work:
        if kind == "ova":
            path, kind = _from_ova(path, work), "vmdk"
        if kind == "raw":
            yield path
            return
        refuse_others_files(path, kind)
        raw = work / "disk.raw"
        argv = ["qemu-img", "convert", "-f", QEMU_NAMES[kind], "-O", "raw", str(path.absolute()), str(raw)]
        try:
            run(argv, timeout=CONVERT_SECONDS, what=f"read {path.name}", package="qemu-utils")
        except HostCannot:
            raise
        except LabError as error:
            raise BadImage(f"{path} is no sound {kind} disk: {error.message}") from error
        yield raw


def refuse_others_files(path: Path, kind: str) -> None:
    """Refuse a disk that takes its content from files elsewhere, as a stranger's might.  Raises BadImage."""
    argv = ["qemu-img", "info", "-U", "-f", QEMU_NAMES[kind], "--output", "json", str(path.absolute())]
    try:
        told = json.loads(run(argv, timeout=60, what=f"look at {path.name}", package="qemu-utils"))
    except HostCannot:
        raise
    except (LabError, ValueError) as error:
        words = error.message if isinstance(error, LabError) else str(error)
        raise BadImage(f"{path} is no sound {kind} disk: {words}") from error
    details: dict[str, Any] = (told.get("format-specific") or {}).get("data") or {}
    if told.get("backing-filename") or details.get("data-file"):
        other = told.get("backing-filename") or details.get("data-file")
        raise BadImage(
            f"{path} is only a layer over {other}",
            hint="make it whole where it comes from: qemu-img convert -O qcow2 LAYER WHOLE",
        )
    for extent in details.get("extents") or []:
        place = Path(str(extent.get("filename", "")))
        if place.parent.resolve() != path.absolute().parent.resolve() or place.is_symlink():
            raise BadImage(f"{path} takes part of its content from {place}")
    if int(told.get("virtual-size", 0)) > _MAX_MEMBER:
        raise BadImage(f"{path} claims to be larger than {_MAX_MEMBER >> 40} TiB")


def _from_ova(path: Path, work: Path) -> Path:
    """The largest disk of an OVA, checked by its manifest where it has one."""
    digests: dict[str, str] = {}
    disks: list[Path] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                source = archive.extractfile(member) if member.isreg() else None
                if source is None or not name:
                    continue
                if name.endswith(".mf"):
                    digests.update(_manifest(source.read(1 << 20).decode(errors="replace")))
                elif name.endswith(".vmdk"):
                    target = work / name.replace("\0", "")
                    with target.open("wb") as out:
                        while chunk := source.read(1 << 20):
                            out.write(chunk)
                    disks.append(target)
    except tarfile.TarError as error:
        raise BadImage(f"{path} is no sound OVA: {error}") from None
    if not disks:
        raise BadImage(f"{path} holds no VMDK disk")
    for disk in disks:
        if wanted := digests.get(disk.name):
            kind, _, digest = wanted.partition(" ")
            with disk.open("rb") as file:
                if hashlib.file_digest(file, kind).hexdigest() != digest:
                    raise BadImage(f"{disk.name} in {path} is not what the manifest says")
    return max(disks, key=lambda disk: disk.stat().st_size)


def _manifest(text: str) -> Iterator[tuple[str, str]]:
    for kind, name, digest in re.findall(r"(SHA1|SHA256|SHA512)\s*\(([^)]+)\)\s*=\s*([0-9a-fA-F]+)", text):
        yield name, f"{kind.lower()} {digest.lower()}"


@dataclass(frozen=True)
class Part:
    """A partition: place and size in bytes, and the file system on it ("ext", "xfs", "btrfs", …, "")."""

    start: int
    size: int
    system: str


def parts(raw: Path) -> list[Part]:
    """The partitions of a raw disk, or the whole of it when a file system begins at once."""
    size = raw.stat().st_size
    with raw.open("rb") as file:
        if system := _system(file, 0):
            return [Part(0, size, system)]
        places = _gpt(file) or _mbr(file)
        return [
            Part(start, length, _system(file, start))
            for start, length in places
            if length > 0 and start + length <= size + (1 << 20)
        ]


def _mbr(file: Any) -> list[tuple[int, int]]:
    file.seek(0)
    head = file.read(512)
    if head[510:512] != b"\x55\xaa":
        return []
    found = []
    for number in range(4):
        kind = head[446 + 16 * number + 4]
        start, count = struct.unpack_from("<II", head, 446 + 16 * number + 8)
        if kind in (0x05, 0x0F, 0x85):
            found += _logical(file, start)
        elif kind and count:
            found.append((start * 512, count * 512))
    return found


def _logical(file: Any, base: int) -> list[tuple[int, int]]:
    """The logical partitions of an extended one; at most 60, so that a circle ends."""
    found, at = [], base
    for _ in range(60):
        file.seek(at * 512)
        head = file.read(512)
        if head[510:512] != b"\x55\xaa":
            break
        start, count = struct.unpack_from("<II", head, 446 + 8)
        if count:
            found.append(((at + start) * 512, count * 512))
        following, left = struct.unpack_from("<II", head, 462 + 8)
        if not left:
            break
        at = base + following
    return found


def _gpt(file: Any) -> list[tuple[int, int]]:
    file.seek(512)
    head = file.read(92)
    if head[:8] != b"EFI PART":
        return []
    place, count, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096 or count > 1024:
        return []
    file.seek(place * 512)
    table = file.read(count * size)
    found = []
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        if len(entry) < 48 or entry[:16] == bytes(16):
            continue
        first, last = struct.unpack_from("<QQ", entry, 32)
        found.append((first * 512, (last - first + 1) * 512))
    return found


def _system(file: Any, start: int) -> str:
    file.seek(start)
    head = file.read(0x10050)
    marks = [
        ("ext", head[1080:1082] == b"\x53\xef"),
        ("xfs", head[:4] == b"XFSB"),
        ("btrfs", head[0x10040:0x10048] == b"_BHRfS_M"),
        ("LVM", head[512:520] == b"LABELONE"),
        ("LUKS", head[:4] == b"LUKS"),
        ("swap", head[4086:4096] == b"SWAPSPACE2"),
        ("FAT", head[54:57] == b"FAT" or head[82:85] == b"FAT"),
    ]
    return next((name for name, found in marks if found), "")


def size_of(text: str) -> int:
    """Bytes of "8GiB", "10G", "512M"; raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(?:i?[bB])?", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no size", hint="as in 8GiB or 512M")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))
