"""The OCI configuration: what labctl's containers are made of by default, and checks of any other.

Annotations of our own (everything else is the OCI runtime spec 1.1):

- org.labctl.overlay.lower: JSON list of folders, bottom first; with .upper and .work (folders, made when
  missing; left out = read-only root).  The overlay is mounted for the container alone.  With a user
  namespace of its own the lowers are idmapped, and the upper belongs to the mapped ids.
- org.labctl.log.stdout, org.labctl.log.stderr: files that the process appends to by itself; in a lab, whose
  keeper has the output collected, their folder is where the log is (labctl.runtime.logbook), with at most
  .max-files (3) segments of .max-size bytes (10 MiB).
- org.labctl.user: "name[:group]" or "uid[:gid]", looked up in the image; wins over process.user.
- org.labctl.address: an IPv4 address of a network that it shares; its sockets are kept to that one.
- org.labctl.stop-signal: name or number, SIGTERM when left out.
"""

from __future__ import annotations

import os
import zlib

from labctl.linux import capabilities, namespaces
from labctl.runtime import check as checks
from labctl.runtime import jsonio
from labctl.runtime.errors import ContainerError
from labctl.runtime.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

LOWER = "org.labctl.overlay.lower"
UPPER = "org.labctl.overlay.upper"
WORK = "org.labctl.overlay.work"
LOG_STDOUT = "org.labctl.log.stdout"
LOG_STDERR = "org.labctl.log.stderr"
LOG_MAX_SIZE = "org.labctl.log.max-size"
LOG_MAX_FILES = "org.labctl.log.max-files"
USER = "org.labctl.user"
STOP_SIGNAL = "org.labctl.stop-signal"
ADDRESS = "org.labctl.address"
BINFMT = "org.labctl.binfmt"  # what a mount of binfmt_misc is told: one rule (binfmt-misc.rst)

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ID_COUNT = 65536
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def id_range(key: str) -> int:
    """The first host id of a container's range: a pure function of `key` ("INSTANCE:LAB:NODE").

    One of 28 660 ranges of 65536 between 524288 and 1878982656, where systemd-nspawn puts its own, and
    clear of /etc/subuid's usual 100000.  Two keys may meet; that costs isolation between them, nothing else.
    """
    return 0x80000 + zlib.crc32(key.encode()) % 28660 * ID_COUNT


def _mounts(*, privileged: bool, shm_bytes: int) -> list[dict[str, Any]]:
    protect = [] if privileged else ["ro"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=64k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", f"size={shm_bytes}"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", *protect],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", *protect],
        },
    ]


def resources(*, memory: int = 0, cpus: float = 0.0, pids: int = 0) -> dict[str, Any]:
    """`linux.resources` for bytes of memory (no swap beyond), cpus and processes; 0 = no limit."""
    found: dict[str, Any] = {}
    if memory:
        found["memory"] = {"limit": memory, "swap": memory}
    if cpus:
        found["cpu"] = {"period": 100000, "quota": max(1000, int(cpus * 100000))}
    if pids:
        found["pids"] = {"limit": pids}
    return found


def default_config(
    args: Sequence[str],
    *,
    cgroup: str,
    hostname: str = "",
    env: Mapping[str, str] | Sequence[str] = (),
    cwd: str = "/",
    user: str = "",
    terminal: bool = False,
    rootfs: str = "rootfs",
    lowers: Sequence[str] = (),
    upper: str = "",
    work: str = "",
    netns: str = "",
    userns: str = "",
    id_base: int | None = None,
    id_count: int = ID_COUNT,
    memory: int = 0,
    cpus: float = 0.0,
    pids: int = 0,
    extra_capabilities: Sequence[str] = (),
    drop_capabilities: Sequence[str] = (),
    privileged: bool = False,
    files: Mapping[str, str] | None = None,
    mounts: Sequence[Mapping[str, Any]] = (),
    sysctls: Mapping[str, str] | None = None,
    shm_bytes: int = 64 << 20,
    stop_signal: str = "",
    stdout: str = "",
    stderr: str = "",
    seccomp: bool = True,
    umask: int | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A config.json for one container, safe by default.

    Fifty settings are what a container has: each is one key of the OCI document, and most have a default.
    `cgroup` is the path "/labctl/INSTANCE/LAB/NODE"; `lowers` bottom first, with `upper` and `work`, make an
    overlay (else `rootfs`); `netns` is the path of a prepared network namespace ("" = a new, empty one);
    `userns` the path of a pinned user namespace (it should own `netns`); ids 0..id_count-1 are mapped from
    `id_base` on (None = `id_range(cgroup)`, 0 = no user namespace; with `userns` what that was pinned with).
    `files` are single files bound read-only (destination → host path), `mounts` further OCI mounts.
    `privileged` keeps all capabilities, no filter, no masks, but not the host's user ids.
    """
    held = capabilities.known() if privileged else capabilities.mask(capabilities.DEFAULT)
    held = (held | capabilities.mask(extra_capabilities)) & ~capabilities.mask(drop_capabilities)
    names = capabilities.names(held)
    pairs = env if not hasattr(env, "items") else [f"{key}={value}" for key, value in env.items()]
    environment = list(pairs)
    if not any(pair.startswith("PATH=") for pair in environment):
        environment.insert(0, DEFAULT_PATH)
    process: dict[str, Any] = {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": environment,
        "cwd": cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "noNewPrivileges": not privileged,
    }
    if umask is not None:
        process["user"]["umask"] = umask
    notes = (
        {LOWER: jsonio.dumps(list(lowers)), UPPER: upper, WORK: work, USER: user} if lowers else {USER: user}
    )
    notes |= {LOG_STDOUT: stdout, LOG_STDERR: stderr, STOP_SIGNAL: stop_signal, **(annotations or {})}
    spaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    spaces.append({"type": "network", "path": netns} if netns else {"type": "network"})
    linux: dict[str, Any] = {
        "namespaces": spaces,
        "cgroupsPath": cgroup,
        "resources": resources(memory=memory, cpus=cpus, pids=pids),
        "maskedPaths": [] if privileged else list(MASKED),
        "readonlyPaths": [] if privileged else list(READ_ONLY),
        "sysctl": dict(sysctls or {}),
    }
    base = id_range(cgroup) if id_base is None else id_base
    if base:
        spaces.append({"type": "user", "path": userns} if userns else {"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": base, "size": id_count}]
        linux["gidMappings"] = list(linux["uidMappings"])
    if seccomp and not privileged:
        from labctl.linux.seccomp import default_profile

        linux["seccomp"] = default_profile(names)
    owners = ["idmap"] if base else []
    bound = [
        {
            "destination": target,
            "type": "bind",
            "source": source,
            "options": ["rbind", "ro", "rprivate", *owners],
        }
        for target, source in (files or {}).items()
    ]
    return {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": rootfs, "readonly": bool(lowers) and not upper},
        "hostname": hostname,
        "mounts": [
            *_mounts(privileged=privileged, shm_bytes=shm_bytes),
            *bound,
            *(dict(row) for row in mounts),
        ],
        "annotations": {key: value for key, value in notes.items() if value},
        "linux": linux,
    }


def starting_config(*, rootless: bool) -> dict[str, Any]:
    """What `labrun spec` writes: a shell on a read-only root, few capabilities, no device beyond the usual.

    With `rootless` for the caller's own ids: a user namespace, the host's network, no limits.
    """
    config = default_config(["sh"], cgroup="/", hostname="labrun", terminal=True, id_base=0, seccomp=False)
    del config["annotations"]
    process, linux = config["process"], config["linux"]
    names = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    process["env"].append("TERM=xterm")
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    config["root"]["readonly"] = True
    del linux["cgroupsPath"], linux["sysctl"]
    linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    if rootless:
        del linux["resources"]
        linux["namespaces"] = [row for row in linux["namespaces"] if row["type"] != "network"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        rows = [row for row in config["mounts"] if not row["destination"].startswith("/sys/")]
        for row in rows:
            row["options"] = [word for word in row["options"] if not word.startswith("gid=")]
            if row["type"] == "sysfs":  # a new one needs a network namespace of its own
                row.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
        config["mounts"] = rows
    return config


def load(bundle: str, name: str = "config.json") -> tuple[dict[str, Any], str]:
    """(configuration, its text) of a bundle.  Raises ContainerError that says what is wrong with it."""
    path = os.path.join(bundle, name)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise ContainerError(f"JSON specification file {path} not found") from None
    except OSError as error:
        raise ContainerError(f"cannot read {path}: {error.strerror}") from error
    try:
        config = jsonio.loads(text)
    except ValueError as error:
        raise ContainerError(f"cannot parse {path}: {error}") from error
    _strip_root(config, bundle)
    check(config, path)
    result: dict[str, Any] = config
    return result, text


def _strip_root(config: Any, bundle: str) -> None:
    """A destination may have the way to the root before it, on the host, as runc takes it."""
    root, rows = (config.get(key) if isinstance(config, dict) else None for key in ("root", "mounts"))
    if isinstance(root, dict) and isinstance(root.get("path"), str) and isinstance(rows, list):
        place = os.path.abspath(os.path.join(bundle, root["path"])) + "/"
        for row in rows:
            if isinstance(row, dict) and str(row.get("destination") or "").startswith(place):
                row["destination"] = row["destination"][len(place) - 1 :]


def check(config: Any, where: str) -> None:
    """What must be there before anything is made.  Raises ContainerError."""
    checks.config(config, where)
    root = config.get("root")
    if not (root and root.get("path")) and LOWER not in (config.get("annotations") or {}):
        raise ContainerError(f"{where}: root.path is missing")


def id_maps(config: Mapping[str, Any]) -> tuple[list[namespaces.IdMap], list[namespaces.IdMap]]:
    """The uid and gid maps of `linux`."""
    linux = config.get("linux") or {}

    def rows(name: str) -> list[namespaces.IdMap]:
        return [(row["containerID"], row["hostID"], row["size"]) for row in linux.get(name) or ()]

    return rows("uidMappings"), rows("gidMappings")
