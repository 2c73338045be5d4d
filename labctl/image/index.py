"""index.json of the image layout: which name stands for which manifest (image-spec, image-layout.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from labctl.errors import LabError
from labctl.image.blobs import parse_json
from labctl.image.locks import locked
from labctl.image.model import INDEX, REF_NAME, BadImage, Descriptor
from labctl.image.scratch import Scratch, sync_folder

Entries = list[Descriptor]
LAYOUT = '{"imageLayoutVersion":"1.0.0"}'


class Index:
    """The names of a layout.  Read without a lock (a rename is atomic), changed under one."""

    def __init__(self, root: Path, scratch: Scratch) -> None:
        self.root = root
        self.path = root / "index.json"
        self.scratch = scratch

    def entries(self) -> Entries:
        """All entries as they are now; none when nothing was ever stored.  Raises BadImage."""
        try:
            data = parse_json(self.path.read_bytes(), str(self.path))
        except FileNotFoundError:
            return []
        if not isinstance(data, dict) or not isinstance(data.get("manifests"), list):
            raise BadImage(f"{self.path} is no image index", hint="move it away; images are built again")
        return [Descriptor.from_json(entry, str(self.path)) for entry in data["manifests"]]

    def change(self, edit: Callable[[Entries], Entries]) -> None:
        """Replace the entries by what `edit` makes of them, atomically.  Raises LabError, Busy."""
        with locked(self.root / "locks" / "index", timeout=60, what="the image index"):
            before = self.entries()
            after = edit(list(before))
            if after != before or not self.path.exists():
                self._write(after)

    def put(self, descriptor: Descriptor) -> None:
        """Add the entry; it replaces the one of the same name and platform."""
        self.change(
            lambda entries: [entry for entry in entries if key_of(entry) != key_of(descriptor)] + [descriptor]
        )

    def _write(self, entries: Entries) -> None:
        document = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [entry.to_json() for entry in sorted(entries, key=key_of)],
        }
        try:
            layout = self.root / "oci-layout"
            if not layout.exists():
                self._replace(layout, LAYOUT)
            self._replace(self.path, json.dumps(document, indent=1, sort_keys=True) + "\n")
            sync_folder(self.root)
        except OSError as error:
            raise LabError(f"cannot write {self.path}: {error.strerror}") from error

    def _replace(self, path: Path, text: str) -> None:
        with self.scratch.file("index") as (fresh, descriptor):
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
            fresh.rename(path)


def key_of(entry: Descriptor) -> tuple[str, str, str]:
    """What makes an entry one of a kind: name, architecture, variant (and the digest of a nameless one)."""
    name = entry.annotations.get(REF_NAME) or entry.digest
    return name, entry.platform.get("architecture", ""), entry.platform.get("variant", "")
