"""gzip that does not try to shrink what is packed already: such blocks are stored (RFC 1951, 3.2.4).

Layers are full of archives, images and compressed modules.  zlib searches them as long as anything else, for
nothing; here a look at a few bytes decides.  The same bytes always make the same stream (RFC 1952, no time).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

#: A third of the time of level 6 for a tenth more bytes.
LEVEL = 2
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no flags, no time, no system
_LAST = b"\x03\0"  # a final block with nothing in it
_BLOCK = 0x8000  # a stored block holds 65535 bytes at most; less, so that a change of kind costs less
_SAMPLE = 1024


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as one gzip member."""
    yield _HEADER
    checksum, size = 0, 0
    encoder = None
    for chunk in chunks:
        checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
        out: list[bytes] = []
        for at in range(0, len(chunk), _BLOCK):
            block = chunk[at : at + _BLOCK]
            if not _dense(block):
                encoder = encoder or zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
                out.append(encoder.compress(block))
                continue
            if encoder:
                # To a byte's end.  The next encoder is a fresh one, which refers to nothing before it.
                out.append(encoder.flush(zlib.Z_FULL_FLUSH))
                encoder = None
            out += (struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF), block)
        if joined := b"".join(out):
            yield joined
    yield encoder.flush() if encoder else _LAST
    yield struct.pack("<II", checksum, size & 0xFFFFFFFF)


def _dense(block: bytes) -> bool:
    """Whether nothing could be won: at three places, nearly all byte values come, and zlib saves nothing."""
    if len(block) < 4 * _SAMPLE:
        return False
    quarter = len(block) // 4
    for number in (1, 2, 3):
        sample = block[number * quarter : number * quarter + _SAMPLE]
        if len(set(sample)) < 230 or len(zlib.compress(sample, 1)) < 0.97 * _SAMPLE:
            return False
    return True
