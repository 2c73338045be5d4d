"""gzip with stored blocks: every reader gets the bytes back, and packed bytes cost nothing."""

from __future__ import annotations

import gzip
import random
import subprocess
import zlib
from pathlib import Path

import pytest

from labctl.image.gzipped import gzipped
from labctl.image.streams import CHUNK, plain

NOISE = random.Random(3)


def _mixed(size: int) -> bytes:
    parts = []
    while sum(map(len, parts)) < size:
        piece = NOISE.randrange(1, 200_000)
        kind = NOISE.choice(["noise", "zeros", "text"])
        made = {
            "noise": NOISE.randbytes(piece),
            "zeros": bytes(piece),
            "text": b"once upon a time " * (piece // 17),
        }
        parts.append(made[kind])
    return b"".join(parts)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", bytes(300_000), NOISE.randbytes(0x8000), NOISE.randbytes(0x8001), NOISE.randbytes(700_001),
     _mixed(5_000_000)],
    ids=["empty", "byte", "zeros", "block", "over", "noise", "mixed"],
)  # fmt: skip
def test_there_and_back(tmp_path: Path, data: bytes) -> None:
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    packed = b"".join(gzipped(chunks))
    assert packed == b"".join(gzipped(chunks))
    assert gzip.decompress(packed) == data
    path = tmp_path / "data.gz"
    path.write_bytes(packed)
    assert subprocess.run(["gzip", "-dc", path], capture_output=True, check=True, timeout=60).stdout == data
    with path.open("rb") as file, plain(file) as out:
        assert b"".join(out) == data
    assert len(packed) <= len(data) * 1.001 + 40


def test_what_shrinks_is_shrunk() -> None:
    """A table of all byte values is no noise."""
    data = bytes(range(256)) * 4000
    assert len(b"".join(gzipped([data]))) < len(data) / 20
    text = random.Random(1).choices(b"abcdefgh ", k=400_000)
    ours, usual = len(b"".join(gzipped([bytes(text)]))), len(zlib.compress(bytes(text), 2))
    assert ours <= usual + 100
