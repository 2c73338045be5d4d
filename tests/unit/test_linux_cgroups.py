"""Control groups on trees of plain files: what is written where, on v1, v2 and hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.linux import limits
from labctl.linux.cgroups import Cgroup, Layout
from labctl.linux.syscalls import SyscallError
from labctl.runtime import spec

V2_FILES = (
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "cpu.max",
    "cpu.weight",
    "pids.max",
    "cpuset.cpus",
    "io.max",
)


def test_layouts() -> None:
    v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    v1 = (
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    )
    assert Layout.detect(v2).kind == "v2"
    assert Layout.detect(v1).kind == "v1"
    hybrid = Layout.detect(v1 + v2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "))
    assert hybrid.kind == "hybrid"
    assert hybrid.v2 == "/sys/fs/cgroup/unified"
    assert hybrid.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert Layout.detect("22 27 0:21 / /proc rw - proc proc rw\n").kind == "none"


@pytest.mark.parametrize("path", ["", "/", "/a/../b", ".."])
def test_bad_paths(path: str) -> None:
    with pytest.raises(ValueError, match="bad cgroup path"):
        Cgroup(path, Layout("/x", {}))


def tree(base: Path) -> Cgroup:
    """A v2 tree of plain files, as the kernel would have made them."""
    (base / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    for folder in (base, base / "labctl", base / "labctl/node"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma\n")
        (folder / "cgroup.subtree_control").write_text("")
    for name in V2_FILES:
        (base / "labctl/node" / name).write_text("")
    return Cgroup("/labctl/node", Layout(str(base), {}))


def test_v2_controllers_are_passed_down_to_but_not_into_the_group(tmp_path: Path) -> None:
    group = tree(tmp_path)
    group.create()
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+pids")
    assert (tmp_path / "labctl/cgroup.subtree_control").read_text().startswith("+pids")
    assert (tmp_path / "labctl/node/cgroup.subtree_control").read_text() == ""


def test_limits_on_v2(tmp_path: Path) -> None:
    group = tree(tmp_path)
    resources: dict[str, Any] = spec.resources(memory=64 << 20, cpus=1.5, pids=100)
    resources["cpu"]["shares"] = 1024
    resources["memory"] |= {"swap": 96 << 20, "reservation": 1 << 20}
    limits.apply(group, resources)
    folder = tmp_path / "labctl/node"
    found = {name: (folder / name).read_text() for name in V2_FILES}
    assert found == {
        "memory.max": str(64 << 20),
        "memory.swap.max": str(32 << 20),
        "memory.low": str(1 << 20),
        "cpu.max": "150000 100000",
        "cpu.weight": "39",
        "pids.max": "100",
        "cpuset.cpus": "",
        "io.max": "",
    }


def test_no_limit_and_devices_on_v2(tmp_path: Path) -> None:
    group = tree(tmp_path)
    rate = {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}
    limits.apply(
        group, {"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}, "blockIO": rate}
    )
    folder = tmp_path / "labctl/node"
    assert (folder / "memory.max").read_text() == "max"
    assert (folder / "pids.max").read_text() == "max"
    assert (folder / "cpu.max").read_text() == "max 100000"
    assert (folder / "io.max").read_text() == "8:0 rbps=1000"


def test_a_limit_without_its_controller_is_an_error(tmp_path: Path) -> None:
    group = tree(tmp_path)
    (tmp_path / "labctl/node/cgroup.controllers").write_text("cpu\n")
    with pytest.raises(SyscallError, match="memory: no such cgroup controller"):
        limits.apply(group, {"memory": {"limit": 1}})
    with pytest.raises(ValueError, match="bad cgroup file"):
        limits.apply(group, {"unified": {"../x": "1"}})


def test_figures_on_v2(tmp_path: Path) -> None:
    group = tree(tmp_path)
    folder = tmp_path / "labctl/node"
    values = {
        "memory.current": "1000\n",
        "memory.peak": "2000\n",
        "memory.max": "max\n",
        "pids.current": "3\n",
    }
    for name, text in values.items():
        (folder / name).write_text(text)
    (folder / "cpu.stat").write_text("usage_usec 5\nuser_usec 1\n")
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert limits.stats(group) == {
        "memory": 1000,
        "memory_peak": 2000,
        "oom_kills": 1,
        "cpu_ns": 5000,
        "pids": 3,
    }


def test_memory_on_v1_never_exceeds_memory_and_swap_on_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    plain, both = folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"
    for path in (plain, both):
        path.write_text("1000")
    group = Cgroup("/node", Layout("", {"memory": str(tmp_path)}))
    limits.apply(group, {"memory": {"limit": 5000, "swap": 5000}})
    assert (plain.read_text(), both.read_text()) == ("5000", "5000")


def test_a_new_group_gets_the_cpus_of_its_parent_on_v1(tmp_path: Path) -> None:
    for name, text in (("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0\n")):
        (tmp_path / name).write_text(text)
        for folder in ("a", "a/b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text("")
    Cgroup("/a/b", Layout("", {"cpuset": str(tmp_path)}), ["cpuset"]).create()
    assert (tmp_path / "a/b/cpuset.cpus").read_text() == "0-3"


def test_weights() -> None:
    assert [limits.weight_of_shares(shares) for shares in (2, 1024, 262144, 0, 10**9)] == [
        1,
        39,
        10000,
        1,
        10000,
    ]
