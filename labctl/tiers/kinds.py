"""Which class stands behind each kind that the ledger may name."""

from __future__ import annotations

from labctl.resource import registry

KINDS = {
    "folder": "labctl.tiers.folders:LabFolder",
    "volume": "labctl.tiers.folders:VolumeFolder",
    "bridge": "labctl.network.bridge:Bridge",
    "firewall": "labctl.network.firewall:LabFirewall",
    "dns": "labctl.network.dns:Dns",
    "net": "labctl.network.nodenet:NodeNet",
    "root": "labctl.tiers.chroot:ChrootTree",
    "keeper": "labctl.tiers.container:LabKeeper",
    "container": "labctl.tiers.container:ContainerNode",
    "engine": "labctl.tiers.engine:EngineContainer",
    "vmdisk": "labctl.tiers.vmdisk:VmDisk",
    "nvram": "labctl.hypervisor.firmware:Nvram",
    "disk": "labctl.tiers.disks:NodeDisk",
    "libvirtd": "labctl.hypervisor.daemon:LibvirtDaemon",
    "domain": "labctl.hypervisor.domain:Domain",
    "plugs": "labctl.tiers.plugs:DiskPlugs",
    "guest": "labctl.tiers.guests:Guest",
    "uml": "labctl.hypervisor.uml:UmlMachine",
    "inside": "labctl.tiers.inside:InsideContainer",
    "registry": "labctl.tiers.registry_server:RegistryServer",
    "reach": "labctl.tiers.steps:Reach",
    "provision": "labctl.tiers.steps:Provision",
    "ready": "labctl.tiers.steps:ReadyWait",
}


def register() -> None:
    """Tell the executor about all of them; done before any ledger row is read."""
    registry.register(KINDS)
