"""What processes have sent, received, read and written: network and block devices, in bytes.

Sources: proc(5) for /proc/PID/net/dev and /proc/PID/io, Documentation/admin-guide/cgroup-v2.rst (io.stat) and
cgroup-v1/blkio-controller.rst.
"""

from __future__ import annotations

import os

from labctl.linux import proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from labctl.linux.cgroups import Cgroup


def network(pid: int) -> tuple[int, int] | None:
    """(received, sent) by all devices but the loopback one of a process's network namespace.

    None for a process that is gone, and for one in our own namespace: those figures are not its own.
    """
    try:
        if os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net"):
            return None
    except OSError:
        return None
    text = proc.read(f"/proc/{pid}/net/dev")
    return None if text is None else of_devices(text)


def of_devices(text: str) -> tuple[int, int]:
    """(received, sent) of /proc/net/dev: eight columns of what came in, then those of what went out."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, counts = line.partition(":")
        fields = counts.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent


def blocks(cgroup: Cgroup, pids: Iterable[int]) -> tuple[int, int] | None:
    """(read, written) of block devices by a control group; None where this machine doesn't count it.

    Without an I/O controller it is the sum of its processes, each with its children that have ended.
    """
    text = proc.read(f"{cgroup.v2}/io.stat") if cgroup.v2 else None
    if text is not None:
        pairs = [pair.partition("=") for line in text.splitlines() for pair in line.split()[1:]]
        return _sum(pairs, "rbytes"), _sum(pairs, "wbytes")
    if "blkio" in cgroup.v1:
        text = proc.read(f"{cgroup.v1['blkio']}/blkio.throttle.io_service_bytes_recursive")
        if text is not None:
            rows = [(row[1], "", row[2]) for line in text.splitlines() if len(row := line.split()) == 3]
            return _sum(rows, "Read"), _sum(rows, "Write")
    return of_processes(pids)


def of_processes(pids: Iterable[int]) -> tuple[int, int] | None:
    """(read, written) of block devices by processes; None when none of them can be asked."""
    found = None
    for pid in pids:
        try:
            text = proc.read(f"/proc/{pid}/io") or ""
        except PermissionError:
            continue
        rows = [line.partition(": ") for line in text.splitlines()]
        if rows:
            before = found or (0, 0)
            found = before[0] + _sum(rows, "read_bytes"), before[1] + _sum(rows, "write_bytes")
    return found


def _sum(pairs: Iterable[tuple[str, str, str]], key: str) -> int:
    return sum(int(value) for name, _, value in pairs if name == key and value.isdigit())
