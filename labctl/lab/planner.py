"""From a profile and the facts of the host to a graph of resources: pure, the host isn't touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, TypeGuard

from labctl.home import Home
from labctl.lab import names
from labctl.lab.addresses import Plan, Segment
from labctl.looks import Owner
from labctl.network.bridge import Bridge
from labctl.network.dns import Dns
from labctl.network.firewall import LabFirewall
from labctl.network.model import BridgeRule, Listen, PublishedPort
from labctl.profile.models import Node, Profile
from labctl.profile.types import Isolation, Tier
from labctl.records import dataclass
from labctl.resource.graph import Graph
from labctl.resource.ledger import Claim
from labctl.resource.protocol import Resource
from labctl.tiers import plan_node
from labctl.tiers.common import skipped_record
from labctl.tiers.container import LabKeeper
from labctl.tiers.context import Choice, ImageFacts, KernelFacts, LabFacts, NodeFacts
from labctl.tiers.disks import disk_key
from labctl.tiers.folders import LabFolder, VolumeFolder
from labctl.tiers.isolation import IN_VM_BUSYBOX
from labctl.tiers.record import NodeRecord
from labctl.tiers.select import outermost_first

if TYPE_CHECKING:
    from labctl.hypervisor.domain import Domain


def is_domain(item: Resource) -> TypeGuard[Domain]:
    """Whether a resource is a virtual machine of this host."""
    return item.kind == "domain"


@dataclass(frozen=True)
class HostFacts:
    """What the host has to offer, gathered before planning."""

    home: Home
    owner: Owner
    choices: Mapping[str, Choice]
    images: Mapping[tuple[str, str], ImageFacts]  # by (reference, architecture)
    kernels: Mapping[tuple[str, str], KernelFacts]  # by (kernel name or "", architecture)
    arch: str
    disks: Mapping[str, str] = field(default_factory=dict)  # node → the cached disk of its image
    kernel_names: Mapping[str, str] = field(default_factory=dict)  # node → the kernel it asks for
    hypervisors: Mapping[str, str] = field(default_factory=dict)  # Xen host → the file it boots
    firmware: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # node → UEFI's program and template
    uri: str = ""
    libvirt_home: Home | None = None
    ports: Mapping[tuple[str, int], int] = field(default_factory=dict)  # free host ports, chosen
    snapshot: str = "auto"
    busybox: str = ""  # labctl's own, for the containers that it gives an init


NO_KERNEL = KernelFacts("", "", "", "")  # still to be fetched: a plan shows the node all the same


@dataclass(frozen=True)
class Planned:
    """A whole lab, ready for the executor."""

    graph: Graph
    records: Mapping[str, NodeRecord]
    claims: tuple[Claim, ...]
    addresses: Plan

    @property
    def nodes(self) -> dict[str, str]:
        """The records as the ledger stores them."""
        return {name: record.to_json() for name, record in self.records.items()}


def build(profile: Profile, name: str, host: HostFacts, addresses: Plan) -> Planned:
    """The graph, the records and the claims of a lab."""
    lab = LabFacts(host.home, host.owner, name, profile, host.uri, host.libvirt_home, "", host.snapshot)
    hosting = {node.inside for node in profile.nodes.values() if node.inside}
    resources = _shared(lab, addresses, host)
    records: dict[str, NodeRecord] = {}
    domains: dict[str, Domain] = {}
    for node in outermost_first(profile):
        facts = _facts(lab, node, host, addresses, node.name in hosting, records.get(node.inside))
        facts = replace(facts, host_domain=domains.get(node.inside))
        if facts.choice.skipped:
            records[node.name] = skipped_record(facts)
            continue
        planned = plan_node(facts)
        records[node.name] = planned.record
        resources += planned.resources
        domains |= {item.name: item for item in planned.resources if is_domain(item)}
    records = {key: records[key] for key in profile.nodes}
    return Planned(Graph(resources), records, tuple(_claims(lab, addresses, records)), addresses)


def image_key(node: Node, arch: str) -> tuple[str, str]:
    """What its image is known by among the host's facts: a disk to boot is another thing than its files."""
    return (f"disk:{node.image}" if node.cloud else node.image, arch)


def _facts(
    lab: LabFacts,
    node: Node,
    host: HostFacts,
    addresses: Plan,
    is_host: bool,
    host_record: NodeRecord | None,
) -> NodeFacts:
    arch = node.arch or (host_record.arch if host_record else host.arch)
    return NodeFacts(
        lab=lab,
        node=node,
        choice=host.choices[node.name],
        image=host.images[image_key(node, arch)],
        place=addresses.places[node.name],
        kernel=NO_KERNEL
        if node.cloud
        else host.kernels.get((host.kernel_names.get(node.name, ""), arch), NO_KERNEL),
        disk=host.disks.get(node.name, ""),
        disks={d.name: host.disks.get(disk_key(node.name, d.name), "") for d in node.disks if d.image},
        disk_digests={d.name: host.images[d.image, arch].digest for d in node.disks if d.image},
        ports=tuple(host.ports.get((node.name, i), port.host_port) for i, port in enumerate(node.ports)),
        hosts=hosts_text(node, addresses),
        is_container_host=is_host,
        carried=_carried(lab.profile, node, host, arch),
        host_record=host_record,
        hypervisor=host.hypervisors.get(node.name, ""),
        firmware=host.firmware.get(node.name, ("", ""))[0],
        firmware_template=host.firmware.get(node.name, ("", ""))[1],
        init_program=IN_VM_BUSYBOX if node.inside else host.busybox,
    )


def _carried(profile: Profile, node: Node, host: HostFacts, arch: str) -> tuple[tuple[str, str], ...]:
    """The images of the containers inside a VM, each once: (digest, cached disk)."""
    inside = [n for n in profile.nodes.values() if n.inside == node.name and n.tier is Tier.CONTAINER]
    found = {host.images[other.image, arch].digest: host.disks.get(other.name, "") for other in inside}
    return tuple((digest, disk) for digest, disk in sorted(found.items()) if digest and disk)


def hosts_text(node: Node, addresses: Plan) -> str:
    """A node's /etc/hosts: itself and loopback.  All else is DNS's affair, where the node reaches it; on a
    bare Ethernet, where the host has no address, the others' names stand here too."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    own = dict.fromkeys((node.hostname or node.name, node.name))
    place = addresses.places[node.name]
    lines += [f"{address}\t{' '.join(own)}" for address in place.addresses[:1]]
    if not place.dns:
        others = ((name, ips.split(",")) for name, ips in addresses.names.items() if name not in own)
        lines += [f"{address}\t{name}" for name, ips in sorted(others) for address in ips]
    return "\n".join(lines) + "\n"


def _shared(lab: LabFacts, addresses: Plan, host: HostFacts) -> list[Resource]:
    """What belongs to no node: the folder, volumes, bridges, the firewall, the name server."""
    owner = lab.owner
    machines = any(c.tier != "container" and not c.skipped for c in host.choices.values())
    found: list[Resource] = [LabFolder(owner=owner, name="lab", path=str(lab.folder), keys=machines)]
    for name in lab.profile.volumes:
        path = str(lab.folder / "volumes" / name)
        found.append(VolumeFolder(owner=owner, name=name, path=path, needs=("folder:lab",)))
    if lab.libvirt_home:
        from labctl.hypervisor.daemon import LibvirtDaemon

        home = lab.libvirt_home
        found.append(LibvirtDaemon(owner=owner, home_state=str(home.state), home_cache=str(home.cache)))
    if any(c.tier == "container" and not c.skipped and not c.engine for c in host.choices.values()):
        run = str(lab.folder / "run")
        found.append(LabKeeper(owner=owner, name="lab", needs=("folder:lab",), run_root=run))
    segments = list(addresses.segments.values())
    shared = _on_the_host(lab, addresses, host)
    for seg in segments:
        found.append(
            Bridge(
                owner=owner,
                name=seg.name,
                ifname=seg.bridge,
                # A /32 each: the host's own address stays the one that it speaks to the nodes with.
                addresses=(*seg.host_addresses, *(f"{ip}/32" for at, ip in shared if at == seg.name)),
                mtu=seg.network.mtu,
            )
        )
    if segments:
        bridges = tuple(f"bridge:{seg.name}" for seg in segments)
        found.append(_firewall(lab, segments, bridges, addresses, host))
        listen = tuple(
            Listen(s.bridge, s.host4 or s.host6) for s in segments if s.network.dns and s.host_addresses
        )
        if listen:
            found.append(_dns(lab, segments, listen, bridges, addresses))
    return found


def _on_the_host(lab: LabFacts, addresses: Plan, host: HostFacts) -> list[tuple[str, str]]:
    """(network, address) of the nodes that have the host's network: theirs are the host's as well."""
    found = []
    for node in lab.profile.nodes.values():
        choice, place = host.choices[node.name], addresses.places[node.name]
        if choice.tier == "container" and not choice.skipped and node.isolation is Isolation.VSERVER:
            found += [(place.networks[0], place.addresses[0])]
    return found


def _firewall(
    lab: LabFacts, segments: Sequence[Segment], bridges: tuple[str, ...], addresses: Plan, host: HostFacts
) -> LabFirewall:
    rules = tuple(BridgeRule(s.bridge, s.subnet4, s.subnet6, s.network.internet) for s in segments)
    ports: list[PublishedPort] = []
    for node in lab.profile.nodes.values():
        if host.choices[node.name].skipped:
            continue
        place = addresses.places[node.name]
        for index, port in enumerate(node.ports):
            want6 = ":" in port.host_ip
            target = next(
                (
                    (a.partition("/")[0], interface.bridge)
                    for interface in place.interfaces
                    for a in interface.addresses
                    if (":" in a) == want6
                ),
                None,
            )
            if target:
                host_port = host.ports.get((node.name, index), port.host_port)
                ports.append(
                    PublishedPort(
                        str(port.proto), port.host_ip, host_port, target[0], port.node_port, target[1]
                    )
                )
    return LabFirewall(
        owner=lab.owner,
        name="lab",
        needs=(*bridges, "folder:lab"),
        folder=str(lab.folder),
        table=names.table_name(lab.owner),
        bridges=rules,
        ports=tuple(ports),
        node_addresses=tuple(ip for _, ip in _on_the_host(lab, addresses, host)),
    )


def _dns(
    lab: LabFacts,
    segments: Sequence[Segment],
    listen: tuple[Listen, ...],
    bridges: tuple[str, ...],
    addresses: Plan,
) -> Dns:
    domain = next((s.network.domain for s in segments if s.network.domain), "")
    return Dns(
        owner=lab.owner,
        name="lab",
        needs=(*bridges, "folder:lab"),
        directory=str(lab.folder / "dns"),
        listen=listen,
        hosts=dict(addresses.names),
        domain=domain or "lab",
        internet=any(s.network.internet for s in segments),
    )


def _claims(lab: LabFacts, addresses: Plan, records: Mapping[str, NodeRecord]) -> list[Claim]:
    claims = [
        Claim("subnet", subnet, lab.owner.lab, seg.name)
        for seg in addresses.segments.values()
        for subnet in (seg.subnet4, seg.subnet6)
        if subnet and seg.network.host
    ]
    for record in records.values():
        for port in record.ports:
            value = f"{port.proto}/{port.host_ip or '*'}/{port.host_port}"
            claims.append(Claim("port", value, lab.owner.lab, record.name))
    return claims
