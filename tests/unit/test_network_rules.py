"""The text of a lab's nft rules, and what is made of other people's iptables."""

from __future__ import annotations

import pytest

from labctl.errors import LabError
from labctl.network import iptables
from labctl.network.model import BridgeRule, PublishedPort
from labctl.network.ruleset import digest_of, ruleset

MARK = "labctl:aaaaaaaa:12345678:firewall:lab"
LAN = BridgeRule("lb1", "10.1.2.0/24", "fd00:1::/64", internet=True)
L2 = BridgeRule("lb2")


def test_the_whole_text_of_a_small_lab() -> None:
    text = ruleset(
        "labctl_12345678", MARK, [LAN, L2], [PublishedPort("tcp", "", 8080, "10.1.2.3", 80, "lb1")]
    )
    digest = digest_of(text)
    reject = "reject with icmpx admin-prohibited"
    assert text.expandtabs(2).splitlines() == [
        "table inet labctl_12345678",
        "delete table inet labctl_12345678",
        "table inet labctl_12345678 {",
        f'  comment "{MARK}"',
        "  chain record {",
        f'    continue comment "{MARK}"',
        f'    continue comment "digest={digest}"',
        '    continue comment "rules=22"',
        "  }",
        "  chain guard {",
        "    type filter hook prerouting priority -300; policy accept;",
        '    iifname { "lb1", "lb2" } ip daddr 127.0.0.0/8 drop',
        "  }",
        "  chain prerouting {",
        "    type nat hook prerouting priority -100; policy accept;",
        '    iifgroup 7102818 iifname != { "lb1", "lb2" } return',
        "    meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.1.2.3:80",
        "  }",
        "  chain output {",
        "    type nat hook output priority -100; policy accept;",
        "    meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.1.2.3:80",
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority 100; policy accept;",
        '    oifname "lb1" ct status dnat fib saddr type local masquerade',
        '    oifname "lb1" ct status dnat ip saddr 10.1.2.0/24 masquerade',
        '    oifname "lb1" ct status dnat ip6 saddr fd00:1::/64 masquerade',
        "    ip saddr 10.1.2.0/24 oifgroup != 7102818 masquerade",
        "    ip6 saddr fd00:1::/64 oifgroup != 7102818 masquerade",
        "  }",
        "  chain input {",
        "    type filter hook input priority 0; policy accept;",
        '    iifname != { "lb1", "lb2" } accept',
        "    ct state established,related accept",
        "    meta l4proto { icmp, ipv6-icmp } accept",
        "    meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept",
        f"    {reject}",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority 0; policy accept;",
        '    iifname != { "lb1", "lb2" } oifname != { "lb1", "lb2" } accept',
        '    iifname "lb1" oifname "lb1" accept',
        '    iifname "lb2" oifname "lb2" accept',
        f'    iifgroup 7102818 iifname != {{ "lb1", "lb2" }} {reject}',
        "    ct state established,related accept",
        '    oifname { "lb1", "lb2" } ct status dnat accept',
        '    iifname { "lb1" } oifgroup != 7102818 accept',
        f"    {reject}",
        "  }",
        "}",
    ]


def test_the_digest_is_of_the_rules_and_not_of_the_record() -> None:
    plain = ruleset("t", MARK, [LAN], [])
    assert digest_of(plain) == digest_of(ruleset("t", MARK, [LAN], [], former={"net/ipv4/ip_forward": "0"}))
    assert digest_of(plain) != digest_of(ruleset("t", MARK, [LAN], [], host_services=["tcp/80"]))
    assert 'comment "net/ipv4/ip_forward=0"' in ruleset(
        "t", MARK, [LAN], [], former={"net/ipv4/ip_forward": "0"}
    )


@pytest.mark.parametrize(
    ("port", "where", "families"),
    [
        (PublishedPort("udp", "127.0.0.1", 1, "10.1.2.3", 2, "lb1"), "ip daddr 127.0.0.1 udp dport 1", 1),
        (PublishedPort("tcp", "192.0.2.2", 1, "10.1.2.3", 2, "lb1"), "ip daddr 192.0.2.2 tcp dport 1", 2),
        (PublishedPort("tcp", "::", 1, "fd00:1::3", 2, "lb1"), "dnat ip6 to [fd00:1::3]:2", 2),
        (PublishedPort("tcp", "2001:db8::1", 1, "fd00:1::3", 2, "lb1"), "ip6 daddr 2001:db8::1", 2),
        (PublishedPort("tcp", "::1", 1, "fd00:1::3", 2, "lb1"), "ip6 daddr ::1", 1),
    ],
)
def test_published_ports(port: PublishedPort, where: str, families: int) -> None:
    """A port of the loopback address is offered to the host itself only (output), not to others."""
    assert ruleset("t", MARK, [LAN], [port]).count(where) == families


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "x" * 120])
def test_a_name_that_nft_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot write"):
        ruleset("t", f"labctl:aaaaaaaa:12345678:firewall:{name}", [LAN], [])


ACCEPTING = ["-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-P OUTPUT ACCEPT"]
DOCKER = ["-P INPUT ACCEPT", "-P FORWARD DROP", "-P OUTPUT ACCEPT", "-N DOCKER-USER"]


@pytest.mark.parametrize(
    ("rules", "chains"),
    [
        ([], []),
        (ACCEPTING, []),
        ([*ACCEPTING, "-A FORWARD -i eth0 -j ACCEPT"], []),
        (DOCKER, ["DOCKER-USER", "DOCKER-USER"]),
        ([*ACCEPTING[:1], "-P FORWARD DROP"], ["FORWARD", "FORWARD"]),
        (
            [*ACCEPTING, "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"],
            ["FORWARD"] * 2 + ["INPUT"],
        ),
        (["-P INPUT DROP", "-P FORWARD ACCEPT"], ["INPUT"]),
    ],
)
def test_what_other_peoples_iptables_make_us_add(rules: list[str], chains: list[str]) -> None:
    assert [chain for chain, _ in iptables.wanted(rules, ["lb1"])] == chains


def test_rules_of_ours_are_known_by_the_whole_mark() -> None:
    there = [
        *DOCKER,
        f'-A DOCKER-USER -i lb1 -m comment --comment "{MARK}" -j ACCEPT',
        f'-A DOCKER-USER -o lb1 -m comment --comment "{MARK}2" -j ACCEPT',
        "-A DOCKER-USER -o lb1 -j ACCEPT",
    ]
    assert iptables.missing(there, MARK, ["lb1"]) == [("DOCKER-USER", ("-o", "lb1"))]
    assert len(iptables.ours(there, MARK)) == 1
