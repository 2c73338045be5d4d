"""What is kept in the hope that it is of use: broken downloads, and the cache mounts of builds."""

from __future__ import annotations

import os
from pathlib import Path

from labctl.image.scratch import remove


def drop_partial(root: Path) -> int:
    """Remove what broken pulls left; returns the bytes.  Only while nobody adds to the store."""
    freed = 0
    folder = root / "partial"
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        freed += os.lstat(path).st_size
        remove(path)
    return freed


def drop_caches(root: Path) -> int:
    """Remove what RUN --mount=type=cache kept; returns the bytes.  Only while nobody builds."""
    freed = 0
    for folder, _, files in os.walk(root / "caches"):
        freed += sum(os.lstat(f"{folder}/{name}").st_blocks * 512 for name in files)
    remove(root / "caches")
    return freed
