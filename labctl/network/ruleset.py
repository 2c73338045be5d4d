"""The nft rules of one lab, as text: pure, so that it is read and tested without a kernel.

What they say (nft(8)):
- A node reaches nodes of its own segment, its DNS server, and the host by ICMP; other services of the
  host only if `host_services` names them ("tcp/8000").  The host reaches its nodes.
- A node that has the host's network is reached at its own address (`node_addresses`), and there so is what
  the host itself has listening on all of its addresses.
- Segments are not routed to each other by the host, not even those of one lab: that is a router node's work.
- The outside is reached only from segments with `internet`, behind the host's address.  The bridges of
  other labs (a link group, see model.LAB_GROUP) are never reached, nor do they reach us.
- A published port leads to its node, from other hosts, from this one (127.0.0.1 too) and from the
  lab's own nodes; nodes see the client's address where they have a way back, else the bridge's.
  A node doesn't reach itself that way: a bridge sends no frame back to the port it came from.
Refusals are rejects, so that a program in a node hears at once.  The last word of a table is `accept`
only for this table: other tables may still drop (see iptables.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from labctl.errors import LabError
from labctl.network.model import LAB_GROUP, BridgeRule, PublishedPort

_REJECT = "reject with icmpx admin-prohibited"
_COMMENT_MAX = 127  # bytes, of nft's 128 with the closing zero
RECORD = "record"  # the chain whose comments hold what must be known to unmake the table


def comment(text: str) -> str:
    """A text as an nft comment.  Raises LabError when nft could not read it back."""
    if '"' in text or "\\" in text or not text.isprintable() or len(text.encode()) > _COMMENT_MAX:
        raise LabError(f"cannot write {text!r} on a firewall rule", hint="use a shorter, plainer name")
    return f'"{text}"'


def ruleset(
    table: str,
    mark: str,
    bridges: Sequence[BridgeRule],
    ports: Sequence[PublishedPort],
    *,
    host_services: Sequence[str] = (),
    node_addresses: Sequence[str] = (),
    former: Mapping[str, str] | None = None,
) -> str:
    """The text for `nft -f -` that puts the lab's table in place in one transaction.

    `former` are the sysctls' values before the first lab changed them; they are kept as comments, so
    that this record lives exactly as long as the change it is about.
    """
    chains = [
        ("guard", "type filter hook prerouting priority -300; policy accept;", _guard(bridges)),
        ("prerouting", "type nat hook prerouting priority -100; policy accept;", _inbound(bridges, ports)),
        ("output", "type nat hook output priority -100; policy accept;", _own(ports)),
        ("postrouting", "type nat hook postrouting priority 100; policy accept;", _masquerade(bridges)),
        (
            "input",
            "type filter hook input priority 0; policy accept;",
            _input(bridges, host_services, node_addresses),
        ),
        ("forward", "type filter hook forward priority 0; policy accept;", _forward(bridges)),
    ]
    body: list[str] = []
    for name, hook, rules in chains:
        if rules:
            body += [f"\tchain {name} {{", f"\t\t{hook}", *(f"\t\t{rule}" for rule in rules), "\t}"]
    digest = hashlib.sha256("\n".join(body).encode()).hexdigest()[:16]
    notes = [mark, f"digest={digest}", f"rules={sum(len(rules) for _, _, rules in chains)}"]
    notes += [f"{key}={value}" for key, value in (former or {}).items()]
    record = [f"\tchain {RECORD} {{", *(f"\t\tcontinue comment {comment(note)}" for note in notes), "\t}"]
    # To declare it first makes the deletion valid when there is none yet.
    head = [f"table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    head.append(f"\tcomment {comment(mark)}")
    return "\n".join([*head, *record, *body, "}", ""])


def digest_of(text: str) -> str:
    """The digest that a ruleset carries."""
    return text.partition("digest=")[2].partition('"')[0]


def _names(bridges: Sequence[BridgeRule]) -> str:
    return "{ " + ", ".join(f'"{bridge.ifname}"' for bridge in bridges) + " }"


def _guard(bridges: Sequence[BridgeRule]) -> list[str]:
    # route_localnet on our bridges, needed for 127.0.0.1:PORT, must not open the host's loopback.
    return [f"iifname {_names(bridges)} ip daddr 127.0.0.0/8 drop"] if bridges else []


def _target(port: PublishedPort) -> str:
    to = f"ip to {port.node_ip}" if port.version == 4 else f"ip6 to [{port.node_ip}]"
    return f"{port.proto} dport {port.host_port} dnat {to}:{port.node_port}"


def _where(port: PublishedPort) -> str:
    family = "ipv4" if port.version == 4 else "ipv6"
    if port.everywhere:
        return f"meta nfproto {family} fib daddr type local"
    return f"{'ip' if port.version == 4 else 'ip6'} daddr {port.host_ip}"


def _inbound(bridges: Sequence[BridgeRule], ports: Sequence[PublishedPort]) -> list[str]:
    rules = [f"{_where(port)} {_target(port)}" for port in ports if not port.local_only]
    if rules and bridges:
        rules.insert(0, f"iifgroup {LAB_GROUP} iifname != {_names(bridges)} return")
    return rules


def _own(ports: Sequence[PublishedPort]) -> list[str]:
    return [f"{_where(port)} {_target(port)}" for port in ports]


def _masquerade(bridges: Sequence[BridgeRule]) -> list[str]:
    rules = []
    for bridge in bridges:
        leaving = f'oifname "{bridge.ifname}" ct status dnat'
        if bridge.internet:
            rules.append(f"{leaving} fib saddr type local masquerade")
            for word, net in (("ip", bridge.subnet4), ("ip6", bridge.subnet6)):
                if net:
                    rules.append(f"{leaving} {word} saddr {net} masquerade")
        elif bridge.subnet4 or bridge.subnet6:
            rules.append(f"{leaving} masquerade")
    for bridge in bridges:
        for word, net in (("ip", bridge.subnet4), ("ip6", bridge.subnet6)):
            if bridge.internet and net:
                rules.append(f"{word} saddr {net} oifgroup != {LAB_GROUP} masquerade")
    return rules


def _input(
    bridges: Sequence[BridgeRule], services: Sequence[str], node_addresses: Sequence[str]
) -> list[str]:
    if not bridges:
        return []
    rules = [
        f"iifname != {_names(bridges)} accept",
        "ct state established,related accept",
        "meta l4proto { icmp, ipv6-icmp } accept",
        "meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept",
    ]
    rules += [f"ip daddr {address} accept" for address in node_addresses]
    for service in services:
        proto, _, port = service.partition("/")
        rules.append(f"{proto} dport {int(port)} accept")
    return [*rules, _REJECT]


def _forward(bridges: Sequence[BridgeRule]) -> list[str]:
    if not bridges:
        return []
    names = _names(bridges)
    open_ones = [bridge for bridge in bridges if bridge.internet]
    rules = [f"iifname != {names} oifname != {names} accept"]
    # With br_netfilter the frames of one segment come by here too.
    rules += [f'iifname "{b.ifname}" oifname "{b.ifname}" accept' for b in bridges]
    rules.append(f"iifgroup {LAB_GROUP} iifname != {names} {_REJECT}")
    rules.append("ct state established,related accept")
    rules.append(f"oifname {names} ct status dnat accept")
    if open_ones:
        rules.append(f"iifname {_names(open_ones)} oifgroup != {LAB_GROUP} accept")
    return [*rules, _REJECT]
