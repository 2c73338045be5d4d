"""What this host has of things that a machine can be given a part of: CPUs to run on, huge pages."""

from __future__ import annotations

import os
from pathlib import Path

from labctl.errors import HostCannot

MEMINFO = "/proc/meminfo"
MOUNTS = "/proc/mounts"


def refuse_missing_cpus(name: str, wanted: set[int]) -> None:
    """Raises HostCannot for a CPU that this process, and so what it starts, can't run on."""
    have = os.sched_getaffinity(0)
    if wanted - have:
        missing = ", ".join(str(cpu) for cpu in sorted(wanted - have)[:8])
        raise HostCannot(
            f"{name}: there is no CPU {missing} to pin it to",
            hint=f"nodes.{name}.vm.pin: this host has {', '.join(str(cpu) for cpu in sorted(have)[:16])}",
        )


def refuse_without_hugepages(name: str, memory: int) -> None:
    """Raises HostCannot when fewer huge pages are free than `memory` bytes take, or none can be mapped
    (Linux, Documentation/admin-guide/mm/hugetlbpage.rst)."""
    free, size = _hugepages()
    needed = -(-memory // size) if size else 0
    if not size or free < needed:
        told = f"{free} of {size >> 20} MiB are free" if size else "this kernel has none"
        hint = f"sysctl -w vm.nr_hugepages={needed}, or leave out nodes.{name}.vm.hugepages"
        raise HostCannot(f"{name}: its memory takes {needed or 'some'} huge pages; {told}", hint=hint)
    if not any(line.split()[2] == "hugetlbfs" for line in Path(MOUNTS).read_text().splitlines()):
        raise HostCannot(
            f"{name}: no hugetlbfs is mounted",
            hint="mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages",
        )


def swap_bytes() -> int:
    """The host's swap space, used or not (proc(5), meminfo)."""
    words = dict(line.split(":", 1) for line in Path(MEMINFO).read_text().splitlines())
    return int(words.get("SwapTotal", "0 kB").split()[0]) * 1024


def _hugepages() -> tuple[int, int]:
    """Free ones of the usual size, and that size in bytes."""
    words = dict(line.split(":", 1) for line in Path(MEMINFO).read_text().splitlines())
    free, size = words.get("HugePages_Free", "0"), words.get("Hugepagesize", "0 kB")
    return int(free), int(size.split()[0]) * 1024
