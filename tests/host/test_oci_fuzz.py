"""A few rounds of the fuzz run and of the leak test; `tests.fuzz_runtime`, `tests.leak_runtime` do more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fuzz_runtime, leak_runtime

pytestmark = [pytest.mark.needs("root", "cgroup"), pytest.mark.long]


def test_damaged_configurations_and_state_folders(tmp_path: Path) -> None:
    ended = fuzz_runtime.fuzz(tmp_path, 24)
    assert ended.total() >= 24 + 6 * 6


def test_nothing_grows(tmp_path: Path) -> None:
    before, after = leak_runtime.kept(tmp_path, 30)
    assert leak_runtime.grown(before, after) == []
