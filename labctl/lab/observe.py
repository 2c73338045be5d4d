"""What one kernel or container looks like from inside: the script's answers, read into figures.

A node's answers are another machine's words: they are bounded, never trusted to be whole, and never run.
"""

from __future__ import annotations

import ipaddress
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from labctl.errors import LabError, TimedOut
from labctl.guest.machine import NOT_EXECUTABLE, NOT_FOUND, Completed, Executes
from labctl.lab.observe_script import SCRIPT
from labctl.linux import capabilities
from labctl.records import dataclass

SECONDS = 30.0  # one observation at least; an emulated machine needs two or three on an idle host
NAMESPACES = ("pid", "net", "ipc", "mnt", "uts", "user", "cgroup", "time")
_WORD = 200  # characters of a value
_MANY = 4096  # values of one key
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" as the largest multiple of a page below 2^63
_SECCOMP = {"0": "none", "1": "strict", "2": "filter"}  # proc_pid_status(5)

# MIDR_EL1 part numbers, where /proc/cpuinfo of an ARM machine has no name (Arm's reference manuals).
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
}


@dataclass(frozen=True)
class IdRange:
    """`count` user ids from `inside` here are those from `outside` in the parent (user_namespaces(7))."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True)
class Observation:
    """One place as its own shell sees it.  None and "": it could not be read there.  Sizes in bytes."""

    kernel: str = ""
    kernel_build: str = ""
    boot_id: str = ""  # the same in two places: one running kernel
    arch: str = ""
    os: str = ""
    hostname: str = ""
    pid1: str = ""
    processes: int | None = None
    net_devices: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ipc: dict[str, int] = field(default_factory=dict)  # shm, sem, msg: how many there are
    users: tuple[IdRange, ...] = ()
    groups: tuple[IdRange, ...] = ()
    namespaces: dict[str, str] = field(default_factory=dict)  # kind → "kind:[inode]"
    mounts: int | None = None
    root_type: str = ""  # file system of /
    block_devices: tuple[str, ...] = ()
    char_devices: tuple[str, ...] = ()
    cpu: str = ""
    cpus: int | None = None
    cpu_limit: float | None = None  # CPUs' worth of time, by its cgroup
    memory: int | None = None  # what /proc/meminfo says
    memory_available: int | None = None
    memory_limit: int | None = None  # what its cgroup says
    capabilities: tuple[str, ...] = ()
    capabilities_known: int = 0  # how many its kernel has
    seccomp: str = ""  # none, strict, filter
    no_new_privileges: bool | None = None
    hypervisor: str = ""  # what its kernel says it runs on
    paravirt: str = ""  # what its kernel was booted as
    clocksource: str = ""
    uptime: float | None = None  # seconds


def observe(machine: Executes, name: str, timeout: float = SECONDS) -> Observation:
    """Ask a node.  Raises LabError with the reason when it does not answer, TimedOut after `timeout` s."""
    from labctl.guest.ssh import SshMachine

    if isinstance(machine, SshMachine):  # these have a shell, whatever their image
        done = machine.run_script(SCRIPT, timeout)
    else:
        done = machine.run(["sh", "-c", SCRIPT], user="0:0", timeout=timeout)
    if done.code in (NOT_FOUND, NOT_EXECUTABLE) and not done.stdout:
        raise LabError(f"{name} can't be observed: its image has no shell")
    return _read(done, name)


def observe_host(timeout: float = SECONDS, shell: Sequence[str] = ("sh",)) -> Observation:
    """Ask this host, by the very same script.  Raises LabError, TimedOut."""
    try:
        done = subprocess.run(
            [*shell, "-c", SCRIPT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"this host gave no answer within {timeout:g} s") from error
    except OSError as error:
        raise LabError(f"this host can't be observed: {shell[0]}: {error.strerror}") from error
    return _read(Completed(done.returncode, done.stdout, done.stderr), "this host")


def _read(done: Completed, name: str) -> Observation:
    lines = words(done.text)
    if "done" not in lines:
        said = done.errors.strip().splitlines()[-1:] or [f"its shell ended with {done.code}"]
        raise LabError(f"{name} can't be observed: {said[0][:_WORD]}")
    return parse(lines)


def words(text: str) -> dict[str, list[str]]:
    """The script's lines by key, in their order; values are cut, and control characters dropped."""
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        key, _, value = line.partition(" ")
        values = found.setdefault(key, [])
        if value and len(values) < _MANY:
            values.append("".join(c for c in value[:_WORD] if c.isprintable() or c == "\t").strip())
    return found


def parse(lines: Mapping[str, list[str]]) -> Observation:
    """The figures in the script's lines."""

    def one(key: str) -> str:
        return next(iter(lines.get(key, ())), "")

    def number(key: str) -> int | None:
        return int(one(key)) if one(key).isdecimal() else None

    def kib(key: str) -> int | None:
        found = number(key)
        return None if found is None else found * 1024

    part = one("cpu") if one("cpu-part") else ""
    known = number("cap-last")
    return Observation(
        kernel=one("kernel"),
        kernel_build=one("kernel-build"),
        boot_id=one("boot-id"),
        arch=one("arch"),
        os=one("os"),
        hostname=one("hostname"),
        pid1=one("pid1"),
        processes=number("processes"),
        net_devices=_once(lines.get("netdev", ())),
        addresses=_addresses(lines),
        ipc={kind: n for kind in ("shm", "sem", "msg") if (n := number(f"ipc-{kind}")) is not None},
        users=_ranges(lines.get("uid-map", ())),
        groups=_ranges(lines.get("gid-map", ())),
        namespaces={kind: found for kind in NAMESPACES if (found := one(f"ns-{kind}"))},
        mounts=number("mounts"),
        root_type=lines.get("root-type", [""])[-1],  # the last one mounted on / is the one that is seen
        block_devices=_once(lines.get("block-device", ())),
        char_devices=_once(lines.get("char-device", ())),
        cpu=_ARM_PARTS.get(part, f"ARM part {part}") if part else one("cpu"),
        cpus=number("cpus") or None,
        cpu_limit=_cpu_limit(one("cpu-max")),
        memory=kib("MemTotal"),
        memory_available=kib("MemAvailable"),
        memory_limit=_memory_limit(lines.get("memory-max", ())),
        capabilities=_capabilities(one("status-CapEff")),
        capabilities_known=0 if known is None else known + 1,
        seccomp=_SECCOMP.get(one("status-Seccomp"), ""),
        no_new_privileges={"0": False, "1": True}.get(one("status-NoNewPrivs")),
        hypervisor=_hypervisor(one),
        paravirt=one("paravirt"),
        clocksource=one("clocksource"),
        uptime=_float(one("uptime").partition(" ")[0]),
    )


def _once(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _float(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _addresses(lines: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Its own addresses but the loopback and link-local ones."""
    found = []
    told = [*lines.get("address4", ()), *(text.partition(" ")[0] for text in lines.get("address6", ()))]
    for text in told:
        try:
            address = (
                ipaddress.ip_address(text) if "." in text else ipaddress.IPv6Address(bytes.fromhex(text))
            )
        except ValueError:
            continue
        if not address.is_loopback and not address.is_link_local:
            found.append(str(address))
    return _once(found)


def _ranges(values: Sequence[str]) -> tuple[IdRange, ...]:
    rows = [value.split() for value in values]
    return tuple(
        IdRange(*(int(n) for n in row)) for row in rows if len(row) == 3 and all(n.isdecimal() for n in row)
    )


def _cpu_limit(text: str) -> float | None:
    """cpu.max is "QUOTA PERIOD" in microseconds, or "max PERIOD" (cgroup v2)."""
    quota, _, period = text.partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None
    return int(quota) / int(period)


def _memory_limit(values: Sequence[str]) -> int | None:
    limits = [int(value) for value in values if value.isdecimal()]
    return next((limit for limit in limits if limit < _UNLIMITED), None)


def _capabilities(text: str) -> tuple[str, ...]:
    try:
        return tuple(capabilities.names(int(text, 16))) if text else ()
    except ValueError:
        return ()


def _hypervisor(one: Callable[[str], str]) -> str:
    """What the kernel itself found, then what the firmware says, then the CPU's flag."""
    if one("hypervisor"):
        return one("hypervisor")
    if one("hypervisor-type"):
        return " ".join(filter(None, (one("hypervisor-type"), one("guest-type"))))
    board = " ".join(filter(None, (one("dmi-vendor"), one("dmi-product"))))
    tree = one("device-tree")
    for text in (board, tree):
        if any(name in text.lower() for name in ("qemu", "kvm", "xen", "vmware", "virtual", "dummy-virt")):
            return text
    return "one that gives no name" if one("hypervisor-flag") else ""
