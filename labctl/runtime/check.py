"""What a config.json must be before anything is made: its shape, and the rules of the OCI runtime spec 1.1.

Unknown properties are ignored, as config.md's "Extensibility" asks.  What is asked for and can't be done here
(Intel RDT, a hostname without a UTS namespace …) is refused; what the spec says to warn about is a warning.
"""

from __future__ import annotations

import os

from labctl.linux import capabilities, namespaces
from labctl.linux import syscalls as sc
from labctl.runtime.errors import ContainerError, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# A shape is a type, [shape] for a list, {"name": shape} for an object, {"*": shape} for a map.
_IDS = [{"containerID": int, "hostID": int, "size": int}]
_THROTTLE = [{"major": int, "minor": int, "rate": int}]
RESOURCES: dict[str, Any] = {
    "devices": [{"allow": bool, "type": str, "major": int, "minor": int, "access": str}],
    "memory": {
        "limit": int,
        "reservation": int,
        "swap": int,
        "kernel": int,
        "kernelTCP": int,
        "swappiness": int,
        "disableOOMKiller": bool,
        "useHierarchy": bool,
        "checkBeforeUpdate": bool,
    },
    "cpu": {
        "shares": int,
        "quota": int,
        "burst": int,
        "period": int,
        "realtimeRuntime": int,
        "realtimePeriod": int,
        "cpus": str,
        "mems": str,
        "idle": int,
    },
    "pids": {"limit": int},
    "blockIO": {
        "weight": int,
        "leafWeight": int,
        "weightDevice": [{"major": int, "minor": int, "weight": int, "leafWeight": int}],
        "throttleReadBpsDevice": _THROTTLE,
        "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE,
        "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": [{"pageSize": str, "limit": int}],
    "network": {"classID": int, "priorities": [{"name": str, "priority": int}]},
    "rdma": {"*": {"hcaHandles": int, "hcaObjects": int}},
    "unified": {"*": str},
}
PROCESS: dict[str, Any] = {
    "terminal": bool,
    "consoleSize": {"height": int, "width": int},
    "cwd": str,
    "env": [str],
    "args": [str],
    "rlimits": [{"type": str, "soft": int, "hard": int}],
    "apparmorProfile": str,
    "capabilities": {"*": [str]},
    "noNewPrivileges": bool,
    "oomScoreAdj": int,
    "scheduler": {
        "policy": str,
        "nice": int,
        "priority": int,
        "flags": [str],
        "runtime": int,
        "deadline": int,
        "period": int,
    },
    "selinuxLabel": str,
    "ioPriority": {"class": str, "priority": int},
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": [int]},
}
_HOOK = [{"path": str, "args": [str], "env": [str], "timeout": int}]
_SECCOMP: dict[str, Any] = {
    "defaultAction": str,
    "defaultErrnoRet": int,
    "architectures": [str],
    "flags": [str],
    "listenerPath": str,
    "listenerMetadata": str,
    "syscalls": [
        {
            "names": [str],
            "action": str,
            "errnoRet": int,
            "args": [{"index": int, "value": int, "valueTwo": int, "op": str}],
        }
    ],
}
CONFIG: dict[str, Any] = {
    "ociVersion": str,
    "root": {"path": str, "readonly": bool},
    "process": PROCESS,
    "hostname": str,
    "domainname": str,
    "mounts": [
        {
            "destination": str,
            "type": str,
            "source": str,
            "options": [str],
            "uidMappings": _IDS,
            "gidMappings": _IDS,
        }
    ],
    "hooks": {
        "prestart": _HOOK,
        "createRuntime": _HOOK,
        "createContainer": _HOOK,
        "startContainer": _HOOK,
        "poststart": _HOOK,
        "poststop": _HOOK,
    },
    "annotations": {"*": str},
    "linux": {
        "namespaces": [{"type": str, "path": str}],
        "uidMappings": _IDS,
        "gidMappings": _IDS,
        "timeOffsets": {"*": {"secs": int, "nanosecs": int}},
        "devices": [
            {
                "type": str,
                "path": str,
                "major": int,
                "minor": int,
                "fileMode": int,
                "uid": int,
                "gid": int,
            }
        ],
        "cgroupsPath": str,
        "resources": RESOURCES,
        "intelRdt": {},
        "sysctl": {"*": str},
        "seccomp": _SECCOMP,
        "rootfsPropagation": str,
        "maskedPaths": [str],
        "readonlyPaths": [str],
        "mountLabel": str,
        "personality": {"domain": str, "flags": [str]},
    },
}
_WORDS = {str: "a text", int: "a number", bool: "true or false"}
_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_PROPAGATIONS = ("", "shared", "slave", "private", "unbindable")
_IPC_SYSCTLS = (
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
)
# What lxcfs and its like put there; everything else would hide what is masked.
_IN_PROC = {
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
}
_RANGE = {"uid": 1 << 32, "gid": 1 << 32, "hostID": 1 << 32, "containerID": 1 << 32, "size": 1 << 32}


def shape(value: Any, wanted: Any, where: str) -> None:
    """Raise ContainerError, naming the place, unless `value` is of that shape; null counts as absent."""
    if value is None:
        return
    if isinstance(wanted, list):
        if not isinstance(value, (list, tuple)):
            raise ContainerError(f"{where} must be a list, not {_show(value)}")
        if wanted[0] is str and all(type(item) is str for item in value) and "\0" not in "".join(value):
            return  # a filter's hundreds of names, in one go
        for index, item in enumerate(value):
            if item is None:
                raise ContainerError(f"{where}[{index}] must not be null")
            shape(item, wanted[0], f"{where}[{index}]")
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            raise ContainerError(f"{where} must be an object, not {_show(value)}")
        for key, item in value.items():
            inner = wanted.get(key, wanted.get("*"))
            if inner is not None:
                shape(item, inner, f"{where}.{key}" if where else key)
    elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ContainerError(f"{where} must be {_WORDS[wanted]}, not {_show(value)}")
    elif wanted is str and "\0" in value:
        raise ContainerError(f"{where} must not contain a NUL character")
    elif wanted is int:
        most = _RANGE.get(where.rpartition(".")[2], 1 << 64)
        if not (0 if most < 1 << 64 else -1 << 63) <= value < most:
            raise ContainerError(f"{where}: {value} is out of range")


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def config(document: Any, where: str) -> None:
    """All checks of a config.json.  Raises ContainerError that begins with `where`."""
    try:
        if not isinstance(document, dict):
            raise ContainerError("not a JSON object")
        shape(document, CONFIG, "")
        _version(document.get("ociVersion"))
        if (found := document.get("process")) is not None:
            _process(found, "process")
        for index, row in enumerate(document.get("mounts") or ()):
            _mount(row, f"mounts[{index}]")
            if index and not row["destination"].strip("/.") and "remount" not in (row.get("options") or ()):
                # What is masked and read-only goes by the places of mounts that this one would hide.
                raise ContainerError(f"mounts[{index}]: only the first mount can be the root itself")
        for kind, rows in (document.get("hooks") or {}).items():
            for index, row in enumerate(rows or () if isinstance(rows, list) else ()):
                _hook(row, f"hooks.{kind}[{index}]")
        _linux(document)
    except ContainerError as error:
        raise ContainerError(f"{where}: {error.message}") from error


def process(document: Any, where: str) -> None:
    """The checks of a process alone, as `exec --process` gets it."""
    try:
        if not isinstance(document, dict):
            raise ContainerError("not a JSON object")
        shape(document, PROCESS, "")
        _process(document, "process")
    except ContainerError as error:
        raise ContainerError(f"{where}: {error.message}") from error


def _version(text: Any) -> None:
    if not text:
        raise ContainerError("ociVersion is missing")
    core = text.partition("+")[0].partition("-")[0].split(".")
    if len(core) != 3 or not all(part.isdigit() for part in core):
        raise ContainerError(f"ociVersion {text!r} is no semantic version")
    if core[0] != "1":
        raise ContainerError(f"ociVersion {text!r} is not 1.x")


def _process(row: dict[str, Any], where: str) -> None:
    if not row.get("args"):
        raise ContainerError(f"{where}.args must not be empty")
    if not os.path.isabs(row.get("cwd") or ""):
        raise ContainerError(f"{where}.cwd must be an absolute path, not {row.get('cwd')!r}")
    for kind, names in (row.get("capabilities") or {}).items():
        if kind in _SETS:
            row["capabilities"][kind] = known_capabilities(names or (), f"process.capabilities.{kind}")
    seen = set()
    for limit in row.get("rlimits") or ():
        name = limit.get("type")
        if not str(name).startswith("RLIMIT_"):
            raise ContainerError(f"{where}.rlimits: invalid rlimit type {name!r}")
        if name in seen:
            raise ContainerError(f"{where}.rlimits: {name} is there twice")
        seen.add(name)
        for key in ("soft", "hard"):
            if limit.get(key) is None:
                raise ContainerError(f"{where}.rlimits: {name} has no {key}")
        if limit["soft"] > limit["hard"] >= 0:
            raise ContainerError(
                f"{where}.rlimits: {name}: soft {limit['soft']} is above hard {limit['hard']}"
            )
    score = row.get("oomScoreAdj")
    if score is not None and not -1000 <= score <= 1000:
        raise ContainerError(f"{where}.oomScoreAdj: {score} is not between -1000 and 1000")


def known_capabilities(names: Sequence[str], where: str) -> list[str]:
    """An unknown capability is a warning and no error (config.md, "Linux Process"); it is left out."""
    bad = []
    for name in names:
        try:
            capabilities.mask([name])
        except ValueError:
            bad.append(name)
    return _without(names, bad, where)


def _without(names: Sequence[str], bad: list[str], where: str) -> list[str]:
    if bad:
        warn(f"ignoring unknown or unavailable capabilities in {where}: {bad}")
    return [name for name in names if name not in bad]


def grantable(sets: dict[str, Any], held: int) -> None:
    """Leave out, with a warning, what can't be granted: `held` is the mask of what the runtime has itself."""
    for kind in _SETS:
        names = sets.get(kind) or ()
        able = held & capabilities.known()
        if kind == "ambient":  # capabilities(7): only what is both permitted and inheritable
            for other in ("permitted", "inheritable"):
                able &= capabilities.mask(sets.get(other) or ())
        if capabilities.mask(names) & ~able:
            bad = [name for name in names if capabilities.mask([name]) & ~able]
            sets[kind] = _without(names, bad, f"process.capabilities.{kind}")


def _mount(row: dict[str, Any], where: str) -> None:
    if not row.get("destination"):
        raise ContainerError(f"{where}: a mount without a destination")
    place = os.path.normpath("/" + row["destination"].lstrip("/"))
    if place.startswith("/proc/") and place not in _IN_PROC:
        raise ContainerError(f"{where}: {place} cannot be mounted because it is inside /proc")
    if place == "/proc":
        _over_proc(row, where)
    if bool(row.get("uidMappings")) != bool(row.get("gidMappings")):
        raise ContainerError(f"{where}: uidMappings and gidMappings belong together")
    for name in ("uidMappings", "gidMappings"):
        _complete_maps(row.get(name), f"{where}.{name}")


def _over_proc(row: dict[str, Any], where: str) -> None:
    """Only a real procfs may be /proc: masks, read-only paths and labels all go by it (CVE-2019-16884)."""
    options = row.get("options") or ()
    if row.get("type") == "proc" or "remount" in options:
        return
    source = row.get("source") or ""
    if not os.path.isabs(source) or sc.filesystem_type(source) != sc.PROC_SUPER_MAGIC:
        raise ContainerError(f"{where}: only a proc file system can be mounted at /proc")


def _complete_maps(rows: Any, where: str) -> None:
    for index, row in enumerate(rows or ()):
        for key in ("containerID", "hostID", "size"):
            if row.get(key) is None:
                raise ContainerError(f"{where}[{index}] has no {key}")


def _hook(row: dict[str, Any], where: str) -> None:
    if not os.path.isabs(row.get("path") or ""):
        raise ContainerError(f"{where}.path must be an absolute path, not {row.get('path')!r}")
    if row.get("timeout") is not None and row["timeout"] <= 0:
        raise ContainerError(f"{where}.timeout must be greater than zero, not {row['timeout']}")


def _linux(document: dict[str, Any]) -> None:
    linux = document.get("linux") or {}
    spaces: dict[str, str] = {}
    for index, space in enumerate(linux.get("namespaces") or ()):
        kind, path = space.get("type"), space.get("path") or ""
        if kind not in namespaces.FLAGS:
            raise ContainerError(f"linux.namespaces[{index}]: unknown type {kind!r}")
        if kind in spaces:
            raise ContainerError(f"linux.namespaces: {kind} twice")
        if path and not os.path.isabs(path):
            raise ContainerError(f"linux.namespaces[{index}].path must be an absolute path, not {path!r}")
        spaces[kind] = path
    if linux.get("intelRdt"):
        raise ContainerError("linux.intelRdt: Intel RDT is not supported")
    if ((linux.get("rootfsPropagation") or "").removeprefix("r")) not in _PROPAGATIONS:
        raise ContainerError(f"linux.rootfsPropagation: unknown value {linux['rootfsPropagation']!r}")
    if spaces.get("user") == "" and not linux.get("uidMappings") and not linux.get("gidMappings"):
        _map_caller(linux, (document.get("process") or {}).get("user") or {})
    for name in ("uidMappings", "gidMappings"):
        _complete_maps(linux.get(name), f"linux.{name}")
        if linux.get(name) and "user" not in spaces:
            raise ContainerError(f"linux.{name} without a user namespace")
        if spaces.get("user") == "" and not linux.get(name):
            raise ContainerError(f"linux.namespaces has a new user namespace, but linux.{name} is empty")
    if linux.get("timeOffsets") and "time" not in spaces:
        raise ContainerError("linux.timeOffsets without a time namespace")
    for key in ("hostname", "domainname"):
        if document.get(key) and "uts" not in spaces:
            raise ContainerError(f"unable to set {key} without a private UTS namespace")
    for name in ("maskedPaths", "readonlyPaths"):
        for path in linux.get(name) or ():
            if not os.path.isabs(path):
                raise ContainerError(f"linux.{name} must be absolute paths, not {path!r}")
    for index, row in enumerate(linux.get("devices") or ()):
        _device(row, f"linux.devices[{index}]")
    for name in linux.get("sysctl") or ():
        _sysctl(name, spaces, document)
    if linux.get("seccomp") is not None:
        _seccomp(linux["seccomp"])
    if "mount" not in spaces:
        _bare_root(document, linux)


def _map_caller(linux: dict[str, Any], user: dict[str, Any]) -> None:
    """A new user namespace without maps: the caller alone, as the user of the process (crun's default)."""
    own = (("uidMappings", "uid", os.geteuid()), ("gidMappings", "gid", os.getegid()))
    for name, key, outside in own:
        linux[name] = [{"containerID": user.get(key) or 0, "hostID": outside, "size": 1}]


def _bare_root(document: dict[str, Any], linux: dict[str, Any]) -> None:
    """Without a mount namespace only the root changes: what would be mounted on the host is refused."""
    asked = [name for name in ("mounts",) if document.get(name)]
    asked += [f"linux.{name}" for name in ("devices", "maskedPaths", "readonlyPaths") if linux.get(name)]
    if (document.get("root") or {}).get("readonly"):
        asked.append("root.readonly")
    if asked:
        raise ContainerError(f"{', '.join(asked)}: needs a mount namespace of the container's own")


def _device(row: dict[str, Any], where: str) -> None:
    if row.get("type") not in ("c", "b", "u", "p"):
        raise ContainerError(f"{where}.type: unknown value {row.get('type')!r}")
    if not os.path.isabs(row.get("path") or ""):
        raise ContainerError(f"{where}.path must be an absolute path, not {row.get('path')!r}")
    if row["type"] != "p" and (row.get("major") is None or row.get("minor") is None):
        raise ContainerError(f"{where} has no major and minor")


def _sysctl(name: str, spaces: dict[str, str], document: dict[str, Any]) -> None:
    """Only what a namespace of the container's own holds; all else would change the host."""
    dotted = name.replace("/", ".")
    if name[:1] in ("/", ".") or ".." in name.split("/"):
        raise ContainerError(f"linux.sysctl: {name!r} contains an invalid path")
    if dotted.startswith("net."):
        space = "network"
    elif dotted.startswith("fs.mqueue.") or dotted in _IPC_SYSCTLS:
        space = "ipc"
    elif dotted == "kernel.domainname":
        space = "uts"
    elif dotted == "kernel.hostname":
        if document.get("hostname"):
            raise ContainerError(f"linux.sysctl: {name} conflicts with hostname")
        space = "uts"
    elif dotted.startswith("user."):
        space = "user"
    else:
        raise ContainerError(f"linux.sysctl: {name!r} is not in a separate kernel namespace")
    if space not in spaces:
        raise ContainerError(f"linux.sysctl: {name!r} needs a {space} namespace of the container's own")
    if spaces[space] and namespaces.is_own(space, spaces[space]):
        raise ContainerError(f"linux.sysctl: {name!r}: the {space} namespace {spaces[space]} is the host's")


def _seccomp(row: dict[str, Any]) -> None:
    if row.get("listenerMetadata") and not row.get("listenerPath"):
        raise ContainerError("linux.seccomp.listenerMetadata without listenerPath")
    for index, rule in enumerate(row.get("syscalls") or ()):
        if not rule.get("names"):
            raise ContainerError(f"linux.seccomp.syscalls[{index}].names must not be empty")
        for key in ("action",):
            if not rule.get(key):
                raise ContainerError(f"linux.seccomp.syscalls[{index}] has no {key}")
        for arg in rule.get("args") or ():
            for key in ("index", "value", "op"):
                if arg.get(key) is None:
                    raise ContainerError(f"linux.seccomp.syscalls[{index}].args: an entry without {key}")
    if not row.get("defaultAction"):
        raise ContainerError("linux.seccomp.defaultAction is missing")
