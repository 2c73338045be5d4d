"""The last step to the normalised profile: what was left to labctl and follows from the profile alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence

from labctl.profile.models import Attachment, Check, Network, Node, Profile, Step, Volume
from labctl.profile.types import Isolation, MountKind, Tier

IMPLIED = "lan"


def resolve(profile: Profile) -> Profile:
    """Names, interfaces, prefixes and implied networks and volumes filled in; touches nothing outside."""
    networks = {key: _network(net) for key, net in profile.networks.items()}
    if not networks and any(_wants_network(node) for node in profile.nodes.values()):
        networks = {IMPLIED: Network()}
    nodes = {key: _node(key, node, profile.nodes, networks) for key, node in profile.nodes.items()}
    volumes = dict(profile.volumes)
    if not volumes:
        used = (m.source for n in nodes.values() for m in n.volumes if m.kind is MountKind.VOLUME)
        volumes = {name: Volume() for name in used}
    checks = tuple(_check(check) for check in profile.checks)
    return profile.model_copy(
        update={"networks": networks, "nodes": nodes, "volumes": volumes, "checks": checks}
    )


def default_networks(
    node: Node, nodes: Mapping[str, Node], networks: Mapping[str, Network]
) -> list[str] | None:
    """The networks of a node that names none; None when they can't be guessed."""
    if node.tier is Tier.CONTAINER and node.isolation is Isolation.CHROOT:
        return []  # it has the host's
    host = nodes.get(node.inside)
    if node.inside and host and not host.inside:
        if "networks" in host.model_fields_set:
            return [at.network for at in host.networks]
        return default_networks(host, nodes, networks)
    if len(networks) <= 1:
        return list(networks)
    return [IMPLIED] if IMPLIED in networks else None


def fixed_addresses(profile: Profile) -> dict[str, set[str]]:
    """Network → the addresses that its nodes have stated, without prefix."""
    found: dict[str, set[str]] = {}
    for node in profile.nodes.values():
        for at in node.networks:
            found.setdefault(at.network, set()).update(
                str(ipaddress.ip_interface(a).ip) for a in at.addresses
            )
    return found


def first_free(
    subnet: ipaddress.IPv4Network | ipaddress.IPv6Network, fixed: Collection[str]
) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The first address of a subnet that is not one of `fixed`: the host's, so that it gives way to a router
    that has .1 as so many do.  None when all are taken."""
    last = subnet.num_addresses - (1 if subnet.version == 4 else 0)
    return next((ip for n in range(1, last) if str(ip := subnet.network_address + n) not in fixed), None)


def _wants_network(node: Node) -> bool:
    if "networks" in node.model_fields_set:
        return IMPLIED in {at.network for at in node.networks}
    return not (node.tier is Tier.CONTAINER and node.isolation is Isolation.CHROOT)


def _network(net: Network) -> Network:
    return net.model_copy(update={"ipv6": True}) if net.subnet6 and not net.ipv6 else net


def _node(key: str, node: Node, nodes: Mapping[str, Node], networks: Mapping[str, Network]) -> Node:
    attached: Sequence[Attachment] = node.networks
    if "networks" not in node.model_fields_set:
        attached = [Attachment(network=name) for name in default_networks(node, nodes, networks) or ()]
    named = {at.interface for at in attached if at.interface}
    free = (name for number in range(len(attached) + len(named) + 1) if (name := f"eth{number}") not in named)
    secrets = tuple(
        use if use.target else use.model_copy(update={"target": f"/run/secrets/{use.secret}"})
        for use in node.secrets
    )
    return node.model_copy(
        update={
            "name": key,
            "replicas": 1,
            "hostname": node.hostname or key,
            "networks": tuple(
                _attachment(at, at.interface or next(free), networks.get(at.network), node) for at in attached
            ),
            "provision": tuple(_step(step) for step in node.provision),
            "secrets": secrets,
        }
    )


def _attachment(at: Attachment, interface: str, net: Network | None, node: Node) -> Attachment:
    update: dict[str, object] = {"interface": interface}
    if net:
        update["assign"] = at.assign and net.assign
        update["addresses"] = tuple(_with_prefix(address, net) for address in at.addresses)
        if not at.mtu:
            update["mtu"] = net.mtu
    return at.model_copy(update=update)


def _with_prefix(address: str, net: Network) -> str:
    """A fixed address with its subnet's prefix length, when the profile says which that is."""
    subnet = net.subnet6 if ":" in address else net.subnet
    return address if "/" in address or not subnet else f"{address}/{ipaddress.ip_network(subnet).prefixlen}"


def _first_line(script: str) -> str:
    lines = [line.strip() for line in script.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), script.strip())
    return first if len(first) <= 60 else first[:59] + "…"


def _step(step: Step) -> Step:
    return step if step.name else step.model_copy(update={"name": _first_line(step.run)})


def _check(check: Check) -> Check:
    if check.name:
        return check
    shell = check.command[:2] == ("/bin/sh", "-c") and len(check.command) == 3
    said = _first_line(check.command[2]) if shell else " ".join(check.command)
    return check.model_copy(update={"name": f"{check.node}: {said if len(said) <= 60 else said[:59] + '…'}"})
