"""Processes as a table: who runs what, for how long, with how much memory.  Source: proc(5)."""

from __future__ import annotations

from labctl.linux import proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_TICK = 100  # clock ticks a second in /proc: USER_HZ, the same on every architecture that labctl runs on
_MOST = 4096  # characters of a command line


def of_container(pids: Iterable[int], first: int) -> list[dict[str, Any]]:
    """The processes of a container as it sees them itself: its own pids and user ids.

    `first` is its first process, whose user namespace is the container's; `host_pid` is our number.  One that
    came in from outside has parent 0.  A process that ends meanwhile is left out.
    """
    users = _users(first)
    inner: dict[int, int] = {}
    rows = []
    for pid in pids:
        stat, status = proc.read(f"/proc/{pid}/stat"), proc.read(f"/proc/{pid}/status")
        command = proc.read(f"/proc/{pid}/cmdline")
        if stat and status and command is not None:
            row = parse(stat, _words(status), command)
            row["host_pid"] = pid
            row["pid"] = inner[pid] = int(_words(status).get("NSpid", [str(pid)])[-1])
            row["uid"] = next(
                (a + row["uid"] - b for a, b, n in users if b <= row["uid"] < b + n), row["uid"]
            )
            rows.append(row)
    for row in rows:
        row["ppid"] = inner.get(row["ppid"], 0)
    return sorted(rows, key=lambda row: int(row["pid"]))


def _users(first: int) -> list[tuple[int, int, int]]:
    """Rows of (id inside, id as we see it, how many)."""
    lines = (proc.read(f"/proc/{first}/uid_map") or "").splitlines()
    rows = [tuple(int(word) for word in line.split()) for line in lines]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def _words(status: str) -> dict[str, list[str]]:
    pairs = (line.partition(":") for line in status.splitlines())
    return {key: value.split() for key, _, value in pairs}


def parse(stat: str, status: dict[str, list[str]], command: str) -> dict[str, Any]:
    """A row from /proc/PID/stat, the words of /proc/PID/status by key, and /proc/PID/cmdline.

    Without a command line it is a task of the kernel or one that has ended: its name in brackets.
    """
    pid, _, rest = stat.partition(" (")
    name, _, tail = rest.rpartition(") ")
    fields = tail.split()
    words = command.rstrip("\0").replace("\0", " ").strip()
    memory = status.get("VmRSS", ["0"])[0]
    return {
        "pid": int(pid),
        "ppid": int(fields[1]),
        "uid": int(status.get("Uid", ["0"])[0]),
        "state": fields[0],
        "threads": int(fields[17]),
        "memory_bytes": int(memory) * 1024 if memory.isdigit() else 0,
        "cpu_seconds": (int(fields[11]) + int(fields[12])) / _TICK,
        "command": words[:_MOST] if words else f"[{name}]",
        "kernel": int(fields[6]) & 0x200000 != 0,  # PF_KTHREAD, include/linux/sched.h
    }
