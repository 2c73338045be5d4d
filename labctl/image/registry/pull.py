"""Pull an image: manifest, then configuration and layers at once, each resumed where it broke off."""

from __future__ import annotations

import threading
import time
from typing import IO, TYPE_CHECKING, Any

from labctl.errors import LabError, UsageError
from labctl.events import Emit, Note, Progress, silent
from labctl.image import refs
from labctl.image.blobs import parse_json
from labctl.image.digests import digest_of, hasher
from labctl.image.locks import locked
from labctl.image.model import INDEXES, MANIFEST, BadImage, Descriptor, Image, host_arch, oci_arch
from labctl.image.registry.client import TRIES, Client, Fetched, RegistryError
from labctl.image.registry.transport import LOST
from labctl.image.scratch import remove
from labctl.workers import Pool

if TYPE_CHECKING:
    from labctl.image.store import Store

#: On an image's name in the store: REGISTRY/REPOSITORY that it came from.
PULLED = "org.labctl.pulled"
PARALLEL = 4
_CHUNK = 1 << 18


def pull(
    store: Store, ref: str, emit: Emit = silent, *, arch: str = "", insecure: bool = False, ca: str = ""
) -> Image:
    """Bring one image into the store under its name; see `pull_all`."""
    return pull_all(store, ref, emit, arch=arch, insecure=insecure, ca=ca)[0]


def pull_all(
    store: Store,
    ref: str,
    emit: Emit = silent,
    *,
    arch: str = "",
    insecure: bool = False,
    ca: str = "",
    all_platforms: bool = False,
) -> list[Image]:
    """Bring an image into the store under its name; with `all_platforms`, that of every architecture.

    Raises RegistryError when the registry refuses or can't be reached, BadImage when what it sends is not
    what its digest says, UsageError when it has no image for the architecture.  What was received stays for
    the next try.
    """
    name = refs.remote(ref)
    client = Client(name.registry, insecure=insecure, ca=ca)
    emit(Note("", f"pulling {name}"))
    wanted = oci_arch(arch) if arch else host_arch()
    with store.adding():
        fetched = client.manifest(name.repository, name.wanted)
        if fetched.media_type in INDEXES:
            entries = _usable(name, fetched)
            chosen = entries if all_platforms else [_choose(name, entries, wanted)]
            found = [client.manifest(name.repository, entry.digest) for entry in chosen]
        else:
            found = [fetched]
        images = [_image(store, client, name, one, emit) for one in found]
    if arch and not all_platforms and images[0].architecture != oci_arch(arch):
        emit(Note("", f"{name} is for {images[0].architecture}, not for {oci_arch(arch)}", "warning"))
    return images


def _image(store: Store, client: Client, name: refs.Reference, fetched: Fetched, emit: Emit) -> Image:
    from labctl.image.store import parse_manifest

    config, layers = parse_manifest(parse_json(fetched.data, "the manifest"), name.familiar)
    wanted = list({blob.digest: blob for blob in (config, *layers)}.values())
    _fetch_all(store, client, name.repository, wanted, emit, name.familiar)
    store.blobs.put_bytes(fetched.data, digest=fetched.digest)
    manifest = Descriptor(fetched.media_type or MANIFEST, fetched.digest, len(fetched.data))
    return store.name(manifest, name.familiar, {PULLED: f"{name.registry}/{name.repository}"})


def _usable(name: refs.Reference, index: Fetched) -> list[Descriptor]:
    """The images for Linux of an index; what describes them (attestations) is left out."""
    document = parse_json(index.data, "the index")
    entries = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise BadImage(f"the index of {name} has no manifests")
    found = [Descriptor.from_json(entry, f"an entry of the index of {name}") for entry in entries]
    usable = [entry for entry in found if entry.platform.get("os", "linux") == "linux"]
    if not usable:
        raise UsageError(f"{name} has no image for linux")
    return usable


def _choose(name: refs.Reference, entries: list[Descriptor], arch: str) -> Descriptor:
    fitting = [entry for entry in entries if oci_arch(entry.platform.get("architecture", "")) == arch]
    if not fitting:
        there = sorted({entry.platform.get("architecture", "?") for entry in entries})
        raise UsageError(f"{name} has no image for {arch}", hint=f"there are: {', '.join(there)}")
    # Without a variant first: v8 of arm64 is the same, v5 of arm is not for everybody.
    fitting.sort(key=lambda entry: {"": 0, "v8": 0, "v7": 1}.get(entry.platform.get("variant", ""), 2))
    return fitting[0]


def _fetch_all(
    store: Store, client: Client, repository: str, blobs: list[Descriptor], emit: Emit, what: str
) -> None:
    """All blobs that are missing, a few at a time; the first failure stops the rest."""
    total = sum(blob.size for blob in blobs)
    stop = threading.Event()
    gate = threading.Lock()
    done = [0, time.monotonic()]

    def count(size: int) -> None:
        with gate:
            done[0] += size
            if time.monotonic() - done[1] > 0.2 or done[0] == total:
                done[1] = time.monotonic()
                emit(Progress("", f"image {what}", done[0], total))

    failures: list[BaseException] = []

    def fetch(blob: Descriptor) -> None:
        try:
            if not stop.is_set():
                _Download(store, client, repository, blob, count, stop).run()
        except BaseException as error:
            if not stop.is_set():
                failures.append(error)
            stop.set()
            raise

    with Pool(PARALLEL) as pool:
        futures = [pool.submit(fetch, blob) for blob in sorted(blobs, key=lambda blob: -blob.size)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            if failures:
                raise failures[0] from None  # what came first, not what was stopped by it
            raise


class _Download:
    """One blob; its bytes gather in partial/ under the digest, where a later try goes on."""

    def __init__(
        self,
        store: Store,
        client: Client,
        repository: str,
        blob: Descriptor,
        count: Any,
        stop: threading.Event,
    ) -> None:
        self.store, self.client, self.repository, self.blob = store, client, repository, blob
        self.count, self.stop = count, stop
        self.partial = store.root / "partial" / blob.digest[7:]
        self.hasher, self.hashed = hasher(self.blob.digest), 0

    def run(self) -> None:
        """Fetch it unless it is there; another process that fetches it is waited for."""
        blob = self.blob
        with locked(
            self.store.root / "locks" / f"blob-{blob.digest[7:31]}", timeout=3600, what=f"blob {blob.digest}"
        ):
            if self.store.blobs.has(blob.digest, blob.size):
                self.count(blob.size)
                return
            self.partial.parent.mkdir(exist_ok=True)
            self._fetch()
            self._keep()

    def _fetch(self) -> None:
        failures = 0
        while True:
            start = self._there()
            if start == self.blob.size:
                return
            try:
                self._receive(start)
                if self._there() == self.blob.size:
                    return
                raise ConnectionError("the connection was closed early")
            except (*LOST, _Lost) as error:
                # As long as bytes come, it is worth another try.
                failures = 1 if self._there() > start else failures + 1
                if failures >= TRIES:
                    raise RegistryError(
                        f"{self.client.registry} broke off {self.blob.digest} again and again: {error}",
                        hint="try again: what was received is kept",
                    ) from error
                self.stop.wait(min(0.1 * 3**failures, 10))

    def _there(self) -> int:
        """The bytes received so far; all of them have gone through the hash."""
        try:
            size = self.partial.stat().st_size
        except FileNotFoundError:
            size = 0
        if size > self.blob.size:
            remove(self.partial)
            size = 0
        if size != self.hashed:
            self.hasher, self.hashed = hasher(self.blob.digest), 0
            if size:
                with self.partial.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        self.hasher.update(chunk)
                        self.hashed += len(chunk)
        return size

    def _receive(self, start: int) -> None:
        try:
            answer = self.client.blob(self.repository, self.blob.digest, start)
        except RegistryError as error:
            if error.status != 416:
                raise
            remove(self.partial)
            raise _Lost("the registry does not know the range that is missing") from None
        with answer, self.partial.open("ab", buffering=0) as file:
            if start and not _goes_on(answer, start):
                file.truncate(0)  # this registry knows no ranges
                self.hasher, self.hashed, start = hasher(self.blob.digest), 0, 0
            left = self.blob.size - start
            while chunk := _next(answer, min(_CHUNK, left + 1)):
                if self.stop.is_set():
                    raise LabError("stopped, since another part failed")
                if len(chunk) > left:
                    remove(self.partial)
                    raise BadImage(f"{self.client.registry} sends more than a blob of {self.blob.size} bytes")
                self._write(file, chunk)
                left -= len(chunk)
                self.count(len(chunk))

    def _write(self, file: IO[bytes], chunk: bytes) -> None:
        self.hasher.update(chunk)
        view = memoryview(chunk)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise LabError(f"cannot write {self.partial}: {error.strerror}") from error
        self.hashed += len(chunk)

    def _keep(self) -> None:
        """Let it into the store when it is what its digest says."""
        found = digest_of(self.hasher)
        if found != self.blob.digest:
            remove(self.partial)
            raise BadImage(
                f"{self.client.registry} sent {found} for {self.blob.digest}",
                hint="try again; if it stays so, the registry's copy is damaged",
            )
        with self.partial.open("rb+") as file:
            self.store.blobs.commit(self.partial, file.fileno(), self.blob.digest)


class _Lost(Exception):
    """The line broke in a way that is worth another try."""


def _goes_on(answer: Any, start: int) -> bool:
    """Whether an answer is the part that was asked for."""
    where = str(answer.headers.get("Content-Range", ""))
    return answer.status == 206 and (not where or where.startswith(f"bytes {start}-"))


def _next(answer: Any, size: int) -> bytes:
    try:
        return bytes(answer.read(size))
    except OSError as error:
        raise _Lost(str(error)) from error
