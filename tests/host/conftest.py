"""Fixtures that several files of these tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.oci_rig import Oci


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    """A bundle and a state folder of the test's own; what it left running is ended."""
    rig = Oci(tmp_path)
    yield rig
    rig.close()
