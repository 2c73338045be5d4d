"""A control group's figures in the shape of `runc events --stats`, which monitoring reads; v1 and v2.

What this machine doesn't count is absent.  Sources: Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst;
the names are those of runc's types/events.go.
"""

from __future__ import annotations

from labctl.linux import proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from labctl.linux.cgroups import Cgroup

_NO_LIMIT = 1 << 62  # v1 says "none" by a number near the largest
_TICK_NS = 10_000_000  # cpuacct.stat counts in USER_HZ, which is 100 on every architecture


def event_data(cgroup: Cgroup) -> dict[str, Any]:
    """All figures of one moment: bytes, nanoseconds and counts, as runc has them."""
    found = {"cpu": _cpu(cgroup), "memory": _memory(cgroup), "pids": _pids(cgroup)}
    for kind, name in (("cpu", "cpu.pressure"), ("memory", "memory.pressure"), ("blkio", "io.pressure")):
        if cgroup.v2 and (pressure := _pressure(f"{cgroup.v2}/{name}")):
            found.setdefault(kind, {})["psi"] = pressure
    return found


def _number(path: str) -> int | None:
    text = (proc.read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _table(path: str) -> dict[str, int]:
    """The "name value" lines of a file."""
    rows = (line.split() for line in (proc.read(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _present(**values: int | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _cpu(cgroup: Cgroup) -> dict[str, Any]:
    v1 = "cpuacct" in cgroup.v1
    stat = _table(f"{cgroup.v1.get('cpu', cgroup.v2)}/cpu.stat")
    if v1:
        ticks = _table(f"{cgroup.v1['cpuacct']}/cpuacct.stat")
        usage = _present(
            total=_number(f"{cgroup.v1['cpuacct']}/cpuacct.usage"),
            kernel=ticks.get("system", 0) * _TICK_NS,
            user=ticks.get("user", 0) * _TICK_NS,
        )
        throttled = stat.get("throttled_time", 0)
    else:
        names = {"total": "usage_usec", "kernel": "system_usec", "user": "user_usec"}
        usage = {name: stat[key] * 1000 for name, key in names.items() if key in stat}
        throttled = stat.get("throttled_usec", 0) * 1000
    throttling = {
        "periods": stat.get("nr_periods", 0),
        "throttledPeriods": stat.get("nr_throttled", 0),
        "throttledTime": throttled,
    }
    return {"usage": usage, "throttling": throttling}


def _memory(cgroup: Cgroup) -> dict[str, Any]:
    folder = cgroup.v1.get("memory", cgroup.v2)
    raw = _table(f"{folder}/memory.stat")
    if "memory" in cgroup.v1:
        usage = _counter_v1(f"{folder}/memory")
        swap = _counter_v1(f"{folder}/memory.memsw")
        return {"cache": raw.get("cache", 0), "usage": usage, "swap": swap, "raw": raw}
    events = _table(f"{folder}/memory.events")
    usage = _present(
        limit=_number(f"{folder}/memory.max") or 0,
        usage=_number(f"{folder}/memory.current"),
        max=_number(f"{folder}/memory.peak"),
        failcnt=events.get("max"),
    )
    swap = _present(
        limit=_number(f"{folder}/memory.swap.max") or 0, usage=_number(f"{folder}/memory.swap.current")
    )
    return {"cache": raw.get("file", 0), "usage": usage, "swap": swap, "raw": raw}


def _counter_v1(prefix: str) -> dict[str, Any]:
    """One of v1's page counters; a limit of 0 is none."""
    limit = _number(f"{prefix}.limit_in_bytes")
    return _present(
        limit=0 if limit is not None and limit > _NO_LIMIT else limit,
        usage=_number(f"{prefix}.usage_in_bytes"),
        max=_number(f"{prefix}.max_usage_in_bytes"),
        failcnt=_number(f"{prefix}.failcnt"),
    )


def _pids(cgroup: Cgroup) -> dict[str, Any]:
    folder = cgroup.v1.get("pids", cgroup.v2)
    return _present(current=_number(f"{folder}/pids.current"), limit=_number(f"{folder}/pids.max"))


def _pressure(path: str) -> dict[str, Any]:
    """Pressure stall information: percentages over 10, 60 and 300 s, and the total in microseconds."""
    found: dict[str, Any] = {}
    for line in (proc.read(path) or "").splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=") for pair in pairs)
        found[kind] = {name: int(text) if name == "total" else float(text) for name, text in values.items()}
    return found
