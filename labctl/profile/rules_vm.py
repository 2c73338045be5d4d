"""Rules about how a virtual machine is built: what must fit together."""

from __future__ import annotations

from labctl.profile.models import Node, Vm
from labctl.profile.plainly import Loc
from labctl.profile.rules import Rules
from labctl.profile.types import DiskCache, DiskIo, Engine, Tier


def check(rules: Rules, key: str, node: Node) -> None:
    """Note what contradicts itself under `vm`."""
    place: Loc = ("nodes", key, "vm")
    if node.vm is None or node.tier is Tier.CONTAINER or rules.is_broken(*place):
        return
    if node.tier is Tier.PARA:
        if node.engine is Engine.XEN:
            rules.say(place, "a Xen guest has no vm", f"{key} has tier: {node.tier}", key=True)
        return
    _cpus(rules, place, node, node.vm)
    _disk(rules, place, node.vm)
    if not node.vm.kvm_paravirt and node.tier is not Tier.HARDWARE:
        rules.say((*place, "kvm_paravirt"), "only tier: hardware has it", f"{key} has tier: {node.tier}")


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
    # open(2), O_DIRECT: Linux's native asynchronous I/O is one only where the page cache stays out of it.
    if vm.disk_io is DiskIo.NATIVE and vm.disk_cache not in (DiskCache.NONE, DiskCache.DIRECTSYNC):
        rules.say((*place, "disk_io"), "native needs disk_cache: none or directsync")
