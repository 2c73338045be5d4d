"""Machines that go on from a memory snapshot: who they are, what they share, what happens when it fails."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import Lab, until

pytestmark = [
    pytest.mark.needs("root", "nft", "dnsmasq", "libvirt", "tcg", "kernel"),
    pytest.mark.timeout(300),
]

PROFILE = """
name: snap
defaults: {tier: emulation, image: micro, memory: 192MiB}
nodes:
  m: {replicas: %d}
"""


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    """A lab whose home has the tests' cache, but snapshots of its own."""
    found = Lab(home, tmp_path, "snap", PROFILE % 2)
    shared = home.cache.readlink()
    home.cache.unlink()
    home.cache.mkdir()
    for name in ("boot", "images", "libvirtd"):
        (shared / name).mkdir(exist_ok=True)
        (home.cache / name).symlink_to(shared / name)
    return found


def snapshots(home: Home) -> list[Path]:
    return sorted((home.cache / "snapshots").glob("*.save"))


def first_boot(lab: Lab, node: str) -> str:
    """The kernel's first words with their times in microseconds: no two boots have the same."""
    return lab.sh(node, "dmesg | sed '/Run .init as init/q'")


def test_replicas_and_restarts(lab: Lab, home: Home, host_inventory: Callable[[], list[str]]) -> None:
    up = lab.up()
    assert len(snapshots(home)) == 1
    boots = {node: first_boot(lab, node) for node in ("m-1", "m-2")}
    assert boots["m-1"] == boots["m-2"], "both come from one boot"
    told = {node["name"]: node for node in up["nodes"]}
    seen = {}
    for node in ("m-1", "m-2"):
        mac = told[node]["interfaces"][0]["mac"]
        address = told[node]["addresses"][0]
        assert lab.sh(node, "cat /sys/class/net/eth0/address; hostname") == f"{mac}\n{node}"
        assert f"inet {address}/" in lab.sh(node, "ip -o -4 addr show eth0")
        assert lab.sh(node, "cat /run/labctl/problems 2>/dev/null || true") == ""
        before, clock, after = time.time(), float(lab.sh(node, "date +%s")), time.time()
        assert before - 3 < clock < after + 3, "its clock is the host's"
        words = "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/uuid"
        seen[node] = lab.sh(node, f"cat {words[0]} {words[1]}; head -c 16 /dev/urandom | hexdump")
        assert lab.code(node, f"ping -c 1 -W 10 {'m-2' if node == 'm-1' else 'm-1'}") == 0
    assert not set(seen["m-1"].splitlines()[:3]) & set(seen["m-2"].splitlines()[:3]), "no shared secrets"

    lab.sh("m-1", "echo kept >/etc/mine; sync")
    lab.good("restart", "snap/m-1")
    assert first_boot(lab, "m-1") == boots["m-1"], "a later start goes on from it as well"
    assert lab.sh("m-1", "cat /etc/mine") == "kept"
    again = lab.sh("m-1", "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | hexdump")
    assert not set(again.splitlines()[:2]) & set(seen["m-1"].splitlines()), "and draws new numbers"
    lab.down()
    assert host_inventory() == []


@pytest.mark.long
def test_boot_reboot_and_a_broken_snapshot(lab: Lab, home: Home) -> None:
    lab.write(PROFILE % 1)
    lab.up("--boot")
    assert snapshots(home) == [], "--boot neither takes nor uses one"
    booted = first_boot(lab, "m-1")
    assert lab.up("--from-snapshot")["changes"] and first_boot(lab, "m-1") == booted, "nothing is replaced"
    lab.down()
    lab.up("--from-snapshot")
    (file,) = snapshots(home)
    taken = first_boot(lab, "m-1")
    lab.run("exec", "snap/m-1", "--", "sh", "-c", "reboot -f")
    until(lambda: lab.run("exec", "snap/m-1", "--", "true").returncode == 0, "it is back", 120)
    assert first_boot(lab, "m-1") != taken, "a machine that reboots by itself parks for nobody"
    lab.good("stop", "snap/m-1", "--force")

    with file.open("r+b") as raw:
        raw.truncate(file.stat().st_size // 2)
    done = lab.run("start", "snap/m-1")
    assert done.returncode == 0 and "was booted" in done.stderr and "snapshot" in done.stderr, done.stderr
    assert first_boot(lab, "m-1") != taken
    assert snapshots(home) == []
    lab.good("restart", "snap/m-1")
    assert len(snapshots(home)) == 1, "the next start leaves a new one"


@pytest.mark.long
@pytest.mark.parametrize("when", ["early", "late"])
def test_killed_while_a_machine_parks(
    lab: Lab, home: Home, when: str, host_inventory: Callable[[], list[str]]
) -> None:
    lab.write(PROFILE % 1)
    folder = home.cache / "snapshots"
    up = lab.begin("up", str(lab.file), "--from-snapshot")
    sign = "*.lock" if when == "early" else ".*.save.*"
    until(lambda: bool(list(folder.glob(sign))) or up.poll() is not None, "the machine is started", 60)
    up.send_signal(signal.SIGKILL)
    up.wait()
    lab.up("--from-snapshot")
    assert lab.sh("m-1", "hostname") == "m-1"
    lab.down()
    lab.up()
    assert lab.sh("m-1", "hostname") == "m-1"
    assert [path.name for path in folder.glob(".*")] == [], "what the killed one left is removed"
    lab.down()
    assert host_inventory() == []
