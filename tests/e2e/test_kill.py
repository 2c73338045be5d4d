"""up and down are killed at every step; each time `down` finds everything, and the host is as before."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.forked import Forked
from tests.e2e.labs import CONTAINERS as NEEDED
from tests.e2e.labs import Lab, until, use_shared_cache

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

FENCED = ISOLATIONS.replace("volumes: {keep", "  whole: {isolation: lxc, command: null}\nvolumes: {keep")

DISKS = """
name: crash
nodes:
  vm: {tier: emulation, image: micro, memory: 128MiB, disks: [{name: data, size: 8MiB, mount: /data}]}
"""

INSIDE = """
name: crash
defaults: {image: base}
nodes:
  vm: {tier: emulation, memory: 384MiB}
  nested: {inside: vm, files: [{path: /etc/hello, content: hi}]}
"""


class Crash:
    """A lab in a home of its own whose verbs are killed at numbered points."""

    def __init__(self, home: Home, profile: Path, labctl: Forked) -> None:
        self.home, self.profile, self.labctl = home, profile, labctl

    def run(self, verb: str, fault: str = "", *words: str) -> subprocess.CompletedProcess[str]:
        if verb == "up":
            words = (str(self.profile), "--allow-privileged")
        return self.labctl.run(verb, *(words or ("crash",)), LABCTL_FAULT=fault)

    def good(self, verb: str, fault: str = "", *words: str) -> None:
        done = self.run(verb, fault, *words)
        assert done.returncode == 0, f"{verb}: {done.stderr}"

    def killed_at(self, verb: str, point: str) -> None:
        done = self.run(verb, f"kill@{point}")
        assert done.returncode == -9, f"{verb} did not come by {point}: {done.returncode}: {done.stderr}"

    def killed_again_and_again(self, verb: str, *words: str) -> int:
        """Kill the verb at its first point, begin it again and kill it at the second, and so on till it ends.

        Every point is met with what the earlier runs left; the number of kills.
        """
        for number in range(1, 500):
            done = self.run(verb, f"kill:{number}", *words)
            if done.returncode != -9:
                assert done.returncode == 0, f"{verb} after {number - 1} kills: {done.stderr}"
                return number - 1
        raise AssertionError(f"{verb} passes more than 500 points")

    def states(self) -> set[str]:
        told = json.loads(self.run("status", "", "crash", "--json").stdout)
        return {node["state"] for node in told["nodes"]}

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


@pytest.fixture
def crash(home: Home, tmp_path: Path) -> Iterator[Crash]:
    use_shared_cache(home)
    with Forked() as labctl:
        yield Crash(home, tmp_path / "crash.yaml", labctl)


@pytest.mark.needs(*NEEDED, "cgroup-bpf")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_down_of_fenced_nodes_is_killed_again_and_again(
    crash: Crash, host_inventory: Callable[[], list[str]]
) -> None:
    crash.profile.write_text(FENCED)
    crash.good("up")
    assert crash.killed_again_and_again("down") > 15
    crash.gone()
    assert host_inventory() == []


@pytest.mark.needs(*NEEDED)
@pytest.mark.long
@pytest.mark.timeout(300)
def test_stop_start_and_restart_are_killed_and_the_node_can_be_used(
    crash: Crash, host_inventory: Callable[[], list[str]]
) -> None:
    crash.profile.write_text(CONTAINERS)
    crash.good("up")
    for verb, kills in (("stop", 2), ("start", 2), ("restart", 4)):
        assert crash.killed_again_and_again(verb, "crash/b") == kills
    assert crash.states() == {"ready"}
    crash.run("restart", "kill@start:before:b", "crash/b")
    crash.good("up")  # goes on as well
    assert crash.states() == {"ready"}
    crash.run("stop", "kill@stop:after:b", "crash/b")
    crash.gone()
    assert host_inventory() == []


SLOW_TO_END = """
name: crash
nodes:
  b: {image: micro, command: "trap 'touch /tmp/asked; sleep 2; exit 0' TERM; while :; do sleep 0.1; done"}
"""


@pytest.mark.needs(*NEEDED)
@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_node_that_ends_after_its_stop_was_killed_is_not_taken_as_running(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "crash", SLOW_TO_END)
    for goes_on in (["up", str(lab.file)], ["start", "crash/b"]):
        lab.up()
        with lab.begin("restart", "crash/b") as process:
            until(lambda: lab.code("b", "test -e /tmp/asked") == 0, "it was asked to end")
            process.kill()
        began = lab.starts("b")
        lab.good(*goes_on)
        assert lab.starts("b") != began and lab.states() == {"b": "ready"}, goes_on
        lab.down()
    assert host_inventory() == []


@pytest.mark.needs(*NEEDED)
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_gc_is_killed_again_and_again(crash: Crash, host_inventory: Callable[[], list[str]]) -> None:
    crash.profile.write_text(CONTAINERS)
    crash.good("up")
    for path in crash.home.state.glob("ledger*"):
        path.unlink()
    while (done := crash.run("gc", "kill:2", "-q")).returncode == -9:
        pass  # each removes one thing more
    assert done.returncode == 0, done.stderr
    assert host_inventory() == []


@pytest.mark.needs(*NEEDED, "libvirt", "tcg")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_disks_survive_no_kill(crash: Crash, host_inventory: Callable[[], list[str]]) -> None:
    crash.profile.write_text(DISKS)
    # The machine never boots: what is killed comes before it.
    for point in ("make:before:disk:vm.data", "make:after:disk:vm.data"):
        crash.killed_at("up", point)
        crash.killed_at("up", point)
        crash.gone()
        assert host_inventory() == [], point
    crash.killed_at("up", "make:after:disk:vm.data")
    for point in ("unmake:before:disk:vm.data", "unmake:after:disk:vm.data"):
        crash.killed_at("down", point)
    crash.gone()
    assert host_inventory() == []


@pytest.mark.needs(*NEEDED, "libvirt", "tcg", "kernel")
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_container_in_a_machine_survives_no_kill(
    crash: Crash, host_inventory: Callable[[], list[str]]
) -> None:
    crash.profile.write_text(INSIDE)
    for point in ("make:before:inside:nested", "make:after:inside:nested"):
        crash.killed_at("up", point)  # the second goes on with the machine of the first
    crash.good("up")
    assert crash.states() == {"ready"}
    for point in ("unmake:before:inside:nested", "unmake:after:inside:nested"):
        crash.killed_at("down", point)
    crash.gone()
    assert host_inventory() == []
