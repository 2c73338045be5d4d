"""Rules about how a virtual machine is built: what must fit together."""

from __future__ import annotations

from labctl.profile.models import Node
from labctl.profile.models_vm import Disk, Vm
from labctl.profile.plainly import Loc
from labctl.profile.rules import Rules
from labctl.profile.types import DiskCache, DiskFormat, DiskIo, Engine, Firmware, Hypervisor, Tier

MOST_DISKS = 16  # further ones of a machine; QEMU's pc has 31 slots for everything
_TAKEN = ("labroot", "labconfig")  # serials of labctl's own (labctl.image.bootconfig)
_LEAST_EXT4 = 4 << 20  # bytes


def check(rules: Rules, key: str, node: Node) -> None:
    """Note what contradicts itself under `vm`."""
    if node.disks and node.tier is not Tier.CONTAINER and not rules.is_broken("nodes", key, "disks"):
        _disks(rules, key, node)
    place: Loc = ("nodes", key, "vm")
    if node.vm is None or node.tier is Tier.CONTAINER or rules.is_broken(*place):
        return
    if node.tier is Tier.PARA:
        if node.engine is not Engine.UML:
            rules.say(place, "a Xen guest has no vm", f"{key} has tier: {node.tier}", key=True)
        elif node.vm.cloud_init:
            rules.say((*place, "cloud_init"), "User Mode Linux boots no cloud image", "tier: emulation")
        return
    _cpus(rules, place, node, node.vm)
    _disk(rules, place, node.vm)
    if node.vm.firmware is Firmware.UEFI and node.hypervisor is Hypervisor.XEN:
        rules.say((*place, "firmware"), "a Xen host starts with the BIOS", f"{key} has hypervisor: xen")
    if node.vm.cloud_init:
        _cloud(rules, key, node)
    if not node.vm.kvm_paravirt and node.tier is not Tier.HARDWARE:
        rules.say((*place, "kvm_paravirt"), "only tier: hardware has it", f"{key} has tier: {node.tier}")


# What labctl's own kernel and init do in a machine, and a cloud image's don't.
_NOT_CLOUD = (
    *("kernel", "init", "inside", "hypervisor", "volumes", "tmpfs", "read_only", "sysctls"),
    *("entrypoint", "command", "workdir", "user", "stop_signal"),
)


def _cloud(rules: Rules, key: str, node: Node) -> None:
    for name in _NOT_CLOUD:
        if getattr(node, name):
            rules.say(
                ("nodes", key, name),
                f"a machine of a cloud image has no {name}",
                "it starts what its image says; add files, provision or startup",
                key=True,
            )
    for index, at in enumerate(node.networks):
        if not at.up:
            rules.say(("nodes", key, "networks", index, "up"), "cloud-init brings every interface up")
    for index, disk in enumerate(node.disks):
        if disk.mount:
            rules.say(
                ("nodes", key, "disks", index, "mount"),
                "a machine of a cloud image mounts no disk by itself",
                "leave out `mount`, and mount it in a provisioning step",
            )


def _cpus(rules: Rules, place: Loc, node: Node, vm: Vm) -> None:
    shape = vm.topology
    cpus = node.vcpus
    if shape and node.cpus is not None and node.cpus != cpus:
        product = f"{shape.sockets} × {shape.cores} × {shape.threads}"
        rules.say(
            (*place, "topology"),
            f"{product} CPUs are {cpus}, and cpus says {node.cpus:g}",
            "leave out `cpus`",
        )
    elif shape and cpus > 512:
        rules.say((*place, "topology"), f"{cpus} CPUs: no machine has that many")
    if len(vm.pin) not in (0, 1, cpus):
        rules.say(
            (*place, "pin"), f"{len(vm.pin)} sets for {cpus} CPUs", "one for all of them, or one for each"
        )


def _disk(rules: Rules, place: Loc, vm: Vm) -> None:
    if _blocks(vm.disk_io, vm.disk_cache):
        rules.say((*place, "disk_io"), "native needs disk_cache: none or directsync")


def _blocks(io: DiskIo | None, cache: DiskCache) -> bool:
    """open(2), O_DIRECT: Linux's native asynchronous I/O is one only where the page cache stays out of it."""
    return io is DiskIo.NATIVE and cache not in (DiskCache.NONE, DiskCache.DIRECTSYNC)


def _disks(rules: Rules, key: str, node: Node) -> None:
    place: Loc = ("nodes", key, "disks")
    if len(node.disks) > MOST_DISKS:
        rules.say(place, f"{len(node.disks)} disks are too many", f"at most {MOST_DISKS}")
    names: set[str] = set()
    serials: set[str] = set()
    xen = node.tier is Tier.PARA
    for index, disk in enumerate(node.disks):
        loc: Loc = (*place, index)
        if disk.name in names:
            rules.say((*loc, "name"), f"there are two disks {disk.name}")
        elif disk.known_as in serials:
            rules.say((*loc, "serial"), f"another disk has the serial {disk.known_as}")
        names.add(disk.name)
        serials.add(disk.known_as)
        if disk.known_as in _TAKEN:
            rules.say((*loc, "serial"), f"the serial {disk.known_as} is labctl's own")
        if xen and (disk.bus or disk.io):
            field = "bus" if disk.bus else "io"
            rules.say((*loc, field), f"a Xen guest's disks have no {field} to choose", f"leave out `{field}`")
        if _blocks(disk.io, disk.cache):
            rules.say((*loc, "io"), "native needs cache: none or directsync")
        _content(rules, loc, disk)


def _content(rules: Rules, loc: Loc, disk: Disk) -> None:
    """What a disk holds at first, and what its size may be."""
    if disk.image and disk.source:
        rules.say(loc, f"{disk.name} has an image and a source", "one of the two")
    elif not disk.image and not disk.source and disk.size is None:
        rules.say(loc, f"{disk.name} has no size", "for example size: 1GiB")
    elif not disk.image and not disk.source and disk.read_only:
        rules.say((*loc, "read_only"), f"{disk.name} is empty, and would stay so", "give it image or source")
    if disk.size is not None and not 1 << 20 <= disk.size <= 64 * 1024**4:
        given = rules.at((*loc, "size")).text
        rules.say((*loc, "size"), f"{given} is no size for a disk", "for example 4G")
    if disk.size is not None and disk.source:
        rules.say((*loc, "size"), f"{disk.name} has the size of its source", "leave out `size`")
    if disk.mount and not disk.image and not disk.source and (disk.size or 0) < _LEAST_EXT4:
        rules.say((*loc, "mount"), "a file system takes 4MiB at least", "a larger size")
    if disk.format is DiskFormat.RAW and (disk.image or disk.source):
        rules.say((*loc, "format"), f"{disk.name} is a layer, and so qcow2", "leave out `format`")
