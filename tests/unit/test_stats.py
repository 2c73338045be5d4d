"""The figures behind stats and top: what the kernel's files say, and how it is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.cli.watching import process_table, stats_table
from labctl.guest import processes
from labctl.guest.machine import Process
from labctl.lab.figures import NodeFigures
from labctl.linux import proctable, traffic
from labctl.linux.cgroups import Cgroup, Layout

DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls
lo: 900 9 0 0 0 0 0 0 900 9 0 0 0 0 0
eth0: 1000 10 0 0 0 0 0 0 300 3 0 0 0 0 0
eth1: 24 1 0 0 0 0 0 0 6 1 0 0 0 0 0
"""
STAT = (
    "7 (a) b (c) S 1 7 7 0 -1 4194560 91 0 0 0 150 50 0 0 20 0 3 0 12345 2400256 300 18446744073709551615 "
    "1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0"
)


def test_network_traffic_leaves_the_loopback_out() -> None:
    assert traffic.of_devices(DEV) == (1024, 306)
    assert traffic.network(os.getpid()) is None, "our own namespace's is nobody's share of it"
    assert traffic.network(0) is None


def test_block_traffic_by_the_controller_that_is_there(tmp_path: Path) -> None:
    v2, v1 = tmp_path / "v2", tmp_path / "blkio"
    for folder in (v2 / "labctl/x", v1 / "labctl/x"):
        folder.mkdir(parents=True)
    (v2 / "cgroup.controllers").write_text("")
    unified = Cgroup("/labctl/x", Layout(str(v2), {}))
    mine = traffic.blocks(unified, [os.getpid(), 0])
    assert mine is None or min(mine) >= 0  # by the processes, where the kernel counts for them
    (v2 / "labctl/x/io.stat").write_text(
        "8:0 rbytes=4096 wbytes=10 rios=1 wios=1 dbytes=5 dios=0\n8:16 rbytes=4 wbytes=1 rios=1 wios=1\n"
    )
    assert traffic.blocks(unified, []) == (4100, 11)
    (v1 / "labctl/x/blkio.throttle.io_service_bytes_recursive").write_text(
        "8:0 Read 100\n8:0 Write 7\n8:0 Sync 3\n8:16 Read 1\nTotal 111\n"
    )
    assert traffic.blocks(Cgroup("/labctl/x", Layout("", {"blkio": str(v1)}), ["blkio"]), []) == (101, 7)


def test_a_process_with_any_name_is_read() -> None:
    status = {"Uid": ["33", "33"], "VmRSS": ["12", "kB"]}
    row = proctable.parse(STAT, status, "prog\0-x\0a b\0")
    assert row == {
        "pid": 7, "ppid": 1, "uid": 33, "state": "S", "threads": 3, "memory_bytes": 12288,
        "cpu_seconds": 2.0, "command": "prog -x a b", "kernel": False,
    }  # fmt: skip
    assert proctable.parse(STAT, {}, "")["command"] == "[a) b (c]"


def test_processes_of_this_very_host(tmp_path: Path) -> None:
    script = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, "x\ny"], stdin=subprocess.PIPE) as child:
        done = subprocess.run(
            ["sh", "-c", processes.SCRIPT], capture_output=True, text=True, timeout=60, check=True
        )
        by_script = processes.parse(done.stdout)
        by_hand = proctable.of_container([child.pid, 0], os.getpid())
        child.communicate(b"")
    assert by_script is not None and len(by_script) > 2
    mine = next(one for one in by_script if one.pid == child.pid)
    assert mine.ppid == os.getpid() and mine.command.endswith("x y") and mine.memory_bytes > 1 << 20
    assert [(row["host_pid"], row["uid"]) for row in by_hand] == [(child.pid, os.getuid())]


@pytest.mark.parametrize("text", ["", "0 0 1 (init) S 0\n", "0 0 1 (init) S 0\ninit\ndone"])
def test_half_an_answer_is_none(text: str) -> None:
    assert processes.parse(text) is None


def test_hostile_lines_are_no_processes_and_move_no_cursor() -> None:
    found = processes.parse(f"0 12 {STAT}\nevil\x1b[2J\n0 0 nonsense\n\ndone\n")
    assert found is not None and [one.command for one in found] == ["evil?[2J"]
    assert "\x1b" not in process_table([Process(1, 0, 0, "S", 1, 0, 3661.0, "a\x1b[2J")])
    assert "01:01:01" in process_table([Process(1, 0, 0, "S", 1, 0, 3661.0, "a")])


def test_the_table_of_stats() -> None:
    rows = [
        NodeFigures(
            "lab", "web", "container", "running", cpu_percent=12.34, memory_bytes=32 << 20,
            memory_limit_bytes=64 << 20, net_received_bytes=1024, net_sent_bytes=0, pids=3,
        ),
        NodeFigures("lab", "emu", "emulation", "stopped"),
        NodeFigures("lab", "in", "container", "stopped", inside="emu", reason="with its machine emu"),
        NodeFigures("lab", "free", "container", "running", memory_bytes=1, memory_limit_bytes=0),
    ]  # fmt: skip
    lines = stats_table(rows).splitlines()
    assert lines[0].split() == [
        "NODE",
        "TIER",
        "CPU",
        "MEMORY",
        "/",
        "LIMIT",
        "MEM",
        "NET",
        "IN",
        "/",
        "OUT",
        "DISK",
        "IN",
        "/",
        "OUT",
        "PIDS",
    ]
    assert lines[1].split() == [
        "web",
        "container",
        "12.3",
        "%",
        "32.0",
        "MiB",
        "/",
        "64.0",
        "MiB",
        "50.0",
        "%",
        "1.0",
        "KiB",
        "/",
        "0",
        "B",
        "-",
        "3",
    ]
    assert lines[2].split() == ["emu", "emulation", "stopped", "-", "-", "-", "-", "-"]
    assert lines[3].startswith("in    container in emu  stopped")
    assert lines[4].split()[2:6] == ["-", "1", "B", "/"]
    assert lines[5] == "in: with its machine emu"
