"""A tier runs on a host: this machine, or a machine of the lab that labctl adds for it.

Where this machine can't run a tier natively, the profile gets one more node: a virtual machine whose
image holds a hypervisor (`hypervisor: xen` or `kvm`), and the nodes of that tier go `inside` it.  From
there on it is a node like any other: it has a record, addresses, a console, it is planned, made, looked at
and unmade as every virtual machine is.  What is special is said in three places:

- here: whether one is needed, how much memory it has, which networks it is on;
- labctl.tiers.vm: how it boots, where its hypervisor is not the kernel's own (Xen);
- labctl.tiers.guests: the machines inside.  Their files stay on this host and reach the host machine as
  disks of a SCSI bus (labctl.tiers.plugs), and its libvirt, over SSH, makes domains of them, on the
  bridges `lab0`, `lab1` … that every machine with nodes inside has: one for each of its cards, so that a
  guest is on the lab's own segment.

A profile may name such a node itself (`hypervisor: xen`, and `inside: NAME` in the others); then it is
used as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from labctl.errors import UsageError
from labctl.profile.models import Attachment, Network, Node, Profile, Ready
from labctl.profile.types import Engine, Hypervisor, Nested, Tier
from labctl.records import dataclass
from labctl.tiers.select import HOST_WORDS, Probe

NESTED = tuple(str(word) for word in Nested)
DEFAULT_GUEST = 256 << 20
_MIB = 1 << 20
_STEP = 512 * _MIB  # a host grows in such steps, so that one more guest seldom means another host
_DISK = 2 << 30
# What the service of a host's image says when its libvirt listens: guests can be made.
_READY = Ready(command=("test", "-e", "/run/labctl/host-ready"), timeout=180.0, interval=0.2)


@dataclass(frozen=True)
class HostKind:
    """A kind of machine that runs others.  Sizes in bytes."""

    hypervisor: Hypervisor
    name: str  # of the node and of its image
    own: int  # what it needs itself
    each: int  # what a guest costs beyond its own memory


KINDS = {
    Tier.PARA: HostKind(Hypervisor.XEN, HOST_WORDS[Tier.PARA], 400 * _MIB, 12 * _MIB),
    Tier.HARDWARE: HostKind(Hypervisor.KVM, HOST_WORDS[Tier.HARDWARE], 320 * _MIB, 96 * _MIB),
}


def with_hosts(profile: Profile, probe: Probe, host_arch: str, nested: str) -> Profile:
    """The profile with a host for each tier that needs one, and the nodes of that tier inside it.

    `nested`: "auto" adds a host for para, "always" also for hardware (which is slow), "never" none.
    A tier that runs natively stays as it is, and so does one for which no host can be built: what is
    missing is told when the tiers are chosen.  Raises UsageError for another word.
    """
    if nested not in NESTED:
        raise UsageError(f"--nested {nested}: one of {', '.join(NESTED)} is expected")
    profile = _completed(profile)
    wanted = {Nested.AUTO: (Tier.PARA,), Nested.ALWAYS: (Tier.PARA, Tier.HARDWARE), Nested.NEVER: ()}
    for tier in wanted[Nested(nested)]:
        guests = [
            node
            for node in profile.nodes.values()
            if node.tier is tier
            and not node.inside
            and (node.arch or host_arch) == host_arch
            and not (tier is Tier.PARA and node.engine is Engine.UML)
        ]
        if not guests or probe(str(tier), host_arch).ok or not probe(HOST_WORDS[tier], host_arch).ok:
            continue
        profile = _with_host(profile, KINDS[tier], guests, probe, host_arch)
    return profile


def _completed(profile: Profile) -> Profile:
    """Hosts that the profile names itself get what it leaves out: image, memory, disk, when it is ready."""
    nodes = dict(profile.nodes)
    for name, node in profile.nodes.items():
        kind = _kind_of(node)
        if kind is None:
            continue
        update: dict[str, object] = {} if node.ready else {"ready": _READY}
        if "image" not in node.model_fields_set:
            update["image"] = kind.name
        if not node.memory:
            update["memory"] = memory_for(kind, _guests(profile, name))
        nodes[name] = node.model_copy(update=update | ({} if node.disk else {"disk": _DISK}))
    return profile.model_copy(update={"nodes": nodes})


def _kind_of(node: Node) -> HostKind | None:
    return next((kind for kind in KINDS.values() if kind.hypervisor is node.hypervisor), None)


def _guests(profile: Profile, name: str) -> list[Node]:
    return [n for n in profile.nodes.values() if n.inside == name and n.tier is not Tier.CONTAINER]


def _with_host(profile: Profile, kind: HostKind, guests: list[Node], probe: Probe, host_arch: str) -> Profile:
    name = _free_name(kind.name, profile.nodes)
    networks = dict(profile.networks)
    on = list(dict.fromkeys(at.network for node in guests for at in node.networks))
    if not any(_reaches(networks[network]) for network in on):
        # labctl drives it from this host, so one of its networks must lead there.
        mine = _free_name(name, networks)
        networks[mine] = Network(description=f"Between this host and {name}.", dns=False)
        on.append(mine)
    host = Node(
        name=name,
        hostname=name,
        description=f"Runs {', '.join(node.name for node in guests)}; added by labctl.",
        tier=Tier.HARDWARE if probe("hardware", host_arch).ok else Tier.EMULATION,
        image=kind.name,
        hypervisor=kind.hypervisor,
        memory=memory_for(kind, guests),
        disk=_DISK,
        networks=tuple(Attachment(network=n, interface=f"eth{i}") for i, n in enumerate(on)),
        ready=_READY,
    )
    inside = {node.name: node.model_copy(update={"inside": name}) for node in guests}
    return profile.model_copy(update={"networks": networks, "nodes": {**profile.nodes, **inside, name: host}})


def _free_name(name: str, taken: Iterable[str]) -> str:
    used = {other.lower() for other in taken}
    return next(word for word in (name, *(f"{name}-{i}" for i in range(2, 99))) if word not in used)


def _reaches(network: Network) -> bool:
    """Whether this host has an address on it, and labctl gives the nodes theirs."""
    return network.host and network.assign


def needed(kind: HostKind, guests: Iterable[Node]) -> int:
    """The least memory of a host for those guests, in bytes."""
    return kind.own + sum((node.memory or DEFAULT_GUEST) + kind.each for node in guests)


def memory_for(kind: HostKind, guests: Iterable[Node]) -> int:
    """The memory that labctl gives a host for those guests, in bytes."""
    return max(2, -(-needed(kind, guests) // _STEP)) * _STEP


def crowded(profile: Profile) -> dict[str, str]:
    """Hosts of the profile with less memory than their guests need: name → what is wrong with it."""
    wrong: dict[str, str] = {}
    for host in profile.nodes.values():
        kind, guests = _kind_of(host), _guests(profile, host.name)
        least = needed(kind, guests) if kind and guests else 0
        has = host.memory or DEFAULT_GUEST
        if has < least:
            many = f"{len(guests)} machine{'s' if len(guests) > 1 else ''}"
            wrong[host.name] = (
                f"{host.name} has {has // _MIB} MiB of memory; with {many} inside it needs "
                f"{-(-least // _MIB)} MiB"
            )
    return wrong
