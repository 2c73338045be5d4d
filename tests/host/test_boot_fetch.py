"""Kernels and programs from Debian packages: once, without the network afterwards, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labctl.image.kernels import kernel
from tests.shared_images import shared_cache

pytestmark = [pytest.mark.needs("root", "netns", "kernel"), pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
FETCH = """
import sys
from pathlib import Path
from labctl.errors import LabError
from labctl.image.kernels import kernel
try:
    print(kernel(Path(sys.argv[1]), sys.argv[2]).version)
except LabError as error:
    print(type(error).__name__, error.message, "|", error.hint)
"""


def fetch(cache: Path, name: str, *before: str) -> subprocess.Popen[str]:
    argv = [*before, sys.executable, "-c", FETCH, str(cache), name]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def answer(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=200)
    return said.strip()


@pytest.fixture(scope="module")
def version() -> str:
    return kernel(shared_cache(), "cloud-amd64").version


def test_what_is_cached_needs_no_network(version: str) -> None:
    assert answer(fetch(shared_cache(), "cloud-amd64", "unshare", "-n")) == version


def test_without_network_and_cache_the_remedy_is_named(tmp_path: Path) -> None:
    said = answer(fetch(tmp_path, "cloud-amd64", "unshare", "-n"))
    assert said.startswith("HostCannot no package lists for amd64") and "check the network" in said, said
    assert not list((tmp_path / "boot/kernels/x86_64").glob("*.json"))


def test_an_architecture_that_debian_lacks(tmp_path: Path) -> None:
    if "bookworm" not in Path("/etc/os-release").read_text():
        assert answer(fetch(tmp_path, "riscv64")).endswith("-riscv64")
        return
    said = answer(fetch(tmp_path, "riscv64"))
    assert (
        said.startswith("HostCannot this Debian release has no architecture riscv64") and "Debian 13" in said
    )


def test_two_at_once_and_one_killed_in_the_middle(tmp_path: Path, version: str) -> None:
    """A kill at any moment of the work leaves nothing that is taken for a kernel; then two make one."""
    base = tmp_path / "boot/kernels/x86_64"
    killed = fetch(tmp_path, "cloud-amd64")
    deadline = time.monotonic() + 120
    while not list(base.glob(".linux-image*")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(20)
    assert list(base.glob(".linux-image*")) and not list(base.glob("*.json"))
    assert [answer(one) for one in (fetch(tmp_path, "cloud-amd64"), fetch(tmp_path, "cloud-amd64"))] == [
        version
    ] * 2
    left = {path.name for path in base.iterdir() if not path.name.startswith("linux-image")}
    assert left == {".cloud-amd64.lock", "cloud-amd64.json"}
