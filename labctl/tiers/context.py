"""What a tier is told about the lab and the host when it plans a node: plain facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.records import dataclass

if TYPE_CHECKING:
    # Names for annotations only: what is loaded here, `down` pays for as well.
    from labctl.home import Home
    from labctl.hypervisor.domain import Domain
    from labctl.image.model import ImageConfig
    from labctl.looks import Owner
    from labctl.network.model import Interface
    from labctl.profile.models import Node, Profile
    from labctl.resource.protocol import Resource
    from labctl.tiers.record import NodeRecord


@dataclass(frozen=True)
class ImageFacts:
    """An image as it is in the store; empty `digest` and `layers` when it is still to be built."""

    ref: str
    arch: str
    digest: str
    layers: tuple[str, ...]  # unpacked, bottom first
    config: ImageConfig


@dataclass(frozen=True)
class KernelFacts:
    """What a VM boots with.  `cmdline` is the part that does not depend on the node."""

    kernel: str
    initrd: str
    cmdline: str
    version: str
    packed: str = ""  # the kernel as its package has it, for where it must be small
    xen_cmdline: str = ""  # for a kernel that Xen starts, as dom0 or as a PV guest


@dataclass(frozen=True)
class Choice:
    """The tier that a node gets on this host, or why it gets none."""

    tier: str
    runs_on: str = ""
    accelerator: str = ""
    skipped: str = ""
    remedy: str = ""
    engine: str = ""  # what runs a container, where it isn't labctl
    emulator: str = ""  # the program for a container of another CPU that its own binfmt_misc starts


@dataclass(frozen=True)
class Place:
    """Where a node is on the networks."""

    interfaces: tuple[Interface, ...]
    networks: tuple[str, ...]
    gateway4: str
    gateway6: str
    dns: tuple[str, ...]  # name servers, in order
    search: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, without prefixes."""
        return tuple(a.partition("/")[0] for interface in self.interfaces for a in interface.addresses)


@dataclass(frozen=True)
class LabFacts:
    """The lab around a node."""

    home: Home
    owner: Owner
    name: str
    profile: Profile
    uri: str  # libvirt's, "" when no node needs it
    libvirt_home: Home | None  # the home whose private libvirtd `uri` is, if it is one
    domain: str  # DNS search domain
    snapshot: str = "auto"  # whether machines start from memory snapshots: auto, always, never

    @property
    def folder(self) -> Path:
        """The lab's folder."""
        return self.home.lab(self.owner.lab)

    def node_folder(self, name: str) -> Path:
        """A node's own files."""
        return self.folder / "nodes" / name

    @property
    def key_file(self) -> Path:
        """The private key that opens the lab's machines."""
        return self.folder / "ssh" / "id_ed25519"


@dataclass(frozen=True)
class NodeFacts:
    """One node, with everything that was chosen for it."""

    lab: LabFacts
    node: Node
    choice: Choice
    image: ImageFacts
    place: Place
    kernel: KernelFacts | None = None
    disk: str = ""  # the cached disk of its image, where it is a VM
    # Of its further disks with an image: the cached disk, and that image's digest.
    disks: Mapping[str, str] = field(default_factory=dict)
    disk_digests: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()  # the host's port of each published one
    hosts: str = ""  # the text of its /etc/hosts
    is_container_host: bool = False
    carried: tuple[tuple[str, str], ...] = ()  # (digest, cached disk) of the images of containers inside it
    host_record: NodeRecord | None = None  # of the VM it runs inside of
    host_domain: Domain | None = None  # that VM as a resource
    hypervisor: str = ""  # the file that boots before its kernel, where it is a Xen host
    firmware: str = ""  # UEFI's program, and what a machine's memory of it starts as; "" for the BIOS
    firmware_template: str = ""
    init_program: str = ""  # labctl's static busybox, where the node has labctl's init

    @property
    def command(self) -> tuple[str, ...]:
        """What runs as its service: the profile's words over the image's, as OCI runtimes combine them."""
        entry = self.node.entrypoint
        if entry is None:
            command = self.node.command if self.node.command is not None else self.image.config.cmd
            return (*self.image.config.entrypoint, *command)
        return (*entry, *(self.node.command or ()))

    @property
    def env(self) -> dict[str, str]:
        """The image's environment under the node's."""
        pairs = (item.partition("=") for item in self.image.config.env)
        return {**{key: value for key, _, value in pairs}, **self.node.env}

    @property
    def workdir(self) -> str:
        """The working folder of its command."""
        return self.node.workdir or self.image.config.working_dir or "/"

    @property
    def user(self) -> str:
        """The user of its command, as the profile or the image writes it."""
        return self.node.user or self.image.config.user

    @property
    def stop_signal(self) -> str:
        """The signal that asks its command to end."""
        asked = self.node.stop_signal or self.image.config.stop_signal
        if asked or self.node.tier != "container" or self.node.isolation != "lxc":
            return asked or "SIGTERM"
        from labctl.tiers.isolation import POWER_FAIL, POWER_OFF

        return POWER_FAIL if self.node.init else POWER_OFF

    @property
    def hostname(self) -> str:
        """Its own host name."""
        return self.node.hostname or self.node.name


@dataclass(frozen=True)
class Planned:
    """What a tier makes of a node."""

    resources: Sequence[Resource]
    record: NodeRecord


def bridge_keys(facts: NodeFacts) -> tuple[str, ...]:
    """The keys of the bridges that a node is on."""
    return tuple(dict.fromkeys(f"bridge:{name}" for name in facts.place.networks))
