"""Resource limits of a control group, from the OCI runtime spec's `linux.resources`, for v1 and v2; figures.

A limit that this machine has no controller for is an error and never dropped in silence.
"""

from __future__ import annotations

import os

from labctl.linux import proc
from labctl.linux.cgroups import Cgroup, write
from labctl.linux.syscalls import SyscallError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Mapping
    from typing import Any

    Resources = Mapping[str, Any]


def extra_controllers(resources: Resources) -> list[str]:
    """The v1 controllers, besides the usual ones, that these resources need."""
    cpu = resources.get("cpu") or {}
    found = []
    if cpu.get("cpus") or cpu.get("mems"):
        found.append("cpuset")
    if resources.get("devices"):
        found.append("devices")
    if resources.get("blockIO"):
        found.append("blkio")
    if resources.get("hugepageLimits"):
        found.append("hugetlb")
    if resources.get("rdma"):
        found.append("rdma")
    network = resources.get("network") or {}
    if network.get("classID") is not None:
        found.append("net_cls")
    if network.get("priorities"):
        found.append("net_prio")
    return found


def weight_of_shares(shares: int) -> int:
    """cpu.shares (2 to 262144) as cpu.weight (1 to 10000), as every engine converts it."""
    return 1 + ((max(2, min(shares, 262144)) - 2) * 9999) // 262142


def apply(cgroup: Cgroup, resources: Resources) -> None:
    """Write all limits.  Raises SyscallError that names the file, or the controller that is missing."""
    memory = resources.get("memory") or {}
    cpu = resources.get("cpu") or {}
    pids = resources.get("pids") or {}
    if any(value is not None for value in memory.values()):
        _memory(cgroup, memory)
    if cpu:
        _cpu(cgroup, cpu)
    if pids.get("limit") is not None:
        limit = int(pids["limit"])
        folder = _folder(cgroup, "pids")
        # 0 and negative both mean "no limit" to runc and crun.
        write(f"{folder}/pids.max", str(limit) if limit > 0 else "max")
    if blkio := resources.get("blockIO"):
        _blkio(cgroup, blkio)
    for page in resources.get("hugepageLimits") or ():
        _hugepages(cgroup, page)
    for device, row in (resources.get("rdma") or {}).items():
        names = {"hca_handle": row.get("hcaHandles"), "hca_object": row.get("hcaObjects")}
        words = " ".join(f"{name}={value}" for name, value in names.items() if value is not None)
        write(f"{_folder(cgroup, 'rdma')}/rdma.max", f"{device} {words}")
    network = resources.get("network") or {}
    if network.get("classID") is not None:
        write(f"{_v1_folder(cgroup, 'net_cls')}/net_cls.classid", str(network["classID"]))
    for row in network.get("priorities") or ():
        write(f"{_v1_folder(cgroup, 'net_prio')}/net_prio.ifpriomap", f"{row['name']} {row['priority']}")
    _unified(cgroup, resources.get("unified") or {})


def _unified(cgroup: Cgroup, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"linux.resources.unified: bad cgroup file name {name!r}")
        if problem := _unified_problem(cgroup, name):
            raise SyscallError(2, "limit", f"invalid configuration: linux.resources.unified: {problem}")
        for line in str(value).splitlines() or [""]:  # the kernel takes one device a write
            write(f"{cgroup.v2}/{name}", line)


def _unified_problem(cgroup: Cgroup, name: str) -> str:
    """Why there is no such file, in the words that runc's and crun's users look for; "" when there is."""
    if not cgroup.v2:
        return f"{name} is a file of cgroup v2, which is not mounted here"
    if os.path.exists(f"{cgroup.v2}/{name}"):
        return ""
    controller, dot, _ = name.partition(".")
    if not dot:
        return f"the specified key has not the form CONTROLLER.VALUE `{name}`"
    if controller not in (proc.read(f"{cgroup.v2}/cgroup.controllers") or "").split():
        return f"the requested cgroup controller `{controller}` is not available ({name})"
    return f"no such file or directory: {cgroup.v2}/{name}"


def _hugepages(cgroup: Cgroup, page: Mapping[str, Any]) -> None:
    """The limit of use, and of reservations where the kernel counts those."""
    folder, kind = _folder(cgroup, "hugetlb"), "limit_in_bytes" if "hugetlb" in cgroup.v1 else "max"
    size = str(page.get("pageSize"))
    if "/" in size or not os.path.exists(f"{folder}/hugetlb.{size}.{kind}"):
        raise SyscallError(2, "limit", f"linux.resources.hugepageLimits: no pages of {size!r} here")
    write(f"{folder}/hugetlb.{size}.{kind}", str(page["limit"]))
    reserved = f"{folder}/hugetlb.{size}.rsvd.{kind}"
    if os.path.exists(reserved):
        write(reserved, str(page["limit"]))


def _v1_folder(cgroup: Cgroup, controller: str) -> str:
    if controller not in cgroup.v1:
        raise SyscallError(95, "limit", f"{controller}: this machine has no such cgroup v1 controller")
    return cgroup.v1[controller]


def _folder(cgroup: Cgroup, controller: str) -> str:
    """The folder where a controller's files are; raises SyscallError when this machine hasn't got it."""
    if controller in cgroup.v1:
        return cgroup.v1[controller]
    name = "io" if controller == "blkio" else controller
    if cgroup.v2 and name in (proc.read(f"{cgroup.v2}/cgroup.controllers") or "").split():
        return cgroup.v2
    raise SyscallError(95, "limit", f"{controller}: no such cgroup controller for {cgroup.path}")


def _number(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(cgroup: Cgroup, memory: Mapping[str, Any]) -> None:
    folder = _folder(cgroup, "memory")
    limit, swap, soft = (memory.get(key) for key in ("limit", "swap", "reservation"))
    if memory.get("checkBeforeUpdate") and limit is not None and limit > 0:
        used = stats(cgroup).get("memory", 0)
        if limit < used:
            raise ValueError(f"memory limit {limit} is below what {cgroup.path} uses now, {used}")
    if limit == -1 and swap is None:
        swap = -1  # on v1 memory may never exceed memory+swap; on v2 as in runc
    if "memory" not in cgroup.v1:
        if swap is not None and os.path.exists(f"{folder}/memory.swap.max"):
            # OCI's swap counts memory and swap together; v2 counts swap alone.
            alone = swap if swap <= 0 or not limit or limit < 0 else max(0, swap - limit)
            write(f"{folder}/memory.swap.max", _number(alone))
        if limit is not None:
            write(f"{folder}/memory.max", _number(limit))
        if soft is not None:
            write(f"{folder}/memory.low", _number(soft))
        if memory.get("disableOOMKiller"):
            raise SyscallError(95, "limit", "memory.disableOOMKiller: cgroup v2 has no such switch")
        return
    plain, both = f"{folder}/memory.limit_in_bytes", f"{folder}/memory.memsw.limit_in_bytes"
    swap = swap if os.path.exists(both) else None
    steps = [(plain, limit), (both, swap)]
    current = int((proc.read(plain) or "0").strip() or 0)
    if limit is not None and swap is not None and (limit < 0 or limit > current):
        steps.reverse()  # raising: memory may never exceed memory+swap, at no moment
    for path, value in steps:
        if value is not None:
            write(path, str(value))
    if soft is not None:
        write(f"{folder}/memory.soft_limit_in_bytes", str(soft))
    if memory.get("swappiness") is not None:
        write(f"{folder}/memory.swappiness", str(memory["swappiness"]))
    if memory.get("disableOOMKiller"):
        write(f"{folder}/memory.oom_control", "1")
    for key, name in (
        ("kernel", "memory.kmem.limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    ):
        # The kernel gave up the first in 5.16, and counts kernel memory with the rest ever since.
        if memory.get(key) is not None and os.path.exists(f"{folder}/{name}"):
            write(f"{folder}/{name}", str(memory[key]))


def _cpu(cgroup: Cgroup, cpu: Mapping[str, Any]) -> None:
    if any(cpu.get(key) is not None for key in ("quota", "period", "shares", "burst", "idle")):
        (_cpu_v1 if "cpu" in cgroup.v1 else _cpu_v2)(_folder(cgroup, "cpu"), cpu)
    for key, name in (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us")):
        if cpu.get(key):
            write(f"{_v1_folder(cgroup, 'cpu')}/{name}", str(cpu[key]))
    for key in ("cpus", "mems"):
        if cpu.get(key):
            write(f"{_folder(cgroup, 'cpuset')}/cpuset.{key}", str(cpu[key]))


def _cpu_v1(folder: str, cpu: Mapping[str, Any]) -> None:
    quota, period = cpu.get("quota"), cpu.get("period")
    rows = [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota if quota is None or quota > 0 else -1)]
    try:
        for name, value in rows:
            if value:
                write(f"{folder}/{name}", str(value))
    except SyscallError:
        if not (period and quota):
            raise
        # The kernel compares each with the other's old value, and with the parent's ratio.
        for name, value in reversed(rows):
            write(f"{folder}/{name}", str(value))
    if cpu.get("burst") is not None:
        write(f"{folder}/cpu.cfs_burst_us", str(cpu["burst"]))
    if cpu.get("shares"):
        write(f"{folder}/cpu.shares", str(cpu["shares"]))
    if cpu.get("idle") is not None:
        write(f"{folder}/cpu.idle", str(cpu["idle"]))


def _cpu_v2(folder: str, cpu: Mapping[str, Any]) -> None:
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota is not None or period:
        now = [*(proc.read(f"{folder}/cpu.max") or "").split(), "max", "100000"]
        top = now[0] if quota is None else str(quota) if quota > 0 else "max"
        write(f"{folder}/cpu.max", f"{top} {period or (now[1] if now[1].isdigit() else 100000)}")
    if cpu.get("burst") is not None:
        write(f"{folder}/cpu.max.burst", str(cpu["burst"]))
    if cpu.get("shares"):
        write(f"{folder}/cpu.weight", str(weight_of_shares(cpu["shares"])))
    if cpu.get("idle") is not None:
        write(f"{folder}/cpu.idle", str(cpu["idle"]))


def _blkio(cgroup: Cgroup, blkio: Mapping[str, Any]) -> None:
    folder = _folder(cgroup, "blkio")
    v1 = "blkio" in cgroup.v1
    if (weight := blkio.get("weight")) is not None:
        for name in ("blkio.weight", "blkio.bfq.weight") if v1 else ("io.bfq.weight", "io.weight"):
            if os.path.exists(f"{folder}/{name}"):
                write(f"{folder}/{name}", str(_io_weight(name, weight)))
                break
        else:
            raise SyscallError(95, "limit", f"blockIO.weight: no weight file for {cgroup.path}")
    if blkio.get("leafWeight") is not None:
        write(f"{_v1_folder(cgroup, 'blkio')}/blkio.leaf_weight", str(blkio["leafWeight"]))
    for row in blkio.get("weightDevice") or ():
        _device_weight(folder, row, v1=v1)
    names = {
        "throttleReadBpsDevice": ("read_bps_device", "rbps"),
        "throttleWriteBpsDevice": ("write_bps_device", "wbps"),
        "throttleReadIOPSDevice": ("read_iops_device", "riops"),
        "throttleWriteIOPSDevice": ("write_iops_device", "wiops"),
    }
    for key, (old, new) in names.items():
        for row in blkio.get(key) or ():
            device = f"{row['major']}:{row['minor']}"
            if v1:
                write(f"{folder}/blkio.throttle.{old}", f"{device} {row['rate']}")
            else:
                write(f"{folder}/io.max", f"{device} {new}={row['rate']}")


def _device_weight(folder: str, row: Mapping[str, Any], *, v1: bool) -> None:
    device = f"{row['major']}:{row['minor']}"
    if row.get("leafWeight") is not None:
        if not v1:
            raise SyscallError(95, "limit", "blockIO.weightDevice.leafWeight: cgroup v2 has none")
        write(f"{folder}/blkio.leaf_weight_device", f"{device} {row['leafWeight']}")
    if row.get("weight") is None:
        return
    for name in ("blkio.weight_device", "blkio.bfq.weight_device") if v1 else ("io.bfq.weight", "io.weight"):
        if os.path.exists(f"{folder}/{name}"):
            write(f"{folder}/{name}", f"{device} {_io_weight(name, row['weight'])}")
            return
    raise SyscallError(95, "limit", f"blockIO.weightDevice: no weight file in {folder}")


def _io_weight(name: str, weight: int) -> int:
    """io.weight runs from 1 to 10000, the OCI weight from 10 to 1000."""
    return 1 + (weight - 10) * 9999 // 990 if name == "io.weight" else weight


def stats(cgroup: Cgroup) -> dict[str, int]:
    """Figures now: memory, memory_peak (bytes), memory_limit (0 = none), cpu_ns, pids, oom_kills.

    What this machine doesn't count is absent; a group that is gone gives {}.
    """
    found: dict[str, int] = {}

    def take(key: str, path: str, factor: int = 1) -> None:
        text = (proc.read(path) or "").strip()
        if text.isdigit():
            found[key] = int(text) * factor

    memory = cgroup.v1.get("memory")
    if memory:
        take("memory", f"{memory}/memory.usage_in_bytes")
        take("memory_peak", f"{memory}/memory.max_usage_in_bytes")
        take("memory_limit", f"{memory}/memory.limit_in_bytes")
        if found.get("memory_limit", 0) > 1 << 62:
            found["memory_limit"] = 0
        found.update(_keyed(f"{memory}/memory.oom_control", {"oom_kill": "oom_kills"}))
    elif cgroup.v2:
        take("memory", f"{cgroup.v2}/memory.current")
        take("memory_peak", f"{cgroup.v2}/memory.peak")
        take("memory_limit", f"{cgroup.v2}/memory.max")
        found.update(_keyed(f"{cgroup.v2}/memory.events", {"oom_kill": "oom_kills"}))
    if "cpuacct" in cgroup.v1:
        take("cpu_ns", f"{cgroup.v1['cpuacct']}/cpuacct.usage")
    elif cgroup.v2:
        usec = _keyed(f"{cgroup.v2}/cpu.stat", {"usage_usec": "usec"})
        if usec:
            found["cpu_ns"] = usec["usec"] * 1000
    take("pids", f"{cgroup.v1.get('pids', cgroup.v2)}/pids.current")
    return found


def _keyed(path: str, names: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for line in (proc.read(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key in names:
            found[names[key]] = int(value)
    return found
