"""What a container's `isolation` makes of its configuration: chroot, vserver, lxc; docker is the plain one.

Each is what its name had and no more, so that a comparison shows what it lacks (docs/history.md).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from labctl.errors import UsageError
from labctl.linux import capabilities
from labctl.runtime import spec

if TYPE_CHECKING:
    from labctl.tiers.context import NodeFacts

IN_VM_BUSYBOX = "/run/labctl/bin/busybox"  # where labctl's machines have theirs
INIT = "/run/labctl/init"  # busybox, by the name under which it is an init
SERVICE = "/run/labctl/service"
INITTAB = "/etc/inittab"
POWER_OFF = "SIGUSR2"  # busybox's init: end all processes, then reboot(2) with RB_POWER_OFF
POWER_FAIL = "SIGPWR"  # lxc.container.conf(5), lxc.signal.halt: what other inits shut down on
# lxc.container.conf(5), common.conf: what a system container goes without.
_NOT_LXC = ("CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYS_TIME", "CAP_SYS_MODULE", "CAP_SYS_RAWIO")
# Of the usual fourteen those with which a vserver would make packets and devices of its own.
_NOT_VSERVER = ("CAP_NET_RAW", "CAP_MKNOD")


def kind_of(facts: NodeFacts) -> str:
    """chroot, vserver, lxc or docker."""
    return str(facts.node.isolation)


def has_own_network(facts: NodeFacts) -> bool:
    """Whether it has a network namespace."""
    return kind_of(facts) in ("lxc", "docker")


def address_of(facts: NodeFacts) -> str:
    """The one address of a vserver, without prefix."""
    return facts.place.addresses[0]


def has_own_users(facts: NodeFacts) -> bool:
    """Whether it has a user namespace."""
    return kind_of(facts) in ("lxc", "docker")


def config(facts: NodeFacts, plain: dict[str, Any], root: str) -> dict[str, Any]:
    """The configuration of a container: `plain` are the arguments of `spec.default_config` for docker's way,
    `root` the folder that a chroot has as its root."""
    kind = kind_of(facts)
    if kind == "chroot":
        return _chroot(facts, root, plain)
    if kind == "vserver":
        return _vserver(facts, plain)
    return _lxc(facts, plain) if kind == "lxc" else spec.default_config(**plain)


def _vserver(facts: NodeFacts, plain: dict[str, Any]) -> dict[str, Any]:
    """The host's network, kept to one address, and the host's users; the rest but the groups is its own."""
    config = spec.default_config(
        **plain
        | {
            "drop_capabilities": [*plain["drop_capabilities"], *_NOT_VSERVER],
            "annotations": {**plain["annotations"], spec.ADDRESS: address_of(facts)},
        }
    )
    linux = config["linux"]
    linux["namespaces"] = [row for row in linux["namespaces"] if row["type"] not in ("network", "cgroup")]
    return config


def _lxc(facts: NodeFacts, plain: dict[str, Any]) -> dict[str, Any]:
    """A system: an init, and what root may do in a user namespace but for what LXC takes away."""
    held = [name for name in capabilities.NAMES if name not in _NOT_LXC]
    config = spec.default_config(
        **plain
        | {
            "args": init_of(facts),
            "user": "",
            "cwd": "/",
            "extra_capabilities": [*held, *plain["extra_capabilities"]],
            "mounts": [*plain["mounts"], *_init_mounts(facts)],
        }
    )
    config["process"]["noNewPrivileges"] = False  # su and login change users
    return config


def _chroot(facts: NodeFacts, root: str, plain: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a process whose root is the folder `root`, and nothing else about it its own."""
    config = spec.default_config(
        plain["args"],
        cgroup=plain["cgroup"],
        env=plain["env"],
        cwd=plain["cwd"],
        user=plain["user"],
        rootfs=root,
        id_base=0,
        privileged=True,
        drop_capabilities=plain["drop_capabilities"],
        stop_signal=plain["stop_signal"],
        stdout=plain["stdout"],
        stderr=plain["stderr"],
    )
    linux, process = config["linux"], config["process"]
    config["mounts"] = []
    linux["namespaces"] = []
    # No limit, and no fence around devices either; the control group is how all of it is found and ended.
    linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    if not facts.node.capabilities.drop:
        del process["capabilities"]  # the host's, whatever they are
    return config


def init_of(facts: NodeFacts) -> tuple[str, ...]:
    """The first process of a system container: its image's init, or labctl's, which starts the command."""
    return ("/sbin/init",) if facts.node.init else (INIT,)


def files(facts: NodeFacts) -> dict[str, str]:
    """The files that an init of labctl's goes by: its table (init(5)), and the command as a service."""
    if kind_of(facts) != "lxc" or facts.node.init:
        return {}
    if INITTAB in {file.path for file in facts.node.files}:
        return {}
    table = "# Written by labctl: the node's command is the one service; a table of yours takes its place.\n"
    if not facts.command:
        return {INITTAB: table}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(facts.env.items())]
    lines = [*exports, f"cd {shlex.quote(facts.workdir)} || exit 1", f"exec {_as_user(facts)}"]
    return {INITTAB: f"{table}::respawn:/bin/sh {SERVICE}\n", SERVICE: "\n".join(lines) + "\n"}


def _as_user(facts: NodeFacts) -> str:
    """The command as a line for the shell, by su(1) where the image names a user for it.

    Raises UsageError for a number, which su doesn't take.
    """
    line = shlex.join(facts.command)
    user = facts.user.partition(":")[0]
    if user in ("", "0", "root"):
        return line
    if user.isdigit():
        raise UsageError(
            f"{facts.node.name}: its image runs as user {user}, and an init starts services by users' names",
            hint="isolation: docker runs it as it is; else give the node an /etc/inittab of its own",
        )
    return f"su -s /bin/sh {shlex.quote(user)} -c {shlex.quote('exec ' + line)}"


def _init_mounts(facts: NodeFacts) -> list[dict[str, Any]]:
    if facts.node.init:
        return []
    # Not idmapped: all may run it, and a machine has it on a tmpfs, which can't be before Linux 6.3.
    options = ["bind", "ro", "rprivate"]
    return [{"destination": INIT, "type": "bind", "source": facts.init_program, "options": options}]
