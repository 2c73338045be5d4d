"""SSH keys that labctl makes itself: Ed25519, as OpenSSH text and as dropbear wants a host key.

OpenSSH's format: PROTOCOL.key in its sources.  dropbear's (signkey.c, ed25519.c): the string
"ssh-ed25519", then one string of the 32 secret and the 32 public bytes; strings as in RFC 4251.
"""

from __future__ import annotations

import base64
import struct

from labctl.errors import LabError
from labctl.records import dataclass

_KIND = b"ssh-ed25519"
_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True)
class KeyPair:
    """`private` is OpenSSH's PEM-like text, `public` a line for authorized_keys or known_hosts."""

    private: str
    public: str


def make_key(comment: str = "labctl") -> KeyPair:
    """A new Ed25519 key pair, from the system's random source."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), f"{public.decode()} {comment}")


def dropbear_key(private: str) -> bytes:
    """An unencrypted OpenSSH Ed25519 private key as dropbear's host key file.

    Raises LabError when the text is another kind of key.
    """
    body = "".join(line for line in private.strip().splitlines() if not line.startswith("-----"))
    try:
        blob = base64.b64decode(body, validate=True)
        reader = _Reader(blob[len(_MAGIC) :])
        cipher, _kdf, _options = reader.string(), reader.string(), reader.string()
        count = reader.number()
        reader.string()  # the public key, which the private part holds as well
        secret = _Reader(reader.string())
        check = (secret.number(), secret.number())
        kind, _public, both = secret.string(), secret.string(), secret.string()
    except (ValueError, struct.error) as error:
        raise LabError("the SSH host key is not in OpenSSH's format") from error
    if not blob.startswith(_MAGIC) or cipher != b"none" or count != 1 or check[0] != check[1]:
        raise LabError("the SSH host key is encrypted or not in OpenSSH's format")
    if kind != _KIND or len(both) != 64:
        raise LabError(f"the SSH host key is {kind.decode(errors='replace')}; labctl uses ssh-ed25519")
    return struct.pack(">I", len(_KIND)) + _KIND + struct.pack(">I", 64) + both


class _Reader:
    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._at = 0

    def number(self) -> int:
        (value,) = struct.unpack_from(">I", self._blob, self._at)
        self._at += 4
        return int(value)

    def string(self) -> bytes:
        length = self.number()
        value = self._blob[self._at : self._at + length]
        if len(value) != length:
            raise ValueError("short string")
        self._at += length
        return value
