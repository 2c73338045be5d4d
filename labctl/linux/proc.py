"""Reading /proc (proc(5)).  A process that is gone gives None or nothing, never an error."""

from __future__ import annotations

import os


def read(path: str) -> str | None:
    """The text of a small file, or None when it isn't there (or its process is gone)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as error:
        if error.errno in (3, 19):  # ESRCH, ENODEV: the process or cgroup went away meanwhile
            return None
        raise
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="surrogateescape")


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on: index 0 is state, 19 starttime."""
    text = read(f"/proc/{pid}/stat")
    if not text:
        return None
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid it names a process for good."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def start_stack(pid: int) -> int:
    """Where the process's stack begins: execve(2) changes it.  0 for a zombie and for one that is gone."""
    fields = stat_fields(pid)
    return int(fields[25]) if fields else 0


def state(pid: int) -> str | None:
    """One letter (R S D Z T …), or None."""
    fields = stat_fields(pid)
    return fields[0] if fields else None


def alive(pid: int, start: int | None = None) -> bool:
    """Whether this very process runs (a zombie doesn't)."""
    fields = stat_fields(pid)
    if not fields or fields[0] in "ZX":
        return False
    return start is None or int(fields[19]) == start


def inner_pid(pid: int) -> int | None:
    """The pid inside the innermost pid namespace (NSpid in /proc/PID/status)."""
    text = read(f"/proc/{pid}/status")
    for line in (text or "").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None


def in_namespace_of(pid: int, name: str) -> list[int]:
    """The processes, as far as we may ask, that share a namespace (a file of /proc/PID/ns) with `pid`."""
    try:
        wanted = os.readlink(f"/proc/{pid}/ns/{name}")
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/{name}") == wanted:
                found.append(int(entry))
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return sorted(found)


_boot_id = ""


def boot_id() -> str:
    """The id of this boot of the kernel."""
    global _boot_id
    if not _boot_id:
        _boot_id = (read("/proc/sys/kernel/random/boot_id") or "").strip()
    return _boot_id


def mounts_under(prefix: str, pid: str = "self") -> list[str]:
    """Mount points at or below `prefix`, deepest first."""
    found = []
    for line in (read(f"/proc/{pid}/mountinfo") or "").splitlines():
        point = unescape(line.split(" ", 5)[4])
        if point == prefix or point.startswith(prefix.rstrip("/") + "/"):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def unescape(text: str) -> str:
    r"""Undo the octal escapes of /proc/PID/mountinfo (\040 is a blank)."""
    if "\\" not in text:
        return text
    out, index = bytearray(), 0
    raw = os.fsencode(text)
    while index < len(raw):
        digits = raw[index + 1 : index + 4]
        if raw[index] == 0x5C and len(digits) == 3 and all(48 <= digit < 56 for digit in digits):
            out.append(int(digits, 8))
            index += 4
        else:
            out.append(raw[index])
            index += 1
    return os.fsdecode(bytes(out))
