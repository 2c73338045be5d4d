"""What pulls that broke off have received so far; the next pull goes on with it."""

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
