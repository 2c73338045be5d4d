"""A way from this host to machines whose own networks lead elsewhere.

labctl works in a virtual machine over SSH.  One that is only on bare Ethernets (`host_address: false`,
`subnet: none`), as routers often are, gets one more interface, `mgmt0`, on a network of labctl's own that
carries nothing else: no names, no default route, and the lab's other networks don't lead there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labctl.profile.models import Attachment, Network, Node, Profile

INTERFACE = "mgmt0"
NETWORK = "management"


def with_management(profile: Profile) -> Profile:
    """The profile with that network and interface where a machine needs them; else as it is."""
    # Here and not above: `down` loads this module, and need not load pydantic (a tenth of a second) for it.
    from labctl.profile.models import Network
    from labctl.profile.types import Tier

    cut_off = {
        name
        for name, node in profile.nodes.items()
        if node.tier is not Tier.CONTAINER and not any(leads_there(profile, at) for at in node.networks)
    }
    if not cut_off:
        return profile
    # The way to a machine inside another leads through that one, which is on all its networks.
    cut_off |= {profile.nodes[name].inside for name in cut_off} - {""}
    used = {name.lower() for name in profile.networks}
    network = next(n for n in (NETWORK, *(f"{NETWORK}-{i}" for i in range(2, 99))) if n not in used)
    added = Network(
        description="Between this host and machines on bare Ethernets; added by labctl.", dns=False
    )
    nodes = {
        name: _managed(node, network) if name in cut_off else node for name, node in profile.nodes.items()
    }
    return profile.model_copy(update={"networks": {**profile.networks, network: added}, "nodes": nodes})


def _managed(node: Node, network: str) -> Node:
    from labctl.profile.models import Attachment

    update: dict[str, object] = {
        "networks": (*node.networks, Attachment(network=network, interface=INTERFACE))
    }
    # What the machine finds by its own networks is not decided by one that is only there to reach it.
    update |= {field: "none" for field in ("gateway", "gateway6") if not getattr(node, field)}
    return node.model_copy(update=update)


def leads_there(profile: Profile, at: Attachment) -> bool:
    """Whether this host and the interface both have an address on the network, of the same family."""
    return any(_family(profile.networks[at.network], at, version) for version in (4, 6))


def _family(network: Network, at: Attachment, version: int) -> bool:
    if not (network.host and at.up):
        return False
    given = network.subnet if version == 4 else network.subnet6
    chosen = network.assign and (version == 4 or network.ipv6)
    fixed = any((":" in address) == (version == 6) for address in at.addresses)
    return bool(given or chosen) and (fixed or (network.assign and at.assign))


def reached_at(profile: Profile, networks: tuple[str, ...], addresses: list[tuple[str, ...]]) -> str:
    """The address at which this host reaches a node: the first on a network that it has an address on.

    `networks` and `addresses` are those of the node's interfaces, in order.  "" when there is none.
    """
    every = [
        (profile.networks[name], address.partition("/")[0])
        for name, found in zip(networks, addresses, strict=True)
        for address in found
    ]
    direct = [
        address
        for network, address in every
        if network.host
        and ((network.subnet6 or network.ipv6) if ":" in address else (network.subnet or network.assign))
    ]
    return next(iter([*direct, *(address for _, address in every)]), "")
