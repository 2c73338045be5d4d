"""Rules about networks, addresses, routes and ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator

from labctl.profile.models import Attachment, Network, Node, Port
from labctl.profile.plainly import Loc
from labctl.profile.resolve import default_networks, first_free, fixed_addresses
from labctl.profile.rules import Rules

Net = ipaddress.IPv4Network | ipaddress.IPv6Network
Addr = ipaddress.IPv4Address | ipaddress.IPv6Address


def check(rules: Rules) -> None:
    """Note what is wrong with networks and with what nodes have on them."""
    for name, net in rules.profile.networks.items():
        _network(rules, name, net)
    _overlaps(rules)
    taken: dict[tuple[str, str], str] = {}
    ports: list[tuple[str, int, Port]] = []
    for key, node in rules.profile.nodes.items():
        if not rules.is_broken("nodes", key, "networks"):
            _interfaces(rules, key, node, taken)
        _ways_out(rules, key, node)
        _ports(rules, key, node, ports)
    _room(rules)


def subnets(net: Network) -> Iterator[tuple[str, Net]]:
    """The subnets that a network was given, with the field of each."""
    for field in ("subnet", "subnet6"):
        if value := getattr(net, field):
            yield field, ipaddress.ip_network(value)


def host_addresses(net: Network, fixed: Collection[str]) -> dict[int, Addr]:
    """The host's address of each IP version, where it follows from the profile: the stated one, else the
    first that no node has `fixed`."""
    found: dict[int, Addr] = {}
    for field, subnet in subnets(net):
        stated = net.host_address6 if field == "subnet6" else net.host_address
        if stated:
            found[subnet.version] = ipaddress.ip_address(stated)
        elif subnet.num_addresses > 2 and (free := first_free(subnet, fixed)):
            found[subnet.version] = free
    return found if net.host else {}


def _network(rules: Rules, name: str, net: Network) -> None:
    place: Loc = ("networks", name)
    for field, subnet in subnets(net):
        wanted = 6 if field == "subnet6" else 4
        if subnet.version != wanted:
            message = f"{subnet} is an IPv{subnet.version} subnet; {field} is for IPv{wanted}"
            rules.say((*place, field), message)
        elif not _usable(subnet):
            hint = "for example 10.1.0.0/24 or fd00:1::/64"
            rules.say((*place, field), f"{subnet} is not for networks of machines", hint)
        elif subnet.num_addresses < 4:
            rules.say((*place, field), f"{subnet} has no room for two machines", "a /30 is the least")
    if not net.assign and (net.subnet or net.subnet6 or net.internet):
        rules.say(place, "subnet: none goes together neither with a subnet nor with internet: true")
    if net.internet and not net.host:
        hint = "remove host_address: false"
        rules.say((*place, "internet"), "internet: true needs the host on the network", hint)
    if 0 < net.mtu < (1280 if net.ipv6 else 68):
        least = "1280, the least for IPv6" if net.ipv6 else "68, the least for IPv4"
        rules.say((*place, "mtu"), f"an MTU of {net.mtu} is below {least}")
    for field, stated in (("host_address", net.host_address), ("host_address6", net.host_address6)):
        if stated and not net.host:
            rules.say((*place, field), "the host is not on this network, so it has no address there")
        elif stated:
            _fits(rules, (*place, field), ipaddress.ip_interface(stated), name, net, host=True)


def _usable(subnet: Net) -> bool:
    """Whether machines can have addresses of it: none that stands for all, for this host, for a group, for
    one link, or that nobody may have (IANA's special-purpose address registries)."""
    mapped = subnet.version == 6 and subnet.network_address in ipaddress.ip_network("::/8")
    special = subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or mapped
    return not special and not (
        subnet.version == 4 and int(subnet.network_address) >> 24 in (0, *range(240, 256))
    )


def _overlaps(rules: Rules) -> None:
    seen: list[tuple[str, Net]] = []
    for name, net in rules.profile.networks.items():
        for field, subnet in subnets(net):
            for other, theirs in seen:
                if subnet.version == theirs.version and subnet.overlaps(theirs):
                    rules.say(("networks", name, field), f"{subnet} overlaps {theirs} of {other}")
            seen.append((name, subnet))


def _fits(
    rules: Rules,
    loc: Loc,
    given: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
    name: str,
    net: Network,
    *,
    host: bool = False,
) -> bool:
    """Whether an address can be one of a network's; says why not."""
    address = given.ip
    subnet = {s.version: s for _, s in subnets(net)}.get(address.version)
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        rules.say(loc, f"{address} can't be the address of a machine")
    elif (
        rules.is_broken("networks", name, "subnet")
        or rules.is_broken("networks", name, "subnet6")
        or address.is_link_local
        or (subnet is None and rules.is_broken("networks", name))
    ):
        return False
    elif subnet is None:
        if net.assign or host:
            guess = given.network if given.network.num_addresses > 1 else _around(address)
            message = f"{name} has no IPv{address.version} subnet, so that {address} can't be on it"
            rules.say(loc, message, f"write subnet: {guess} in {name}")
        elif given.network.num_addresses == 1:
            message = f"{name} has no subnet, so that {address} needs a prefix length"
            rules.say(loc, message, f"such as {address}/{64 if address.version == 6 else 24}")
        else:
            return True
    elif address not in subnet:
        rules.say(loc, f"{address} is outside {subnet}, the subnet of {name}")
    elif address == subnet.network_address and subnet.num_addresses > 2:
        kind = "network address" if address.version == 4 else "routers' anycast address"
        rules.say(loc, f"{address} is the {kind} of {subnet}")
    elif address == subnet.broadcast_address and address.version == 4 and subnet.num_addresses > 2:
        rules.say(loc, f"{address} is the broadcast address of {subnet}")
    elif not host and given.network.prefixlen != subnet.prefixlen:
        message = f"{given} has another prefix length than {subnet}, the subnet of {name}"
        rules.say(loc, message, "leave it out")
    else:
        return True
    return False


def _around(address: Addr) -> Net:
    return ipaddress.ip_network(f"{address}/{64 if address.version == 6 else 24}", strict=False)


def _interfaces(rules: Rules, key: str, node: Node, taken: dict[tuple[str, str], str]) -> None:
    place: Loc = ("nodes", key, "networks")
    profile = rules.profile
    known = profile.networks
    if "networks" not in rules.at(("nodes", key)).map and not node.networks:
        message = f"networks is missing: say which of {', '.join(known)} {key} is on"
        if default_networks(node, profile.nodes, known) is None:
            rules.say(("nodes", key), message, "[] for none", key=True)
    names: set[str] = set()
    for index, at in enumerate(node.networks):
        loc: Loc = (*place, index)
        if at.network not in known:
            if not rules.is_broken("networks", at.network):
                rules.unknown((*loc, "network"), "network", at.network, known)
            continue
        if at.interface in names:
            rules.say((*loc, "interface"), f"{key} has two interfaces called {at.interface}")
        names.add(at.interface)
        if at.mac:
            holder = taken.setdefault((at.network, at.mac), key)
            if holder != key or sum(
                a.mac == at.mac and a.network == at.network for a in node.networks[:index]
            ):
                rules.say((*loc, "mac"), f"the MAC address {at.mac} is taken by {holder} on {at.network}")
        _addresses(rules, key, node, index, at, taken)


def _addresses(
    rules: Rules, key: str, node: Node, index: int, at: Attachment, taken: dict[tuple[str, str], str]
) -> None:
    net = rules.profile.networks[at.network]
    hosts = host_addresses(net, fixed_addresses(rules.profile).get(at.network, ()))
    for number, text in enumerate(at.addresses):
        loc: Loc = ("nodes", key, "networks", index, "addresses", number)
        given = ipaddress.ip_interface(text)
        if given.version == 6 and not node.ipv6:
            rules.say(loc, f"{given.ip} is an IPv6 address, and {key} has ipv6: false")
        if not _fits(rules, loc, given, at.network, net):
            continue
        if given.ip == hosts.get(given.version):
            hint = "host_address: in the network gives the host another one"
            rules.say(loc, f"{given.ip} is the host's own address on {at.network}", hint)
        mark = (at.network, str(given.ip))
        if mark in taken:
            rules.say(loc, f"{given.ip} is taken by {taken[mark]} on {at.network}")
        taken.setdefault(mark, key)


def _room(rules: Rules) -> None:
    """Whether every network has an address for each of its members."""
    members: dict[str, list[int]] = {}
    for node in rules.profile.nodes.values():
        for at in node.networks:
            versions = {4 if "." in a else 6 for a in at.addresses}
            for version in (4, 6):
                if version in versions or (at.assign and (version == 4 or node.ipv6)):
                    members.setdefault(at.network, [0, 0])[version == 6] += 1
    for name, net in rules.profile.networks.items():
        for field, subnet in subnets(net):
            need = members.get(name, [0, 0])[subnet.version == 6]
            room = subnet.num_addresses - (2 if subnet.version == 4 else 1) - net.host
            if need > room >= 0 and not rules.is_broken("networks", name):
                message = f"{subnet} has room for {room} nodes, and {need} are on {name}"
                hint = "host_address: false leaves the host out, which counts as one" if net.host else ""
                rules.say(("networks", name, field), message, hint)


def _ways_out(rules: Rules, key: str, node: Node) -> None:
    place: Loc = ("nodes", key)
    for field, wanted in (("gateway", 4), ("gateway6", 6)):
        value = getattr(node, field)
        if value in ("", "none"):
            continue
        hop = ipaddress.ip_address(value)
        if hop.version != wanted:
            rules.say((*place, field), f"{hop} is an IPv{hop.version} address; {field} is for IPv{wanted}")
        elif not _reaches(rules, node, hop):
            rules.say((*place, field), f"{hop} is on none of the networks of {key}")
    names = {at.interface for at in node.networks}
    for index, route in enumerate(node.routes):
        loc: Loc = (*place, "routes", index)
        if not route.via and not route.interface:
            rules.say(loc, "a route needs via or interface")
        if route.interface and route.interface not in names and not rules.is_broken(*place, "networks"):
            rules.unknown((*loc, "interface"), "interface", route.interface, sorted(names))
        if not route.via:
            continue
        hop = ipaddress.ip_address(route.via)
        if route.to != "default" and ipaddress.ip_network(route.to).version != hop.version:
            rules.say((*loc, "via"), f"{hop} can't lead to {route.to}: one is IPv4, the other IPv6")
        elif not _reaches(rules, node, hop):
            rules.say((*loc, "via"), f"{hop} is on none of the networks of {key}")


def _reaches(rules: Rules, node: Node, hop: Addr) -> bool:
    """Whether a next hop may be a neighbour: False only when the profile shows that it isn't."""
    if hop.is_link_local:
        return True
    for at in node.networks:
        net = rules.profile.networks.get(at.network)
        fixed = {i.version: i.network for i in map(ipaddress.ip_interface, at.addresses)}
        given = {s.version: s for _, s in subnets(net)} if net else {}
        subnet = fixed.get(hop.version) or given.get(hop.version)
        if subnet is None or hop in subnet:
            return True  # labctl chooses that subnet, or the node sets its own addresses
    return False


def _ports(rules: Rules, key: str, node: Node, seen: list[tuple[str, int, Port]]) -> None:
    place: Loc = ("nodes", key, "ports")
    reachable = [n for at in node.networks if (n := rules.profile.networks.get(at.network)) and n.host]
    if node.ports and not reachable and not rules.is_broken("nodes", key, "networks"):
        rules.say(place, f"{key} is on no network that the host is on, so that no port can be published")
    for index, port in enumerate(node.ports):
        if not port.host_port:
            continue
        for other, _, theirs in seen:
            if (port.proto, port.host_port) == (theirs.proto, theirs.host_port) and _same_ip(port, theirs):
                who = f"by {other}" if other != key else "above"
                rules.say((*place, index), f"port {port.host_port}/{port.proto} of the host is taken {who}")
                break
        seen.append((key, index, port))


def _same_ip(one: Port, other: Port) -> bool:
    every = {"", "0.0.0.0", "::"}
    return one.host_ip == other.host_ip or bool(every & {one.host_ip, other.host_ip})
