"""What the verbs of a lab take and give back.  Plain data: the CLI and the web draw it."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from labctl.home import Home
from labctl.records import dataclass
from labctl.resource.changes import Change

SCHEMA_VERSION = 1  # of every JSON document that labctl prints

STATES = ("planned", "starting", "running", "ready", "stopped", "paused", "failed", "skipped")


@dataclass(frozen=True)
class Options:
    """How a person wants a lab handled.  `libvirt` is a connection URI, "" for labctl's choice."""

    home: Home = field(default_factory=Home.find)
    libvirt: str = ""
    skip_unavailable: bool = False
    fallback: str = ""  # the tier to use where the asked one can't run: "emulation"
    # When labctl builds hosts for tiers that can't run here (auto, never, always): as asked for this time
    # ("" = as the profile says), and where neither says.
    nested: str = ""
    usual_nested: str = "auto"
    allow_privileged: bool = False
    rollback: bool = False  # take down what a failed first `up` made
    wait: float = 0.0  # seconds to wait for another labctl that holds the lab
    snapshot: str = "auto"  # or "always", "never": whether machines start from memory snapshots
    checks: bool = False  # run the profile's checks after `up`


@dataclass(frozen=True)
class InterfaceStatus:
    """One interface of a node; addresses carry their prefix."""

    name: str
    network: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class DiskStatus:
    """One further disk of a virtual machine; `size` in bytes."""

    name: str
    size: int
    format: str
    bus: str
    serial: str
    path: str
    mount: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class NodeStatus:
    """One node as it is now.  `seconds` is how long the machine took from its start to reachable."""

    name: str
    tier: str  # as shown: "hardware → emulation" for a fallback
    state: str
    runs_on: str
    addresses: tuple[str, ...]
    image: str
    arch: str
    accelerator: str = ""
    inside: str = ""
    reason: str = ""  # why it is failed or skipped
    remedy: str = ""
    seconds: float = 0.0
    ports: tuple[str, ...] = ()
    interfaces: tuple[InterfaceStatus, ...] = ()
    disks: tuple[DiskStatus, ...] = ()
    viewer: str = ""  # the command that shows its screen, while it runs
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkStatus:
    """One network of a lab."""

    name: str
    bridge: str
    subnet4: str
    subnet6: str
    internet: bool


@dataclass(frozen=True)
class LabStatus:
    """One lab as it is now."""

    lab: str
    id: str
    created: float
    source: str
    nodes: tuple[NodeStatus, ...]
    networks: tuple[NetworkStatus, ...] = ()
    leftovers: int = 0  # objects in the ledger whose removal was begun and not finished


@dataclass(frozen=True)
class PlanResult:
    """What an `up` would do, touching nothing."""

    lab: str
    id: str
    exists: bool
    changes: tuple[Change, ...]
    nodes: tuple[NodeStatus, ...]
    notes: tuple[str, ...] = ()  # images still to be built and the like


@dataclass(frozen=True)
class UpResult:
    """What an `up` did."""

    status: LabStatus
    changes: tuple[Change, ...]
    seconds: float


@dataclass(frozen=True)
class Leftover:
    """Something on the host that carries our mark and that no lab of the ledger owns."""

    kind: str
    name: str
    lab: str
    removed: bool
    error: str = ""


@dataclass(frozen=True)
class ProfileSource:
    """Where a profile comes from and how the command line changes it."""

    path: Path
    sets: tuple[str, ...] = ()
    name: str | None = None
