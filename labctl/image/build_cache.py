"""The layer cache of builds: what a step made, found again by all that decided it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.image.build_child import copied_attribute
from labctl.image.ignore import Ignore
from labctl.image.model import Layer
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.image.store import Store


@dataclass(frozen=True)
class Made:
    """What a step made: a layer or none, and when (RFC 3339), so that the same build has the same digest."""

    layer: Layer | None
    created: str


class BuildCache:
    """The folder cache/ of the store; an entry whose layer is gone counts as missing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.root / "cache"

    def get(self, key: str) -> Made | None:
        """What the step made, or None when it isn't known."""
        try:
            data = json.loads((self.folder / key).read_text())
            created = str(data["created"])
            if "digest" not in data:
                return Made(None, created)
            layer = Layer(data["digest"], data["size"], data["diff_id"], data["media_type"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Made(layer, created) if self.store.blobs.has(layer.digest, layer.size) else None

    def put(self, key: str, made: Made) -> None:
        """Keep what the step made."""
        data = {**(vars(made.layer) if made.layer else {}), "created": made.created}
        with self.store.scratch.file("cache") as (path, descriptor):
            os.write(descriptor, json.dumps(data).encode())
            self.folder.mkdir(exist_ok=True)
            path.rename(self.folder / key)

    def layers(self) -> Iterator[tuple[Path, str, str]]:
        """(entry, digest, diff_id) of all entries with a layer."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            try:
                data = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(data, dict) and "digest" in data:
                yield path, str(data["digest"]), str(data.get("diff_id", ""))


def key_of(*parts: object) -> str:
    """A key that follows from the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def content(root: Path, paths: Iterable[str], ignore: Ignore) -> str:
    """A digest of the files below these paths: names, kinds, modes, attributes, contents and which of them
    are one file (hard links), but not their times.
    """
    hasher = hashlib.sha256()
    seen: dict[tuple[int, int], str] = {}
    for path in sorted(paths):
        for name, full in _files(root, path, ignore):
            status = os.lstat(full)
            hasher.update(repr((name, status.st_mode)).encode("utf-8", "surrogateescape"))
            if os.path.islink(full):  # noqa: PTH114
                hasher.update(os.fsencode(os.readlink(full)))  # noqa: PTH115
                continue
            if attributes := _attributes(full):
                hasher.update(repr(attributes).encode("utf-8", "surrogateescape"))
            if os.path.isfile(full):  # noqa: PTH113
                first = seen.setdefault((status.st_dev, status.st_ino), name)
                if first != name:
                    hasher.update(repr(("link", first)).encode("utf-8", "surrogateescape"))
                with open(full, "rb") as file:  # noqa: PTH123
                    hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()


def _attributes(path: str) -> list[tuple[str, bytes]]:
    """The extended attributes that COPY takes along."""
    try:
        names = sorted(filter(copied_attribute, os.listxattr(path)))
    except OSError:  # a file system without, or a socket
        return []
    return [(name, os.getxattr(path, name)) for name in names]


def _files(root: Path, path: str, ignore: Ignore) -> Iterator[tuple[str, str]]:
    top = os.path.realpath(root / path)
    yield path, top
    if os.path.isdir(top):  # noqa: PTH112
        for folder, folders, files in os.walk(top):
            inner = os.path.relpath(folder, top)
            start = "" if inner == "." else inner + "/"
            before = f"{path}/" if path else ""
            folders.sort()
            if not ignore.takes_back:
                folders[:] = [name for name in folders if not ignore(f"{before}{start}{name}")]
            for name in sorted([*files, *folders]):
                if not ignore(f"{before}{start}{name}"):
                    yield f"{before}{start}{name}", f"{folder}/{name}"
