"""The para tier's engine uml: a kernel changed to run on another kernel, as a program of this host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from labctl.hypervisor.uml import UmlMachine, UmlNic
from labctl.resource.protocol import Resource
from labctl.tiers import vm
from labctl.tiers.common import life, waits_for
from labctl.tiers.context import NodeFacts, Planned, bridge_keys

REACH_SECONDS = 60.0


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a User Mode Linux machine."""
    node, lab, kernel = facts.node, facts.lab, facts.kernel
    assert kernel is not None, "the planner gives every machine a kernel"
    record = replace(vm.record_of_vm(facts), domain="", uri="", engine="uml")
    disk = replace(vm.disk_of(facts), form="cow")
    machine = UmlMachine(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(f"vmdisk:{node.name}", *bridge_keys(facts)),
        after=("firewall:lab", "dns:lab", *waits_for(facts)),
        folder=disk.folder,
        kernel=kernel.kernel,
        initrd=kernel.initrd,
        memory_bytes=record.memory,
        disk=str(Path(disk.disk)),
        backing=disk.backing,
        config=str(disk.config),
        nics=tuple(
            UmlNic(bridge=i.bridge, ifname=i.host_name, mac=i.mac, mtu=i.mtu) for i in facts.place.interfaces
        ),
    )
    steps = life(facts, record, f"uml:{node.name}", REACH_SECONDS, mounts=vm.mounts_of(facts))
    resources: list[Resource] = [disk, machine, *steps]
    return Planned(resources, record)
