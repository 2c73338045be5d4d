"""Content-addressed blobs of an OCI image layout: written to a temporary file, checked, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from labctl.errors import LabError
from labctl.image.digests import ALGORITHMS, KNOWN, blob_path, digest_of, hashed, hasher, is_digest
from labctl.image.model import BadImage, Descriptor
from labctl.image.scratch import Scratch, sync_folder
from labctl.records import dataclass

CHUNK = 1 << 20
#: Manifests and configurations are read into memory; registries refuse larger ones too.
MAX_DOCUMENT = 4 << 20


@dataclass(frozen=True)
class Blob:
    """A blob in the store: digest and size in bytes."""

    digest: str
    size: int


class Blobs:
    """The folder blobs/ under `root`: a folder in it for each algorithm."""

    def __init__(self, root: Path, scratch: Scratch) -> None:
        self.root = root
        self.folder = root / "blobs"
        self.scratch = scratch

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would lie; raises BadImage for what is no digest."""
        if not is_digest(digest):
            raise BadImage(f"unusable digest {digest!r}", hint=KNOWN)
        return self.root / blob_path(digest)

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether the blob is there (and of that size).  Content was checked when it came in."""
        try:
            status = self.path(digest).stat()
        except FileNotFoundError:
            return False
        return size is None or status.st_size == size

    def put(self, chunks: Iterable[bytes], *, digest: str = "", size: int | None = None) -> Blob:
        """Store the bytes; with `digest` and `size` given they must match.

        Raises BadImage when they don't, LabError when the disk is full.  Nothing is visible before the end.
        """
        with self.scratch.file("blob") as (path, descriptor):
            content, count = hasher(digest), 0
            try:
                for chunk in chunks:
                    count += len(chunk)
                    if size is not None and count > size:
                        raise BadImage(f"blob {digest or '?'} is longer than the {size} bytes announced")
                    content.update(chunk)
                    _write(descriptor, chunk)
                found = digest_of(content)
                _check(found, count, digest, size)
                self.commit(path, descriptor, found)
            except OSError as error:
                raise LabError(f"cannot store a blob in {self.folder}: {error.strerror or error}") from error
        return Blob(found, count)

    def put_bytes(self, data: bytes, *, digest: str = "") -> Blob:
        """Store a small document."""
        if not digest:
            known = hashed(data)
            if self.has(known, len(data)):
                return Blob(known, len(data))
        return self.put([data], digest=digest)

    def put_json(self, data: Any) -> Blob:
        """Store a document in one canonical spelling, so that equal content has one digest."""
        return self.put_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())

    def commit(self, path: Path, descriptor: int, digest: str) -> None:
        """Make a finished temporary file the blob of that (already checked) digest."""
        target = self.path(digest)
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        sync_folder(target.parent)

    def open(self, digest: str) -> IO[bytes]:
        """The blob to read from; raises BadImage when it is missing."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise BadImage(
                f"blob {digest} is missing from the image store",
                hint="remove the image and pull or build it again",
            ) from None

    def read(self, descriptor: Descriptor) -> bytes:
        """A small document, checked against its digest and size."""
        if descriptor.size > MAX_DOCUMENT:
            raise BadImage(
                f"{descriptor.digest} has {descriptor.size} bytes; a manifest may have {MAX_DOCUMENT}"
            )
        with self.open(descriptor.digest) as file:
            data = file.read(MAX_DOCUMENT + 1)
        _check(hashed(data, descriptor.digest), len(data), descriptor.digest, descriptor.size)
        return data

    def read_json(self, descriptor: Descriptor) -> Any:
        """A small document, checked and parsed; raises BadImage."""
        return parse_json(self.read(descriptor), descriptor.digest)

    def check(self, digest: str) -> str:
        """Read the whole blob; returns what is wrong with it, or ""."""
        content = hasher(digest)
        try:
            with self.open(digest) as file:
                while chunk := file.read(CHUNK):
                    content.update(chunk)
        except BadImage as error:
            return error.message
        found = digest_of(content)
        return "" if found == digest else f"blob {digest} has the content of {found}"

    def all(self) -> Iterator[Blob]:
        """Every blob that is there."""
        for algorithm in ALGORITHMS:
            folder = self.folder / algorithm
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                digest = f"{algorithm}:{path.name}"
                if is_digest(digest):
                    yield Blob(digest, path.stat().st_size)


def parse_json(data: bytes, what: str) -> Any:
    """JSON from outside; raises BadImage instead of the many errors that json has."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"{what} is not JSON: {error}") from None


def _check(found: str, count: int, digest: str, size: int | None) -> None:
    if size is not None and count != size:
        raise BadImage(f"blob {digest or found} has {count} bytes instead of {size}")
    if digest and found != digest:
        raise BadImage(
            f"blob {digest} has the content of {found}", hint="the download or the archive is damaged"
        )


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
