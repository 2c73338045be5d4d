"""Further disks of a virtual machine: their files on this host, and how the machine sees them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from labctl.errors import LabError
from labctl.home import write_hint
from labctl.hypervisor.domain import DomainDisk
from labctl.hypervisor.xml import target_names
from labctl.image.bootconfig import Volume
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence
from labctl.profile.types import Devices, DiskBus, Tier
from labctl.records import dataclass
from labctl.tiers.record import DiskRecord

if TYPE_CHECKING:
    from labctl.profile.models_vm import Disk
    from labctl.tiers.context import NodeFacts


@dataclass(frozen=True, kw_only=True)
class NodeDisk:
    """One further disk of a node: a file in the node's folder.

    Empty, with a file system of its own, or a layer over `backing`, which is never written to.
    """

    kind: ClassVar[str] = "disk"
    loses: ClassVar[str] = "what is on it is lost"

    owner: Owner
    name: str  # NODE.DISK
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    path: str
    format: str = "qcow2"
    size: int = 0  # bytes; 0: that of its backing file
    backing: str = ""
    backing_format: str = "raw"
    filesystem: bool = False  # whether an ext4 file system is made on it

    def make(self) -> None:
        """Make the file; one that is there keeps what its machine wrote.

        Raises LabError when the host's disk is full or `backing` is gone, HostCannot without the programs.
        """
        from labctl.image.extradisk import blank, layer

        path = Path(self.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            if path.exists():
                return
            if self.backing:
                layer(path, Path(self.backing), self.backing_format)
            else:
                blank(path, self.size, self.format, label=self.name if self.filesystem else "")
        except OSError as error:
            raise LabError(
                f"cannot write {path}: {error.strerror}", hint=write_hint(path.parent, error)
            ) from error

    def look(self) -> Look:
        """Whether the file is there, and what it is a layer over."""
        if not Path(self.path).exists():
            return ABSENT
        if self.backing and not Path(self.backing).exists():
            return Look(Presence.BROKEN, f"{self.backing}, which it is a layer over, is gone")
        return PRESENT

    def unmake(self) -> None:
        """Remove the file, and the node's folder when it was the last one in it."""
        path = Path(self.path)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def disk_key(node: str, disk: str) -> str:
    """Under which name HostFacts.disks has the cached disk of a further disk's image."""
    return f"{node}/{disk}"


def made_of(facts: NodeFacts) -> list[NodeDisk]:
    """The resources: one for each disk that is not a file of the host's as it is."""
    folder = facts.lab.node_folder(facts.node.name)
    found = []
    for disk in facts.node.disks:
        backing, form = _backing(facts, disk)
        if disk.read_only:
            continue
        found.append(
            NodeDisk(
                owner=facts.lab.owner,
                name=f"{facts.node.name}.{disk.name}",
                node=facts.node.name,
                needs=("folder:lab",),
                after=(f"vmdisk:{facts.node.name}",),
                path=str(_path(folder, disk)),
                format=str(disk.format),
                size=0 if backing else disk.size or 0,
                backing=backing,
                backing_format=form,
                filesystem=bool(disk.mount and not backing),
            )
        )
    return found


def _path(folder: Path, disk: Disk) -> Path:
    return folder / f"disk-{disk.name}.{disk.format}"


def _backing(facts: NodeFacts, disk: Disk) -> tuple[str, str]:
    """The file that it is a layer over, and that file's format."""
    if disk.image:
        return facts.disks.get(disk.name, ""), "raw"
    if not disk.source:
        return "", "raw"
    from labctl.image.extradisk import header

    return disk.source, header(Path(disk.source)).format


def keys_of(facts: NodeFacts) -> tuple[str, ...]:
    """The keys of what `made_of` gives."""
    return tuple(f"disk:{facts.node.name}.{disk.name}" for disk in facts.node.disks if not disk.read_only)


def bus_of(facts: NodeFacts, disk: Disk) -> str:
    """What the disk hangs on."""
    if facts.choice.tier == Tier.PARA:
        return "xen"
    usual = DiskBus.SATA if facts.node.devices is Devices.EMULATED else DiskBus.VIRTIO
    return str(disk.bus or usual)


def domain_disks(facts: NodeFacts) -> tuple[DomainDisk, ...]:
    """As libvirt is told of them."""
    folder = facts.lab.node_folder(facts.node.name)
    found = []
    for disk in facts.node.disks:
        backing, form = _backing(facts, disk)
        own = not disk.read_only
        found.append(
            DomainDisk(
                path=str(_path(folder, disk)) if own else backing,
                format=str(disk.format) if own else form,
                serial=disk.known_as,
                readonly=disk.read_only,
                bus=bus_of(facts, disk),
                backing=backing if own else "",
                backing_format=form if own else "raw",
                cache=str(disk.cache),
                io=str(disk.io or ""),
            )
        )
    return tuple(found)


def volumes_of(facts: NodeFacts) -> tuple[Volume, ...]:
    """Those that the machine mounts as it boots.  A Xen guest knows them by their names alone."""
    disks = facts.node.disks
    buses = [DomainDisk(path="", bus=bus) for bus in ("xen", "xen", *(bus_of(facts, d) for d in disks))]
    names = target_names(buses)[2:]
    return tuple(
        Volume(disk.known_as, disk.mount, disk.read_only, name if name.startswith("xvd") else "")
        for disk, name in zip(disks, names, strict=True)
        if disk.mount
    )


def records_of(facts: NodeFacts) -> tuple[DiskRecord, ...]:
    """As status and inspect show them."""
    found = []
    for disk, made in zip(facts.node.disks, domain_disks(facts), strict=True):
        found.append(
            DiskRecord(
                name=disk.name,
                serial=disk.known_as,
                path=made.path,
                format=made.format,
                bus=made.bus,
                size=disk.size or _size(made.backing or made.path),
                read_only=disk.read_only,
                mount=disk.mount,
                backing=made.backing,
                digest=facts.disk_digests.get(disk.name, ""),
            )
        )
    return tuple(found)


def _size(path: str) -> int:
    """The size that a machine sees of a file, in bytes; 0 when the file is not there yet."""
    from labctl.image.extradisk import header

    return header(Path(path)).size if path and Path(path).exists() else 0
