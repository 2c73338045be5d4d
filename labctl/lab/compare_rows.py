"""The rows of a comparison: what is looked at, what it means, and how an answer is put into words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from labctl.lab.compare import Cell, Column, Columns
from labctl.lab.observe import NAMESPACES, Observation
from labctl.records import dataclass

_SHOWN = 4  # names in a cell; the figures behind it have all
_ALL_USERS = 4294967295  # the map of a kernel's first user namespace: every id but the last

Answer = Callable[[Column, Columns], Cell]
Seen = Callable[[Column, Observation, Columns], Cell]


@dataclass(frozen=True)
class Spec:
    """A row before it is filled in."""

    key: str
    title: str
    group: str
    meaning: str
    cell: Answer


def size(count: int | None) -> str:
    """Bytes in words, "" when they aren't known."""
    if count is None:
        return ""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    unit = units[0]
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _marked(column: Column, text: str) -> str:
    """An emulated figure never stands without the word."""
    return f"{text} (emulated)" if text and column.emulated else text


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _seen(answer: Seen, outside: Answer | None = None) -> Answer:
    """A row for places that were observed; elsewhere it has what is known from `outside`, or stays empty."""

    def cell(column: Column, all_: Columns) -> Cell:
        if column.seen:
            return answer(column, column.seen, all_)
        return outside(column, all_) if outside and column.stands else Cell()

    return cell


def _plain(answer: Callable[[Observation], str]) -> Answer:
    def cell(column: Column, seen: Observation, _all: Columns) -> Cell:
        text = answer(seen)
        return Cell(text or "not told", text or None)

    return _seen(cell)


def _tier(column: Column, _all: Columns) -> Cell:
    if column.is_host:
        return Cell("none: the bare host", "host")
    named = "emulat" in column.tier  # the word is there already
    return Cell(column.tier if named else _marked(column, column.tier), column.tier)


def _isolation_kind(column: Column, _all: Columns) -> Cell:
    return Cell(column.isolation, column.isolation or None)


def _way_out(column: Column, _seen: Observation, all_: Columns) -> Cell:
    """What its processes can reach of the file system that it was put into."""
    if column.is_host or column.machine:
        return Cell("its / is the whole" if column.is_host else "its / is its own disk", None)
    if column.leaves_root is None:
        return Cell("not tried")
    if column.leaves_root:
        return Cell("yes: chroot(2) and cd .. lead to the host's /", True, "same")
    return Cell("no: nothing is above its /", False, "own")


def _state(column: Column, _all: Columns) -> Cell:
    state = column.state or "running"
    if not column.reason:
        return Cell(state, state)
    remedy = f"; what helps: {column.remedy}" if column.remedy else ""
    return Cell(f"{state}: {column.reason}{remedy}", state)


def _runs_on(column: Column, _all: Columns) -> Cell:
    return Cell(column.runs_on, column.runs_on or None)


def _accelerator(column: Column, _all: Columns) -> Cell:
    return Cell(column.accelerator, column.accelerator or None)


def _image(column: Column, _all: Columns) -> Cell:
    if column.is_host:
        return Cell("no image")
    return Cell(column.image, column.image or None)


def _kernel(column: Column, seen: Observation, _all: Columns) -> Cell:
    return Cell(" ".join(filter(None, (seen.kernel, seen.arch))), seen.kernel or None)


def _kernel_owner(column: Column, all_: Columns) -> Cell:
    owner = all_.kernel_owner(column)
    if owner.is_host:
        text = "the host's" if column.is_host else "yes, the host's"
        return Cell(text, "host", "" if column.is_host else "same")
    if owner is column:
        return Cell("no, one of its own", "own", "other")
    return Cell(f"no, {owner.name}'s", owner.name, "other")


def _hypervisor(column: Column, seen: Observation, _all: Columns) -> Cell:
    return Cell(seen.hypervisor or "none seen", seen.hypervisor or None)


def _cpu(column: Column, seen: Observation, _all: Columns) -> Cell:
    return Cell(_marked(column, seen.cpu) or "not told", seen.cpu or None)


def _cpus(column: Column, seen: Observation, _all: Columns) -> Cell:
    given = seen.cpu_limit or (0.0 if column.machine or column.is_host else column.cpus_given)
    raw = {"seen": seen.cpus, "limit": given or None}
    text = "not told" if seen.cpus is None else str(seen.cpus)
    return Cell(_marked(column, f"{text}, may use {given:g}" if given else text), raw)


def _cpus_given(column: Column, _all: Columns) -> Cell:
    given = column.cpus_given
    raw = {"seen": None, "limit": given or None}
    return Cell(_marked(column, f"was given {given:g}"), raw) if given else Cell()


def _processes(column: Column, seen: Observation, all_: Columns) -> Cell:
    if seen.processes is None:
        return Cell("not told")
    shared = not column.is_host and all_.namespace(column, "pid").raw == "same"
    where = "the host's" if all_.kernel_owner(column).is_host else f"{column.inside}'s"
    return Cell(f"{seen.processes}, {where} among them" if shared else str(seen.processes), seen.processes)


def _hostname(column: Column, seen: Observation, all_: Columns) -> Cell:
    host = next((c.seen.hostname for c in all_.by_name.values() if c.is_host and c.seen), "")
    if column.is_host or not host or not seen.hostname:
        return Cell(seen.hostname or "not told", seen.hostname or None)
    own = seen.hostname != host
    return Cell(f"{seen.hostname} ({'its own' if own else 'as the host'})", seen.hostname)


def _net(column: Column, seen: Observation, _all: Columns) -> Cell:
    return Cell(_names(seen.net_devices) or "none", list(seen.net_devices))


def _addresses(column: Column, seen: Observation, _all: Columns) -> Cell:
    return Cell(_names(seen.addresses) or "none", list(seen.addresses))


def _addresses_given(column: Column, _all: Columns) -> Cell:
    return Cell(_names(column.addresses), list(column.addresses))


def _ipc(column: Column, seen: Observation, _all: Columns) -> Cell:
    words = {
        "shm": "shared memory segment",
        "sem": "semaphore set",
        "msg": "message queue",
    }
    told = [f"{n} {words[kind]}{'' if n == 1 else 's'}" for kind, n in seen.ipc.items() if n]
    return Cell(", ".join(told) or ("none" if seen.ipc else "not told"), dict(seen.ipc))


def _mounts(column: Column, seen: Observation, _all: Columns) -> Cell:
    if seen.mounts is None:
        return Cell("not told")
    root = f", / is {seen.root_type}" if seen.root_type else ""
    return Cell(f"{seen.mounts}{root}", {"count": seen.mounts, "root": seen.root_type})


def _devices(column: Column, seen: Observation, _all: Columns) -> Cell:
    # Loops and compressed memory are there on any host; real disks are what tells something.
    real = [name for name in seen.block_devices if not name.startswith(("loop", "ram", "zram"))]
    rest = [name for name in seen.block_devices if name not in real]
    disks = _names([*real, *rest]) or "no disk"
    raw = {"block": list(seen.block_devices), "character": list(seen.char_devices)}
    return Cell(f"{disks}; {len(seen.char_devices)} of other kinds", raw)


def _memory_given(column: Column, _all: Columns) -> Cell:
    given = column.memory_given
    return Cell(f"was given {size(given)}", {"seen": None, "limit": given}) if given else Cell()


def _memory(column: Column, seen: Observation, _all: Columns) -> Cell:
    given = column.memory_given or None
    limit = given if column.machine else seen.memory_limit or given
    raw = {"seen": seen.memory, "limit": limit}
    if seen.memory is None:
        return Cell("not told", raw)
    text = f"sees {size(seen.memory)}"
    if column.is_host:
        return Cell(text, raw)
    if column.machine:
        return Cell(f"{text} of the {size(given)} it was given" if given else text, raw)
    return Cell(f"{text}, may use {size(limit)}" if limit else f"{text}, no limit", raw)


def _users(column: Column, seen: Observation, all_: Columns) -> Cell:
    raw = [asdict(one) for one in seen.users]
    if not seen.users:
        return Cell("not told", raw)
    whole = any((u.inside, u.outside, u.count) == (0, 0, _ALL_USERS) for u in seen.users)
    owner = all_.kernel_owner(column)
    if whole:
        return Cell("all of its own kernel's" if owner is column and not column.is_host else "all", raw)
    total = sum(u.count for u in seen.users)
    count = f"{total} user{'' if total == 1 else 's'}"
    where = "on the host" if owner.is_host else f"in {owner.name}" if owner is not column else "outside"
    root = next((u for u in seen.users if u.inside == 0), None)
    if root is None:
        return Cell(f"{count}, no root", raw)
    return Cell(f"{count}; root here is user {root.outside} {where}", raw)


def _capabilities(column: Column, seen: Observation, _all: Columns) -> Cell:
    count = len(seen.capabilities)
    known = seen.capabilities_known
    text = "all" if count == known and known else f"{count} of {known}" if known else str(count)
    return Cell(text, list(seen.capabilities))


def _seccomp(column: Column, seen: Observation, _all: Columns) -> Cell:
    text = {"none": "all calls allowed", "filter": "filtered", "strict": "next to none allowed"}.get(
        seen.seccomp, "not told"
    )
    more = ", no new privileges" if seen.no_new_privileges else ""
    return Cell(text + more, seen.seccomp or None)


def _start(column: Column, _all: Columns) -> Cell:
    if column.is_host:
        up = column.seen.uptime if column.seen else None
        return Cell("" if up is None else f"up for {span(up)}")
    if not column.start_seconds:
        return Cell()
    return Cell(_marked(column, span(column.start_seconds)), column.start_seconds)


def _cost(column: Column, _all: Columns) -> Cell:
    if column.is_host:
        seen = column.seen
        if seen is None or seen.memory is None or seen.memory_available is None:
            return Cell()
        return Cell(f"{size(seen.memory - seen.memory_available)} in use in all")
    if column.inside and column.seen:
        return Cell(f"part of {column.inside}'s")
    return Cell(_marked(column, size(column.host_memory)), column.host_memory)


_NAMESPACES = {
    "pid": (
        "processes",
        "Process numbers start again at 1 in a namespace of its own, and other processes can't be seen.",
    ),
    "net": ("network", "An own namespace has its own devices, addresses, routes and ports."),
    "ipc": ("shared memory", "Semaphores, message queues and shared memory belong to one namespace."),
    "mnt": ("mounts", "An own table of mounts gives it a file system of its own, down to /."),
    "uts": ("host name", "An own host and domain name make it a node of its own on the network."),
    "user": ("users", "User numbers of its own: root in here need not be root out there."),
    "cgroup": ("control groups", "It sees its own limits as the top, not where it hangs in the host's tree."),
    "time": ("clock", "Its own count of the time since start; rarely used, so mostly shared."),
}


def _isolation(kind: str) -> Spec:
    name, meaning = _NAMESPACES[kind]

    def cell(column: Column, _seen: Observation, all_: Columns) -> Cell:
        return all_.namespace(column, kind)

    return Spec(f"ns-{kind}", f"{kind}: {name}", _FENCES, meaning, _seen(cell))


_WHAT = "What it is"
_KERNEL = "Kernel and hardware"
_SEES = "What is seen from inside"
_FENCES = "Isolation, by namespace"
_RIGHTS = "What root may do inside"
_COST = "What it costs"

SPECS: tuple[Spec, ...] = (
    Spec("tier", "Tier", _WHAT, "How it is virtualized; an arrow is a fallback from what was asked.", _tier),
    Spec("state", "State", _WHAT, "Whether it could be looked at, and if not, why.", _state),
    Spec("runs-on", "Runs on", _WHAT, "The machine that carries it.", _runs_on),
    Spec(
        "accelerator", "Executed by", _WHAT, "Who runs its instructions: the CPU, or a program.", _accelerator
    ),
    Spec("image", "Image", _WHAT, "The files that it was made from; the same may run on every tier.", _image),
    Spec(
        "isolation",
        "Kept apart as",
        _WHAT,
        "What a container is made with, by the name of what first did it so.",
        _isolation_kind,
    ),
    Spec(
        "os",
        "System",
        _WHAT,
        "The distribution of its files, which says nothing of its kernel.",
        _plain(lambda s: s.os),
    ),
    Spec(
        "kernel",
        "Kernel",
        _KERNEL,
        "The program that runs all others. A virtual machine boots its own.",
        _seen(_kernel),
    ),
    Spec(
        "kernel-shared",
        "Is it the host's?",
        _KERNEL,
        "A container is processes of a kernel that is there already; who breaks that kernel is out.",
        _seen(lambda column, _, all_: _kernel_owner(column, all_), _kernel_owner),
    ),
    Spec(
        "hypervisor",
        "Hypervisor seen",
        _KERNEL,
        "What the kernel found below itself; a host can be a virtual machine too.",
        _seen(_hypervisor),
    ),
    Spec("cpu", "CPU model", _KERNEL, "The processor as it is told to programs.", _seen(_cpu)),
    Spec(
        "cpus",
        "CPUs",
        _KERNEL,
        "How many it sees; a container sees all and may be held to fewer.",
        _seen(_cpus, _cpus_given),
    ),
    Spec(
        "memory",
        "Memory",
        _KERNEL,
        "A machine sees what it was given, less what its kernel keeps; a container sees the host's and is "
        "held to its limit.",
        _seen(_memory, _memory_given),
    ),
    Spec(
        "pid1",
        "Process 1",
        _SEES,
        "The first process: what booted a machine, or a container's command.",
        _plain(lambda s: s.pid1),
    ),
    Spec("processes", "Processes visible", _SEES, "All that it could name and signal.", _seen(_processes)),
    Spec("hostname", "Host name", _SEES, "The name it calls itself by.", _seen(_hostname)),
    Spec("net-devices", "Network devices", _SEES, "The interfaces it sees; lo is itself.", _seen(_net)),
    Spec("addresses", "Addresses", _SEES, "Where others reach it.", _seen(_addresses, _addresses_given)),
    Spec("ipc", "IPC objects", _SEES, "Shared memory, semaphores and queues that it sees.", _seen(_ipc)),
    Spec("mounts", "Mounts", _SEES, "File systems in its tree, and what / is made of.", _seen(_mounts)),
    Spec("devices", "Devices", _SEES, "Disks and other devices in /dev that it could open.", _seen(_devices)),
    *(_isolation(kind) for kind in NAMESPACES),
    Spec(
        "way-out",
        "Out of its /?",
        _RIGHTS,
        "The classic way out of a changed root, tried with the node's rights: change it once more, and go up "
        "from where one still stands outside.",
        _seen(_way_out),
    ),
    Spec(
        "users",
        "Users mapped",
        _RIGHTS,
        "Which users exist, and who they are outside: root mapped to a nobody is root inside only.",
        _seen(_users),
    ),
    Spec(
        "capabilities",
        "Capabilities",
        _RIGHTS,
        "The parts of root's power that it has, of those its kernel knows.",
        _seen(_capabilities),
    ),
    Spec(
        "seccomp",
        "System calls",
        _RIGHTS,
        "Whether a filter refuses some calls to the kernel.",
        _seen(_seccomp),
    ),
    Spec("start", "Time to start", _COST, "From its start until commands run in it.", _start),
    Spec(
        "host-memory",
        "Memory the host pays",
        _COST,
        "What the host really spends on it: all of QEMU for a machine, its processes for a container.",
        _cost,
    ),
)
