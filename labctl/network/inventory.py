"""All that networking left on this host, as one comparable snapshot.

Counters, handles, indices and lifetimes are left out, so that two snapshots of an unchanged host are equal.
"""

from __future__ import annotations

import re
from pathlib import Path

from labctl.errors import HostCannot
from labctl.linux.netlink import Netlink
from labctl.network import dns, iptables, nft

Snapshot = dict[str, list[str]]

_SWITCHES = (
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/*/forwarding",
    "/proc/sys/net/ipv4/conf/*/route_localnet",
    "/proc/sys/net/ipv6/conf/*/forwarding",
    "/proc/sys/net/ipv6/conf/*/accept_ra",
    "/proc/sys/net/bridge/bridge-nf-call-*",
)
_LINK_LOCAL = 253


def inventory() -> Snapshot:
    """What there is now in the calling thread's network namespace, and the namespaces that are kept."""
    found = _links()
    found["nft"] = _nft()
    found["iptables"] = [
        f"{Path(variant.program).name} {rule}"
        for variant in iptables.variants()
        for table in ("filter", "nat")
        if "legacy" not in variant.program or table in iptables.loaded(6 if "ip6" in variant.program else 4)
        for rule in variant.rules(table)
    ]
    found["namespaces"] = namespaces()
    found["sysctls"] = _sysctls()
    found["dnsmasq"] = [mark for _, mark in dns.servers()]
    return {key: sorted(values) for key, values in found.items()}


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What differs, a line each: "+ links lb1 …" for what is new, "- …" for what is gone."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, []), after.get(key, [])
        lines += [f"+ {key} {item}" for item in new if item not in old]
        lines += [f"- {key} {item}" for item in old if item not in new]
    return lines


def _links() -> Snapshot:
    with Netlink() as kernel:
        links, addresses, routes = kernel.links(), kernel.addresses(), kernel.routes()
    names = {link.index: link.name for link in links}
    return {
        "links": [
            f"{k.name} {k.kind} master={names.get(k.master, '')} mtu={k.mtu} up={k.up} {k.alias}"
            for k in links
        ],
        # Link-local addresses come and go with the carrier, a moment after the act.
        "addresses": [f"{names.get(a.index)} {a.address}" for a in addresses if a.scope != _LINK_LOCAL],
        "routes": [
            f"{r.destination} via {r.gateway} dev {names.get(r.index)} table {r.table} metric {r.metric}"
            for r in routes
            if not r.destination.startswith(("fe80:", "ff00:"))
        ],
    }


def _nft() -> list[str]:
    try:
        text = nft.text_of_all()
    except HostCannot:
        return []
    table = ""
    lines = []
    for line in text.splitlines():
        if line.startswith("table "):
            table = line.removesuffix(" {")
            lines.append(table)
        elif line.strip() not in ("", "}"):
            # iptables-nft's rules carry counters that -s leaves in.
            lines.append(
                f"{table}: {re.sub(r'counter packets [0-9]+ bytes [0-9]+', 'counter', line.strip())}"
            )
    return lines


def namespaces() -> list[str]:
    """Where network namespaces, and the user namespaces that own them, are kept by mounts here."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[3].startswith(("net:[", "user:[")):
            points.append(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4]))
    return points


def _sysctls() -> list[str]:
    lines = []
    for pattern in _SWITCHES:
        for path in Path("/").glob(pattern.lstrip("/")):
            lines.append(f"{path.relative_to('/proc/sys')}={path.read_text().strip()}")
    return lines
