"""Files of this host as disks of a machine that runs: how a host machine gets the files of its guests.

They are plugged into its SCSI bus, which needs nothing of the guest but a driver, and are found there by
their serial.  A machine that was started anew has none, which a look says, so that `up` plugs them again.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, ClassVar
from xml.etree import ElementTree

from labctl.errors import Foreign, LabError
from labctl.hypervisor import access
from labctl.hypervisor.connection import Missing
from labctl.hypervisor.domain import Domain, DomainDisk
from labctl.hypervisor.xml import target_names
from labctl.looks import ABSENT, PRESENT, Look, Outlook, Owner, Way
from labctl.records import dataclass

_TARGETS = range(255)  # of libvirt's virtio-scsi controller
_plugging = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class DiskPlugs:
    """The disks of one guest in its host machine.  Each is known there by its `serial`."""

    kind: ClassVar[str] = "plugs"
    follows: ClassVar[bool] = True  # a host machine that was started anew has none
    restarts: ClassVar[bool] = True
    stands_on: ClassVar[frozenset[str]] = frozenset({"vmdisk", "disk"})

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    host: Domain
    disks: tuple[DomainDisk, ...]

    def make(self) -> None:
        """Plug in what is not there yet.  Raises LabError, HostCannot; LabError when the host is off."""
        run_as = access.run_as(self.host.link)
        access.prepare(replace(self.host, disks=self.disks), run_as)
        with _plugging:
            self.host.with_domain(self._plug)

    def _plug(self, found: Any) -> None:
        if not found.isActive():
            raise LabError(f"{self.host.name}, which {self.node} runs in, is off", hint="labctl up")
        there = _disks(found)
        free = (n for n in _TARGETS if n not in {target for target, _ in there.values()})
        names = target_names([DomainDisk(path="", bus="scsi")] * (len(there) + len(self.disks) + 16))
        used = {name for _, name in there.values()}
        spare = (name for name in names if name not in used)
        for disk in self.disks:
            if disk.serial not in there:
                found.attachDevice(_disk_xml(disk, next(spare), next(free)))

    def look(self) -> Look:
        """Whether all of them are in the running host machine."""
        try:
            there = self.host.with_domain(lambda found: _disks(found) if found.isActive() else {})
        except (Missing, Foreign):
            return ABSENT
        return PRESENT if {disk.serial for disk in self.disks} <= set(there) else ABSENT

    def outlook(self, old: DiskPlugs, look: Look | None) -> Outlook:
        """They are unplugged and plugged in again; the files stay."""
        return Outlook(Way.RESTART)

    def unmake(self) -> None:
        """Unplug them; a host machine that is off or gone has none."""
        if self.host.daemonless:
            return
        try:
            with _plugging:
                self.host.with_domain(self._unplug)
        except (Missing, Foreign):
            return

    def _unplug(self, found: Any) -> None:
        there = _disks(found) if found.isActive() else {}
        for disk in self.disks:
            if disk.serial in there:
                target, name = there[disk.serial]
                found.detachDevice(_disk_xml(disk, name, target))


def _disks(found: Any) -> dict[str, tuple[int, str]]:
    """The SCSI disks of a running virDomain: serial → (target number, libvirt's name)."""
    there = {}
    for disk in ElementTree.fromstring(found.XMLDesc()).iterfind("devices/disk"):
        target, address = disk.find("target"), disk.find("address")
        if target is not None and address is not None and target.get("bus") == "scsi":
            place = (int(address.get("target", "0")), target.get("dev", ""))
            there[disk.findtext("serial") or place[1]] = place
    return there


def _disk_xml(disk: DomainDisk, name: str, target: int) -> str:
    """libvirt's description of one (formatdomain.html, "Hard drives")."""
    root = ElementTree.Element("disk", type="file", device="disk")
    ElementTree.SubElement(root, "driver", name="qemu", type=disk.format, cache=disk.cache)
    ElementTree.SubElement(root, "source", file=disk.path)
    if disk.backing:
        below = ElementTree.SubElement(root, "backingStore", type="file")
        ElementTree.SubElement(below, "format", type=disk.backing_format)
        ElementTree.SubElement(below, "source", file=disk.backing)
        ElementTree.SubElement(below, "backingStore")
    ElementTree.SubElement(root, "target", dev=name, bus="scsi")
    if disk.readonly:
        ElementTree.SubElement(root, "readonly")
    ElementTree.SubElement(root, "serial").text = disk.serial
    place = {"type": "drive", "controller": "0", "bus": "0", "target": str(target), "unit": "0"}
    ElementTree.SubElement(root, "address", place)
    return ElementTree.tostring(root, encoding="unicode")
