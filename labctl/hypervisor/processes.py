"""QEMU processes on this host, found by the domain's UUID or our mark, never by a name; and what they use."""

from __future__ import annotations

import os
from pathlib import Path

from labctl.hypervisor.private import end_processes, start_time
from labctl.records import dataclass

END_SECONDS = 15.0
_MARK = b"LABCTL_MARK="
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # ended meanwhile, or not ours to read


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def pid_of(uuid: str) -> int:
    """The pid of the QEMU of this domain on this host; 0 when none runs here (off, or a remote libvirt).

    By `-uuid` on its command line, as libvirt passes it: right for the system's libvirtd and ours,
    whatever their pid files say.
    """
    wanted = uuid.encode()
    for pid in _pids():
        words = _read(pid, "cmdline").split(b"\0")
        if b"-uuid" in words and words[words.index(b"-uuid") + 1] == wanted and start_time(pid):
            return pid
    return 0


def marked() -> dict[int, str]:
    """Every process with one of our marks in its environment: pid → mark."""
    found = {}
    for pid in _pids():
        for entry in _read(pid, "environ").split(b"\0"):
            if entry.startswith(_MARK) and start_time(pid):
                found[pid] = os.fsdecode(entry[len(_MARK) :])
    return found


def end(uuid: str) -> None:
    """Wait for the domain's QEMU to end, and end it if it does not.  TimedOut when even that fails."""
    pid = pid_of(uuid)
    if pid:
        end_processes({pid}, END_SECONDS)


@dataclass(frozen=True)
class Usage:
    """What a virtual machine costs its host now.  Bytes and nanoseconds; 0 where it is unknown."""

    pid: int = 0
    rss_bytes: int = 0
    pss_bytes: int = 0  # shared pages counted in part: the honest price of one of several
    cpu_ns: int = 0
    threads: int = 0


def pss(pid: int) -> int:
    """Proportional set size of a process in bytes (proc(5), smaps_rollup); 0 when it can't be read."""
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    parents: dict[int, list[int]] = {}
    for other in _pids():
        stat = _read(other, "stat").decode(errors="replace")
        if stat:
            parents.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(other)
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def cpu_ns(pid: int) -> int:
    """CPU time of a process and of its children that have ended (proc(5), stat); 0 when it is gone."""
    stat = _read(pid, "stat").decode(errors="replace")
    fields = stat[stat.rindex(")") + 2 :].split()[11:15] if stat else []
    return sum(int(field) for field in fields) * _TICK_NS


def usage(uuid: str) -> Usage:
    """Usage of the domain's QEMU, from /proc/PID/{stat,statm,smaps_rollup} (proc(5))."""
    pid = pid_of(uuid)
    stat, statm = _read(pid, "stat").decode(errors="replace"), _read(pid, "statm").split()
    if not pid or not stat or len(statm) < 2:
        return Usage()
    fields = stat[stat.rindex(")") + 2 :].split()
    cpu = (int(fields[11]) + int(fields[12])) * _TICK_NS
    return Usage(pid, int(statm[1]) * _PAGE, pss(pid), cpu, int(fields[17]))
