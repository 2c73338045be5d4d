"""What only virtual machines have in a profile: further disks, and how they are built and run."""

from __future__ import annotations

from pydantic import Field

from labctl.profile.model import Model
from labctl.profile.types import (
    CpuSet,
    DiskBus,
    DiskCache,
    DiskFormat,
    DiskIo,
    DiskName,
    Firmware,
    Flag,
    Graphics,
    MaybeDiskName,
    MaybeGuestPath,
    Size,
    Text,
    Whole,
)


class Disk(Model):
    """A further disk of a VM: an empty one, an image's file system, or a layer over a file of the host."""

    name: DiskName = Field(description="What it is called in the lab; also its serial, if no other is given.")
    size: Size | None = Field(
        default=None, description="Size; left out: that of its image or source.", examples=["1GiB"]
    )
    format: DiskFormat = Field(
        default=DiskFormat.QCOW2, description="Its file in the lab's folder: qcow2 or raw."
    )
    bus: DiskBus | None = Field(
        default=None,
        description="virtio, scsi or sata; left out: virtio, sata with `devices: emulated`, Xen's own for a "
        "Xen guest.",
    )
    cache: DiskCache = Field(default=DiskCache.UNSAFE, description="How the host caches it.")
    io: DiskIo | None = Field(default=None, description="How QEMU does its I/O; left out: threads.")
    image: Text = Field(default="", description="An image whose file system it holds.")
    source: Text = Field(
        default="",
        description="A disk image of the host (raw or qcow2), never written to: what the VM writes goes to a "
        "layer of the lab's own.",
    )
    read_only: Flag = Field(default=False, description="Whether the VM can't write to it.")
    serial: MaybeDiskName = Field(
        default="", description="What the VM finds it by; empty: its name (at most 20 characters)."
    )
    mount: MaybeGuestPath = Field(
        default="",
        description="Where the VM mounts it before anything of the image runs; an empty disk then has an "
        "ext4 file system.",
    )

    @property
    def known_as(self) -> str:
        """The serial that the VM finds it by."""
        return self.serial or self.name


class Topology(Model):
    """The CPUs of a VM as it sees them: sockets × cores × threads."""

    sockets: Whole = Field(default=1, ge=1, le=64, description="Packages.")
    cores: Whole = Field(default=1, ge=1, le=256, description="Cores of a package.")
    threads: Whole = Field(default=1, ge=1, le=8, description="Threads of a core.")


class Vm(Model):
    """How a VM of the tiers emulation and hardware is built and run, beyond its size."""

    topology: Topology | None = Field(
        default=None, description="CPU topology; left out: `cpus` sockets of one core."
    )
    pin: tuple[CpuSet, ...] = Field(
        default=(),
        description="CPUs of the host that its CPUs run on: one set for all of them, or one for each.",
    )
    hugepages: Flag = Field(default=False, description="Whether its memory comes from the host's huge pages.")
    balloon: Flag = Field(
        default=False, description="Whether it has a balloon, by which the host can take memory back."
    )
    disk_cache: DiskCache = Field(
        default=DiskCache.UNSAFE,
        description="How the host caches its disk; unsafe: fast, and lost with the host's power.",
    )
    disk_io: DiskIo | None = Field(
        default=None, description="How QEMU does its disk's I/O; left out: threads."
    )
    firmware: Firmware = Field(
        default=Firmware.BIOS,
        description="What it starts with; uefi: OVMF, with a memory of its own (package ovmf, for aarch64 "
        "qemu-efi-aarch64).",
    )
    graphics: Graphics = Field(
        default=Graphics.NONE,
        description="Whether it has a screen and keyboard: vnc, on this host's loopback (`labctl console "
        "--graphical`).",
    )
    kvm_paravirt: Flag = Field(
        default=True,
        description="Whether a hardware VM knows that it runs on KVM: kvmclock, PV EOI, PV TLB flush, "
        "steal time.",
    )
    cloud_init: Flag = Field(
        default=False,
        description="Whether `image` is a cloud image: a disk that boots by itself (a file, or a name that "
        "`labctl image fetch` knows), whose cloud-init is told by labctl who it is.",
    )
