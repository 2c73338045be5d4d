"""What a program needs to run, read from its ELF file: its loader and its libraries (elf(5))."""

from __future__ import annotations

import struct

from labctl.records import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5


@dataclass(frozen=True)
class Needs:
    """`interpreter` is the loader's path ("" for a static program), `libraries` the sonames."""

    interpreter: str
    libraries: tuple[str, ...]


def is_elf(blob: bytes) -> bool:
    """Whether these bytes are a 64-bit little-endian ELF file."""
    return blob[:6] == b"\x7fELF\x02\x01"


def needs(blob: bytes) -> Needs:
    """The loader and the libraries of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", blob, 0x20)
    size, count = struct.unpack_from("<HH", blob, 0x36)
    segments = [struct.unpack_from("<IIQQQQ", blob, table + index * size) for index in range(count)]
    loads = [(item[3], item[5], item[2]) for item in segments if item[0] == _PT_LOAD]
    interpreter, entries = "", []
    for kind, _flags, offset, _address, _physical, length in segments:
        if kind == _PT_INTERP:
            interpreter = blob[offset : offset + length].rstrip(b"\0").decode()
        elif kind == _PT_DYNAMIC:
            entries = list(struct.iter_unpack("<QQ", blob[offset : offset + length // 16 * 16]))
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    at = next((strings - start + file for start, long, file in loads if start <= strings < start + long), 0)
    names = [_string(blob, at + value) for tag, value in entries if tag == _DT_NEEDED]
    return Needs(interpreter, tuple(names))


def _string(blob: bytes, at: int) -> str:
    return blob[at : blob.index(b"\0", at)].decode()
