"""What the ledger keeps of a node: enough to reach, show and stop it without its profile."""

from __future__ import annotations

from dataclasses import field

from labctl.records import dataclass
from labctl.resource.codec import decode, encode

QEMU_USER = "qemu-user"  # in the accelerator of a container of another CPU
EMULATED_CPU = " (emulated CPU)"  # what its tier is called beyond "container"


@dataclass(frozen=True)
class SshPlace:
    """Where a node's SSH server is, and what proves that it is the right one."""

    address: str
    key_file: str
    host_key_file: str  # the server's OpenSSH public key, made by labctl and pinned
    user: str = "root"
    port: int = 22
    protocol: str = "labctl"  # or shell: a server that knows nothing of labctl, as in a cloud image


@dataclass(frozen=True)
class PortRecord:
    """A published port: HOST_IP:HOST_PORT on this host reaches NODE_PORT in the node."""

    proto: str
    host_ip: str
    host_port: int
    node_port: int


@dataclass(frozen=True)
class InterfaceRecord:
    """One interface of a node as `status` shows it."""

    name: str
    network: str
    host_name: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class DiskRecord:
    """A further disk of a virtual machine.  `size` in bytes, 0: not known before it is made."""

    name: str
    serial: str
    path: str
    format: str
    bus: str
    size: int = 0
    read_only: bool = False
    mount: str = ""
    backing: str = ""
    digest: str = ""  # of the image whose file system it holds


@dataclass(frozen=True)
class NodeRecord:
    """One node.  `tier` is the one that runs; `asked` the one that the profile wanted."""

    name: str
    tier: str
    asked: str
    image: str
    digest: str
    arch: str
    hostname: str
    runs_on: str
    accelerator: str = ""  # "KVM", "TCG (emulated)" … what really executes the guest's code
    inside: str = ""
    skipped: str = ""  # the reason, when the node is not made on this host
    remedy: str = ""
    interfaces: tuple[InterfaceRecord, ...] = ()
    ports: tuple[PortRecord, ...] = ()
    disks: tuple[DiskRecord, ...] = ()
    ssh: SshPlace | None = None
    domain: str = ""
    uri: str = ""
    run_root: str = ""  # the keeper's folder, for containers on this host
    container: str = ""
    folder: str = ""  # the node's own files under the lab's folder
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    cpus: float = 0.0
    memory: int = 0  # bytes, 0: no limit
    stop_signal: str = ""
    stop_timeout: float = 10.0
    startup: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    replica_of: str = ""
    privileged: bool = False
    isolation: str = ""  # of a container: chroot, vserver, lxc, docker
    engine: str = ""  # "uml": what makes a para node, where it isn't a domain; "runc": what runs a container
    cgroup: str = ""  # of a container that another engine runs
    graphics: str = ""  # vnc: a machine has a screen

    @property
    def is_cloud(self) -> bool:
        """Whether it is a machine that boots a cloud image, and knows nothing of labctl."""
        return self.ssh is not None and self.ssh.protocol == "shell"

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its addresses without prefixes, in the order of its interfaces."""
        return tuple(a.partition("/")[0] for i in self.interfaces for a in i.addresses)

    @property
    def emulated(self) -> bool:
        """Whether a program carries out its instructions: its figures say nothing of real hardware."""
        return self.tier == "emulation" or "TCG" in self.accelerator or QEMU_USER in self.accelerator

    @property
    def label(self) -> str:
        """The tier as people read it: a fallback and an emulated guest are named as such."""
        if self.tier == "container" and QEMU_USER in self.accelerator:
            return f"container{EMULATED_CPU}"
        return self.tier if self.tier == self.asked else f"{self.asked} → {self.tier}"

    @property
    def main_key(self) -> str:
        """The key of the resource that is the machine itself."""
        if self.tier == "container":
            return f"{'inside' if self.inside else 'engine' if self.engine else 'container'}:{self.name}"
        return f"{'guest' if self.inside else self.engine or 'domain'}:{self.name}"

    def to_json(self) -> str:
        """The text for the ledger."""
        return encode(self)

    @classmethod
    def from_json(cls, text: str) -> NodeRecord:
        """Read it back; raises LabError when the text isn't a record."""
        return decode(cls, text)
