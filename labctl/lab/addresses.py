"""Who has which address: pure arithmetic from the profile, what was assigned before, and free subnets.

Assignment is sticky: a node keeps the addresses that it has, whatever is added before or after it
in the profile, so that a second `up` changes only what differs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field

from labctl.errors import UsageError
from labctl.lab import names
from labctl.looks import Owner
from labctl.network.model import Interface
from labctl.profile.models import Attachment, Network, Node, Profile
from labctl.profile.resolve import first_free, fixed_addresses
from labctl.profile.types import Tier
from labctl.records import dataclass
from labctl.tiers.context import Place

Net = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Segment:
    """A network of the lab with its real subnets; "" where it has none of a family."""

    name: str
    bridge: str
    subnet4: str
    subnet6: str
    host4: str  # the host's address, without prefix
    host6: str
    network: Network

    def with_prefix(self, address: str) -> str:
        """The address with the prefix length of the segment's subnet of its family."""
        subnet = self.subnet6 if ":" in address else self.subnet4
        return (
            f"{address}/{subnet.partition('/')[2]}"
            if subnet
            else f"{address}/{128 if ':' in address else 32}"
        )

    @property
    def host_addresses(self) -> tuple[str, ...]:
        """The host's addresses on the bridge, each with its prefix."""
        return tuple(self.with_prefix(address) for address in (self.host4, self.host6) if address)


@dataclass(frozen=True)
class Plan:
    """All segments and the place of every node."""

    segments: Mapping[str, Segment]
    places: Mapping[str, Place]
    names: Mapping[str, str] = field(default_factory=dict)  # DNS name → "ip,ip"


def wanted_subnets(profile: Profile) -> dict[str, tuple[bool, bool]]:
    """The networks whose subnets labctl must choose: name → (an IPv4 one, an IPv6 one)."""
    wanted: dict[str, tuple[bool, bool]] = {}
    for name, network in profile.networks.items():
        four = network.assign and not network.subnet
        six = network.assign and network.ipv6 and not network.subnet6
        if four or six:
            wanted[name] = (four, six)
    return wanted


def segments(profile: Profile, owner: Owner, chosen: Mapping[str, tuple[str, str]]) -> dict[str, Segment]:
    """The segments; `chosen` gives (IPv4, IPv6) subnets for those of `wanted_subnets`."""
    found: dict[str, Segment] = {}
    fixed = fixed_addresses(profile)
    for name, network in profile.networks.items():
        free4, free6 = chosen.get(name, ("", ""))
        subnet4, subnet6 = network.subnet or free4, network.subnet6 or free6
        host4 = (network.host_address or _first(subnet4, fixed.get(name, ()))) if network.host else ""
        host6 = (network.host_address6 or _first(subnet6, fixed.get(name, ()))) if network.host else ""
        found[name] = Segment(name, names.bridge_name(owner, name), subnet4, subnet6, host4, host6, network)
    return found


def _first(subnet: str, fixed: Collection[str]) -> str:
    free = first_free(ipaddress.ip_network(subnet), fixed) if subnet else None
    return str(free or "")


def places(
    nodes: Sequence[Node],
    owner: Owner,
    segs: Mapping[str, Segment],
    before: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, Place]:
    """Give every interface its MAC and addresses.

    `before` is node → interface → addresses from the last time.  Raises UsageError when a subnet
    is too small for its nodes.
    """
    used: dict[str, set[str]] = {name: {seg.host4, seg.host6} for name, seg in segs.items()}
    for node in nodes:
        for attachment in node.networks:
            used[attachment.network].update(a.partition("/")[0] for a in attachment.addresses)
    kept: dict[tuple[str, int, int], str] = {}
    for node in nodes:
        for index, attachment in enumerate(node.networks):
            seg = segs[attachment.network]
            for address in before.get(node.name, {}).get(_interface_name(attachment, index), ()):
                bare = address.partition("/")[0]
                family = 6 if ":" in bare else 4
                if (
                    bare not in used[seg.name]
                    and _wants(attachment, seg, node, family)
                    and _inside(bare, seg)
                ):
                    kept[node.name, index, family] = bare
                    used[seg.name].add(bare)
    pools = {(name, family): _free(seg, family) for name, seg in segs.items() for family in (4, 6)}
    return {node.name: _place(node, owner, segs, used, kept, pools) for node in nodes}


def _place(
    node: Node,
    owner: Owner,
    segs: Mapping[str, Segment],
    used: Mapping[str, set[str]],
    kept: Mapping[tuple[str, int, int], str],
    pools: Mapping[tuple[str, int], Iterator[str]],
) -> Place:
    interfaces: list[Interface] = []
    for index, attachment in enumerate(node.networks):
        seg = segs[attachment.network]
        addresses = [a if "/" in a else seg.with_prefix(a) for a in attachment.addresses]
        for family in (4, 6):
            if _wants(attachment, seg, node, family):
                bare = kept.get((node.name, index, family)) or _next(
                    pools[seg.name, family], used[seg.name], seg
                )
                used[seg.name].add(bare)
                addresses.append(seg.with_prefix(bare))
        interfaces.append(
            Interface(
                host_name=names.port_name(owner, node.name, index, vm=node.tier is not Tier.CONTAINER),
                name=_interface_name(attachment, index),
                bridge=seg.bridge,
                mac=attachment.mac or names.mac(owner, node.name, index),
                addresses=tuple(addresses),
                up=attachment.up,
                mtu=attachment.mtu or seg.network.mtu,
            )
        )
    networks = tuple(attachment.network for attachment in node.networks)
    mine = [segs[name] for name in networks]
    four = _gateway(node.gateway, mine, interfaces, 4)
    six = _gateway(node.gateway6, mine, interfaces, 6) if node.ipv6 else ""
    dns = dict.fromkeys(
        seg.host4 or seg.host6 for seg in mine if seg.network.dns and (seg.host4 or seg.host6)
    )
    domains = [seg.network.domain for seg in mine if seg.network.domain]
    return Place(tuple(interfaces), networks, four, six, tuple(dns), domains[0] if domains else "")


def _interface_name(attachment: Attachment, index: int) -> str:
    return attachment.interface or f"eth{index}"


def _wants(attachment: Attachment, seg: Segment, node: Node, family: int) -> bool:
    """Whether labctl chooses an address of this family for the interface."""
    if not attachment.assign or not seg.network.assign or not (seg.subnet4 if family == 4 else seg.subnet6):
        return False
    if family == 6 and not node.ipv6:
        return False
    return not any((":" in address) == (family == 6) for address in attachment.addresses)


def _inside(address: str, seg: Segment) -> bool:
    subnet = seg.subnet6 if ":" in address else seg.subnet4
    return bool(subnet) and ipaddress.ip_address(address) in ipaddress.ip_network(subnet)


def _free(seg: Segment, family: int) -> Iterator[str]:
    subnet = seg.subnet6 if family == 6 else seg.subnet4
    return map(str, ipaddress.ip_network(subnet).hosts()) if subnet else iter(())


def _next(pool: Iterator[str], used: set[str], seg: Segment) -> str:
    for address in pool:
        if address not in used:
            return address
    raise UsageError(
        f"network {seg.name}: no address is left in {seg.subnet4 or seg.subnet6}",
        hint=f"give networks.{seg.name}.subnet a shorter prefix, or fewer nodes",
    )


def _gateway(wish: str, segs: Sequence[Segment], interfaces: Sequence[Interface], family: int) -> str:
    """The default gateway: the one asked for, else the host on the first segment with internet.

    Elsewhere the host forwards nothing: a default route to it would lead nowhere, stand in the way of the
    one that a script or a routing daemon sets, and let a router that has not learnt its routes yet send
    redirects to the host, which its neighbours then obey for minutes (RFC 1122, section 3.2.2.2).
    """
    if wish:
        return "" if wish == "none" else wish
    hosts = (
        seg.host6 if family == 6 else seg.host4
        for seg, interface in zip(segs, interfaces, strict=True)
        if seg.network.internet
        and interface.up
        and any((":" in a) == (family == 6) for a in interface.addresses)
    )
    return next((address for address in hosts if address), "")


def dns_names(
    nodes: Sequence[Node], lab_places: Mapping[str, Place], segs: Mapping[str, Segment]
) -> dict[str, str]:
    """DNS name → its addresses, joined by commas: nodes, their aliases, and those of interfaces.

    The name of a replicated node (`web` for web-1 … web-3) answers with all of its replicas, and
    `host` with the host itself where no node has that name.
    """
    found: dict[str, list[str]] = {}
    for node in nodes:
        place = lab_places[node.name]
        bare = [
            a.partition("/")[0]
            for interface, name in zip(place.interfaces, place.networks, strict=True)
            if interface.up and segs[name].network.dns
            for a in interface.addresses
        ]
        for name in dict.fromkeys((node.name, node.hostname or node.name, *node.aliases, node.replica_of)):
            if name and bare:
                found.setdefault(name.lower(), []).extend(bare)
        for attachment, interface in zip(node.networks, place.interfaces, strict=True):
            for alias in attachment.aliases:
                found.setdefault(alias.lower(), []).extend(a.partition("/")[0] for a in interface.addresses)
    return {name: ",".join(dict.fromkeys(addresses)) for name, addresses in found.items()}


def plan(
    profile: Profile,
    owner: Owner,
    chosen: Mapping[str, tuple[str, str]],
    before: Mapping[str, Mapping[str, Sequence[str]]],
) -> Plan:
    """Segments, places and names of a whole lab."""
    nodes = list(profile.nodes.values())
    segs = segments(profile, owner, chosen)
    where = places(nodes, owner, segs, before)
    return Plan(segs, where, dns_names(nodes, where, segs))
