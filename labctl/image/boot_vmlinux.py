"""The plain ELF kernel inside a bzImage: QEMU enters it directly (PVH) and nothing is unpacked in the guest.

Linux/x86 boot protocol (Documentation/arch/x86/boot.rst): `setup_sects` at 0x1f1, "HdrS" at 0x202,
`payload_offset` and `payload_length` at 0x248 and 0x24c, counted from the protected-mode code.
"""

from __future__ import annotations

import ctypes
import lzma
import struct
import zlib

from labctl.errors import LabError
from labctl.image.boot_modules import zstd

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20  # the legacy format's largest block (lz4 frame format, "Legacy frame")


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF file in a bzImage.  Raises LabError when there is none or it can't be unpacked."""
    if image[0x202:0x206] != b"HdrS":
        raise LabError("the kernel is not a bzImage (no setup header)")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    elf = unpack_payload(image[start : start + length])
    if elf[:4] != b"\x7fELF":
        raise LabError("the kernel's payload is not an ELF file")
    return elf


def unpack_payload(payload: bytes) -> bytes:
    """Unpack a kernel payload (gzip, xz, lz4 or zstd); all but gzip end in the size as a 32-bit word."""
    (size,) = struct.unpack("<I", payload[-4:])
    magic = payload[:6]
    if magic[:4] == _LZ4_LEGACY:
        return _lz4(payload[4:-4])
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return zstd(payload[:-4], size)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    if magic[:2] == b"\x1f\x8b":
        return zlib.decompressobj(31).decompress(payload)
    raise LabError(f"the kernel's payload is packed in an unknown way ({magic.hex()})")


def _lz4(blocks: bytes) -> bytes:
    """Unpack the blocks of a legacy lz4 frame with the liblz4 that apt itself needs."""
    library = ctypes.CDLL("liblz4.so.1")
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK)
    out = []
    at = 0
    while at + 4 <= len(blocks):
        (length,) = struct.unpack_from("<I", blocks, at)
        block = blocks[at + 4 : at + 4 + length]
        done = library.LZ4_decompress_safe(block, buffer, len(block), _LZ4_BLOCK)
        if done < 0:
            raise LabError("the kernel's lz4 payload is damaged")
        out.append(buffer.raw[:done])
        at += 4 + length
    return b"".join(out)
