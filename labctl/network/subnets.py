"""Subnets for labs that clash with nothing on this host, and who holds one that does.

Allocation among labs is the ledger's (it is handed in as `taken`); this module knows the host: its
routes, its addresses, and the networks that Docker has defined without having them up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

from labctl.errors import HostCannot, LabError
from labctl.linux.netlink import Netlink
from labctl.records import dataclass

Network = IPv4Network | IPv6Network

# The usual pools first avoid what people have at home and what Docker and libvirt take by default.
POOLS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
POOL6 = "fd00::/8"
# The second holds the real ones where systemd-resolved stands in the first with an address of its own.
RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_LOCAL_TABLE, _MAIN_TABLE = 255, 254
_SKIP = ("127.0.0.0/8", "fe80::/10", "ff00::/8", "::1/128", "169.254.0.0/16", "224.0.0.0/4")


@dataclass(frozen=True)
class Holder:
    """A subnet and who has it, in words: "route via docker0", "lab web, network lan"."""

    subnet: str
    who: str


def host_holders(*, docker: bool = True) -> list[Holder]:
    """Every subnet this host has to do with: routes of all tables, addresses, gateways, name servers,
    Docker's networks."""
    with Netlink() as kernel:
        names = {link.index: link.name for link in kernel.links()}
        found = [
            Holder(route.destination, _via(names.get(route.index, "no interface"), route.table))
            for route in kernel.routes()
            if route.destination != "default" and route.table != _LOCAL_TABLE
        ]
        for address in kernel.addresses():
            network = str(ip_interface(address.address).network)
            found.append(Holder(network, f"address {address.address} on {names.get(address.index)}"))
        found += [
            Holder(route.gateway, f"the gateway of this host's default route via {names.get(route.index)}")
            for route in kernel.routes()
            if route.destination == "default" and route.gateway
        ]
    found += [Holder(address, "a name server of this host") for address in name_servers()]
    if docker:
        found += docker_networks()
    skip = [ip_network(text) for text in _SKIP]
    return [h for h in found if not any(_inside(ip_network(h.subnet), net) for net in skip)]


def name_servers(files: Sequence[str] = RESOLVERS) -> list[str]:
    """The addresses of the name servers that this host asks (resolv.conf(5)), each once."""
    found: dict[str, None] = {}
    for file in files:
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for words in (line.split() for line in lines):
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found[str(ip_address(words[1].partition("%")[0]))] = None
    return list(found)


def _via(interface: str, table: int) -> str:
    return f"route via {interface}" + (f" in table {table}" if table != _MAIN_TABLE else "")


def docker_networks(path: str = "/var/run/docker.sock", timeout: float = 1.0) -> list[Holder]:
    """The networks that Docker has defined; none where it doesn't answer within the time.

    Source: Docker Engine API, GET /networks.
    """
    there = socket.socket(socket.AF_UNIX)
    there.settimeout(timeout)
    try:
        there.connect(path)
    except OSError:
        there.close()
        return []
    import http.client  # 20 ms that only those who have Docker pay

    connection = http.client.HTTPConnection("docker", timeout=timeout)
    connection.sock = there
    try:
        connection.request("GET", "/networks")
        networks = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return []
    finally:
        with contextlib.suppress(OSError):
            connection.close()
    found = []
    for network in networks if isinstance(networks, list) else []:
        for config in (network.get("IPAM") or {}).get("Config") or []:
            if config.get("Subnet"):
                found.append(Holder(config["Subnet"], f"Docker network {network.get('Name')}"))
    return found


def holders_of(subnet: str, taken: Iterable[Holder] = (), *, host: bool = True) -> list[str]:
    """Who has a subnet that overlaps this one, each once; empty when it is free.

    `taken` are those that only a higher room knows (other labs, libvirt networks); they come first,
    since they say more than the route that goes with them.
    """
    wanted = ip_network(subnet, strict=False)
    here = sorted(host_holders() if host else [], key=lambda h: -ip_network(h.subnet).prefixlen)
    everyone = [*taken, *here]
    return list(
        dict.fromkeys(
            f"{holder.who} ({holder.subnet})"
            for holder in everyone
            if overlaps(wanted, ip_network(holder.subnet, strict=False))
        )
    )


def overlaps(one: Network, other: Network) -> bool:
    """Whether two networks share an address; never across versions."""
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _inside(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return isinstance(other, IPv6Network) and one.subnet_of(other)


def choose_subnets(
    count: int,
    taken: Sequence[Holder | str],
    *,
    prefix: int = 24,
    seed: str = "",
    pools: Sequence[str] = POOLS,
) -> list[str]:
    """`count` v4 subnets of `prefix` bits that overlap none of `taken` nor each other.

    The same seed on the same host gives the same ones; different seeds start at different places, so
    that labs of two LABCTL_HOMEs rarely ask for the same.  Raises HostCannot when the pools are full.
    """
    if not 8 <= prefix <= 30:
        raise LabError(f"cannot make subnets of /{prefix}", hint="choose a prefix between /8 and /30")
    busy = _merged(taken, 4)
    found: list[str] = []
    for pool in pools:
        network = IPv4Network(pool)
        if network.prefixlen > prefix:
            continue
        size = 1 << 32 - prefix
        total = network.num_addresses // size
        start = int.from_bytes(hashlib.sha256(f"{seed}/{pool}".encode()).digest()[:8], "big") % total
        first = int(network.network_address)
        step = 0
        while step < total and len(found) < count:
            slot = (start + step) % total
            low = first + slot * size
            clash = next((end for begin, end in busy if begin < low + size and low < end), 0)
            if not clash:
                found.append(str(IPv4Network((low, prefix))))
                busy.append((low, low + size))
                step += 1
            else:
                # Leap over the whole of what is in the way, but not past the end of the pool.
                step += max(1, min(total - slot, -(-(clash - low) // size)))
        if len(found) == count:
            return found
    raise HostCannot(
        f"no {count} free subnets of /{prefix} on this host", hint="set `subnet` of the networks yourself"
    )


def _merged(taken: Sequence[Holder | str], version: int) -> list[tuple[int, int]]:
    ranges = []
    for item in taken:
        network = ip_network(item.subnet if isinstance(item, Holder) else item, strict=False)
        if network.version == version:
            begin = int(network.network_address)
            ranges.append((begin, begin + network.num_addresses))
    return sorted(ranges)


def choose_subnets6(count: int, taken: Sequence[Holder | str], *, seed: str = "") -> list[str]:
    """`count` v6 /64s under a unique local /48 of the seed's (RFC 4193: 40 bits, here from a hash)."""
    busy = [
        network
        for network in (ip_network(t.subnet if isinstance(t, Holder) else t, strict=False) for t in taken)
        if isinstance(network, IPv6Network)
    ]
    for attempt in range(16):
        digest = hashlib.sha256(f"{seed}#{attempt}".encode()).digest()
        base = (0xFD << 40 | int.from_bytes(digest[:5], "big")) << 80
        site = IPv6Network((base, 48))
        if any(site.overlaps(network) for network in busy):
            continue
        return [str(IPv6Network((base | number << 64, 64))) for number in range(1, count + 1)]
    raise HostCannot("no free v6 subnets on this host", hint="set `subnet6` of the networks yourself")
