"""libvirt's save images (virDomainSave, memory of a snapshot): a header, the domain's XML, QEMU's state.

The header (libvirt, src/qemu/qemu_saveimage.h, host byte order) is 92 bytes: magic, version, length of what
stands before QEMU's state, whether the machine ran, the compression, and where after the XML libvirt's own
cookie begins.  Another domain's XML may take the place of the one inside: QEMU's state knows devices, not
names.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from labctl.errors import LabError

_HEADER = struct.Struct("=16s5I56s")
_MAGIC = b"LibvirtQemudSave"
_VERSION = 2
_LONGEST = 1 << 24  # bytes of XML and cookie: far more than any
_CHUNK = 1 << 24


@dataclass(frozen=True)
class SaveImage:
    """What stands before QEMU's state.  `start` is where the state begins, in bytes."""

    running: int
    compression: int
    cookie: bytes
    start: int


def read(path: Path) -> SaveImage:
    """The head of a save image.  Raises LabError for a file of another kind or version."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER.size)
            if len(raw) < _HEADER.size:
                raise LabError(f"{path} is cut short")
            magic, version, length, running, compression, cookie_at, _ = _HEADER.unpack(raw)
            if magic != _MAGIC or version != _VERSION or not 0 <= cookie_at <= length <= _LONGEST:
                raise LabError(f"{path} is no save image of a libvirt that labctl knows")
            data = file.read(length)
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror}") from error
    cookie = data[cookie_at:].rstrip(b"\0") if cookie_at else b""
    return SaveImage(running, compression, cookie, _HEADER.size + length)


def write_as(source: Path, target: Path, xml: str) -> None:
    """Write `target`: the state of `source` for the domain that `xml` describes.

    Raises LabError, also when the disk is full.
    """
    image = read(source)
    text = xml.encode() + b"\0"
    cookie = image.cookie + b"\0" if image.cookie else b""
    data = text + cookie
    head = _HEADER.pack(
        _MAGIC, _VERSION, len(data), 1, image.compression, len(text) if cookie else 0, bytes(56)
    )
    try:
        with source.open("rb") as old, target.open("wb") as new:
            target.chmod(0o600)
            new.write(head + data)
            new.flush()
            at, end = image.start, os.fstat(old.fileno()).st_size
            while at < end:
                done = os.sendfile(new.fileno(), old.fileno(), at, min(_CHUNK, end - at))
                if not done:
                    raise LabError(f"{source} is cut short")
                at += done
    except OSError as error:
        raise LabError(f"cannot write {target}: {error.strerror}", hint="is the disk full?") from error
