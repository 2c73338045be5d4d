"""Which machines get a network of their own to this host, and where this host reaches a machine."""

from __future__ import annotations

from labctl.profile import load_text
from labctl.tiers.management import INTERFACE, leads_there, reached_at, with_management

NETWORKS = """
name: t
networks:
  lan: {}
  wire: {subnet: none, host_address: false}
  self: {subnet: none}
  far: {subnet: 10.9.0.0/24, host_address: false}
  six: {subnet6: "fd09::/64"}
"""


def managed(text: str) -> dict[str, list[str]]:
    """Node → the interfaces that it has in the end."""
    profile = with_management(load_text(NETWORKS + text))
    return {name: [at.interface for at in node.networks] for name, node in profile.nodes.items()}


def test_only_machines_without_a_way_to_this_host_get_one() -> None:
    profile = load_text(f"{NETWORKS}nodes: {{a: {{tier: emulation}}, b: {{networks: [wire]}}}}")
    assert with_management(profile) is profile, "nothing is cut off: the lab stays as it is"
    vm = "tier: emulation, networks:"
    text = f"""
nodes:
  wired: {{{vm} [wire]}}
  own: {{{vm} [self]}}
  distant: {{{vm} [far]}}
  mixed: {{{vm} [wire, lan]}}
  six: {{{vm} [six]}}
  box: {{networks: [wire]}}
"""
    got = {name for name, cards in managed(text).items() if INTERFACE in cards}
    assert got == {"wired", "own", "distant"}


def test_the_way_to_a_machine_inside_another_leads_through_that_one() -> None:
    text = """
nodes:
  xen: {tier: emulation, hypervisor: xen, networks: [lan, wire]}
  guest: {tier: para, inside: xen, networks: [wire]}
"""
    assert managed(text) == {"xen": ["eth0", "eth1", INTERFACE], "guest": ["eth0", INTERFACE]}


def test_its_network_has_a_name_of_its_own_and_decides_no_route() -> None:
    text = "  Management: {}\nnodes:\n  vm: {tier: emulation, networks: [wire]}\n"
    profile = with_management(load_text(NETWORKS + text))
    node = profile.nodes["vm"]
    assert node.networks[-1].network == "management-2"
    assert (node.gateway, node.gateway6) == ("none", "none")
    assert not profile.networks["management-2"].dns
    given = "nodes: {vm: {tier: emulation, networks: [far], gateway: 10.9.0.9}}"
    assert with_management(load_text(NETWORKS + given)).nodes["vm"].gateway == "10.9.0.9"


def test_a_machine_is_reached_where_this_host_has_an_address() -> None:
    cards = "[far, lan, {network: wire, up: false}]"
    profile = load_text(f"{NETWORKS}nodes: {{vm: {{tier: emulation, networks: {cards}}}}}")
    assert [leads_there(profile, at) for at in profile.nodes["vm"].networks] == [False, True, False]
    addresses: list[tuple[str, ...]] = [("10.9.0.2/24",), ("10.77.0.5/24",)]
    assert reached_at(profile, ("far", "lan"), addresses) == "10.77.0.5"
    assert reached_at(profile, ("far",), addresses[:1]) == "10.9.0.2", "better than none: it may be routed"
    assert reached_at(profile, (), []) == ""
