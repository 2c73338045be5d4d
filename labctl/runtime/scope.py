"""A container's control group as a scope of systemd: `--systemd-cgroup`, as runc and crun have it.

systemd makes the group, with the limits as its own properties, so that they outlive its reloads, and
delegates it; the runtime then writes the same limits and all others into the group's files.
"""

from __future__ import annotations

from labctl.linux import limits, proc, systemd
from labctl.linux.dbus import BusError
from labctl.runtime.errors import ContainerError, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from labctl.linux.systemd import Property
    from labctl.runtime.state import Document

_PREFIX = "org.systemd.property."
_UNIFIED = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}


class Scope:
    """One transient unit and where its group is; `user` is whether the user's own manager has it."""

    def __init__(self, unit: str, slice_: str, path: str, *, user: bool) -> None:
        self.unit = unit
        self.slice = slice_
        self.path = path
        self.user = user

    @classmethod
    def of(cls, text: str, id_: str, *, user: bool) -> Scope:
        """From cgroupsPath, "slice:prefix:name".  Raises ContainerError, worded as runc does."""
        if not systemd.is_running():
            raise ContainerError("systemd not running on this host, cannot use systemd cgroups manager")
        if text and text.count(":") != 2:
            raise ContainerError(
                'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
                f'got "{text}" instead'
            )
        slice_, prefix, name = text.split(":") if text else ("", "labrun", id_)
        slice_ = slice_ or ("user.slice" if user else "system.slice")
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        if "/" in unit:
            raise ContainerError(f"invalid scope name: {unit}")
        try:
            folder = systemd.slice_path(slice_)
            if user:
                with systemd.Manager(user=True) as manager:
                    folder = manager.own_group() + folder
        except (ValueError, BusError) as error:
            raise ContainerError(str(error)) from error
        return cls(unit, slice_, f"{folder}/{unit}", user=user)

    def start(
        self, pid: int, resources: Mapping[str, Any], devices: Sequence[Any], notes: Mapping[str, str]
    ) -> None:
        """Make it, with a process in it.  Raises ContainerError."""
        rows: list[Property] = [
            ("Description", ("s", f"labrun container {self.unit}")),
            ("Slice", ("s", self.slice)),
            ("Delegate", ("b", True)),
            ("PIDs", ("au", [pid])),
            ("DefaultDependencies", ("b", False)),
        ]
        rows += [(f"{kind}Accounting", ("b", True)) for kind in ("Memory", "CPU", "IO", "Tasks")]
        rows += limit_properties(resources)
        if devices:
            rows += device_properties(devices)
        rows += asked_properties(notes)
        try:
            with systemd.Manager(user=self.user) as manager:
                manager.start(self.unit, rows)
        except BusError as error:
            raise ContainerError(f"unable to apply cgroup configuration: {error}") from error


def join(unit: str, pid: int) -> None:
    """Let the user's manager move a process there: from elsewhere one may not.  Raises ContainerError."""
    try:
        with systemd.Manager(user=True) as manager:
            manager.attach(unit, pid)
    except BusError as error:
        raise ContainerError(f"error adding pid {pid} to cgroups: {error}") from error


def update(document: Document, resources: Mapping[str, Any]) -> None:
    """Tell systemd of changed limits, if the container has a scope.  Raises ContainerError."""
    rows = limit_properties(resources)
    if document.get("scope") and rows:
        try:
            with systemd.Manager(user=bool(document.get("scope_user"))) as manager:
                manager.set(document["scope"], rows)
        except BusError as error:
            raise ContainerError(f"unable to set unit properties: {error}") from error


def stop(document: Document) -> None:
    """Let systemd forget the scope, if there is one; its processes have been killed before."""
    if not document.get("scope"):
        return
    try:
        with systemd.Manager(user=bool(document.get("scope_user"))) as manager:
            manager.stop(document["scope"])
    except BusError as error:  # the group itself is removed in any case, and systemd sees that
        warn(f"container {document['id']}: unit {document['scope']} not stopped: {error}")


def limit_properties(resources: Mapping[str, Any]) -> list[Property]:
    """The limits that systemd has names for."""
    memory, cpu, pids = (resources.get(key) or {} for key in ("memory", "cpu", "pids"))
    found: dict[str, Any] = {}
    limit, swap = memory.get("limit"), memory.get("swap")
    found["MemoryMax"] = limit
    found["MemoryLow"] = memory.get("reservation")
    if swap is not None:
        # OCI's swap counts memory and swap together; systemd's counts swap alone.
        found["MemorySwapMax"] = swap if swap <= 0 or not limit or limit < 0 else max(0, swap - limit)
    if pids.get("limit") is not None:
        found["TasksMax"] = pids["limit"] if pids["limit"] > 0 else -1
    if cpu.get("shares"):
        found["CPUWeight"] = limits.weight_of_shares(cpu["shares"])
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota is not None or period:
        found["CPUQuotaPeriodUSec"] = period
        found["CPUQuotaPerSecUSec"] = _per_second(quota, period)
    for name, value in (resources.get("unified") or {}).items():
        if name in _UNIFIED and (value == "max" or value.isdigit()):
            found[_UNIFIED[name]] = -1 if value == "max" else int(value)
        elif name == "cpu.max" and (words := value.split()):
            period = int(words[1]) if len(words) > 1 else 100000
            found["CPUQuotaPeriodUSec"] = period
            found["CPUQuotaPerSecUSec"] = _per_second(-1 if words[0] == "max" else int(words[0]), period)
    rows: list[Property] = [
        (name, ("t", systemd.INFINITY if value < 0 else value))
        for name, value in found.items()
        if value is not None
    ]
    cpuset = resources.get("unified") or {}
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if text := cpu.get(key) or cpuset.get(f"cpuset.{key}"):
            rows.append((name, ("ay", bit_mask(text))))
    return rows


def _per_second(quota: int | None, period: int | None) -> int:
    """The quota in µs of CPU a second, rounded up to 10 ms as systemd itself does it."""
    if quota is None or quota <= 0:
        return -1
    exact = quota * 1_000_000 // (period or 100000)
    return -(-exact // 10000) * 10000


def bit_mask(text: str) -> list[int]:
    """A list like "0-2,8" as bytes, the lowest first.  Raises ContainerError."""
    mask = 0
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(last or first) > 8191:
            raise ContainerError(f"invalid list of CPUs or memory nodes: {text!r}")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return list(mask.to_bytes((mask.bit_length() + 7) // 8 or 1, "little"))


def device_properties(rules: Sequence[tuple[bool, str, int, int, str]]) -> list[Property]:
    """What systemd itself lets through, so that none of its reloads undoes our own rules.

    It knows no rule that takes back: such a one is left to ours, which hold as well.
    """
    allowed: list[tuple[str, str]] = []
    for allow, kind, major, minor, access in rules:
        if not allow:
            if kind == "a":
                allowed = []
            continue
        if kind == "a":
            return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
        long = "block" if kind == "b" else "char"
        if major < 0:
            allowed.append((f"{long}-*", access))
        elif minor >= 0:
            allowed.append((f"/dev/{long}/{major}:{minor}", access))
        elif name := _driver(long, major):
            allowed.append((f"{long}-{name}", access))
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", allowed))]


def _driver(kind: str, major: int) -> str:
    """The name that /proc/devices has for a major number, "" when there is none."""
    inside = False
    for line in (proc.read("/proc/devices") or "").splitlines():
        if line.endswith(":"):
            inside = line.lower().startswith(kind)
        elif inside and line.split()[0] == str(major):
            return line.split()[1]
    return ""


def asked_properties(notes: Mapping[str, str]) -> list[Property]:
    """The annotations org.systemd.property.NAME, in GVariant's text format.  Raises ContainerError."""
    found: list[Property] = []
    for key, text in notes.items():
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX)
        # Letters alone, and not all small: what systemd's properties are named like.
        if len(name) < 3 or not name.isascii() or not name.isalpha():
            raise ContainerError(f"annotation {key} does not name a property of systemd")
        kind, value = variant(text, key)
        if name.endswith("Sec") and not name.endswith("USec"):  # systemd's messages count µs
            if kind not in ("i", "u", "x", "t", "n", "q", "d", "y"):
                raise ContainerError(f"annotation {key}: {text!r} is not a number of seconds")
            name, kind, value = f"{name[:-3]}USec", "t", int(value * 1_000_000)
        found.append((name, (kind, value)))
    return found


_WORDS = {
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "boolean": "b",
    "string": "s",
    "objectpath": "o",
}


def variant(text: str, where: str) -> tuple[str, Any]:
    """(signature, value) of a GVariant text: a number, boolean, text, or array of one such kind.

    Raises ContainerError.
    """
    word, _, rest = text.strip().partition(" ")
    kind = _WORDS.get(word, "")
    body = (rest if kind else text).strip()
    if body.startswith("@"):  # "@as []"
        asked, _, body = body[1:].partition(" ")
        if asked == "as" and body.strip() == "[]":
            return "as", []
    if body.startswith("[") and body.endswith("]") and body[1:-1].strip():
        items = [variant(part, where) for part in _split(body[1:-1])]
        if len({item[0] for item in items}) == 1:
            return f"a{items[0][0]}", [item[1] for item in items]
    elif len(body) > 1 and body[0] in "'\"" and body[-1] == body[0] and kind in ("", "s", "o"):
        return kind or "s", body[1:-1].replace("\\" + body[0], body[0]).replace("\\\\", "\\")
    elif body in ("true", "false") and kind in ("", "b"):
        return "b", body == "true"
    else:
        try:
            number = float(body) if kind == "d" or ("." in body and not kind) else int(body, 0)
            return kind or ("d" if isinstance(number, float) else "i"), number
        except ValueError:
            pass  # said below, as for anything else
    raise ContainerError(f"annotation {where}: {text!r} is not a value in GVariant's text format")


def _split(text: str) -> list[str]:
    """The items of an array: commas within quotes don't count."""
    found, quote = [""], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == ",":
            found.append("")
            continue
        found[-1] += letter
    return [part.strip() for part in found]
