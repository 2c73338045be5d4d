"""The para tier's engine uml: a kernel that runs as a program, used like every machine, and gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, touched, until

pytestmark = [pytest.mark.needs(*CONTAINERS, "kernel"), pytest.mark.timeout(300)]

PROFILE = """
name: program
defaults: {image: micro, memory: 128MiB}
nodes:
  um: {tier: para, engine: uml, files: [{path: /etc/hello, content: hi}]}
  box: {tier: container, command: exec sleep 1000}
"""


def programs(lab: Lab) -> list[int]:
    """The host's processes that were started for the lab's node."""
    mark = f"LABCTL_MARK=labctl:{lab.home.instance()}:".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            raw = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            if mark in raw and b":uml:um" in raw:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def backing(pid: int) -> str:
    """The image's disk below the one of a running program."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next((word.partition(",")[2] for word in words if word.startswith("ubd0")), "")


@pytest.mark.long
def test_a_kernel_as_a_program(lab: Lab, host_inventory: Callable[[], list[str]]) -> None:
    up = lab.up()
    (um,) = [node for node in up["nodes"] if node["name"] == "um"]
    assert (um["state"], um["tier"], um["accelerator"]) == ("ready", "para", "User Mode Linux")
    assert touched(lab.up()) == {}
    assert lab.sh("um", "hostname; cat /etc/hello") == "um\nhi"
    assert "UML" in lab.sh("um", "cat /proc/cpuinfo")
    assert lab.sh("um", "uname -r") != os.uname().release
    assert lab.code("um", "exit 37") == 37
    for one, other in (("um", "box"), ("box", "um")):
        assert lab.code(one, f"ping -c 1 -W 10 {other}") == 0
    for _ in range(2):  # who left closed the terminal; the next one finds another
        assert b"=42=" in lab.console("um", b"echo =$((6*7))=\r\n", b"=42=")
    # QEMU has the same disk below its machines', and opens no file that someone else has locked.
    disk = next(filter(None, map(backing, programs(lab))))
    subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", disk], timeout=30, check=True)

    used = json.loads(lab.good("stats", "program/um", "--json"))["nodes"][0]
    assert used["state"] == "running" and used["memory_bytes"] > 8 << 20 and used["cpu_seconds"] > 0
    assert used["net_received_bytes"] > 0 and used["net_sent_bytes"] > 0

    lab.good("pause", "program/um")
    assert lab.states() == {"um": "paused", "box": "ready"}
    lab.good("resume", "program/um")
    lab.sh("um", "echo kept >/root/mine; sync")
    lab.good("restart", "program/um")
    assert lab.sh("um", "cat /root/mine") == "kept"

    for pid in programs(lab):
        with contextlib.suppress(ProcessLookupError):  # all end with the first
            os.kill(pid, signal.SIGKILL)
    until(lambda: lab.states()["um"] == "stopped", "its end is seen")
    assert set(touched(lab.up())) == {"uml:um", "reach:um", "ready:um"}
    assert lab.sh("um", "cat /root/mine") == "kept"
    lab.sh("um", "(sleep 1; echo c >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")
    until(lambda: lab.states()["um"] == "failed", "its kernel has panicked", 60)
    assert lab.status()["um"]["reason"] == "its kernel panicked: sysrq triggered crash"
    assert programs(lab) == [], "it ended"
    lab.good("start", "program/um")
    assert lab.states() == {"um": "ready", "box": "ready"} and lab.sh("um", "cat /root/mine") == "kept"
    lab.down()
    assert programs(lab) == [] and host_inventory() == []


@pytest.mark.long
def test_found_without_a_ledger_and_reset_by_itself(
    lab: Lab, home: Home, host_inventory: Callable[[], list[str]]
) -> None:
    lab.write("name: program\nnodes:\n  um: {tier: para, engine: uml, image: micro, memory: 128MiB}\n")
    lab.up()
    boot = lab.sh("um", "cat /proc/sys/kernel/random/boot_id")
    lab.run("exec", "program/um", "--", "reboot", "-f")
    until(lambda: lab.run("exec", "program/um", "--", "true").returncode == 0, "it is back", 60)
    assert lab.sh("um", "cat /proc/sys/kernel/random/boot_id") != boot
    for path in home.ledger.parent.glob(f"{home.ledger.name}*"):
        path.unlink()
    left = json.loads(lab.good("gc", "--json", "--dry-run"))["leftovers"]
    assert {"uml", "folder"} <= {thing["kind"] for thing in left}
    lab.good("gc")
    assert programs(lab) == [] and host_inventory() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tier: para, engine: uml, cpus: 2", "no cpus"),
        ("tier: para, engine: uml, devices: emulated", "no devices"),
        ("tier: emulation, engine: uml", "only tier: para and tier: container have an engine"),
        ("tier: container, engine: uml", "uml runs para nodes"),
        ("tier: para, engine: kvm", "engine"),
    ],
)
def test_what_it_has_not(lab: Lab, words: str, said: str) -> None:
    lab.write(f"name: program\nnodes:\n  um: {{{words}, image: micro}}\n")
    assert said in lab.up_fails(2)


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    return Lab(home, tmp_path, "program", PROFILE)
