"""Who uses which image: one small file for each holder and image, so that nothing in use is taken away."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from labctl.errors import LabError


class Pins:
    """The folder pins/ of the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, holder: str, digest: str) -> None:
        """`holder` uses the image from now on (too).  Raises LabError."""
        path = self.folder / f"{_start(holder)}-{digest[7:31]}.json"
        fresh = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps({"holder": holder, "digest": digest}))
            fresh.rename(path)
        except OSError as error:
            raise LabError(f"cannot write {path}: {error.strerror}") from error

    def drop(self, holder: str) -> None:
        """`holder` uses none any more; absence is fine."""
        for path in self.folder.glob(f"{_start(holder)}-*.json"):
            path.unlink(missing_ok=True)

    def all(self) -> dict[str, str]:
        """Digest → holder."""
        found: dict[str, str] = {}
        if not self.folder.is_dir():
            return found
        for path in sorted(self.folder.glob("*.json")):
            try:
                data = json.loads(path.read_text())
                found[str(data["digest"])] = str(data["holder"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # removed meanwhile
        return found


def _start(holder: str) -> str:
    return hashlib.sha256(holder.encode()).hexdigest()[:24]
