"""A few rounds of tests/chaos_images.py: kills and broken lines, and the store whole after each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos_images import chaos


@pytest.mark.needs("root", "overlay", "docker-registry")
def test_the_store_stays_whole(tmp_path: Path) -> None:
    counts, wrong = chaos(tmp_path, 6, seed=5)
    assert wrong == []
    assert sum(counts.values()) >= 6
