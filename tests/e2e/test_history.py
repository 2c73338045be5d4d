"""The four isolations side by side: what each hides and leaks, used alike, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labctl.data import data
from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = pytest.mark.needs(*CONTAINERS, "cgroup-bpf")

KINDS = ("chroot", "vserver", "lxc", "docker")


# The root of a system container may mount; the control groups stay the host's all the same.
RAISE_THE_LIMIT = """
mount -o remount,bind,rw /sys/fs/cgroup || true
mount -o remount,bind,rw /sys/fs/cgroup/memory || true
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
	test -e $file && echo 1073741824 > $file && exit 0
done
exit 1
"""


def rows_of(lab: Lab) -> dict[str, dict[str, Any]]:
    """key → node → the figure behind the cell."""
    told = json.loads(lab.good("compare", lab.name, "--json"))
    return {row["key"]: row["raw"] for row in told["rows"]}


def test_four_isolations_side_by_side(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "history", (data("profiles") / "history.yaml").read_text())
    assert "--allow-privileged" in lab.up_fails(2)
    assert lab.labs() == []
    lab.up("--allow-privileged")
    results = json.loads(lab.good("check", "history", "--json"))["checks"]
    assert len(results) > 20 and all(result["passed"] for result in results)

    rows = rows_of(lab)
    shared = {
        kind: {key[3:] for key in rows if key.startswith("ns-") and rows[key][kind] == "same"}
        for kind in KINDS
    }
    assert shared["chroot"] >= {"pid", "net", "ipc", "mnt", "uts", "user", "cgroup"}
    assert shared["vserver"] - {"time"} == {"net", "user", "cgroup"}
    assert shared["lxc"] - {"time"} == shared["docker"] - {"time"} == set()
    assert rows["way-out"] == {"this host": None, "chroot": True, **dict.fromkeys(KINDS[1:], False)}
    assert rows["isolation"] == {"this host": None, **{kind: kind for kind in KINDS}}
    held = {kind: len(rows["capabilities"][kind]) for kind in KINDS}
    assert held["chroot"] >= held["lxc"] > held["docker"] > held["vserver"]

    note = tmp_path / "note"
    note.write_text("hello\n")
    for kind in KINDS:
        lab.good("cp", str(note), f"history/{kind}:/root/note")
    for kind in ("chroot", "vserver"):
        assert lab.sh(kind, "cat /root/note") == "hello", kind
    lab.good("cp", "history/chroot:/root/note", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "hello\n"
    assert lab.code("lxc", RAISE_THE_LIMIT) != 0
    # What a chroot starts in the background belongs to no namespace: the group is what ends it.
    lab.sh("chroot", "setsid sleep 3917 >/dev/null 2>&1 </dev/null &")
    assert running("sleep 3917")
    targets = [f"history/{kind}" for kind in KINDS]
    lab.good("stop", *targets)
    assert not running("sleep 3917")
    status = lab.status()
    assert {status[kind]["state"] for kind in KINDS} == {"stopped"}
    # reboot(2): the init of a pid namespace that powers off ends with SIGINT.
    assert "130" in status["lxc"]["reason"] and "143" in status["chroot"]["reason"]
    lab.good("start", *targets)
    assert {node["state"] for node in lab.status().values()} == {"ready"}
    assert lab.sh("chroot", "cat /root/note") == "hello"

    lab.sh("chroot", "setsid sleep 3917 >/dev/null 2>&1 </dev/null & mount -t tmpfs none /mnt")
    for pid in keepers(home):
        os.kill(pid, signal.SIGKILL)
    lab.file.unlink()
    lab.down()
    assert not running("sleep 3917")
    assert lab.labs() == [] and host_inventory() == []


def test_a_root_whose_ledger_is_lost_is_found(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "lost", "name: lost\nnodes: {a: {image: micro, isolation: chroot}}\n")
    lab.up("--allow-privileged")
    for file in home.ledger.parent.glob(home.ledger.name + "*"):
        file.unlink()
    assert host_inventory() != []
    told = json.loads(lab.good("gc", "--json", "--dry-run"))["leftovers"]
    assert {"container", "root", "folder"} <= {row["kind"] for row in told}
    lab.good("gc")
    assert host_inventory() == []


def running(command: str) -> bool:
    done = subprocess.run(["pgrep", "-f", f"^{command}$"], timeout=10, check=False, capture_output=True)
    return done.returncode == 0


def keepers(home: Home) -> list[int]:
    """The processes of this home's keepers: their command line names the lab's folder."""
    done = subprocess.run(
        ["pgrep", "-f", f"labctl.runtime.keeper.*{home.state}/labs"],
        timeout=10,
        check=False,
        capture_output=True,
        text=True,
    )
    return [int(word) for word in done.stdout.split()]
