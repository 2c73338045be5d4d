"""What must be known of the host before a lab can be planned: tiers, images, kernels, subnets, ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import Foreign, HostCannot, LabError, NoRoom
from labctl.events import Emit, Note
from labctl.home import Home
from labctl.image.model import ImageConfig, host_arch
from labctl.lab.model import Options
from labctl.lab.planner import image_key
from labctl.profile.models import Node, Profile
from labctl.profile.types import Devices, Engine, Hypervisor, Isolation, Tier
from labctl.tiers import is_uml
from labctl.tiers.context import Choice, ImageFacts, KernelFacts
from labctl.tiers.hosts import DEFAULT_GUEST, crowded, with_hosts
from labctl.tiers.management import with_management
from labctl.tiers.seed import seed_of
from labctl.tiers.select import FOREIGN_WORD, Ability, Probe, choose

if TYPE_CHECKING:
    from labctl.hypervisor.capability import Capability
    from labctl.network.subnets import Holder

# What a lab takes on the disk before its nodes run: the ledger, and logs, settings and layers of nodes.
LEDGER_BYTES, MACHINE_BYTES, CONTAINER_BYTES = 256 << 10, 1 << 20, 16 << 10
X86 = "x86_64"  # what labctl's host machines are
LINUX_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}  # OCI's word → the kernel's


def this_arch() -> str:
    """The host's architecture as the kernel, QEMU and libvirt write it."""
    arch = host_arch()
    return LINUX_ARCH.get(arch, arch)


def probe(home: Home, nested: str = "auto") -> Probe:
    """Ask the rooms below, by trying: each answer is kept per boot of the host.

    `nested` as in with_hosts.
    """

    def ask(tier: str, arch: str) -> Ability:
        if tier == "container":
            from labctl.lab import containers

            return containers.ability()
        if tier == FOREIGN_WORD:
            from labctl.lab import containers

            return containers.foreign(arch)
        if tier.startswith("engine:"):
            from labctl.engines.trial import probe as engine

            answer = engine(home, tier.partition(":")[2])
            return Ability(answer.ok, answer.reason, answer.remedy, answer.detail)
        from labctl.hypervisor import probe as hypervisor

        if tier == "emulation":
            answer = hypervisor.probe_emulation(home, arch)
        elif tier == "hardware":
            answer = hypervisor.probe_hardware(home)
            if not answer.ok and arch in ("", X86):
                return _no_hardware(answer, once("kvm-host", arch) if nested == "always" else None)
        elif tier == "uml":
            from labctl.hypervisor.probe_uml import probe_uml

            answer = probe_uml(home)
        elif tier == "para":
            answer = hypervisor.probe_para(home)
            if not answer.ok:
                return _no_para(answer, once("xen-host", arch))
        else:
            from labctl.lab import hosts

            answer = hosts.probe(home, tier)
        return Ability(answer.ok, answer.reason, answer.remedy, answer.detail)

    known: dict[tuple[str, str], Ability] = {}

    def once(tier: str, arch: str) -> Ability:
        if (tier, arch) not in known:
            known[tier, arch] = ask(tier, arch)
        return known[tier, arch]

    return once


def _no_para(native: Capability, host: Ability) -> Ability:
    """Why para doesn't run on this host, and whether a machine of the lab could do it."""
    if host.ok:
        remedy = "leave out --nested never, and labctl builds a Xen host for it"
        return Ability(False, native.reason, remedy)
    return Ability(False, f"{native.reason}, and no Xen host can be built: {host.reason}", host.remedy)


def _no_hardware(native: Capability, host: Ability | None) -> Ability:
    """Why this host's KVM runs no machine, and that one of the lab could; `host` is given where it was asked
    for.  Only then is the archive asked whether its packages are there."""
    if host is not None and not host.ok:
        reason = f"{native.reason}, and no KVM host can be built: {host.reason}"
        return Ability(False, reason, host.remedy, native.detail)
    way = "or --nested always, which emulates a KVM host for it: slow"
    return Ability(False, native.reason, f"{native.remedy}; {way}", native.detail)


def choices(profile: Profile, options: Options) -> tuple[Profile, dict[str, Choice]]:
    """The profile with the host machines that labctl adds to it, and the tier of every node.

    Raises HostCannot when one can't run here and the options don't help.
    """
    nested = options.nested or str(profile.nested or "") or options.usual_nested
    ask = probe(options.home, nested)
    profile = with_hosts(with_management(profile), ask, this_arch(), nested)
    chosen = choose(
        profile,
        this_arch(),
        ask,
        skip_unavailable=options.skip_unavailable,
        fallback=options.fallback,
    )
    return profile, chosen


def check_room(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """Refuse what this host has no room for.  Raises HostCannot."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for node in profile.nodes.values():
        if not chosen[node.name].skipped and node.memory and node.memory > total:
            guests = sum(
                n.inside == node.name and n.tier is not Tier.CONTAINER for n in profile.nodes.values()
            )
            inside = f" with the {guests} machines inside it" if guests else ""
            raise HostCannot(
                f"node {node.name}{inside} wants {node.memory >> 20} MiB of memory; this host has "
                f"{total >> 20} MiB",
                hint="fewer of them, or smaller ones" if guests else f"lower nodes.{node.name}.memory",
            )
    _refuse_too_much(profile, chosen, total)
    for name, wrong in crowded(profile).items():
        if not chosen[name].skipped:
            hint = f"raise nodes.{name}.memory, or give it fewer machines or smaller ones"
            raise HostCannot(wrong, hint=hint)


def _refuse_too_much(profile: Profile, chosen: Mapping[str, Choice], memory: int) -> None:
    """Refuse machines whose memory together is more than this host's `memory` (bytes) and swap space.

    What is inside of a machine is in that machine's memory.  Raises HostCannot with the sum.
    """
    machines = [node for node in profile.nodes.values() if is_vm(node, chosen) and not node.inside]
    wanted = sum(node.memory or DEFAULT_GUEST for node in machines)
    if wanted <= memory:
        return
    from labctl.hypervisor.resources import swap_bytes

    memory += swap_bytes()
    if wanted > memory:
        most = max(machines, key=lambda node: node.memory or DEFAULT_GUEST)
        size = (most.memory or DEFAULT_GUEST) >> 20
        raise HostCannot(
            f"the {len(machines)} machines of lab {profile.name} take {wanted >> 20} MiB of memory together; "
            f"this host has {memory >> 20} MiB",
            hint=f"fewer machines, or smaller ones: {most.name} takes {size} MiB",
        )


def check_sources(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """Refuse files that can't be further disks of machines.  Raises UsageError."""
    from labctl.image.extradisk import refuse_unusable

    for node in profile.nodes.values():
        for disk in node.disks:
            if disk.source and is_vm(node, chosen):
                refuse_unusable(Path(disk.source), f"nodes.{node.name}.disks.{disk.name}.source")


def check_disk(
    profile: Profile, chosen: Mapping[str, Choice], there: Iterable[str], place: Path, free: int
) -> None:
    """Refuse a lab for whose new nodes (those not `there`) the disk has no room.  Raises NoRoom.

    Only what they take before they run: what they write then is theirs to bound.
    """
    needed = 0
    for node in profile.nodes.values():
        if node.name not in there and not chosen[node.name].skipped and not node.inside:
            seed = seed_of(node, profile).bytes()
            needed += seed + (MACHINE_BYTES if is_vm(node, chosen) else CONTAINER_BYTES)
    needed += LEDGER_BYTES if needed else 0
    if needed and free < needed:
        raise NoRoom(
            f"lab {profile.name} needs about {needed / (1 << 20):.1f} MiB at its start, and the disk of"
            f" {place} has {max(0, free) / (1 << 20):.1f} MiB free",
            hint="make room there (labctl down LAB), or move labctl with LABCTL_HOME",
        )


def arch_of(node: Node, profile: Profile) -> str:
    """The architecture a node runs: its own, that of the machine it is inside of, or the host's."""
    if node.inside and not node.arch:
        return profile.nodes[node.inside].arch or this_arch()
    return node.arch or this_arch()


def is_domain(node: Node, chosen: Mapping[str, Choice]) -> bool:
    """Whether a node is a machine under libvirt."""
    return is_vm(node, chosen) and not is_uml(node, chosen[node.name])


def is_vm(node: Node, chosen: Mapping[str, Choice]) -> bool:
    """Whether a node is a machine of its own, with a kernel and a disk, here or on a machine of the lab."""
    return chosen[node.name].tier != Tier.CONTAINER and not chosen[node.name].skipped


def images(
    profile: Profile, chosen: Mapping[str, Choice], options: Options, emit: Emit, *, build: bool
) -> tuple[dict[tuple[str, str], ImageFacts], list[str]]:
    """The images of all nodes, by (reference, architecture), and what of them is still to be built.

    With `build` they are made; without, an image that isn't in the store stands there empty and is
    named in the second answer.  Raises UsageError for a name that nothing is known of.
    """
    from labctl.image.obtain import to_come
    from labctl.image.store import Store

    store = Store(options.home.cache / "images")
    found: dict[tuple[str, str], ImageFacts] = {}
    missing: list[str] = []
    for node in profile.nodes.values():
        arch = arch_of(node, profile)
        if node.cloud:
            key = image_key(node, arch)
            found[key] = cloud_facts(node.image, arch, chosen[node.name], options, emit, build=build)
            if not found[key].digest and not chosen[node.name].skipped:
                missing.append(f"the cloud image {node.image} is still to be copied into the cache")
        own = () if node.cloud else (node.image,)
        for ref in dict.fromkeys((*own, *(disk.image for disk in node.disks if disk.image))):
            key = (ref, arch)
            if key in found and found[key].digest:
                continue
            found[key] = ImageFacts(ref, arch, digest="", layers=(), config=ImageConfig())
            if chosen[node.name].skipped:
                continue
            image = store.ensure(ref, emit, arch=arch) if build else store.find(ref, arch)
            if image:
                layers = tuple(str(path) for path in store.rootfs(image))
                found[key] = ImageFacts(ref, arch, image.digest, layers, image.config)
            else:
                missing.append(to_come(store, ref, arch))
    return found, list(dict.fromkeys(missing))


def cloud_facts(
    ref: str, arch: str, choice: Choice, options: Options, emit: Emit, *, build: bool
) -> ImageFacts:
    """A cloud image: all that is known of it is its digest, "" while its disk is not in the cache."""
    from labctl.image import clouddisk

    there = None
    if not choice.skipped:
        cache = options.home.cache
        there = clouddisk.ensure(cache, ref, arch, emit) if build else clouddisk.find(cache, ref)
    return ImageFacts(ref, arch, digest=there.digest if there else "", layers=(), config=ImageConfig())


def kernel_of(node: Node, profile: Profile) -> str:
    """The kernel a VM asks for; "" for the usual one, which knows virtio only, so that emulated devices
    take the full one, and so does Xen's dom0.  User Mode Linux has its own."""
    if node.tier is Tier.PARA and node.engine is Engine.UML:
        return "uml"
    sata = node.devices is Devices.EMULATED or any(disk.bus == "sata" for disk in node.disks)
    full = sata or node.hypervisor is Hypervisor.XEN
    if not node.kernel and full and arch_of(node, profile) == "x86_64":
        return "amd64"
    return node.kernel


def kernels(
    profile: Profile, chosen: Mapping[str, Choice], options: Options, emit: Emit
) -> dict[tuple[str, str], KernelFacts]:
    """The kernels of all VMs with their initramfs, by (name or "", architecture)."""
    machines = [node for node in profile.nodes.values() if is_vm(node, chosen) and not node.cloud]
    if not machines:
        return {}
    from labctl.image import initramfs
    from labctl.image.kernels import DEFAULT_KERNELS, kernel

    found: dict[tuple[str, str], KernelFacts] = {}
    for node in machines:
        key = (kernel_of(node, profile), arch_of(node, profile))
        if key in found:
            continue
        name = key[0] or DEFAULT_KERNELS.get(key[1], "")
        if not name:
            raise HostCannot(f"no kernel is known for {key[1]}", hint="name one in nodes.NAME.kernel")
        cache = options.home.cache
        files = kernel(cache, name, emit)
        initrd = initramfs.initramfs(cache, files, emit)
        cmdline = initramfs.command_line(files, host_arch=this_arch(), tsc_khz=initramfs.host_tsc_khz(cache))
        found[key] = KernelFacts(
            kernel=str(files.boot),
            initrd=str(initrd),
            cmdline=cmdline,
            version=files.version,
            packed=str(files.vmlinuz),
            xen_cmdline=initramfs.command_line(files, xen=True),
        )
    return found


def hypervisors(
    profile: Profile,
    chosen: Mapping[str, Choice],
    found: Mapping[tuple[str, str], ImageFacts],
    options: Options,
) -> dict[str, str]:
    """The file that each Xen host boots before its kernel, from its image."""
    from labctl.image.xen import hypervisor

    return {
        node.name: str(hypervisor(options.home.cache, [Path(layer) for layer in image.layers], node.image))
        for node in profile.nodes.values()
        if node.hypervisor is Hypervisor.XEN and is_vm(node, chosen)
        for image in [found[node.image, arch_of(node, profile)]]
        if image.layers
    }


def busybox(
    profile: Profile, chosen: Mapping[str, Choice], options: Options, emit: Emit, *, build: bool
) -> str:
    """labctl's static busybox of this host's architecture, where a container gets its init; "" elsewhere."""
    if not any(
        node.isolation is Isolation.LXC and not node.init and not node.inside
        for node in profile.nodes.values()
        if chosen[node.name].tier == Tier.CONTAINER and not chosen[node.name].skipped
    ):
        return ""
    from labctl.image.boot_programs import place, programs

    cache = options.home.cache
    folder = programs(cache, host_arch(), emit).folder if build else place(cache, host_arch())
    return str(folder / "bin/busybox")


def subnets(
    wanted: Mapping[str, tuple[bool, bool]],
    kept: Mapping[str, tuple[str, str]],
    fixed: Iterable[tuple[str, str]],
    claimed: Iterable[str],
    options: Options,
) -> dict[str, tuple[str, str]]:
    """Subnets for the networks that ask for labctl's choice: the ones they have, else free ones.

    `kept` are the ones from last time, `fixed` those (network, subnet) that the profile states,
    `claimed` those of other labs.
    """
    from labctl.network.subnets import choose_subnets, choose_subnets6, host_holders

    taken: list[Holder | str] = [*claimed, *(subnet for _, subnet in fixed), *libvirt_subnets()]
    # The lab's own subnets are on the host when it is up; the ones it keeps are not chosen again.
    taken += host_holders() if any(name not in kept for name in wanted) else []
    found: dict[str, tuple[str, str]] = {}
    seed = f"{options.home.state}"
    for name, (four, six) in wanted.items():
        have4, have6 = kept.get(name, ("", ""))
        if four and not have4:
            have4 = choose_subnets(1, taken, seed=seed)[0]
        if six and not have6:
            have6 = choose_subnets6(1, taken, seed=f"{seed}/{name}")[0]
        taken += [subnet for subnet in (have4, have6) if subnet]
        found[name] = (have4 if four else "", have6 if six else "")
    return found


def check_fixed(fixed: Iterable[tuple[str, str]]) -> None:
    """Refuse a subnet of the profile that something else on this host has.  Raises Foreign naming it."""
    from labctl.network.subnets import holders_of

    for network, subnet in fixed:
        holders = holders_of(subnet, libvirt_subnets())
        if holders:
            raise Foreign(
                f"network {network}: {subnet} is taken by {holders[0]}",
                hint=f"choose another, or leave out networks.{network}.subnet and labctl finds a free one",
            )


def libvirt_subnets() -> list[Holder]:
    """Subnets of the system's libvirt networks, also of those that are not active (network.xml)."""
    from xml.etree import ElementTree

    from labctl.network.subnets import Holder

    found: list[Holder] = []
    for file in Path("/etc/libvirt/qemu/networks").glob("*.xml"):
        try:
            root = ElementTree.fromstring(file.read_text())
        except (OSError, ElementTree.ParseError):
            continue
        for ip in root.findall("ip"):
            address, mask = ip.get("address"), ip.get("netmask") or ip.get("prefix")
            if address and mask:
                found.append(Holder(f"{address}/{mask}", f"libvirt network {root.findtext('name')}"))
    return found


def free_ports(
    profile: Profile,
    chosen: Mapping[str, Choice],
    kept: Mapping[tuple[str, int], int],
    claimed: Sequence[str],
) -> dict[tuple[str, int], int]:
    """A host port for every published one, by (node, place); those without a wish get a free one.

    `claimed` are the ledger's claims of ports ("tcp/IP/PORT"): nothing listens on a port that another lab
    publishes, so that only the ledger tells.  Raises Foreign naming the holder of a port that is asked for
    and in use.
    """
    from labctl.network.listeners import port_holder

    found: dict[tuple[str, int], int] = {}
    taken = {int(claim.rpartition("/")[2]) for claim in claimed}
    for node in profile.nodes.values():
        for place, port in enumerate(node.ports):
            key = (node.name, place)
            if chosen[node.name].skipped:
                continue
            if not port.host_port:
                found[key] = kept.get(key) or _free_port(str(port.proto), taken | set(found.values()))
                continue
            found[key] = port.host_port
            if kept.get(key) == port.host_port:
                continue
            holder = port_holder(str(port.proto), port.host_ip, port.host_port)
            if holder:
                raise Foreign(
                    f"node {node.name}: port {port.host_port} of this host is in use by {holder}",
                    hint=f"end it, or choose another port in nodes.{node.name}.ports",
                )
    return found


def _free_port(proto: str, used: set[int]) -> int:
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    for _ in range(100):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(("", 0))
            port = int(sock.getsockname()[1])
        if port not in used:
            return port
    raise LabError("no free port was found on this host")


def tell_skipped(lab: str, chosen: Mapping[str, Choice], profile: Profile, emit: Emit) -> None:
    """Say which nodes are left out or run on another tier, and why."""
    for name, choice in chosen.items():
        asked = profile.nodes[name].tier
        if choice.skipped:
            remedy = f" ({choice.remedy})" if choice.remedy else ""
            emit(Note(lab, f"{name} is skipped: {choice.skipped}{remedy}", "warning"))
        elif choice.tier != asked:
            emit(
                Note(
                    lab,
                    f"{name} runs as {asked} → {choice.tier}: figures are those of {choice.tier}",
                    "warning",
                )
            )
