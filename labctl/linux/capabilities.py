"""Capabilities (capabilities(7)): names, masks, and how a process gives them up."""

from __future__ import annotations

import os

from labctl.linux import syscalls as sc

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Iterable

NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""By number, as in include/uapi/linux/capability.h."""

DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""The fourteen that container engines usually leave."""

_BITS = {name: 1 << number for number, name in enumerate(NAMES)}


def mask(names: Iterable[str]) -> int:
    """The bit mask of these names; "cap_kill", "KILL" and "CAP_KILL" are the same.

    Raises ValueError for a name that isn't known.
    """
    bits = 0
    for name in names:
        full = name.upper()
        if not full.startswith("CAP_"):
            full = "CAP_" + full
        if full not in _BITS:
            raise ValueError(f"unknown capability {name!r}")
        bits |= _BITS[full]
    return bits


def names(bits: int) -> list[str]:
    """The names in a mask, by number."""
    return [name for name in NAMES if bits & _BITS[name]]


_known = 0
_held = -1


def held() -> int:
    """The mask of what this process may have itself; asked once."""
    global _held
    if _held < 0:
        _held = of_process(os.getpid())["permitted"]
    return _held


def known() -> int:
    """The mask of all that this kernel knows (/proc/sys/kernel/cap_last_cap); asked once."""
    global _known
    if not _known:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            _known = (1 << (int(file.read()) + 1)) - 1
    return _known


def drop_bounding(keep: int, *, last: int = len(NAMES) - 1) -> None:
    """Drop from the bounding set all but `keep`.  A capability that the kernel doesn't know is skipped."""
    for number in range(last + 1):
        if not keep & (1 << number):
            try:
                sc.prctl(sc.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != 22:  # EINVAL: not known here
                    raise


def apply(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    """Set this thread's sets; the ambient set last, since it needs permitted and inheritable."""
    sc.capset(effective, permitted, inheritable)
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(len(NAMES)):
        if ambient & (1 << number):
            sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_RAISE, number)


def of_process(pid: int) -> dict[str, int]:
    """The masks "inheritable", "permitted", "effective", "bounding", "ambient" of a process."""
    found = {}
    keys = {
        "CapInh": "inheritable",
        "CapPrm": "permitted",
        "CapEff": "effective",
        "CapBnd": "bounding",
        "CapAmb": "ambient",
    }
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in keys:
                found[keys[key]] = int(value, 16)
    return found
