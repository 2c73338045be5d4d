"""Digests of content: "sha256:…" and "sha512:…" (image-spec, descriptor.md, "Registered algorithms").

What labctl makes itself has SHA-256 digests; what others made may have either.  The hex digits start at
the same place in both.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

#: algorithm → hex digits
ALGORITHMS = {"sha256": 64, "sha512": 128}
KNOWN = "sha256 and sha512 are supported"


class Hasher(Protocol):
    """What hashlib makes."""

    @property
    def name(self) -> str:
        """The algorithm, as digests write it."""
        ...

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""

    def hexdigest(self) -> str:
        """The digest so far, in hex digits."""
        ...


def is_digest(text: object) -> bool:
    """Whether the text is a digest of a known algorithm, lower case, of full length."""
    if not isinstance(text, str):
        return False
    algorithm, _, digits = text.partition(":")
    return len(digits) == ALGORITHMS.get(algorithm) and all(char in "0123456789abcdef" for char in digits)


def hasher(like: str = "") -> Hasher:
    """A fresh hash of the algorithm that the digest `like` has; SHA-256 with none."""
    return hashlib.sha512() if like.startswith("sha512:") else hashlib.sha256()


def digest_of(hashed: Hasher) -> str:
    """The digest as descriptors write it."""
    return f"{hashed.name}:{hashed.hexdigest()}"


def hashed(data: bytes, like: str = "") -> str:
    """The digest of these bytes, by the algorithm of `like`."""
    made = hasher(like)
    made.update(data)
    return digest_of(made)


def blob_path(digest: str) -> str:
    """Where an OCI image layout keeps the blob: blobs/ALGORITHM/DIGITS."""
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"
