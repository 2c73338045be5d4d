"""up and down are killed at every step; each time `down` finds everything, and the host is as before."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.forked import Forked
from tests.e2e.labs import CONTAINERS as NEEDED
from tests.e2e.labs import use_shared_cache

CONTAINERS = """
name: crash
networks:
  lan: {}
  back: {}
defaults: {image: micro, command: exec sleep 1000}
nodes:
  a: {networks: [lan, back], ports: ["80"], files: [{path: /etc/hello, content: hi}]}
  b: {networks: [lan], volumes: [{source: keep, target: /keep}], depends_on: {a: ready}}
volumes: {keep: {}}
"""

SPECTRUM = """
name: crash
defaults: {image: micro, command: exec sleep 1000}
nodes:
  vm: {tier: emulation, memory: 128MiB, networks: [lan, back]}
  box: {networks: [lan], ports: ["80"], provision: ["true"]}
  other: {networks: [back]}
networks: {lan: {}, back: {}}
"""


ISOLATIONS = """
name: crash
defaults: {image: micro, command: exec sleep 1000}
nodes:
  root: {isolation: chroot, tmpfs: [/scratch], volumes: [{source: keep, target: /keep}]}
  server: {isolation: vserver}
volumes: {keep: {}}
"""


class Crash:
    """A lab in a home of its own whose verbs are killed at numbered points."""

    def __init__(self, home: Home, profile: Path, labctl: Forked) -> None:
        self.home, self.profile, self.labctl = home, profile, labctl

    def run(self, verb: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        argv = [verb, str(self.profile), "--allow-privileged"] if verb == "up" else [verb, "crash"]
        return self.labctl.run(*argv, LABCTL_FAULT=fault)

    def good(self, verb: str, fault: str = "") -> None:
        done = self.run(verb, fault)
        assert done.returncode == 0, f"{verb}: {done.stderr}"

    def gone(self) -> None:
        """Take it down, whatever there is of it: the ledger knows of nothing any more."""
        self.good("down")
        ledger = sqlite3.connect(self.home.ledger)
        try:
            for table in ("labs", "resources", "nodes", "claims"):
                assert ledger.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        finally:
            ledger.close()

    def points(self, verb: str, log: Path) -> list[str]:
        self.good("up", f"log:{log}" if verb == "up" else "")
        self.good("down", f"log:{log}" if verb == "down" else "")
        return log.read_text().splitlines()


def killed_everywhere(
    home: Home, tmp_path: Path, text: str, verb: str, since: Callable[[], list[str]]
) -> int:
    """Kill `verb` at each of its points in turn; the number of points."""
    use_shared_cache(home)
    profile = tmp_path / "crash.yaml"
    profile.write_text(text)
    with Forked() as labctl:
        return _killed_everywhere(Crash(home, profile, labctl), tmp_path, verb, since)


def _killed_everywhere(crash: Crash, tmp_path: Path, verb: str, since: Callable[[], list[str]]) -> int:
    points = crash.points(verb, tmp_path / "points")
    for number, point in enumerate(points, 1):
        if verb == "down":
            crash.good("up")
        done = crash.run(verb, f"kill:{number}")
        if done.returncode == 0 and number > len(points) * 3 // 4:
            # Steps that happened to be done in one batch this time pass fewer points.
            crash.gone()
            assert since() == []
            break
        assert done.returncode == -9, f"{point}: ended with {done.returncode}: {done.stderr}"
        crash.gone()
        assert since() == [], f"killed {verb} at point {point}"
    print(f"{verb}: {len(points)} kill points, 0 leftovers")
    return len(points)


@pytest.mark.needs(*NEEDED)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["up", "down"])
def test_containers_survive_no_kill(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]], verb: str
) -> None:
    assert killed_everywhere(home, tmp_path, CONTAINERS, verb, host_inventory) > 20


@pytest.mark.needs(*NEEDED, "cgroup-bpf")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_chroot_and_a_vserver_survive_no_kill(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    assert killed_everywhere(home, tmp_path, ISOLATIONS, "up", host_inventory) > 15


@pytest.mark.needs(*NEEDED, "libvirt", "tcg")
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_machine_and_a_container_survive_no_kill(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]], verb: str
) -> None:
    assert killed_everywhere(home, tmp_path, SPECTRUM, verb, host_inventory) > 20
