"""Rules about how a container is kept apart: what its isolation hasn't got is refused, never pretended."""

from __future__ import annotations

from labctl.profile.models import Node
from labctl.profile.plainly import Loc
from labctl.profile.rules import Rules
from labctl.profile.types import Isolation, Tier

_LIMIT = "chroot(2) limits nothing"
_HOST_NET = "it has the host's network"
_NOT_CHROOT = {
    "memory": _LIMIT,
    "cpus": _LIMIT,
    "pids": _LIMIT,
    "networks": _HOST_NET,
    "aliases": _HOST_NET,
    "gateway": _HOST_NET,
    "gateway6": _HOST_NET,
    "routes": _HOST_NET,
    "ports": _HOST_NET,
    "sysctls": "its kernel settings are the host's",
    "hostname": "its host name is the host's",
    "read_only": "chroot(2) changes the root and nothing about it",
    "privileged": "it has all rights of the host already",
}
_NOT_VSERVER = {
    "gateway": "its routes are the host's",
    "gateway6": "its routes are the host's",
    "routes": "its routes are the host's",
    "sysctls": "most kernel settings are the host's",
    "privileged": "with all rights it could take any address of the host",
}
# What would let it past its fences: addresses, other processes' files, the kernel.
_TOO_MUCH = (
    "ALL",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "BPF",
    "MKNOD",
)


def check(rules: Rules, key: str, node: Node) -> None:
    """Note what a container's isolation can't honour."""
    if node.tier is not Tier.CONTAINER or rules.is_broken("nodes", key, "isolation"):
        return
    kind = node.isolation
    item, depth = rules.tree.find(("nodes", key, "init"))
    inherited = depth < 3 or item.path.startswith(("defaults", "groups"))
    if node.init and kind is not Isolation.LXC and not inherited:
        hint = f"{key} has isolation: {kind}; lxc has an init"
        rules.say(("nodes", key, "init"), f"a {kind} container has no init", hint, key=True)
    if kind is Isolation.CHROOT:
        _without(rules, key, node, _NOT_CHROOT)
        if node.capabilities.add:
            _add(rules, key, "a chroot has all of the host's capabilities already")
    elif kind is Isolation.VSERVER:
        _without(rules, key, node, _NOT_VSERVER)
        _vserver(rules, key, node)
    elif kind is Isolation.LXC and node.user:
        hint = "its services are other users' where they say so (su, start-stop-daemon)"
        rules.say(("nodes", key, "user"), "the init of a system container is root's", hint)
    if node.inside and kind in (Isolation.CHROOT, Isolation.VSERVER):
        hint = "lxc and docker run inside a machine"
        rules.say(("nodes", key, "inside"), f"isolation: {kind} is for this host alone", hint)


def _without(rules: Rules, key: str, node: Node, lacking: dict[str, str]) -> None:
    """Fields that are written, or inherited from `defaults`: a limit that nobody keeps is worse than none."""
    told: set[str] = set()  # `gateway: none` stands for two fields
    for name, why in lacking.items():
        place: Loc = ("nodes", key, name)
        item, depth = rules.tree.find(place)
        if depth < len(place) or not getattr(node, name) or rules.is_broken(*place) or item.path in told:
            continue
        told.add(item.path)
        inherited = item.path.startswith(("defaults", "groups"))
        hint = f"; `{name}:` in {key} takes the inherited one away" if inherited else ""
        rules.say(place, f"a {node.isolation} has no {name}: {why}", hint.removeprefix("; "), key=True)


def _add(rules: Rules, key: str, message: str, hint: str = "") -> None:
    rules.say(("nodes", key, "capabilities", "add"), message, hint)


def _vserver(rules: Rules, key: str, node: Node) -> None:
    """One IPv4 address on a network that the host is on: it becomes one more of the host's."""
    place: Loc = ("nodes", key, "networks")
    if asked := [name for name in _TOO_MUCH if name in _plain(node.capabilities.add)]:
        _add(rules, key, f"with {', '.join(asked)} a vserver could leave its address or its processes")
    if rules.is_broken(*place):
        return
    if len(node.networks) != 1:
        rules.say(place, f"a vserver is on one network, not {len(node.networks)}: it is kept to one address")
        return
    at = node.networks[0]
    net = rules.profile.networks.get(at.network)
    if net is None:
        return
    if not net.host:
        hint = f"remove host_address: false from {at.network}"
        rules.say(place, f"a vserver has an address of the host, which is not on {at.network}", hint)
    if len(at.addresses) > 1 or any(":" in address for address in at.addresses):
        rules.say(place, "a vserver is kept to one IPv4 address")
    elif not at.addresses and not (at.assign and net.assign):
        rules.say(place, f"a vserver needs an address on {at.network}, and labctl assigns none there")
    if node.ipv6 and (net.ipv6 or net.subnet6):
        rules.say(
            place, f"a vserver speaks IPv4 alone, and {at.network} has IPv6", f"write ipv6: false in {key}"
        )
    for name in ("mac", "mtu"):
        if "networks" in node.model_fields_set and getattr(at, name) not in ("", 0, net.mtu):
            rules.say(place, f"a vserver has no interface of its own, so no {name}")


def _plain(names: tuple[str, ...]) -> set[str]:
    return {name.upper().removeprefix("CAP_") for name in names}
