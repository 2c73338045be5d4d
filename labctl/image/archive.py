"""Images from and to files: oci-archive, docker-archive, OCI layout folders, root file systems.

What comes in is checked like what a registry sends: every blob by its digest, every layer when unpacked.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from labctl.errors import LabError, UsageError
from labctl.events import Emit, Note, silent
from labctl.image import diskfile, disktree, refs
from labctl.image.blobs import MAX_DOCUMENT, parse_json
from labctl.image.digests import blob_path
from labctl.image.index import LAYOUT
from labctl.image.layers import max_layer
from labctl.image.model import (
    CONFIG,
    INDEX,
    INDEXES,
    LAYER,
    MANIFEST,
    REF_NAME,
    BadImage,
    Descriptor,
    HistoryEntry,
    Image,
    ImageConfig,
    Layer,
    host_arch,
    oci_arch,
)
from labctl.image.pack import Packing, abandon, pack
from labctl.image.store import Store, parse_manifest
from labctl.image.streams import Reader, bounded, chunks_of, plain

FORMATS = ("oci-archive", "docker-archive", "rootfs")
#: Opens a file of the archive by its path; raises BadImage when it has none.
Open = Callable[[str], IO[bytes]]


def load(
    store: Store,
    path: Path,
    emit: Emit = silent,
    *,
    ref: str = "",
    arch: str = "",
    marks: Mapping[str, str] | None = None,
) -> list[Image]:
    """Bring what is in a file or folder into the store; told by its content, not by its name.

    `ref` names the image: needed for a root file system and for an archive without names.  `marks` become
    annotations of the names in the store.  Raises UsageError, BadImage, LabError.
    """
    images = _load(store, path, emit, ref, arch)
    if marks:
        with store.adding():
            images = [store.mark(image, marks) for image in images]
    return images


def _load(store: Store, path: Path, emit: Emit, ref: str, arch: str) -> list[Image]:
    if ref:
        refs.parse(ref)
    emit(Note("", f"reading {path}"))
    try:
        with store.adding():
            if path.is_dir():
                return _folder(store, path, ref, arch)
            if kind := diskfile.kind_of(path):
                return [_disk(store, path, kind, ref, arch)]
            with _seekable(store, path) as file:
                return _tar(store, file, path, ref, arch)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}") from None
    except tarfile.TarError as error:
        raise BadImage(f"{path} is neither an image archive nor a tar: {error}") from None
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror or error}") from error


def save(store: Store, ref: str, path: Path, kind: str = "oci-archive", *, arch: str = "") -> None:
    """Write an image to a file: "oci-archive", "docker-archive" or "rootfs" (one tar of the merged files).

    The file appears when it is complete; a pipe or device is written to as it is.  Raises UsageError,
    LabError.
    """
    if kind not in FORMATS:
        raise UsageError(f"there is no format {kind}", hint=f"there are: {', '.join(FORMATS)}")
    with store.adding():
        image = store.resolve(ref, arch)
        piped = path.exists() and not path.is_file() and not path.is_dir()
        fresh = path if piped else path.with_name(f".{path.name}.part")
        writer = {"oci-archive": _save_oci, "docker-archive": _save_docker, "rootfs": _save_rootfs}[kind]
        try:
            with fresh.open("wb") as out:
                writer(store, image, out)
            if not piped:
                fresh.replace(path)
        except BrokenPipeError:
            raise  # the reader went away, as `head` does
        except OSError as error:
            raise LabError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            if not piped:
                fresh.unlink(missing_ok=True)


# -- in ---------------------------------------------------------------------------------------------


@contextmanager
def _seekable(store: Store, path: Path) -> Iterator[IO[bytes]]:
    """The file uncompressed; a packed one goes through a temporary file."""
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if len(head) == 512 and head[257:262] == b"ustar":
            yield file
            return
        with store.scratch.file("archive") as (fresh, _), plain(file) as chunks:
            with fresh.open("wb") as out:
                out.writelines(bounded(chunks, str(path), max_layer()))
            with fresh.open("rb") as again:
                yield again


def _tar(store: Store, file: IO[bytes], path: Path, ref: str, arch: str) -> list[Image]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        names = {name.removeprefix("./"): name for name in _top(archive)}
        if "index.json" in names or "manifest.json" in names:
            members = {member.name.removeprefix("./"): member for member in archive}

            def opened(name: str) -> IO[bytes]:
                member = members.get(name)
                for _ in range(8):  # docker save links layers that are the same
                    if member is None or not member.issym():
                        break
                    folder = member.name.rpartition("/")[0]
                    member = members.get(_joined(folder, member.linkname))
                found = archive.extractfile(member) if member is not None and member.isreg() else None
                if found is None:
                    raise BadImage(f"{path} has no {name}")
                return found

            if "manifest.json" in members and "index.json" not in members:
                return _docker(store, opened, ref)
            return _oci(store, opened, ref, arch, path)
    file.seek(0)
    return [_rootfs(store, chunks_of(file), ref, path, arch)]


def _top(archive: tarfile.TarFile) -> list[str]:
    """The names that tell the kinds apart come early or late, but a root file system has many more."""
    return [member.name for number, member in enumerate(archive) if number < 5000]


def _joined(folder: str, link: str) -> str:
    parts: list[str] = []
    for part in f"{folder}/{link}".split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _folder(store: Store, path: Path, ref: str, arch: str) -> list[Image]:
    if (path / "oci-layout").is_file():

        def opened(name: str) -> IO[bytes]:
            place = path / name
            if ".." in name or place.is_symlink() or not place.is_file():
                raise BadImage(f"{path} has no {name}")
            return place.open("rb")

        return _oci(store, opened, ref, arch, path)
    with store.scratch.file("rootfs") as (fresh, _):
        with fresh.open("wb") as out:
            pack(path, out, Packing(overlay=False))
        with fresh.open("rb") as file:
            return [_rootfs(store, chunks_of(file), ref, path, arch)]


def _disk(store: Store, path: Path, kind: str, ref: str, arch: str) -> Image:
    """The files of a disk's largest Linux file system as an image of one layer."""
    if not ref:
        raise UsageError(f"{path} has no name in it", hint="say under which name it goes into the store")
    with (
        diskfile.as_raw(store.scratch, path, kind) as raw,
        store.scratch.folder("files") as work,
        store.scratch.file("rootfs") as (fresh, _),
    ):
        (work / "tree").mkdir()
        disktree.extract(raw, work / "tree", work)
        with fresh.open("wb") as out:
            pack(work / "tree", out, Packing(overlay=False))
        with fresh.open("rb") as file:
            return _rootfs(store, chunks_of(file), ref, path, arch)


def _rootfs(store: Store, chunks: Iterator[bytes], ref: str, path: Path, arch: str) -> Image:
    if not ref:
        raise UsageError(f"{path} has no name in it", hint="say under which name it goes into the store")
    layer = store.add_layer(chunks)
    store.layers.unpacked(layer)  # so that a hostile or broken tar gets no name
    config = ImageConfig(
        cmd=("/bin/sh",),
        architecture=oci_arch(arch) if arch else host_arch(),
        history=(HistoryEntry("", f"labctl image import {path.name}"),),
    )
    return store.add_image(ref, config, [layer])


def _oci(store: Store, opened: Open, ref: str, arch: str, path: Path) -> list[Image]:
    index = _document(opened("index.json"), f"the index of {path}")
    images = []
    for entry in _manifests(store, opened, index, arch):
        name = ref or entry.annotations.get("io.containerd.image.name") or entry.annotations.get(REF_NAME, "")
        _bring(store, opened, entry)
        config, layers = parse_manifest(store.blobs.read_json(entry), f"a manifest of {path}")
        for blob in (config, *layers):
            _bring(store, opened, blob)
        images.append(store.name(entry, name if name and _is_name(name) else ref))
    if not images:
        raise BadImage(f"{path} has no image in it")
    return images


def _is_name(text: str) -> bool:
    try:
        refs.parse(text)
    except UsageError:
        return False
    return True


def _manifests(store: Store, opened: Open, index: Any, arch: str, depth: int = 0) -> Iterator[Descriptor]:
    """The manifests that an index names, also those of indexes in it; of one architecture when asked."""
    entries = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(entries, list) or depth > 3:
        raise BadImage("the archive has a malformed index")
    for data in entries:
        entry = Descriptor.from_json(data, "an entry of the index")
        if entry.media_type in INDEXES:
            _bring(store, opened, entry)
            yield from _manifests(store, opened, store.blobs.read_json(entry), arch or host_arch(), depth + 1)
        elif not arch or entry.platform.get("architecture", oci_arch(arch)) == oci_arch(arch):
            yield entry


def _bring(store: Store, opened: Open, blob: Descriptor) -> None:
    if not store.blobs.has(blob.digest, blob.size):
        with opened(blob_path(blob.digest)) as file:
            store.blobs.put(chunks_of(file), digest=blob.digest, size=blob.size)


def _docker(store: Store, opened: Open, ref: str) -> list[Image]:
    """What `docker save` writes (image-spec of Docker, v1.2)."""
    manifest = _document(opened("manifest.json"), "manifest.json")
    if not isinstance(manifest, list):
        raise BadImage("manifest.json is no list")
    images = []
    for entry in manifest:
        if not isinstance(entry, dict) or not isinstance(entry.get("Layers"), list):
            raise BadImage("manifest.json is malformed")
        with opened(str(entry.get("Config", ""))) as file:
            data = file.read(MAX_DOCUMENT + 1)
        config_blob = store.blobs.put_bytes(data)
        config = ImageConfig.from_json(parse_json(data, "the configuration"))
        layers = [_docker_layer(store, opened, str(name)) for name in entry["Layers"]]
        if tuple(layer.diff_id for layer in layers) != config.diff_ids:
            raise BadImage("a layer of the archive is not what the configuration says")
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor(CONFIG, config_blob.digest, config_blob.size).to_json(),
            "layers": [Descriptor(la.media_type, la.digest, la.size).to_json() for la in layers],
        }
        blob = store.blobs.put_json(document)
        for name in [ref] if ref else [str(tag) for tag in entry.get("RepoTags") or [""]]:
            images.append(store.name(Descriptor(MANIFEST, blob.digest, blob.size), name))
    return images


def _docker_layer(store: Store, opened: Open, name: str) -> Layer:
    with opened(name) as file, plain(file) as chunks:
        reader = Reader(chunks)
        blob = store.blobs.put(iter(lambda: reader.read(1 << 20), b""))
    return Layer(blob.digest, blob.size, reader.digest, LAYER)


def _document(file: IO[bytes], what: str) -> Any:
    with file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise BadImage(f"{what} has more than {MAX_DOCUMENT} bytes")
    return parse_json(data, what)


# -- out --------------------------------------------------------------------------------------------


def _save_oci(store: Store, image: Image, out: IO[bytes]) -> None:
    size = store.blobs.path(image.digest).stat().st_size
    platform = {"architecture": image.config.architecture, "os": image.config.os}
    names = {REF_NAME: image.ref} if image.ref else {}
    entry = Descriptor(image.media_type, image.digest, size, names, platform)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry.to_json()]}
    with _writing(out) as archive:
        _bytes(archive, "oci-layout", LAYOUT.encode())
        _bytes(archive, "index.json", json.dumps(index, sort_keys=True).encode())
        for digest in dict.fromkeys(
            [image.digest, image.config_digest, *(layer.digest for layer in image.layers)]
        ):
            _blob(archive, store, blob_path(digest), digest)


def _save_docker(store: Store, image: Image, out: IO[bytes]) -> None:
    config = f"{image.config_digest[7:]}.json"
    paths = {layer.diff_id: f"{layer.diff_id[7:]}/layer.tar" for layer in image.layers}
    manifest = [
        {
            "Config": config,
            "RepoTags": [image.ref] if image.ref else None,
            "Layers": [paths[layer.diff_id] for layer in image.layers],
        }
    ]
    with _writing(out) as archive:
        _bytes(archive, "manifest.json", json.dumps(manifest).encode())
        _blob(archive, store, config, image.config_digest)
        for layer in {layer.diff_id: layer for layer in image.layers}.values():
            if layer.media_type == LAYER:
                _blob(archive, store, paths[layer.diff_id], layer.digest)
                continue
            with store.scratch.file("plain") as (fresh, _):
                with (
                    store.blobs.open(layer.digest) as file,
                    plain(file) as chunks,
                    fresh.open("wb") as target,
                ):
                    target.writelines(chunks)
                _file(archive, paths[layer.diff_id], fresh)


def _save_rootfs(store: Store, image: Image, out: IO[bytes]) -> None:
    with store.scratch.folder("merged") as aside:
        pack(store.merged_tree(image, aside / "tree"), out, Packing(overlay=False))


@contextmanager
def _writing(out: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """A tar that is written; when that fails nothing more is, not even when it is collected."""
    archive = tarfile.open(fileobj=out, mode="w|")  # noqa: SIM115
    try:
        yield archive
        archive.close()
    except BaseException:
        abandon(archive)
        raise


def _bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _blob(archive: tarfile.TarFile, store: Store, name: str, digest: str) -> None:
    _file(archive, name, store.blobs.path(digest))


def _file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    with path.open("rb") as file:
        archive.addfile(info, file)
