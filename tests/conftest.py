"""Fixtures and the marker `needs`: what a test can't do without is tried for real before it runs.

A missing capability skips the test and names itself; one on the required list (tests/capabilities.py)
fails the run instead.  The report says which capabilities were found.

Run by several workers (`-n 2 --dist loadfile --no-loadscope-reorder`), each file stays with one worker, the
files that take longest come first, and the whole host is compared once: before the first test, at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.home import Home
from tests import capabilities, inventory

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

# Files of half a minute and more, in either run, the longest first.
LONGEST = [
    "e2e/test_kill",
    "e2e/test_para",
    "e2e/test_bench",
    "e2e/test_spectrum",
    "e2e/test_snapshot",
    "e2e/test_machines",
    "host/test_guest_inside",
    "host/test_boot_machine",
    "e2e/test_nested_power",
    "host/test_image_recipes",
    "e2e/test_trouble",
    "e2e/test_uml",
    "host/test_lab_containers",
    "e2e/test_interrupts",
    "e2e/test_image_disks",
    "e2e/test_cli_hello",
    "host/test_image_hostile",
]
HOMES = Path("/tmp/labt")  # what the folders of all homes of tests begin with

_LONG_SECONDS = 900
WORKER = "PYTEST_XDIST_WORKER" in os.environ
SHARED = WORKER or os.environ.get("LABCTL_SHARED_HOST") == "1"
WHOLE = pytest.StashKey[inventory.Inventory]()
LINES = pytest.StashKey[list[str]]()


def _hear_signals() -> None:
    """Hear what a caller may ignore (nohup, a shell's `&`): all that tests start would ignore it too."""
    for number, heard in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, heard)


def pytest_configure(config: pytest.Config) -> None:
    _hear_signals()
    config.addinivalue_line("markers", "long: takes more than some seconds; run by `make test-e2e`")
    config.stash[LINES] = []
    if getattr(config.option, "numprocesses", None) and not WORKER:
        os.environ["LABCTL_TEST_PROBES"] = tempfile.mkdtemp(prefix="labctl-probes-")
        touching = any("tests/unit" not in word for word in config.args)
        if touching and not SHARED and os.geteuid() == 0:
            config.stash[WHOLE] = inventory.take(HOMES)


def pytest_unconfigure() -> None:
    if not WORKER and (folder := os.environ.pop("LABCTL_TEST_PROBES", "")):
        shutil.rmtree(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest first, so that no worker is left alone with one at the end; long tests have
    time beside each other on a slow machine."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LONG_SECONDS))
    places = {f"tests/{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


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


def _capability_lines(items: list[pytest.Item]) -> list[str]:
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


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    # With workers, they tell at their end: the one that shows has no tests.
    return _capability_lines(items) if items else []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker ended: keep what it said of the capabilities that its tests need."""
    said = getattr(node, "workeroutput", {}).get("capabilities", [])
    node.config.stash[LINES] = said or node.config.stash[LINES]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash[LINES]:
        terminalreporter.write_line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _needs(item):
        if reason := capabilities.missing(name):
            if name in capabilities.required():
                pytest.fail(f"needs {name}, which this run requires: {reason}", pytrace=False)
            pytest.skip(f"needs {name}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    items = getattr(session, "items", [])
    if WORKER:
        session.config.workeroutput["capabilities"] = _capability_lines(items)  # type: ignore[attr-defined]
    lines = session.config.stash[LINES]
    if WHOLE in session.config.stash:
        left = session.config.stash[WHOLE].difference(inventory.take(HOMES))
        lines += [f"left on the host by some test: {line}" for line in left]
    if exitstatus == 0 and (
        _lacking(items) or any("REQUIRED" in line or "left on" in line for line in lines)
    ):
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
    which other people work at the same time; with workers so too, since each works beside the others.
    """
    base = Path(os.path.commonpath([home.state, home.cache]))
    before = inventory.take(base)

    def since() -> list[str]:
        lines = before.difference(inventory.take(base))
        if not SHARED:
            return lines
        marks = (home.instance(), str(home.state.parent))
        return [line for line in lines if any(mark in line for mark in marks)]

    return since
