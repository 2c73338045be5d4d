"""Push an image: blobs that the registry lacks, in pieces that can be sent again, then the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import UsageError
from labctl.events import Emit, Note, Progress, silent
from labctl.image import refs
from labctl.image.blobs import Blob
from labctl.image.model import CONFIG, INDEX, LAYER, MANIFEST, REF_NAME, Descriptor, Image, Layer
from labctl.image.registry.client import LONGEST_PAUSE, TRIES, Client, RegistryError
from labctl.image.registry.pull import PULLED
from labctl.image.streams import chunks_of, packed
from labctl.workers import Pool

if TYPE_CHECKING:
    from labctl.image.store import Store

PARALLEL = 4
PIECE = 16 << 20


def push(
    store: Store, ref: str, emit: Emit = silent, *, target: str = "", arch: str = "", compress: str = "gzip",
    insecure: bool = False, ca: str = "", all_platforms: bool = False,
) -> str:  # fmt: skip
    """Push the image `ref` under the name `target` (its own when empty); returns the digest at the registry.

    Layers that are kept uncompressed are sent as `compress` says ("gzip", "zstd", "" as they are); then the
    manifest, and so the digest, is another than in the store, but the configuration is the same.  With
    `all_platforms`, the image of every architecture under that name goes, and an index of them.
    Raises UsageError, RegistryError.
    """
    name = refs.remote(target or ref)
    if name.digest:
        raise UsageError(f"an image is pushed under a tag, not under the digest in {name}")
    client = Client(name.registry, insecure=insecure, ca=ca)
    emit(Note("", f"pushing {ref} to {name}"))
    with store.adding():
        if not all_platforms:
            image = store.resolve(ref, arch)
            return _Push(store, client, name.repository, emit, compress).image(image, name.wanted).digest
        wanted = refs.parse(ref).familiar
        images = [image for image in store.list() if image.ref == wanted] or [store.resolve(ref)]
        entries = []
        for image in images:
            sent = _Push(store, client, name.repository, emit, compress).image(image, "")
            platform = {"architecture": image.config.architecture, "os": image.config.os}
            entries.append(Descriptor(sent.media_type, sent.digest, sent.size, {}, platform).to_json())
        blob = json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries},
            sort_keys=True,
            separators=(",", ":"),
        ).encode()
        client.put_manifest(name.repository, name.wanted, blob, INDEX)
        return store.blobs.put_bytes(blob).digest


class _Push:
    def __init__(self, store: Store, client: Client, repository: str, emit: Emit, compress: str) -> None:
        self.store, self.client, self.repository, self.emit, self.compress = (
            store,
            client,
            repository,
            emit,
            compress,
        )
        self._gate = threading.Lock()
        self._done = 0

    def image(self, image: Image, wanted: str) -> Descriptor:
        """Blobs, then the manifest under `wanted` (its digest when empty)."""
        source = image.annotations.get(PULLED, "")
        registry, _, repository = source.partition("/")
        origin = repository if registry == self.client.registry and repository != self.repository else ""
        total = sum(layer.size for layer in image.layers)

        def send(layer: Layer) -> Descriptor:
            made = self._layer(layer, origin)
            with self._gate:
                self._done += layer.size
                self.emit(Progress("", f"pushing {image.ref or image.digest}", self._done, total))
            return made

        with Pool(PARALLEL) as pool:
            layers = list(pool.map(send, image.layers))
        config = Blob(image.config_digest, self.store.blobs.path(image.config_digest).stat().st_size)
        self._blob(config.digest, self.store.blobs.path(config.digest), origin)
        data, media_type = self._manifest(image, config, layers)
        blob = self.store.blobs.put_bytes(data)
        self.client.put_manifest(self.repository, wanted or blob.digest, data, media_type)
        return Descriptor(media_type, blob.digest, blob.size)

    def _manifest(self, image: Image, config: Blob, layers: list[Descriptor]) -> tuple[bytes, str]:
        if [layer.digest for layer in layers] == [layer.digest for layer in image.layers]:
            # Nothing was compressed, so the very bytes go: the digest stays the same.
            return self.store.blobs.path(image.digest).read_bytes(), image.media_type
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, config.digest, config.size).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        marks = {
            key: value
            for key, value in image.annotations.items()
            if key not in (REF_NAME,) and "labctl" not in key
        }
        if marks:
            document["annotations"] = marks
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode(), MANIFEST

    def _layer(self, layer: Layer, origin: str) -> Descriptor:
        blobs = self.store.blobs
        if layer.media_type != LAYER or not self.compress:
            self._blob(layer.digest, blobs.path(layer.digest), origin)
            return Descriptor(layer.media_type, layer.digest, layer.size)
        media_type = f"{LAYER}+{self.compress}"
        # What it was compressed to the last time: when the registry has that, nothing need be done.
        note = self.store.root / "cache" / f"{self.compress}-{layer.digest[7:]}"
        known = _noted(note)
        if known and self._there(known.digest, origin):
            return Descriptor(media_type, known.digest, known.size)
        with self.store.scratch.file("push") as (path, descriptor):
            with blobs.open(layer.digest) as file, packed(chunks_of(file), self.compress) as chunks:
                blob = _written(descriptor, chunks)
            self._blob(blob.digest, path, "")
        self._remember(note, [blob.digest, blob.size])
        return Descriptor(media_type, blob.digest, blob.size)

    def _remember(self, note: Path, what: list[object]) -> None:
        with self.store.scratch.file("note") as (fresh, descriptor):
            os.write(descriptor, json.dumps(what).encode())
            note.parent.mkdir(exist_ok=True)
            fresh.rename(note)

    def _place(self, digest: str) -> Path:
        """The note that says in which repository of this registry we left a blob the last time."""
        registry = hashlib.sha256(self.client.registry.encode()).hexdigest()[:12]
        return self.store.root / "cache" / f"at-{registry}-{digest[7:]}"

    def _origin(self, digest: str, origin: str) -> str:
        """Another repository of this registry that has the blob, as far as we know; "" if none."""
        if origin:
            return origin
        try:
            known = str(json.loads(self._place(digest).read_text())[0])
        except (OSError, ValueError, IndexError, TypeError):
            return ""
        return known if known != self.repository else ""

    def _there(self, digest: str, origin: str) -> bool:
        """Whether the repository has the blob, or can take it over from another one of ours."""
        if self.client.has_blob(self.repository, digest):
            return True
        known = self._origin(digest, origin)
        return bool(known) and self.client.start_upload(self.repository, digest, known)[0] == ""

    def _blob(self, digest: str, path: Path, origin: str) -> None:
        """Send one blob unless the registry has it or can take it over from another repository of ours."""
        if not self.client.has_blob(self.repository, digest):
            known = self._origin(digest, origin)
            url, least = self.client.start_upload(self.repository, digest if known else "", known)
            failures = 0
            while url:
                try:
                    url = self._send(url, path, max(PIECE, least))
                    self.client.finish_upload(self.repository, url, digest)
                    break
                except RegistryError as error:
                    # The upload is lost, or its last answer was: then the blob is there.
                    failures += 1
                    if self.client.has_blob(self.repository, digest):
                        break
                    if error.status not in (404, 416) or failures >= TRIES:
                        raise
                    url, least = self.client.start_upload(self.repository)
        self._remember(self._place(digest), [self.repository])

    def _send(self, url: str, path: Path, piece: int) -> str:
        """All bytes of the file into the upload; returns the URL where it is to be closed."""
        size, at, failures = path.stat().st_size, 0, 0
        with path.open("rb") as file:
            while at < size:
                file.seek(at)
                data = file.read(piece)
                try:
                    url = self.client.upload(self.repository, url, data, at)
                    at += len(data)
                    failures = 0
                except RegistryError as error:
                    failures += 1
                    final = error.status and error.status < 500 and error.status not in (408, 416, 429)
                    if failures >= TRIES or final:
                        raise
                    time.sleep(max(min(0.1 * 3**failures, 10), min(error.wait, LONGEST_PAUSE)))
                    url, at = self.client.upload_offset(self.repository, url)
        return url


def _written(descriptor: int, chunks: Any) -> Blob:
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]
    return Blob(f"sha256:{hasher.hexdigest()}", size)


def _noted(path: Path) -> Blob | None:
    try:
        digest, size = json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return None
    return Blob(str(digest), int(size))
