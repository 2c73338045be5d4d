"""What a lab is, after loading: every short form written out, every default merged, every name resolved.

These models are the *normalised* profile that the planner reads and the ledger stores.  What people
may write besides (short forms, `defaults`, `groups`, `extends`) is brought to this form by
`labctl.profile.shapes`; `labctl.profile.schema` describes both for editors.  Sizes are bytes, times
seconds, and all models are frozen.
"""

from __future__ import annotations

import math

from pydantic import Field

from labctl.profile.model import Model, Texts
from labctl.profile.models_vm import Disk, Vm
from labctl.profile.types import (
    Address,
    Capability,
    Condition,
    Cpus,
    Destination,
    Devices,
    DnsName,
    Duration,
    Engine,
    Flag,
    GuestPath,
    Hypervisor,
    Isolation,
    MaybeAddress,
    MaybeArch,
    MaybeDnsName,
    MaybeGateway,
    MaybeGuestPath,
    MaybeInterface,
    MaybeMac,
    MaybeName,
    MaybeSignal,
    MaybeSubnet,
    Mode,
    MountKind,
    Name,
    Nested,
    Protocol,
    Size,
    Text,
    Tier,
    Whole,
)


class Network(Model):
    """A segment: one Ethernet that any number of nodes are on."""

    description: Text = Field(default="", description="What the network is for.")
    subnet: MaybeSubnet = Field(
        default="",
        description="The IPv4 subnet; left out: labctl chooses a free one.",
        examples=["10.1.0.0/24"],
    )
    subnet6: MaybeSubnet = Field(default="", description="The IPv6 subnet.", examples=["fd00:1::/64"])
    ipv6: Flag = Field(
        default=False, description="Whether labctl assigns IPv6 addresses too (implied by an IPv6 subnet)."
    )
    assign: Flag = Field(
        default=True,
        description="Whether labctl gives every interface an address (`subnet: none` turns it off).",
    )
    internet: Flag = Field(
        default=False, description="Whether nodes reach the outside through the host (NAT)."
    )
    host: Flag = Field(
        default=True,
        description="Whether the host has an address here (`host_address: false`: a bare Ethernet).",
    )
    host_address: MaybeAddress = Field(
        default="", description="The host's IPv4 address here; empty: the first that no node has stated."
    )
    host_address6: MaybeAddress = Field(
        default="", description="The host's IPv6 address here; empty: the first that no node has stated."
    )
    mtu: Whole = Field(
        default=0, ge=0, le=65535, description="Largest packet in bytes; 0: the kernel's 1500."
    )
    dns: Flag = Field(default=True, description="Whether the names of all nodes resolve here.")
    domain: MaybeDnsName = Field(
        default="", description="A domain that names here also resolve in.", examples=["lab"]
    )
    labels: dict[str, Text] = Field(default={}, description="Words of your own, for filters.")


class Attachment(Model):
    """One interface of a node: which network it is on, and how."""

    network: Text = Field(description="The network, by its key under `networks`.")
    interface: MaybeInterface = Field(
        default="", description="Name of the interface in the node; empty: eth0, eth1 … in the order written."
    )
    addresses: tuple[Address, ...] = Field(
        default=(), description="Fixed addresses, IPv4 and IPv6, with or without /prefix."
    )
    assign: Flag = Field(
        default=True, description="Whether labctl chooses an address of each family that has no fixed one."
    )
    mac: MaybeMac = Field(
        default="", description="Fixed MAC address; empty: derived from the lab and the node."
    )
    up: Flag = Field(default=True, description="Whether the link is up from the start.")
    mtu: Whole = Field(default=0, ge=0, le=65535, description="Largest packet in bytes; 0: the network's.")
    aliases: tuple[DnsName, ...] = Field(
        default=(), description="More names that resolve to this interface's addresses."
    )


class Route(Model):
    """A static route in a node."""

    to: Destination = Field(description="Destination: a subnet, an address, or `default`.")
    via: MaybeAddress = Field(default="", description="The next hop.")
    interface: MaybeInterface = Field(default="", description="The interface, where there is no next hop.")
    metric: Whole = Field(default=0, ge=0, le=2**32 - 1, description="Smaller is preferred.")


class Port(Model):
    """A port of a node that is published on the host."""

    node_port: Whole = Field(ge=1, le=65535, description="The port in the node.")
    host_port: Whole = Field(
        default=0, ge=0, le=65535, description="The port on the host; 0: labctl chooses a free one."
    )
    host_ip: MaybeAddress = Field(default="", description="The host's address to listen on; empty: all.")
    proto: Protocol = Field(default=Protocol.TCP, description="tcp or udp.")


class File(Model):
    """A file that labctl writes into a node before it starts."""

    path: GuestPath = Field(description="Where it goes in the node.")
    content: Text | None = Field(default=None, description="The text, or `source` instead.")
    source: Text = Field(default="", description="A file or folder next to the profile.")
    mode: Mode | None = Field(default=None, description="Octal mode; left out: the source's, or 0644.")
    owner: Text = Field(
        default="",
        description="user, user:group or numbers; empty: root.",
        examples=["1000:1000", "www-data"],
    )


class Mount(Model):
    """A named volume of the lab, or a file or folder of the host, seen in a node."""

    kind: MountKind = Field(default=MountKind.VOLUME, description="volume or bind.")
    source: Text = Field(description="The volume's name, or the path on the host.")
    target: GuestPath = Field(description="Where it is mounted in the node.")
    read_only: Flag = Field(default=False, description="Whether the node can't write to it.")


class Tmpfs(Model):
    """A file system in memory."""

    target: GuestPath = Field(description="Where it is mounted in the node.")
    size: Size | None = Field(default=None, description="Its largest size; left out: half of the memory.")
    mode: Mode | None = Field(default=None, description="Octal mode of its top folder; left out: 1777.")


class SecretUse(Model):
    """A secret of the lab, put into a node as a file."""

    secret: Text = Field(description="The secret, by its key under `secrets`.")
    target: MaybeGuestPath = Field(default="", description="The file in the node; empty: /run/secrets/NAME.")
    mode: Mode = Field(default="0400", description="Octal mode.")
    owner: Text = Field(default="", description="user, user:group or numbers; empty: root.")


class Step(Model):
    """One provisioning step: a shell script that runs once in the life of a node."""

    name: Text = Field(default="", description="What progress shows; empty: the first line of the script.")
    run: Text = Field(description="Shell script, run with `sh -e` as root.")
    timeout: Duration = Field(default=600.0, description="How long it may take.")


class Ready(Model):
    """When a node counts as ready: exactly one of `port`, `command` or `http`."""

    port: Whole | None = Field(
        default=None, ge=1, le=65535, description="A TCP port that accepts connections."
    )
    command: Texts | None = Field(default=None, description="A command in the node that ends with 0.")
    http: Text = Field(
        default="",
        description="A URL that answers with a status below 400; a path alone asks port 80 of the node.",
        examples=["http://:8080/health", "/"],
    )
    timeout: Duration = Field(default=60.0, description="How long to wait before the node counts as failed.")
    interval: Duration = Field(default=1.0, description="Time between two tries.")


class Capabilities(Model):
    """Capabilities of a container's root beyond, or short of, the usual fourteen."""

    add: tuple[Capability, ...] = Field(default=(), description="Capabilities to add.")
    drop: tuple[Capability, ...] = Field(
        default=(), description="Capabilities to take away; ALL: every one not in `add`."
    )


class Logging(Model):
    """How much of what a container prints is kept; the oldest goes first."""

    max_size: Size = Field(default=10 << 20, description="Largest size of one file of the log.")
    max_files: Whole = Field(default=3, ge=1, le=1000, description="How many files are kept.")


class Node(Model):
    """A machine of the lab: a VM or a container."""

    name: str = Field(default="", description="Its key under `nodes` (filled in by labctl).")
    replica_of: str = Field(
        default="", description="The key that it was multiplied from (filled in by labctl)."
    )
    description: Text = Field(default="", description="What the node is for.")
    tier: Tier = Field(default=Tier.CONTAINER, description="How it is virtualized.")
    image: Text = Field(
        default="base",
        min_length=1,
        description="The image whose file system it runs, the same on every tier: a name, one in a registry "
        "(HOST/NAME:TAG), or a path (./web, /srv/box.tar) to a folder with a Containerfile or a recipe, or "
        "to an archive.",
    )
    inside: Text = Field(
        default="",
        description="A VM of the lab that it runs in: any VM for a container, for a machine one with a "
        "`hypervisor`.",
    )
    hypervisor: Hypervisor | None = Field(
        default=None,
        description="What the VM runs machines `inside` with: xen (tier para) or kvm (tier hardware).",
    )
    arch: MaybeArch = Field(
        default="", description="Architecture (emulated where it isn't the host's); empty: the host's."
    )
    kernel: Text = Field(
        default="", description="The kernel image of a VM; empty: the default of its architecture."
    )
    machine: Text = Field(
        default="", description="QEMU's machine type; empty: labctl's choice.", examples=["pc", "q35"]
    )
    cpu: Text = Field(
        default="", description="CPU model that a VM sees; empty: labctl's choice.", examples=["qemu64"]
    )
    devices: Devices = Field(
        default=Devices.VIRTIO, description="Devices that a VM sees: virtio, or emulated real ones."
    )
    engine: Engine | None = Field(
        default=None,
        description="What a para node runs on: the hypervisor xen (the default), or uml: User Mode Linux, a "
        "kernel that runs as a program. What runs a container: labctl (the default), runc, crun or podman.",
    )
    isolation: Isolation = Field(
        default=Isolation.DOCKER,
        description="How a container is kept apart (docs/history.md): chroot: only its root is another; "
        "vserver: own processes, host name and limits, and one address on the host's network; lxc: a system "
        "with an init of its own; docker: one application with few rights.",
    )
    vm: Vm | None = Field(
        default=None,
        description="How a VM is built: topology, pinning, huge pages, disk cache; or that it boots a cloud "
        "image.",
    )
    init: Flag = Field(
        default=False,
        description="Whether the image's own /sbin/init runs as PID 1 of a VM, or of a container with "
        "isolation: lxc in place of labctl's.",
    )
    cpus: Cpus | None = Field(
        default=None, gt=0, description="CPUs; left out: one for a VM, no limit for a container."
    )
    memory: Size | None = Field(
        default=None,
        description="Memory; left out: 256MiB for a VM, no limit for a container.",
        examples=["256MiB"],
    )
    disk: Size | None = Field(
        default=None, description="Size of a VM's disk; left out: the image's and some room."
    )
    disks: tuple[Disk, ...] = Field(default=(), description="Further disks of a VM, in order.")
    pids: Whole | None = Field(
        default=None, ge=1, le=4194304, description="Most processes of a container at one time."
    )
    replicas: Whole = Field(default=1, ge=0, le=1000, description="How many of it: NAME-1, NAME-2 …")
    hostname: MaybeName = Field(default="", description="Its own host name; empty: its key.")
    aliases: tuple[DnsName, ...] = Field(default=(), description="More names that resolve to it.")
    networks: tuple[Attachment, ...] = Field(default=(), description="Its interfaces, in order.")
    gateway: MaybeGateway = Field(
        default="",
        description='IPv4 default gateway; empty: the host on a network with internet; "none": no route.',
    )
    gateway6: MaybeGateway = Field(
        default="",
        description='IPv6 default gateway; empty: the host on a network with internet; "none": no route.',
    )
    routes: tuple[Route, ...] = Field(default=(), description="Static routes.")
    ipv6: Flag = Field(default=True, description="Whether the node speaks IPv6 at all.")
    ports: tuple[Port, ...] = Field(default=(), description="Ports published on the host.")
    sysctls: dict[str, Text] = Field(
        default={}, description="Kernel settings, interface ones applied once the interface is there."
    )
    env: dict[str, Text] = Field(default={}, description="Environment of its command and of `exec`.")
    entrypoint: Texts | None = Field(default=None, description="In place of the image's entry point.")
    command: Texts | None = Field(default=None, description="In place of the image's command.")
    workdir: MaybeGuestPath = Field(default="", description="Working folder; empty: the image's.")
    user: Text = Field(default="", description="user, user:group or numbers; empty: the image's.")
    files: tuple[File, ...] = Field(default=(), description="Files written into it before it starts.")
    root: Text = Field(
        default="", description="A folder laid over its /, with modes and numeric owners kept."
    )
    volumes: tuple[Mount, ...] = Field(
        default=(), description="Named volumes and files or folders of the host."
    )
    tmpfs: tuple[Tmpfs, ...] = Field(default=(), description="File systems in memory.")
    secrets: tuple[SecretUse, ...] = Field(
        default=(), description="Secrets of the lab, put into it as files."
    )
    provision: tuple[Step, ...] = Field(
        default=(), description="Steps that run once in its life, in order; a failure stops."
    )
    startup: Text = Field(
        default="", description="Script that runs at every start and goes on after a failing line."
    )
    depends_on: dict[str, Condition] = Field(
        default={}, description="Nodes that must be started or ready first."
    )
    ready: Ready | None = Field(
        default=None, description="When it counts as ready; left out: when commands run in it."
    )
    labels: dict[str, Text] = Field(default={}, description="Words of your own, for filters.")
    capabilities: Capabilities = Field(
        default=Capabilities.model_construct(), description="Capabilities of a container."
    )
    logging: Logging | None = Field(
        default=None, description="How much is kept of what a container prints; left out: 3 files of 10 MiB."
    )
    privileged: Flag = Field(
        default=False, description="All rights of the host; needs --allow-privileged on the command line."
    )
    read_only: Flag = Field(default=False, description="Whether its / can't be written to.")
    stop_signal: MaybeSignal = Field(
        default="", description="Signal that asks it to end; empty: the image's, or SIGTERM."
    )
    stop_timeout: Duration = Field(
        default=10.0, description="How long it may take to end before it is killed."
    )

    @property
    def cloud(self) -> bool:
        """Whether it is a VM that boots a cloud image."""
        return self.vm is not None and self.vm.cloud_init and self.tier is not Tier.CONTAINER

    @property
    def vcpus(self) -> int:
        """How many CPUs it has as a virtual machine: those of its topology, or `cpus`, rounded up."""
        shape = self.vm.topology if self.vm else None
        if shape:
            return shape.sockets * shape.cores * shape.threads
        return max(1, math.ceil(round(self.cpus or 1, 3)))


class Volume(Model):
    """A named volume: a folder that lives as long as the lab."""

    description: Text = Field(default="", description="What it keeps.")


class Secret(Model):
    """A secret: a file next to the profile, or a variable of labctl's environment."""

    file: Text = Field(default="", description="The file that holds it.")
    env: Text = Field(default="", description="The environment variable that holds it.")


class Expect(Model):
    """What a check expects of a command; everything stated must hold."""

    exit: Whole | None = Field(default=0, ge=0, le=255, description="Exit code; `any`: whatever it is.")
    output: Text | None = Field(default=None, description="Text that the standard output has in it.")
    equals: Text | None = Field(
        default=None, description="The whole standard output, without space at both ends."
    )
    matches: Text | None = Field(
        default=None, description="Regular expression (Python's) found in the standard output."
    )
    range: tuple[float | None, float | None] | None = Field(
        default=None,
        description="Least and greatest of the number found: group 1 of `matches`, or the first one.",
    )


class Check(Model):
    """Something that must hold in the lab once it is ready."""

    name: Text = Field(default="", description="What is checked, as a sentence.")
    node: Text = Field(description="The node where the command runs.")
    command: Texts = Field(min_length=1, description="The command.")
    expect: Expect = Field(default=Expect.model_construct(), description="What must hold.")
    negate: Flag = Field(default=False, description="Whether the check passes when `expect` does not hold.")
    within: Duration = Field(
        default=0.0, description="Tried again until it holds, for this long; 0: one try."
    )
    interval: Duration = Field(default=1.0, description="Time between two tries.")
    timeout: Duration = Field(default=30.0, description="How long one try of the command may take.")
    needs: Texts = Field(
        default=(), description="Other nodes that it is about: where one is skipped, so is the check."
    )
    hint: Text = Field(default="", description="What to tell a person when it doesn't hold.")


class Profile(Model):
    """A lab: networks, nodes and what must hold."""

    name: Name = Field(description="The lab's name.")
    description: Text = Field(default="", description="What the lab is for.")
    source: str = Field(default="", description="The file it was read from (filled in by labctl).")
    networks: dict[str, Network] = Field(default={}, description="The segments; left out: one, called lan.")
    nodes: dict[str, Node] = Field(default={}, description="The machines.")
    volumes: dict[str, Volume] = Field(default={}, description="Named volumes that nodes share.")
    secrets: dict[str, Secret] = Field(default={}, description="Secrets that nodes are given.")
    nested: Nested | None = Field(
        default=None,
        description="When labctl adds a host machine for a tier that this host can't run: `auto` (for para), "
        "`always` (for hardware as well, a KVM host under emulation: slow), `never`. Left out: as the "
        "configuration says, else auto; `--nested` goes before both.",
    )
    checks: tuple[Check, ...] = Field(default=(), description="What must hold once the lab is ready.")

    def to_json(self) -> str:
        """The profile as JSON text for the ledger; `from_json` reads it back to an equal one."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what `to_json` wrote; raises pydantic's ValidationError (a ValueError) on anything else."""
        return cls.model_validate_json(text)
