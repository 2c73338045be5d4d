"""Choosing subnets: never one that is taken, always the same for the same question."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import HostCannot, LabError
from labctl.network.subnets import (
    Holder,
    choose_subnets,
    choose_subnets6,
    holders_of,
    name_servers,
    overlaps,
)


@st.composite
def networks(draw: st.DrawFn) -> str:
    prefix = draw(st.integers(9, 32))
    base = draw(st.sampled_from([0x0A000000, 0xAC100000, 0xC0A80000]))
    address = base + draw(st.integers(0, (1 << 24) - 1))
    return str(IPv4Network((address >> (32 - prefix) << (32 - prefix), prefix)))


@given(st.lists(networks(), max_size=40), st.integers(1, 12), st.integers(16, 29), st.text(max_size=8))
@settings(max_examples=150, deadline=None)
def test_chosen_ones_clash_with_nothing(taken: list[str], count: int, prefix: int, seed: str) -> None:
    try:
        chosen = choose_subnets(count, taken, prefix=prefix, seed=seed)
    except HostCannot:
        return
    assert len(chosen) == count
    assert chosen == choose_subnets(count, taken, prefix=prefix, seed=seed)
    for one, other in combinations([*chosen], 2):
        assert not IPv4Network(one).overlaps(IPv4Network(other))
    for one in chosen:
        assert IPv4Network(one).is_private
        assert IPv4Network(one).prefixlen == prefix
        assert not any(IPv4Network(one).overlaps(IPv4Network(other)) for other in taken)


def test_a_route_over_the_whole_pool_leads_to_the_next() -> None:
    assert choose_subnets(1, [Holder("10.0.0.0/8", "route via tun0")])[0].startswith("172.")
    assert choose_subnets(1, ["10.0.0.0/8", "172.16.0.0/12"])[0].startswith("192.168.")
    with pytest.raises(HostCannot, match="no 1 free"):
        choose_subnets(1, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])
    with pytest.raises(LabError):
        choose_subnets(1, [], prefix=31)


def test_the_last_gap_is_found_wherever_the_search_begins() -> None:
    pool = IPv4Network("192.168.0.0/16")
    gap = IPv4Network("192.168.77.0/24")
    taken = [str(network) for network in pool.address_exclude(gap)]
    for seed in map(str, range(60)):
        assert choose_subnets(1, taken, seed=seed, pools=["192.168.0.0/16"]) == ["192.168.77.0/24"]
        with pytest.raises(HostCannot):
            choose_subnets(2, taken, seed=seed, pools=["192.168.0.0/16"])


def test_v6_subnets_are_unique_local_and_differ_by_seed() -> None:
    one, other = choose_subnets6(3, [], seed="a"), choose_subnets6(3, [], seed="b")
    assert len({*one, *other}) == 6
    assert all(IPv6Network(text).prefixlen == 64 and text.startswith("fd") for text in one + other)
    assert choose_subnets6(3, one[:1], seed="a")[0] not in one
    assert choose_subnets6(1, ["10.0.0.0/8"], seed="a") == one[:1]


def test_name_servers_are_read_as_resolvers_read_them(tmp_path: Path) -> None:
    one, other = tmp_path / "resolv.conf", tmp_path / "real.conf"
    one.write_text("# nameserver 9.9.9.9\nsearch lan\nnameserver 127.0.0.53\nnameserver\nnameserver x\n")
    other.write_text("nameserver 10.1.0.2\nnameserver fe80::1%eth0\nnameserver 10.1.0.2 # again\n")
    files = [str(one), str(other), str(tmp_path / "none")]
    assert name_servers(files) == ["127.0.0.53", "10.1.0.2", "fe80::1"]


def test_versions_never_clash_and_holders_are_named_once() -> None:
    assert not overlaps(ip_network("0.0.0.0/0"), ip_network("::/0"))
    taken = [Holder("10.1.0.0/16", "lab web, network lan"), Holder("10.1.0.0/16", "lab web, network lan")]
    assert holders_of("10.1.2.0/24", taken, host=False) == ["lab web, network lan (10.1.0.0/16)"]
    assert holders_of("10.2.2.0/24", taken, host=False) == []
