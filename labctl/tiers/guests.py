"""Machines inside a machine of the lab: guests of its hypervisor, driven from here through its libvirt.

The same steps as for a virtual machine of this host, with two differences: the files are plugged into the
host machine as disks, and the domain's libvirt is reached over SSH, with the lab's own key and the host
machine's pinned one.  See labctl.tiers.hosts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote

from labctl.data import data
from labctl.errors import HostCannot, LabError, TimedOut, UsageError
from labctl.guest.ssh import banner_up
from labctl.hypervisor import connection, panic
from labctl.hypervisor.connection import Libvirt, Lost, Missing
from labctl.hypervisor.domain import LOOK_SECONDS, START_SECONDS, Domain, DomainDisk, DomainNic
from labctl.image.bootconfig import CONFIG_SERIAL, ROOT_SERIAL
from labctl.looks import Look, Outlook, Presence, Way
from labctl.profile.types import Firmware, Graphics
from labctl.records import dataclass
from labctl.resource.protocol import Resource
from labctl.tiers import disks
from labctl.tiers.common import life, waits_for
from labctl.tiers.context import NodeFacts, Planned
from labctl.tiers.plugs import DiskPlugs
from labctl.tiers.record import SshPlace
from labctl.tiers.vm import disk_of, domain_of, mounts_of, record_of_vm

if TYPE_CHECKING:
    from labctl.guest.machine import Completed
    from labctl.guest.ssh import SshMachine

REACH_SECONDS = 240.0  # a machine in a machine, both emulated, on a busy host
BANNER_SECONDS = 3.0
_FILES_SECONDS = 120.0
SILENT_SECONDS = 30  # a guest of KVM under emulation that does nothing for so long has hung
_PLACE = "/run/labctl-guests"  # in the host machine
_LOGS = "/var/log/libvirt/qemu"  # there, too
_WORDS = {"para": ("xen", "xen"), "hardware": ("kvm", "qemu")}  # tier → (domain type, URI scheme)


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a machine inside of another."""
    node, lab, kernel = facts.node, facts.lab, facts.kernel
    host, place = facts.host_domain, facts.host_record.ssh if facts.host_record else None
    if host is None or place is None:
        raise UsageError(f"{node.name} is inside {node.inside}, which is no machine of this lab")
    assert kernel is not None, "the planner gives every VM a kernel"
    if node.volumes:
        raise UsageError(
            f"{node.name} runs inside {node.inside}, which has no way to a folder of this host",
            hint=f"nodes.{node.name}.files or root in place of volumes",
        )
    if node.vm and node.vm.firmware is Firmware.UEFI:
        raise UsageError(
            f"{node.name} runs inside {node.inside}, and labctl brings no UEFI firmware there",
            hint=f"nodes.{node.name}.vm.firmware: bios",
        )
    if node.vm and node.vm.graphics is not Graphics.NONE:
        raise UsageError(
            f"{node.name} runs inside {node.inside}: its screen would be on that machine's loopback",
            hint=f"leave out nodes.{node.name}.vm.graphics; labctl console {node.name} is its serial line",
        )
    record = replace(record_of_vm(facts), uri="")
    disk = disk_of(facts)
    short = hashlib.sha256(node.name.encode()).hexdigest()[:8]
    small = kernel.packed or kernel.kernel
    files = {"root": str(disk.disk), "config": str(disk.config), "kernel": small, "initrd": kernel.initrd}
    further = {_file_of(d.name): made for d, made in zip(node.disks, disks.domain_disks(facts), strict=True)}
    plugged = [_plug(f"{short}-{what}", path, disk.backing) for what, path in files.items()]
    plugged += [replace(d, serial=f"{short}-{what}", bus="scsi") for what, d in further.items()]
    plugs = DiskPlugs(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(f"vmdisk:{node.name}", *disks.keys_of(facts), f"ready:{node.inside}"),
        host=host,
        disks=tuple(plugged),
    )
    domain = _guest(facts, host, place, short)
    steps = life(facts, record, f"guest:{node.name}", REACH_SECONDS, mounts=mounts_of(facts))
    resources: list[Resource] = [disk, *disks.made_of(facts), plugs, domain, *steps]
    return Planned(resources, record)


def _file_of(disk: str) -> str:
    """What a further disk is called in the host machine: files that are copied there end otherwise."""
    return f"{disk}-disk"


def _plug(serial: str, path: str, backing: str) -> DomainDisk:
    if serial.endswith("-root"):
        return DomainDisk(path=path, format="qcow2", serial=serial, bus="scsi", backing=backing)
    return DomainDisk(path=path, format="raw", serial=serial, bus="scsi", readonly=True)


def _guest(facts: NodeFacts, host: Domain, place: SshPlace, short: str) -> Guest:
    node, kernel = facts.node, facts.kernel
    assert kernel is not None
    assert facts.host_record is not None, "the planner makes the host machine first"
    kind, _ = _WORDS[facts.choice.tier]
    xen = kind == "xen"
    bridges = {card.network: f"lab{n}" for n, card in reversed([*enumerate(facts.host_record.interfaces)])}
    nics = tuple(
        DomainNic(bridge=bridges[network], ifname="", mac=i.mac, model="" if xen else "virtio", mtu=i.mtu)
        for i, network in zip(facts.place.interfaces, facts.place.networks, strict=True)
    )
    bus = "xen" if xen else "virtio"
    all_disks = (
        DomainDisk(path=f"{_PLACE}/{short}-root", serial=ROOT_SERIAL, bus=bus, block=True),
        DomainDisk(path=f"{_PLACE}/{short}-config", serial=CONFIG_SERIAL, bus=bus, readonly=True, block=True),
        *(
            replace(made, path=f"{_PLACE}/{short}-{_file_of(d.name)}", format="raw", backing="", block=True)
            for d, made in zip(node.disks, disks.domain_disks(facts), strict=True)
        ),
    )
    usual = domain_of(facts)
    plain = {field.name: getattr(usual, field.name) for field in fields(usual)}
    plain |= {
        "needs": (f"plugs:{node.name}", f"ready:{node.inside}"),
        "after": ("firewall:lab", "dns:lab", *waits_for(facts)),
        "uri": uri_of(place, facts.choice.tier),
        "home_state": "",
        "home_cache": "",
        "type": kind,
        "machine": "xenpv" if xen else node.machine,
        "kernel": f"{_PLACE}/{short}-kernel.file",
        "initrd": f"{_PLACE}/{short}-initrd.file",
        "cmdline": kernel.xen_cmdline if xen else kernel.cmdline,
        "disks": all_disks,
        "nics": nics,
        # In the host machine, where its libvirt writes it; Xen's has no such thing.
        "console_log": "" if xen else f"{_LOGS}/{short}.console",
        "channels": (),
        "snapshots": "",
    }
    return Guest(**plain, host=place, host_domain=host, short=short)


def uri_of(place: SshPlace, tier: str) -> str:
    """libvirt's URI of a host machine (uri.html): libssh2, so that no ssh program and none of the person's
    own SSH settings come in; the key it must show is pinned in a file beside the lab's keys."""
    _, scheme = _WORDS[tier]
    words = {
        "keyfile": place.key_file,
        "known_hosts": _known_hosts(place),
        "known_hosts_verify": "normal",
        "sshauth": "privkey",
        "no_tty": "1",
    }
    query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in words.items())
    port = f":{place.port}" if place.port != 22 else ""
    return f"{scheme}+libssh2://{place.user}@{place.address}{port}/system?{query}"


def _known_hosts(place: SshPlace) -> str:
    return str(Path(place.host_key_file).with_suffix(".known_hosts"))


@dataclass(frozen=True, kw_only=True)
class Guest(Domain):
    """A domain in a host machine.  When that machine is off or gone, so is the domain."""

    kind: ClassVar[str] = "guest"
    follows: ClassVar[bool] = True  # it goes off with its host machine
    keeps_log: ClassVar[bool] = False  # so that an earlier start's words are not taken for this one's
    gate: ClassVar[str] = "guest"  # one after another: Xen's tools are slow when they run side by side

    host: SshPlace
    host_domain: Domain
    short: str  # what its files in the host machine begin with

    @property
    def link(self) -> Libvirt:
        """The connection to the host machine's libvirt.  Raises HostCannot when it doesn't answer."""
        place = self.host
        if not banner_up(place.address, place.port, timeout=BANNER_SECONDS):
            raise HostCannot(
                f"{self.host_domain.name}, which {self.name} runs in, does not answer at {place.address}",
                hint="labctl status; `labctl up` starts it again",
            )
        try:
            key = " ".join(Path(place.host_key_file).read_text().split()[:2])
            known = Path(_known_hosts(place))
            name = place.address if place.port == 22 else f"[{place.address}]:{place.port}"
            known.write_text(f"{name} {key}\n")
        except OSError as error:
            raise LabError(f"{error.filename}: {error.strerror}", hint="run as root") from error
        try:
            return connection.reach(self.uri, None, sure=False)
        except HostCannot as error:
            # libvirt's own words for a failure over SSH are "the cause is unknown".
            raise HostCannot(
                f"the libvirt of {self.host_domain.name}, which {self.name} runs in, does not answer at "
                f"{place.address}",
                hint=f"labctl logs {self.host_domain.name}; labctl restart {self.host_domain.name}",
            ) from error

    def outlook(self, old: Domain, look: Look | None) -> Outlook:
        """Whatever differs, it is started anew: its files come through the host machine."""
        return Outlook(Way.RESTART, "restart needed, its disks are kept")

    def make(self) -> list[str]:
        """Bring its files to where the host machine's tools find them, define and start it; one that hangs
        as it boots is started once more."""
        if self.look().there:
            return super().make()
        self._files()
        told = super().make()
        if not self._hangs():
            return told
        self.with_domain(_again, seconds=START_SECONDS)
        return [
            *told,
            f"{self.name} did nothing for {SILENT_SECONDS} s as it booted, so it was started once more",
        ]

    def _files(self) -> None:
        """Name the plugged disks by their serials, and copy the kernel out of its own: tools read files."""
        boot = (f"{self.short}-{what}" for what in ("kernel", "initrd"))
        serials = (*boot, *(Path(disk.path).name for disk in self.disks))
        done = self._script("files", _PLACE, *serials, seconds=_FILES_SECONDS)
        if done.code:
            said = done.errors.strip().splitlines()[-1:] or [f"exit code {done.code}"]
            raise LabError(f"{self.name}: its files did not come into {self.host_domain.name}: {said[0]}")

    def _hangs(self) -> bool:
        """Wait until it has booted; whether it does nothing any more, on its serial line and its disk.

        Without a record of its serial line nobody can tell, nor when the host machine doesn't answer: then
        whoever waits for its SSH server does.
        """
        if not self.console_log:
            return False
        words = (self.console_log, f"{_PLACE}/{self.short}-root", str(SILENT_SECONDS))
        try:
            return self._script("watch", *words, seconds=REACH_SECONDS).code == 3
        except LabError:
            return False

    def last_words(self) -> str:
        """Why its kernel panicked; "" when it didn't, or nothing is known of it."""
        if not self.console_log:
            return ""
        argv = ["tail", "-c", str(panic.TAIL_BYTES), self.console_log]
        try:
            done = self._host_machine().run(argv, user="0", timeout=LOOK_SECONDS, own_tools=True)
        except LabError:
            return ""
        return panic.words_in(done.stdout)

    def _script(self, name: str, *words: str, seconds: float) -> Completed:
        """Run one of templates/host in the host machine."""
        script = data("templates", "host", name).read_text()
        argv = ["sh", "-s", *words]
        machine = self._host_machine()
        return machine.run(argv, input=script.encode(), user="0", timeout=seconds, own_tools=True)

    def _host_machine(self) -> SshMachine:
        from labctl.tiers.machines import host_machine

        return host_machine(self.host, self.host_domain.name)

    def look(self) -> Look:
        """As for any domain; absent when the host machine or its libvirt does not answer, as in a boot."""
        if not self._answers():
            return Look(Presence.ABSENT, f"{self.host_domain.name}, which it runs in, does not answer")
        try:
            return super().look()
        except (HostCannot, TimedOut, Lost) as error:
            return Look(Presence.ABSENT, str(error))

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many, by name."""
        return {item.name: item.look() for item in items}

    def unmake(self) -> list[str]:
        """Destroy and undefine it.  A host machine that is gone took it along; one whose libvirt doesn't
        answer can't be told, and takes it along when it goes: a sentence says so."""
        if not self._answers():
            return []
        try:
            super().unmake()
        except Missing:
            return []
        except (HostCannot, TimedOut, Lost) as error:
            host = self.host_domain.name
            return [f"{self.name} could not be ended by itself and ends with {host}: {error}"]
        return []

    def _answers(self) -> bool:
        place = self.host
        return bool(place.address) and banner_up(place.address, place.port, timeout=BANNER_SECONDS)


def _again(found: Any) -> None:
    """End a virDomain that hangs, and start it anew."""
    if found.isActive():
        found.destroy()
        found.create()
