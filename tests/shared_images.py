"""The cache that all tests share: kernels, programs and images are downloaded and built once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from labctl.image.archive import load, save
from labctl.image.obtain import recipe_for
from labctl.image.store import Store


def shared_cache() -> Path:
    """The folder of it; LABCTL_TEST_CACHE moves it."""
    path = Path(os.environ.get("LABCTL_TEST_CACHE") or "/var/cache/labctl-tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


def share(store: Store, *names: str) -> None:
    """Bring these recipes' images into a store of a test's own, with what tells that they are current."""
    shared = Store(shared_cache() / "images")
    for name in names:
        assert recipe_for(name) is not None
        image = shared.ensure(name)
        with tempfile.TemporaryDirectory(prefix="labctl-share-") as folder:
            file = Path(folder, "image.tar")
            save(shared, name, file)
            marks = {key: text for key, text in image.annotations.items() if "labctl" in key}
            load(store, file, ref=name, marks=marks)
