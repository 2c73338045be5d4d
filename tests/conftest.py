"""Fixtures and the marker `needs`: what a test can't do without is tried for real before it runs.

A missing capability skips the test and names itself; one on the required list (tests/capabilities.py)
fails the run instead.  The report says which capabilities were found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.home import Home
from tests import capabilities, inventory

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes more than some seconds; run by `make test-e2e`")


def _needs(item: pytest.Item) -> list[str]:
    names = [str(name) for mark in item.iter_markers("needs") for name in mark.args]
    if unknown := [name for name in names if name not in capabilities.PROBES]:
        raise pytest.UsageError(f"{item.nodeid} needs unknown capabilities: {', '.join(unknown)}")
    return names


def _wanted(items: list[pytest.Item]) -> list[str]:
    """The capabilities worth trying in this run, in the order in which the probes are written."""
    asked = {name for item in items for name in _needs(item)}
    if asked:
        asked.update(capabilities.required())
    return [name for name in capabilities.PROBES if name in asked]


def _lacking(items: list[pytest.Item]) -> list[str]:
    """Required capabilities that this machine lacks; none when no test of this run needs any."""
    wanted = _wanted(items)
    return [name for name in capabilities.required() if name in wanted and capabilities.missing(name)]


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    wanted = _wanted(items)
    if not wanted:
        return []
    found = [name for name in wanted if not capabilities.missing(name)]
    lines = [f"capabilities found: {', '.join(found) or 'none'}"]
    must = capabilities.required()
    for name in wanted:
        if reason := capabilities.missing(name):
            lines.append(f"capability missing: {name} ({reason}){' REQUIRED' if name in must else ''}")
    return lines


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _needs(item):
        if reason := capabilities.missing(name):
            if name in capabilities.required():
                pytest.fail(f"needs {name}, which this run requires: {reason}", pytrace=False)
            pytest.skip(f"needs {name}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == 0 and _lacking(getattr(session, "items", [])):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _detach_mounts(base: Path) -> None:
    """Unmount what a failed test left under its own folder, deepest first, so that it can be removed."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{base}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], timeout=10, check=False, capture_output=True)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A labctl home of the test's own (LABCTL_HOME is set); what is left in it is taken down at the end.

    The path is short, because the names of Unix sockets end at 107 bytes.
    """
    base = Path(tempfile.mkdtemp(prefix="labt", dir="/tmp"))
    monkeypatch.setenv("LABCTL_HOME", str(base))
    found = Home.find()
    yield found
    if found.ledger.exists():
        command = [sys.executable, "-m", "labctl.cli", "down", "--all", "--quiet"]
        subprocess.run(command, env={**os.environ, "LABCTL_HOME": str(base)}, timeout=120, check=False)
    _detach_mounts(base)
    shutil.rmtree(base)


@pytest.fixture
def labctl(home: Home) -> Cli:
    """Run the command line as a person would: labctl("up", "hello") → CompletedProcess."""

    def run(
        *words: str, stdin: str = "", timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        base = os.path.commonpath([home.state, home.cache])
        return subprocess.run(
            [sys.executable, "-m", "labctl.cli", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "LABCTL_HOME": base, **env},
        )

    return run


@pytest.fixture
def host_inventory(home: Home) -> Callable[[], list[str]]:
    """Takes stock of the host now; calling it says what appeared or went since ([] = as before).

    With LABCTL_SHARED_HOST=1 only lines of this home's instance or folder count, for a machine on
    which other people work at the same time.
    """
    before = inventory.take(home)

    def since() -> list[str]:
        lines = before.difference(inventory.take(home))
        if os.environ.get("LABCTL_SHARED_HOST") != "1":
            return lines
        marks = (home.instance(), str(home.state.parent))
        return [line for line in lines if any(mark in line for mark in marks)]

    return since
