"""How a process is scheduled, its I/O priority, its personality, and the clocks of its time namespace.

Sources: sched(7), include/uapi/linux/sched/types.h, Documentation/block/ioprio.rst, personality(2), and the
OCI runtime spec's `process.scheduler`, `process.ioPriority`, `linux.personality` and `linux.timeOffsets`.
"""

from __future__ import annotations

import os
import struct

from labctl.linux import syscalls as sc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0, "LINUX32": 0x8}
CLOCKS = ("monotonic", "boottime")


def _named(table: Mapping[str, int], name: object, what: str) -> int:
    if name not in table:
        raise ValueError(f"{what}: unknown value {name!r} (known: {', '.join(table)})")
    return table[str(name)]


def check(process: Mapping[str, Any], linux: Mapping[str, Any]) -> None:
    """Raise ValueError for a word that isn't known, before anything is made."""
    if row := process.get("scheduler"):
        _scheduler(row)
    if row := process.get("ioPriority"):
        _io_priority(row)
    if row := linux.get("personality"):
        _personality(row)


def _scheduler(row: Mapping[str, Any]) -> bytes:
    policy = _named(POLICIES, row.get("policy"), "process.scheduler.policy")
    flags = 0
    for name in row.get("flags") or ():
        flags |= _named(SCHEDULER_FLAGS, name, "process.scheduler.flags")
    numbers = (int(row.get("nice") or 0), int(row.get("priority") or 0))
    times = [int(row.get(key) or 0) for key in ("runtime", "deadline", "period")]
    return struct.pack("=IIQiIQQQ", 48, policy, flags, *numbers, *times)


def set_scheduler(row: Mapping[str, Any]) -> None:
    """Apply `process.scheduler` to this process.  Raises ValueError, SyscallError."""
    sc.sched_setattr(_scheduler(row), str(row.get("policy")))


def _io_priority(row: Mapping[str, Any]) -> int:
    kind = _named(IO_CLASSES, row.get("class"), "process.ioPriority.class")
    level = int(row.get("priority") or 0)
    if not 0 <= level <= 7:
        raise ValueError(f"process.ioPriority.priority: {level} is not between 0 and 7")
    return kind << 13 | level


def set_io_priority(row: Mapping[str, Any]) -> None:
    """Apply `process.ioPriority` to this process.  Raises ValueError, SyscallError."""
    sc.ioprio_set(_io_priority(row), f"{row.get('class')} {row.get('priority')}")


def _personality(row: Mapping[str, Any]) -> int:
    if row.get("flags"):
        raise ValueError("linux.personality.flags: the runtime spec knows no flags yet")
    return _named(PERSONALITIES, row.get("domain"), "linux.personality.domain")


def set_personality(row: Mapping[str, Any]) -> None:
    """Apply `linux.personality` to this process.  Raises ValueError, SyscallError."""
    sc.personality(_personality(row))


def write_time_offsets(offsets: Mapping[str, Mapping[str, int]]) -> None:
    """Shift the clocks of the time namespace that our children will be in.  Raises ValueError, SyscallError.

    Only before the first of them is there (time_namespaces(7)).
    """
    for clock, row in offsets.items():
        if clock not in CLOCKS:
            raise ValueError(f"linux.timeOffsets: unknown clock {clock!r} (known: {', '.join(CLOCKS)})")
        line = f"{clock} {int(row.get('secs') or 0)} {int(row.get('nanosecs') or 0)}"
        try:
            fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise sc.SyscallError(error.errno or 5, "timeOffsets", line) from error
