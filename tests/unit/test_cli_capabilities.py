"""The marker `needs` and the required list, tried on a pytest run of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import capabilities

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.conftest import *  # noqa: F403\n"
TEST = """
import pytest
@pytest.mark.needs("podman")
def test_with_podman(): pass
def test_plain(): pass
"""


def run(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TEST)
    path = {"PATH": env.pop("PATH", "/usr/bin:/bin"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rs",
        "--strict-markers",
        "-c",
        "/dev/null",
    ]
    command += ["--rootdir", str(folder), str(folder), "-o", "markers=needs(*names): x"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**path, **env}, cwd=folder
    )


def test_a_missing_capability_skips_and_names_itself(tmp_path: Path) -> None:
    done = run(tmp_path, PATH="/nowhere")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert "needs podman: unshare is not installed" in done.stdout
    assert "capability missing: podman" in done.stdout


def test_a_missing_required_capability_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, PATH="/nowhere", LABCTL_REQUIRE="podman")
    assert done.returncode == 1, done.stdout
    assert "REQUIRED" in done.stdout


def test_a_required_capability_that_no_test_uses_fails_the_run_too(tmp_path: Path) -> None:
    done = run(tmp_path, PATH="/nowhere", LABCTL_REQUIRE="skopeo")
    assert done.returncode == 1, done.stdout
    assert "capability missing: skopeo" in done.stdout


def test_every_required_capability_has_a_probe_and_kvm_is_not_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABCTL_REQUIRE", "file")
    names = capabilities.required()
    assert set(names) <= set(capabilities.PROBES)
    assert "kvm" not in names
