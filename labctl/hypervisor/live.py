"""Cards and disks that a virtual machine gets while it runs (libvirt, virDomainAttachDeviceFlags).

Only i440fx's bus takes devices as it is; PCI Express wants a port for each, kept free from the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from labctl.errors import LabError
from labctl.hypervisor import access
from labctl.hypervisor.connection import library
from labctl.hypervisor.xml import METADATA_KEY, NAMESPACE, digest_of, domain_xml, mark_of
from labctl.looks import Look

if TYPE_CHECKING:
    from labctl.hypervisor.domain import Domain

ATTACH_SECONDS = 30.0


def only_adds(old: Domain, new: Domain) -> bool:
    """Whether all that differs are further cards and disks, after those that are there."""
    same = {name: getattr(old, name) for name in ("nics", "disks", "needs", "after", *type(old).volatile)}
    cards, disks = new.nics[len(old.nics) :], new.disks[len(old.disks) :]
    return (
        replace(new, **same) == old
        and new.nics[: len(old.nics)] == old.nics
        and new.disks[: len(old.disks)] == old.disks
        and bool(cards or disks)
        and all(card.model == "virtio" for card in cards)
        and all(disk.bus in ("virtio", "scsi") for disk in disks)
    )


def possible(new: Domain, look: Look | None) -> bool:
    """Whether a machine of this kind, which looks so, takes devices as it runs."""
    runs = look is not None and bool(look.data.get("running"))
    return runs and new.arch == "x86_64" and (new.machine in ("", "pc") or "i440fx" in new.machine)


def attach(new: Domain) -> None:
    """Give a running machine what its description has more, and note that it is as described.

    What is there already is left alone.  Raises LabError, TimedOut; LabError when it is off.
    """
    run_as = access.run_as(new.link)
    access.prepare(new, run_as)
    text = domain_xml(new, run_as)

    def act(found: Any) -> None:
        libvirt = library()
        if not found.isActive():
            raise LabError(f"{new.name} went off meanwhile", hint="labctl up")
        there = _known(ElementTree.fromstring(found.XMLDesc()))
        for device in _devices(ElementTree.fromstring(text)):
            if _name(device) not in there:
                found.attachDeviceFlags(
                    ElementTree.tostring(device, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
        found.connect().defineXML(text)
        about = ElementTree.Element("owner", mark=mark_of(new), digest=digest_of(new))
        found.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            ElementTree.tostring(about, encoding="unicode"),
            METADATA_KEY,
            NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )

    new.with_domain(act, seconds=ATTACH_SECONDS)


def _devices(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [*root.iterfind("devices/disk"), *root.iterfind("devices/interface")]


def _known(root: ElementTree.Element) -> set[str]:
    return {_name(device) for device in _devices(root)}


def _name(device: ElementTree.Element) -> str:
    """What a card or a disk is known by: its address, its serial."""
    mac = device.find("mac")
    return mac.get("address", "") if mac is not None else device.findtext("serial") or ""
