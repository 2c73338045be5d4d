"""Addresses: unique, inside their subnets, and kept however the profile changes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import UsageError
from labctl.lab import addresses, names
from labctl.looks import Owner
from labctl.profile import Profile, load_text

OWNER = Owner("feedbeef", "0badcafe")


def profile_of(nodes: dict[str, list[str]], subnets: dict[str, str]) -> Profile:
    """Nodes with their networks; networks with their subnets ("" for one of labctl's choice)."""
    lines = ["networks:"]
    lines += [f"  {name}: {{{f'subnet: {s}' if s else ''}}}" for name, s in subnets.items()]
    lines += ["nodes:"]
    lines += [f"  {name}: {{networks: [{', '.join(on)}]}}" for name, on in nodes.items()]
    return load_text("\n".join(lines) + "\n", name="lab")


def plan(
    profile: Profile, before: addresses.Plan | None = None, subnets: tuple[str, str] = ("10.1.0.0/24", "")
) -> addresses.Plan:
    kept = {
        node: {i.name: i.addresses for i in place.interfaces}
        for node, place in (before.places if before else {}).items()
    }
    chosen = {
        name: (subnets[0].replace("10.1.", f"10.{index + 1}."), subnets[1])
        for index, name in enumerate(addresses.wanted_subnets(profile))
    }
    return addresses.plan(profile, OWNER, chosen, kept)


def of(found: addresses.Plan) -> dict[str, tuple[str, ...]]:
    return {node: place.addresses for node, place in found.places.items()}


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True), min_size=1, max_size=12, unique=True)
NETS = ["alpha", "beta", "gamma"]
ON = st.lists(st.sampled_from(NETS), min_size=0, max_size=4)


@st.composite
def labs(draw: st.DrawFn) -> dict[str, list[str]]:
    return {name: draw(ON) for name in draw(NAMES)}


@settings(deadline=None, max_examples=60)
@given(labs(), labs())
def test_addresses_are_unique_inside_their_subnet_and_stay(
    first: dict[str, list[str]], more: dict[str, list[str]]
) -> None:
    subnets = dict.fromkeys(NETS, "")
    one = plan(profile_of(first, subnets))
    _sound(one)
    # New nodes before and after the old ones; those that stay keep what they have.
    both = {**{name: on for name, on in more.items() if name not in first}, **first}
    two = plan(profile_of(both, subnets), one)
    _sound(two)
    assert {name: of(two)[name] for name in first} == of(one)
    assert of(plan(profile_of(both, subnets), two)) == of(two)


def _sound(found: addresses.Plan) -> None:
    seen: set[tuple[str, str]] = set()
    macs: set[str] = set()
    links: set[str] = set()
    for place in found.places.values():
        for interface, network in zip(place.interfaces, place.networks, strict=True):
            seg = found.segments[network]
            assert interface.mac not in macs and interface.host_name not in links
            macs.add(interface.mac)
            links.add(interface.host_name)
            for address in interface.addresses:
                at = ipaddress.ip_interface(address)
                subnet = ipaddress.ip_network(seg.subnet6 if at.version == 6 else seg.subnet4)
                assert at.network == subnet
                assert (network, str(at.ip)) not in seen
                seen.add((network, str(at.ip)))
                assert str(at.ip) not in (seg.host4, seg.host6)
                assert at.ip != subnet.network_address
                if at.version == 4:
                    assert at.ip != subnet.broadcast_address


def test_a_node_that_goes_moves_nobody() -> None:
    nets = {"lan": ""}
    one = plan(profile_of({"a": ["lan"], "b": ["lan"], "c": ["lan"]}, nets))
    two = plan(profile_of({"a": ["lan"], "c": ["lan"]}, nets), one)
    assert of(two) == {name: of(one)[name] for name in ("a", "c")}
    three = plan(profile_of({"a": ["lan"], "d": ["lan"], "c": ["lan"]}, nets), two)
    assert of(three)["c"] == of(one)["c"] and of(three)["d"] == of(one)["b"]


def test_a_fixed_address_wins_over_one_that_was_assigned() -> None:
    text = "networks: {lan: {subnet: 10.7.0.0/24}}\nnodes:\n  a: {}\n  b: {}\n"
    one = plan(load_text(text, name="lab"))
    taken = of(one)["a"][0]
    text = text.replace("b: {}", f"b: {{networks: {{lan: {taken}}}}}")
    two = plan(load_text(text, name="lab"), one)
    assert of(two)["b"] == (taken,)
    assert of(two)["a"] != (taken,)


def test_the_host_gives_way_to_a_node_that_has_the_first_address() -> None:
    profile = load_text(
        "networks: {n: {subnet: 10.7.0.0/24, subnet6: 'fd00::/64'}}\n"
        "nodes: {router: {networks: {n: [10.7.0.1, 'fd00::1']}}, second: {networks: {n: 10.7.0.2}}, pc: }\n",
        name="lab",
    )
    found = plan(profile)
    assert found.segments["n"].host_addresses == ("10.7.0.3/24", "fd00::2/64")
    assert of(found)["router"] == ("10.7.0.1", "fd00::1")
    assert of(found)["pc"][0] == "10.7.0.4"


def test_a_default_route_only_where_it_leads_somewhere() -> None:
    profile = load_text(
        "networks: {n: {subnet: 10.7.0.0/24, ipv6: true}, up: {subnet: 10.8.0.0/24, internet: true}}\n"
        "nodes:\n  a: {networks: [n]}\n  b: {networks: [n, up]}\n  c: {networks: [n], gateway: 10.7.0.3}\n"
        "  d: {networks: [up], gateway: none}\n  e: {networks: {up: {up: false}}}\n",
        name="lab",
    )
    found = plan(profile, subnets=("", "fd00:9::/64")).places
    assert {name: place.gateway4 for name, place in found.items()} == {
        "a": "",
        "b": "10.8.0.1",
        "c": "10.7.0.3",
        "d": "",
        "e": "",
    }
    assert not any(place.gateway6 for place in found.values())


def test_another_subnet_means_other_addresses() -> None:
    text = "networks: {lan: {subnet: 10.7.0.0/24}}\nnodes: {a: {}}\n"
    one = plan(load_text(text, name="lab"))
    two = plan(load_text(text.replace("10.7.0", "10.8.0"), name="lab"), one)
    assert of(one)["a"][0].startswith("10.7.0.") and of(two)["a"][0].startswith("10.8.0.")


def test_both_families_are_assigned_where_a_network_has_both() -> None:
    text = (
        "networks: {lan: {subnet: [10.7.0.0/24, 'fd00:7::/64'], internet: true}}\n"
        "nodes: {a: {}, b: {ipv6: false}}\n"
    )
    found = plan(load_text(text, name="lab"))
    assert [":" in address for address in of(found)["a"]] == [False, True]
    assert [":" in address for address in of(found)["b"]] == [False]
    assert found.places["a"].gateway6 == found.segments["lan"].host6
    assert found.places["b"].gateway6 == ""


def test_a_subnet_that_is_full_is_named_with_the_way_out() -> None:
    text = "networks: {lan: {}}\nnodes: {a: {replicas: 7}}\n"
    with pytest.raises(UsageError) as caught:
        plan(load_text(text, name="lab"), subnets=("10.1.0.0/29", ""))
    assert "lan" in caught.value.message and "10.1.0.0/29" in caught.value.message
    assert "shorter prefix" in caught.value.hint


def test_names_lead_to_nodes_aliases_replicas_and_interfaces() -> None:
    text = """
networks: {lan: {subnet: 10.7.0.0/24}}
nodes:
  web: {replicas: 2}
  My_Db: {aliases: [db], networks: [{network: lan, aliases: [store]}]}
"""
    found = plan(load_text(text, name="lab"))
    where = of(found)
    assert found.names["web"] == f"{where['web-1'][0]},{where['web-2'][0]}"
    for name in ("my_db", "db", "store"):
        assert found.names[name] == where["My_Db"][0]


@settings(deadline=None, max_examples=100)
@given(st.text(min_size=1, max_size=40), st.integers(0, 30), st.booleans())
def test_names_of_links_fit_the_kernel_and_macs_are_local(node: str, index: int, vm: bool) -> None:
    link = names.port_name(OWNER, node, index, vm=vm)
    assert len(link) <= 15 and link.isascii() and link.isalnum()
    mac = names.mac(OWNER, node, index)
    assert len(mac) == 17 and int(mac[:2], 16) & 0b11 == 0b10
