"""The image store: an OCI image layout 1.1, and the unpacked layers beside it.

    images/
      oci-layout index.json blobs/ALGORITHM/…   as any OCI tool reads it
      layers/ID/                             unpacked layers for overlayfs (0700: they hold set-uid files)
      pins/ locks/ tmp/                      who uses what; locks; unfinished work

Any number of processes may work in it.  What is written is complete before it gets its name, so a killed
process leaves nothing but litter in tmp/, which the next `sweep` tells from living work by its lock.
Adding holds the store's lock shared, taking away holds it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from labctl.errors import Busy, LabError, UsageError
from labctl.events import Emit, silent
from labctl.image import refs
from labctl.image.blobs import Blobs
from labctl.image.index import Index
from labctl.image.layers import Layers
from labctl.image.locks import locked
from labctl.image.model import (
    CONFIG,
    LAYER,
    MANIFEST,
    MANIFESTS,
    REF_NAME,
    BadImage,
    Descriptor,
    Image,
    ImageConfig,
    Layer,
    host_arch,
    oci_arch,
)
from labctl.image.partial import drop_caches, drop_partial
from labctl.image.pins import Pins
from labctl.image.scratch import Scratch

Texts = list[str]  # inside the class, `list` is its method
Steps = list[dict[str, Any]]
#: digest of a manifest → who uses it, in words
InUse = Callable[[], Mapping[str, str]]


class Store:
    """The store in `root` (home.cache / "images"); nothing is made before something is stored.

    `in_use` tells which images labs use, besides the pins kept in the store itself.
    """

    def __init__(self, root: Path, *, in_use: InUse | None = None) -> None:
        self.root = Path(root)
        self.scratch = Scratch(self.root / "tmp")
        self.blobs = Blobs(self.root, self.scratch)
        self.index = Index(self.root, self.scratch)
        self.layers = Layers(self.root, self.blobs, self.scratch)
        self.pins = Pins(self.root / "pins")
        self._in_use = in_use

    # -- finding ----------------------------------------------------------------------------------

    def find(self, ref: str, arch: str = "") -> Image | None:
        """The image of that name or digest (or the first 8 and more digits of one), or None.

        With no `arch`, this machine's is preferred.  Raises UsageError for what is no name, BadImage.
        """
        entry = self._entry(ref, arch)
        return self.load(entry) if entry else None

    def resolve(self, ref: str, arch: str = "") -> Image:
        """The image of that name; raises UsageError that names the nearest one when there is none."""
        found = self.find(ref, arch)
        if found is None:
            from labctl.image.obtain import unknown

            raise unknown(self, ref, arch)
        return found

    def held(self, digest: str) -> Image | None:
        """The image of that manifest, also one whose last name was taken away while it is in use, or None.

        Raises BadImage.
        """
        entry = next((one for one in self.index.entries() if one.digest == digest), None)
        if entry is None and self.blobs.has(digest):
            entry = Descriptor(MANIFEST, digest, self.blobs.path(digest).stat().st_size)
        return self.load(entry) if entry else None

    def ensure(self, ref: str, emit: Emit = silent, *, arch: str = "", rebuild: bool = False) -> Image:
        """The image: from the store, else built from the recipe of that name, else pulled.

        `rebuild` builds a recipe again, for newer packages.  Raises UsageError, HostCannot, LabError.
        """
        from labctl.image.obtain import ensure

        return ensure(self, ref, emit, arch=arch, rebuild=rebuild)

    def list(self) -> list[Image]:
        """Every image that has a name, by name.  Entries that can't be read are left to `verify`."""
        found = []
        for entry in self.index.entries():
            try:
                found.append(self.load(entry))
            except BadImage:
                continue
        return found

    def load(self, entry: Descriptor) -> Image:
        """Read an image by its index entry; every document is checked by digest.  Raises BadImage."""
        manifest = self.blobs.read_json(entry)
        return self._image(entry, manifest)

    def _image(self, entry: Descriptor, manifest: Any) -> Image:
        config_at, layers = parse_manifest(manifest, entry.digest)
        config = ImageConfig.from_json(self.blobs.read_json(config_at))
        if len(config.diff_ids) != len(layers):
            raise BadImage(
                f"image {entry.digest} has {len(layers)} layers and {len(config.diff_ids)} diff_ids"
            )
        return Image(
            ref=entry.annotations.get(REF_NAME, ""),
            digest=entry.digest,
            config=config,
            layers=tuple(
                Layer(layer.digest, layer.size, diff_id, layer.media_type)
                for layer, diff_id in zip(layers, config.diff_ids, strict=True)
            ),
            config_digest=config_at.digest,
            media_type=entry.media_type,
            size=entry.size + config_at.size + sum(layer.size for layer in layers),
            annotations=entry.annotations,
        )

    def _entry(self, ref: str, arch: str) -> Descriptor | None:
        entries = self.index.entries()
        found = [
            entry for entry in entries if _short_digest(ref) and entry.digest.startswith(_short_digest(ref))
        ]
        if not found:
            name = refs.stored(ref).familiar
            found = [entry for entry in entries if entry.annotations.get(REF_NAME) == name]
        wanted = oci_arch(arch) if arch else ""
        if wanted:
            found = [entry for entry in found if entry.platform.get("architecture") == wanted]
        found.sort(key=lambda entry: entry.platform.get("architecture") != host_arch())
        return found[0] if found else None

    # -- adding -----------------------------------------------------------------------------------

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Hold off `prune` while blobs are put in that no image names yet."""
        with locked(self.root / "locks" / "store", shared=True, what="the image store"):
            yield

    def add_layer(self, chunks: Iterable[bytes], media_type: str = LAYER) -> Layer:
        """Store an uncompressed layer (a tar).  Call within `adding`.  Raises LabError."""
        blob = self.blobs.put(chunks)
        return Layer(blob.digest, blob.size, blob.digest, media_type)

    def add_image(
        self,
        ref: str,
        config: ImageConfig,
        layers: Sequence[Layer],
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Store configuration and manifest for layers that are there, and name them (ref "" = nameless).

        Call within `adding`.  `annotations` go on the index entry, not into the digest.
        """
        config = replace(config, diff_ids=tuple(layer.diff_id for layer in layers))
        config_blob = self.blobs.put_json(config.to_json())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_blob.digest, "size": config_blob.size},
            "layers": [{"mediaType": la.media_type, "digest": la.digest, "size": la.size} for la in layers],
        }
        blob = self.blobs.put_json(manifest)
        return self.name(Descriptor(MANIFEST, blob.digest, blob.size), ref, annotations)

    def name(self, manifest: Descriptor, ref: str, annotations: Mapping[str, str] | None = None) -> Image:
        """Give a manifest that is complete in the store a name.  Call within `adding`.

        Raises BadImage when part of it is missing, so that no half image gets a name.
        """
        data = self.blobs.read_json(manifest)
        image = self._image(replace(manifest, annotations={}, platform={}), data)
        for layer in image.layers:
            if not self.blobs.has(layer.digest, layer.size):
                raise BadImage(f"layer {layer.digest} of {ref or manifest.digest} is missing")
        marks = dict(annotations or {})
        if ref:
            marks[REF_NAME] = refs.parse(ref).familiar
        entry = Descriptor(
            manifest.media_type or MANIFEST,
            manifest.digest,
            manifest.size,
            marks,
            {"architecture": image.config.architecture, "os": image.config.os},
        )
        self.index.put(entry)
        return replace(image, ref=marks.get(REF_NAME, ""), annotations=marks)

    def mark(self, image: Image, marks: Mapping[str, str]) -> Image:
        """Add annotations to an image's name in the store (not to its digest).  Call within `adding`."""
        size = self.blobs.path(image.digest).stat().st_size
        manifest = Descriptor(image.media_type, image.digest, size)
        return self.name(manifest, image.ref, {**image.annotations, **marks})

    def tag(self, source: str, target: str, arch: str = "") -> Image:
        """Give an image one more name; the old holder of the name loses it.  Raises UsageError."""
        with self.adding():
            image = self.resolve(source, arch)
            size = self.blobs.path(image.digest).stat().st_size
            marks = {
                key: value
                for key, value in image.annotations.items()
                if not key.startswith(("org.labctl.recipe", "org.labctl.read"))
            }
            return self.name(Descriptor(image.media_type, image.digest, size), target, marks)

    # -- using ------------------------------------------------------------------------------------

    def rootfs(self, image: Image) -> tuple[Path, ...]:
        """The unpacked layers for overlayfs, bottom first; unpacked once, then kept.

        Raises BadImage when a layer is damaged or hostile, LabError when the disk is full.
        """
        with self.adding():
            return self.layers.stack(image.layers)

    def merged_tree(self, image: Image, dest: Path) -> Path:
        """The image's files as one folder at `dest` (which must not exist): hard links, so read only.

        It must lie on the store's file system to be quick.  Raises LabError.
        """
        from labctl.image.merge import merge

        with self.adding():
            merge(self.layers.stack(image.layers), dest)
        return dest

    def pin(self, image: Image, holder: str) -> None:
        """Say that `holder` (a lab, in words) uses the image (too) until `unpin`."""
        self.pins.put(holder, image.digest)

    def unpin(self, holder: str) -> None:
        """The holder uses none of its images any more; absence is fine."""
        self.pins.drop(holder)

    def in_use(self) -> dict[str, str]:
        """Digest of a manifest → who uses it."""
        return {**self.pins.all(), **(self._in_use() if self._in_use else {})}

    # -- taking away ------------------------------------------------------------------------------

    def remove(self, ref: str, arch: str = "") -> Texts:
        """Take the name away, and the image with it when that was its last; returns the digests removed.

        Raises UsageError when there is none, Busy when a lab uses it.
        """
        entry = self._entry(ref, arch)
        if entry is None:
            raise UsageError(f"there is no image {ref}", hint="labctl image ls shows what there is")
        others = [one for one in self.index.entries() if one.digest == entry.digest and one != entry]
        holder = self.in_use().get(entry.digest)
        if holder and not others:
            raise Busy(f"image {ref} is in use by {holder}", hint="take that lab down first")
        self.index.change(lambda entries: [one for one in entries if one != entry])
        try:
            return self.prune(timeout=0.2)[0]
        except Busy:
            return []  # somebody is adding: their prune, or the next one, takes the blobs

    def remove_unnamed(self) -> Texts:
        """Take images without a name that nobody uses out of the index; returns their digests."""
        used = self.in_use()
        gone: Texts = []

        def named(entries: Sequence[Descriptor]) -> Any:
            gone.extend(
                entry.digest
                for entry in entries
                if REF_NAME not in entry.annotations and entry.digest not in used
            )
            return [entry for entry in entries if entry.digest not in gone or REF_NAME in entry.annotations]

        self.index.change(named)
        return gone

    def prune(
        self, timeout: float = 30.0, *, cache: bool = False, also: Callable[[set[str]], int] | None = None
    ) -> tuple[Texts, int]:
        """Remove blobs and unpacked layers that no image needs, and litter; (digests, bytes freed).

        Images with a name and images in use stay; with `cache`, the cache of builds goes as well.  `also`
        removes what lies elsewhere: it is told the manifests that stay, while nobody adds any, and gives the
        bytes freed.  Raises Busy when somebody adds to the store for more than `timeout` seconds.
        """
        from labctl.image.build_cache import BuildCache

        if not self.root.is_dir():
            return [], 0
        with locked(self.root / "locks" / "store", timeout=timeout, what="the image store"):
            self.scratch.sweep()
            keep, diff_ids = self._reachable()
            for entry, digest, diff_id in BuildCache(self).layers():
                if cache:
                    entry.unlink(missing_ok=True)
                else:
                    keep.add(digest)
                    diff_ids.add(diff_id)
            removed, freed = [], drop_partial(self.root)
            for blob in list(self.blobs.all()):
                if blob.digest not in keep:
                    self.blobs.path(blob.digest).unlink(missing_ok=True)
                    removed.append(blob.digest)
                    freed += blob.size
            freed += self.layers.keep_only(diff_ids)
            freed += also(keep | set(self.in_use())) if also else 0
            if cache:
                freed += drop_caches(self.root)
            return removed, freed

    def _reachable(self) -> tuple[set[str], set[str]]:
        keep: set[str] = set()
        diff_ids: set[str] = set()
        used = self.in_use()
        entries = {entry.digest: entry for entry in self.index.entries()}
        for digest in used:
            if digest not in entries and self.blobs.has(digest):
                entries[digest] = Descriptor(MANIFEST, digest, self.blobs.path(digest).stat().st_size)
        for entry in entries.values():
            keep.add(entry.digest)
            try:
                image = self.load(entry)
            except BadImage as error:
                raise BadImage(
                    f"image {entry.annotations.get(REF_NAME, entry.digest)} is damaged: {error.message}",
                    hint="remove it first (labctl image rm), so that nothing else is taken by mistake",
                ) from error
            keep.add(image.config_digest)
            keep.update(layer.digest for layer in image.layers)
            diff_ids.update(layer.diff_id for layer in image.layers)
        return keep, diff_ids

    # -- looking ----------------------------------------------------------------------------------

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Digest of a manifest → (bytes shared with other images, bytes of its own), as stored."""
        images = {image.digest: image for image in self.list()}
        users: dict[str, int] = {}
        for image in images.values():
            for digest in {layer.digest for layer in image.layers}:
                users[digest] = users.get(digest, 0) + 1
        found = {}
        for image in images.values():
            shared = sum({la.digest: la.size for la in image.layers if users[la.digest] > 1}.values())
            found[image.digest] = (shared, image.size - shared)
        return found

    def inspect(self, ref: str, arch: str = "") -> dict[str, Any]:
        """Everything about an image, as JSON types: names, manifest, configuration.  Raises UsageError."""
        image = self.resolve(ref, arch)
        size = self.blobs.path(image.digest).stat().st_size
        manifest = Descriptor(image.media_type, image.digest, size)
        names = sorted(
            entry.annotations[REF_NAME]
            for entry in self.index.entries()
            if entry.digest == image.digest and REF_NAME in entry.annotations
        )
        return {
            "names": names,
            "digest": image.digest,
            "id": image.config_digest,
            "size": image.size,
            "annotations": dict(image.annotations),
            "manifest": self.blobs.read_json(manifest),
            "config": self.blobs.read_json(
                Descriptor(CONFIG, image.config_digest, self.blobs.path(image.config_digest).stat().st_size)
            ),
        }

    def history(self, ref: str, arch: str = "") -> Steps:
        """How the image came to be, newest first: created, created_by, comment, layer digest, size."""
        image = self.resolve(ref, arch)
        layers = iter(image.layers)
        steps = []
        for entry in image.config.history:
            layer = None if entry.empty else next(layers, None)
            steps.append(
                {
                    "created": entry.created,
                    "created_by": entry.created_by,
                    "comment": entry.comment,
                    "layer": layer.digest if layer else "",
                    "size": layer.size if layer else 0,
                }
            )
        return steps[::-1]

    def verify(self, *, deep: bool = False) -> Texts:
        """What is wrong, in sentences; none means that every blob has its digest and no image misses one.

        `deep` also unpacks nothing but hashes each layer's tar against the configuration.
        """
        wrong = []
        for blob in self.blobs.all():
            if problem := self.blobs.check(blob.digest):
                wrong.append(problem)
        for entry in self.index.entries():
            name = entry.annotations.get(REF_NAME, entry.digest)
            try:
                image = self.load(entry)
                for layer in image.layers:
                    if not self.blobs.has(layer.digest, layer.size):
                        wrong.append(f"{name}: layer {layer.digest} is missing or of another size")
                    elif deep and (problem := self.layers.check(layer)):
                        wrong.append(f"{name}: {problem}")
            except LabError as error:
                wrong.append(f"{name}: {error.message}")
        return wrong

    def sweep(self) -> int:
        """Remove what killed processes left half done; returns how many things that were."""
        return self.scratch.sweep()


def parse_manifest(manifest: Any, what: str) -> tuple[Descriptor, list[Descriptor]]:
    """The configuration and the layers that a manifest names; raises BadImage."""
    if not isinstance(manifest, dict) or manifest.get("schemaVersion") != 2:
        raise BadImage(f"{what} is no image manifest of schema 2")
    media = manifest.get("mediaType")
    if media is not None and media not in MANIFESTS:
        raise BadImage(f"{what} is a {media}, not an image manifest")
    if not isinstance(manifest.get("layers"), list) or len(manifest["layers"]) > 1000:
        raise BadImage(f"{what} has no proper list of layers")
    config = Descriptor.from_json(manifest.get("config"), f"the configuration of {what}")
    return config, [Descriptor.from_json(layer, f"a layer of {what}") for layer in manifest["layers"]]


def _short_digest(ref: str) -> str:
    digits = ref.removeprefix("sha256:")
    if 8 <= len(digits) <= 64 and all(char in "0123456789abcdef" for char in digits):
        return f"sha256:{digits}"
    return ""
