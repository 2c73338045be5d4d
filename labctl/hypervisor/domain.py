"""A virtual machine as a resource: a persistent libvirt domain, defined and started together.

The domain carries the owner's mark and a digest of its description in libvirt's metadata under our own
XML namespace; QEMU carries the mark in its environment, so that even one whose libvirtd is lost is found.
libvirt makes the taps when the domain starts and removes them when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from xml.etree import ElementTree

from labctl.errors import Foreign, LabError
from labctl.home import Home
from labctl.hypervisor import access, panic, private, processes
from labctl.hypervisor.connection import Libvirt, Lost, Missing, Refused, library, reach
from labctl.hypervisor.xml import NAMESPACE, digest_of, domain_xml, mark_of, uuid_of
from labctl.looks import ABSENT, Look, Outlook, Owner, Presence, Way, parse_mark
from labctl.records import dataclass
from labctl.workers import Pool

T = TypeVar("T")

START_SECONDS = 180.0  # a distribution's libvirtd on an odd host was seen to take 65 s, the first time
DESTROY_SECONDS = 60.0
LOOK_SECONDS = 20.0
REST_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class DomainDisk:
    """A disk.  `backing` is the image below a qcow2 one (named so that libvirt need not probe it);
    `serial` is what the guest finds it by (at most 20 bytes, virtio specification 5.2.6.1)."""

    path: str
    format: str = "raw"
    serial: str = ""
    readonly: bool = False
    bus: str = "virtio"
    backing: str = ""
    backing_format: str = "raw"
    cache: str = "unsafe"  # a lab's disk need not survive the host's power cut; twice as fast
    io: str = ""  # threads, native or io_uring; "" = QEMU's choice
    block: bool = False  # a block device of the domain's host, not a file


@dataclass(frozen=True, kw_only=True)
class DomainNic:
    """A network card on a bridge of the host.  The order of a domain's cards is their order in the guest."""

    bridge: str
    ifname: str
    mac: str
    model: str = "virtio"
    mtu: int = 0


@dataclass(frozen=True, kw_only=True)
class DomainShare:
    """A folder of the host that the guest mounts by its tag (virtiofs; at most 35 bytes, virtio 5.11.4)."""

    path: str
    tag: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One virtual machine."""

    kind: ClassVar[str] = "domain"
    gate: ClassVar[str] = "boot"
    cost: ClassVar[float] = 20.0
    keeps_log: ClassVar[bool] = True  # whether its console's log goes on at the next start
    restarts: ClassVar[bool] = True  # its disks are resources of their own
    stands_on: ClassVar[frozenset[str]] = frozenset({"vmdisk", "disk", "nvram", "plugs"})
    volatile: ClassVar[tuple[str, ...]] = ("snapshot", "snapshots")  # how it is started, not what it is

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    uri: str
    home_state: str = ""  # the home whose private libvirtd `uri` may be; "" for any other
    home_cache: str = ""
    domain: str  # libvirt's name, unique on the host
    title: str = ""
    type: str = "qemu"  # or kvm
    arch: str = "x86_64"
    machine: str = ""  # "" = labctl's choice for the architecture
    cpu: str = ""  # MODEL[,+feature][,-feature] or host-passthrough; "" = labctl's choice
    emulator: str = ""
    firmware: str = ""
    nvram: str = ""  # the machine's memory of its UEFI; with one, `firmware` is flash and not ROM
    vcpus: int = 1
    topology: tuple[int, ...] = ()  # sockets, cores, threads; () = a socket for each CPU
    pin: tuple[str, ...] = ()  # sets of the host's CPUs: one for all vCPUs, or one for each
    kvm_paravirt: bool = True  # whether a guest of KVM may know that it is one
    hugepages: bool = False
    memory_bytes: int
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    hypervisor: str = ""  # a multiboot file (Xen) that starts the kernel; `hypervisor_args` are its own
    hypervisor_args: str = ""
    scsi: bool = False  # a bus on which disks come and go while it runs
    disks: tuple[DomainDisk, ...] = ()
    nics: tuple[DomainNic, ...] = ()
    shares: tuple[DomainShare, ...] = ()
    channels: tuple[str, ...] = ()
    console_log: str = ""
    rng: bool = True
    balloon: bool = False
    graphics: bool = False
    snapshots: str = ""  # the folder of memory snapshots, see snapshot.py; "" = it is always booted
    snapshot: str = "auto"  # or always, never

    @property
    def mark(self) -> str:
        """The owner's mark on it."""
        return mark_of(self)

    @property
    def uuid(self) -> str:
        """libvirt's id of it, which follows from the mark."""
        return uuid_of(self)

    @property
    def home(self) -> Home | None:
        """The home whose private libvirtd it may run in."""
        return Home(Path(self.home_state), Path(self.home_cache)) if self.home_state else None

    @property
    def link(self) -> Libvirt:
        """The connection to its libvirt; a private one that is down is started.  May turn out to be Lost."""
        return reach(self.uri, self.home, sure=False)

    @property
    def daemonless(self) -> bool:
        """Whether it lives in a private libvirtd that has no domain at all: no need to start that."""
        home = self.home
        return home is not None and self.uri == private.uri(home) and not private.domains(home)

    def ask(self, function: Callable[[Any], T], *, seconds: float = LOOK_SECONDS) -> T:
        """Run `function(connection)` bounded; tried once more when libvirtd went away meanwhile."""
        what = f"virtual machine {self.name}"
        link = self.link
        try:
            return link.call(what, function, seconds=seconds)
        except Lost:
            link.close()  # this one: another thread may have opened the next already
            return self.link.call(what, function, seconds=seconds)

    def with_domain(self, function: Callable[[Any], T], *, seconds: float = LOOK_SECONDS) -> T:
        """Run `function(virDomain)` on ours.  Missing when there is none, Foreign when it isn't ours."""

        def on_connection(conn: Any) -> T:
            found = conn.lookupByName(self.domain)
            mark, _ = read_mark(found)
            if mark != self.mark:
                raise Foreign(f"the libvirt domain {self.domain} is not ours: it belongs to {holder(mark)}")
            return function(found)

        return self.ask(on_connection, seconds=seconds)

    def make(self) -> list[str]:
        """Define and start it.  Ours and the same: started if it is off.  Ours and different: replaced.

        Gives what a person should be told of its start.  Raises Foreign, HostCannot, TimedOut, LabError;
        bounded by START_SECONDS and the limits in snapshot.py.
        """
        look = self.look()
        if look.presence is Presence.FOREIGN:
            raise Foreign(f"virtual machine {self.name}: {look.detail}", hint="rename the lab or the node")
        if look.presence is Presence.BROKEN:
            self.unmake()
        from labctl.hypervisor import snapshot

        if look.there:
            if look.detail == "paused":
                # Its start was not finished: labctl was killed before its CPUs ran.
                self.with_domain(lambda found: found.resume())
            snapshot.go_on(self)
            return []
        run_as = access.run_as(self.link)
        access.prepare(self, run_as)
        text = domain_xml(self, run_as)

        def define(conn: Any) -> None:
            conn.defineXML(text)

        self.ask(define, seconds=START_SECONDS)
        return snapshot.start(self)

    def look(self) -> Look:
        """Running, stopped, broken (crashed or differently described), foreign or absent."""
        if self.daemonless:
            return ABSENT
        try:
            return self.ask(lambda conn: self._judge(conn.lookupByName(self.domain)))
        except Missing:
            return ABSENT

    def _judge(self, found: Any) -> Look:
        mark, digest = read_mark(found)
        if mark != self.mark:
            return Look(Presence.FOREIGN, f"the libvirt domain {self.domain} belongs to {holder(mark)}")
        if digest != digest_of(self):
            running = found.state()[0] in (library().VIR_DOMAIN_RUNNING, library().VIR_DOMAIN_BLOCKED)
            return Look(Presence.BROKEN, "defined differently", {"running": running})
        state, reason = (int(value) for value in found.state()[:2])
        look = _look_of(state, reason)
        if self.graphics and look.there:
            look = Look(look.presence, look.detail, {**look.data, "screen": screen_of(found.XMLDesc())})
        died = look.presence is Presence.BROKEN and self.last_words()
        return Look(look.presence, f"its kernel panicked: {died}", look.data) if died else look

    def last_words(self) -> str:
        """Why its kernel panicked; "" when it didn't, or nothing is known of it."""
        return panic.last_words(self.console_log)

    def outlook(self, old: Domain, look: Look | None) -> Outlook:
        """Further cards and disks are attached where that can be; QEMU is started anew for all else."""
        from labctl.hypervisor import live

        if live.only_adds(old, self) and live.possible(self, look):
            return Outlook(Way.LIVE, "attached live")
        return Outlook(Way.RESTART, "restart needed, its disks are kept")

    def change(self, old: Domain) -> bool:
        """Attach the further cards and disks.  Raises LabError, TimedOut."""
        from labctl.hypervisor import live

        live.attach(self)
        return True

    def rest(self) -> None:
        """Wait for it to power off, having pressed its power button, and end it after REST_SECONDS."""
        from labctl.hypervisor import power

        if power.state(self) == "paused":
            power.resume(self)
        power.stop(self, REST_SECONDS, self._press)

    def _press(self) -> None:
        with contextlib.suppress(LabError):  # a machine without a power button was asked otherwise
            self.with_domain(lambda found: found.shutdown())

    def unmake(self) -> list[str] | None:
        """Destroy and undefine it; returns when QEMU has ended.  Absent or not ours: nothing to do.

        Raises TimedOut, LabError; bounded by DESTROY_SECONDS and processes.END_SECONDS.
        """
        if not self.daemonless:
            with contextlib.suppress(Missing, Foreign):
                self.with_domain(remove, seconds=DESTROY_SECONDS)
        processes.end(self.uuid)
        return None

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many, by name: one list a connection instead of a question a domain."""
        looks: dict[str, Look] = {}
        groups: dict[str, list[Self]] = {}
        for item in items:
            groups.setdefault(item.uri, []).append(item)
        for group in groups.values():
            first = group[0]
            if first.daemonless:
                looks |= {item.name: ABSENT for item in group}
                continue
            there = first.ask(lambda conn: {found.name(): found for found in conn.listAllDomains()})
            for item in group:
                found = there.get(item.domain)
                looks[item.name] = ABSENT if found is None else item._look_at(found)
        return looks

    def _look_at(self, found: Any) -> Look:
        try:
            return self.ask(lambda _: self._judge(found))
        except Missing:
            return ABSENT

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Unmake many at once: most of the time is waiting for QEMUs to end."""
        failures: dict[str, LabError] = {}

        def one(item: Self) -> None:
            try:
                item.unmake()
            except LabError as error:
                failures[item.name] = error

        with Pool(8) as pool:
            list(pool.map(one, items))
        return failures


def screen_of(xml: str) -> str:
    """Where a running domain's screen is, as ADDRESS:PORT; "" when it has none."""
    found = ElementTree.fromstring(xml).find("devices/graphics[@type='vnc']")
    port = "" if found is None else found.get("port", "")
    return f"{found.get('listen') or '127.0.0.1'}:{port}" if found is not None and port.isdigit() else ""


def _look_of(state: int, reason: int) -> Look:
    libvirt = library()
    data = {"state": state, "reason": reason}
    if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
        return Look(Presence.PRESENT, "running", data)
    if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        failed = reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR
        detail = "paused: its disk failed, or the host's disk is full" if failed else "paused"
        return Look(Presence.PRESENT, detail, data)
    crashes = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)
    if state == libvirt.VIR_DOMAIN_CRASHED or (state == libvirt.VIR_DOMAIN_SHUTOFF and reason in crashes):
        return Look(Presence.BROKEN, "QEMU ended unexpectedly", data)
    return Look(Presence.STOPPED, "shut off", data)


def read_mark(found: Any) -> tuple[str, str]:
    """The mark and digest that a virDomain carries; ("", "") when it has none of ours.

    Raises libvirtError when the domain is gone.
    """
    libvirt = library()
    try:
        text = found.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return "", ""
        raise
    try:
        element = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return "", ""
    return element.get("mark", ""), element.get("digest", "")


def holder(mark: str) -> str:
    """Who a mark says something belongs to, for a person."""
    parsed = parse_mark(mark)
    if parsed is None:
        return "someone else (labctl did not make it)"
    owner, _, name = parsed
    return f"node {name} of lab {owner.lab} (labctl instance {owner.instance})"


def remove(found: Any) -> None:
    """Destroy and undefine a virDomain with everything that libvirt keeps of it."""
    libvirt = library()
    if found.isActive():
        try:
            found.destroy()
        except libvirt.libvirtError as error:
            # It ended by itself meanwhile.
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise
    if not found.isPersistent():
        return
    kept = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    try:
        # A machine's memory of its firmware is an object of its own.
        found.undefineFlags(kept | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    except libvirt.libvirtError as error:
        # Drivers that keep less than QEMU's know fewer flags.
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        found.undefine()


__all__ = ["Domain", "DomainDisk", "DomainNic", "DomainShare", "Refused", "holder", "read_mark", "remove"]
