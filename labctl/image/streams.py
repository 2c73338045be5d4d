"""Compressed streams: told apart by their first bytes, never by what a media type claims.

gzip by the standard library; zstd by Debian's `zstd`, since Python 3.11 has none.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from labctl.errors import HostCannot
from labctl.image.digests import digest_of, hasher
from labctl.image.gzipped import gzipped
from labctl.image.model import BadImage

CHUNK = 1 << 18
_GZIP, _ZSTD, _XZ, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"


class Reader:
    """A readable made of chunks that counts and hashes (as `like`) what it gives, and stops at `limit`."""

    def __init__(self, chunks: Iterable[bytes], limit: int = 0, like: str = "") -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self._limit = limit
        self._hash = hasher(like)
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer only at the end; raises BadImage past the limit."""
        parts: list[bytes] = []
        missing = size
        while size < 0 or missing > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
                self._note(self._rest)
            piece = self._rest if size < 0 else self._rest[:missing]
            self._rest = self._rest[len(piece) :]
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end, so that count and digest cover all of it."""
        while self.read(CHUNK):
            pass

    @property
    def digest(self) -> str:
        """The digest of all that was taken from the source so far."""
        return digest_of(self._hash)

    def _note(self, chunk: bytes) -> None:
        self.count += len(chunk)
        if self._limit and self.count > self._limit:
            raise _too_large("a layer", self._limit)
        self._hash.update(chunk)


def bounded(chunks: Iterable[bytes], what: str, limit: int) -> Iterator[bytes]:
    """The same chunks, up to `limit` bytes; raises BadImage past them."""
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if count > limit:
            raise _too_large(what, limit)
        yield chunk


def _too_large(what: str, limit: int) -> BadImage:
    hint = "if that is right, raise LABCTL_MAX_LAYER (bytes)"
    return BadImage(f"{what} unpacks to more than {limit} bytes", hint=hint)


def chunks_of(file: IO[bytes], size: int = CHUNK) -> Iterator[bytes]:
    """The file's bytes from where it stands."""
    while chunk := file.read(size):
        yield chunk


@contextmanager
def plain(file: IO[bytes]) -> Iterator[Iterator[bytes]]:
    """The uncompressed bytes of a file, whatever it is packed with; raises BadImage when it is damaged."""
    head = file.read(6)
    rest = _joined(head, file)
    if head.startswith(_GZIP):
        yield _gunzip(rest)
    elif head.startswith(_ZSTD):
        with _piped(["zstd", "-dcq", "--memory=256MB"], rest, "zstd") as chunks:
            yield chunks
    elif head.startswith(_XZ):
        with _piped(["xz", "-dc", "--memlimit=512MiB"], rest, "xz-utils") as chunks:
            yield chunks
    elif head.startswith(_BZIP2):
        with _piped(["bzip2", "-dc"], rest, "bzip2") as chunks:
            yield chunks
    else:
        yield rest


@contextmanager
def packed(chunks: Iterable[bytes], how: str) -> Iterator[Iterator[bytes]]:
    """The bytes compressed as `how` says: "" (not at all), "gzip" or "zstd".  No time stamp is written."""
    if how == "gzip":
        yield gzipped(chunks)
    elif how == "zstd":
        with _piped(["zstd", "-cq", "-3"], chunks, "zstd") as out:
            yield out
    else:
        yield iter(chunks)


def _joined(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks_of(file)


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Members may follow each other (RFC 1952, 2.2); what follows the last one must be zeros."""
    decoder = zlib.decompressobj(31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if decoder.eof:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder = zlib.decompressobj(31)
                out = decoder.decompress(data, CHUNK)
                if out:
                    yield out
                data = decoder.unconsumed_tail or decoder.unused_data
        while not decoder.eof:
            out = decoder.decompress(decoder.unconsumed_tail, CHUNK)
            if not out:
                raise BadImage("a gzip stream ends early", hint="the download or the archive is damaged")
            yield out
    except zlib.error as error:
        raise BadImage(f"a gzip stream is damaged: {error}") from None


@contextmanager
def _piped(argv: list[str], chunks: Iterable[bytes], package: str) -> Iterator[Iterator[bytes]]:
    """The bytes after they went through a program.  The feeding thread ends with the program."""
    if shutil.which(argv[0]) is None:
        raise HostCannot(f"{argv[0]} is needed to read this layer", hint=f"apt-get install {package}")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    failures: list[BaseException] = []

    def feed(pipe: IO[bytes]) -> None:
        try:
            for chunk in chunks:
                pipe.write(chunk)
        except BrokenPipeError:
            pass  # the program has its own word to say
        except BaseException as error:  # noqa: BLE001 - handed to the reader below, which raises it
            failures.append(error)
        finally:
            with suppress(BrokenPipeError):
                pipe.close()

    feeder = threading.Thread(target=feed, args=(process.stdin,), daemon=True)
    feeder.start()
    try:
        yield _drained(process, feeder, failures, argv[0])
    finally:
        process.kill()
        process.wait()
        feeder.join(10)
        process.stdout.close()
        process.stderr.close()


def _drained(
    process: subprocess.Popen[bytes], feeder: threading.Thread, failures: list[BaseException], name: str
) -> Iterator[bytes]:
    assert process.stdout and process.stderr
    yield from chunks_of(process.stdout)
    feeder.join()
    if failures:
        raise failures[0]
    if process.wait():
        words = process.stderr.read(2000).decode(errors="replace").strip()
        raise BadImage(f"a {name} stream is damaged: {words}")
