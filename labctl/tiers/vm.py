"""The emulation and hardware tiers: a VM under libvirt, without and with the CPU's help."""

from __future__ import annotations

from pathlib import Path

from labctl.guest.inside_link import disk_serial
from labctl.hypervisor.domain import Domain, DomainDisk, DomainNic, DomainShare
from labctl.hypervisor.firmware import Nvram
from labctl.hypervisor.snapshot import CHANNEL, WORD
from labctl.image.bootconfig import CONFIG_SERIAL, ROOT_SERIAL, BootConfig, Memory, Nic, Route, Share
from labctl.image.clouddisk import form_of
from labctl.image.disk import DEFAULT_BYTES
from labctl.profile.models_vm import Vm
from labctl.profile.types import Devices, Graphics, Hypervisor
from labctl.resource.protocol import Resource
from labctl.tiers import disks
from labctl.tiers.common import life, record_of, volume_keys, volume_source, waits_for
from labctl.tiers.context import NodeFacts, Planned, bridge_keys
from labctl.tiers.management import reached_at
from labctl.tiers.record import NodeRecord, SshPlace
from labctl.tiers.seed import seed_of
from labctl.tiers.vmdisk import NVRAM, VmDisk

DEFAULT_MEMORY = 256 * 1024 * 1024
CLOUD_MEMORY = 512 * 1024 * 1024  # for systemd and cloud-init
DOM0_BYTES = 320 << 20  # of a Xen host's memory: 40 MB are in use there, the rest is its page cache
# How long a VM may take to its first answer: a foreign architecture under TCG on a busy machine is slow.
REACH_SECONDS = {"hardware": 60.0, "emulation": 180.0}
# The same for a cloud image, to the end of its cloud-init, unless the profile has a limit (ready: timeout).
CLOUD_SECONDS = {"hardware": 120.0, "emulation": 300.0}


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a VM."""
    record = record_of_vm(facts)
    disk = disk_of(facts)
    domain = domain_of(facts)
    cloud = facts.node.cloud
    steps = life(
        facts,
        record,
        f"domain:{facts.node.name}",
        reach_seconds(facts),
        mounts=mounts_of(facts),
        console=domain.console_log if cloud else "",
        boot=None if cloud else disk.boot,
    )
    resources: list[Resource] = [disk, *disks.made_of(facts), *nvram_of(facts), domain, *steps]
    return Planned(resources, record)


def record_of_vm(facts: NodeFacts) -> NodeRecord:
    """The record of a virtual machine."""
    lab, name = facts.lab, facts.node.name
    ssh_folder = lab.folder / "ssh"
    place = facts.place
    address = reached_at(lab.profile, place.networks, [i.addresses for i in place.interfaces])
    return record_of(
        facts,
        ssh=SshPlace(
            address,
            str(lab.key_file),
            str(ssh_folder / f"{name}.pub"),
            protocol="shell" if facts.node.cloud else "labctl",
        ),
        domain=f"{lab.name}.{name}",
        uri=lab.uri,
        memory=facts.node.memory or (CLOUD_MEMORY if facts.node.cloud else DEFAULT_MEMORY),
        disks=disks.records_of(facts),
        graphics="" if screen_of(facts) is Graphics.NONE else str(screen_of(facts)),
        cpus=float(facts.node.vcpus) if facts.node.vm and facts.node.vm.topology else facts.node.cpus or 1,
    )


def screen_of(facts: NodeFacts) -> Graphics:
    """What it shows a picture on."""
    return facts.node.vm.graphics if facts.node.vm else Graphics.NONE


def reach_seconds(facts: NodeFacts) -> float:
    """How long it may take until commands run in it; a cloud image, until it is ready."""
    if not facts.node.cloud:
        return REACH_SECONDS[facts.choice.tier]
    wish = facts.node.ready
    if wish and "timeout" in wish.model_fields_set:
        return wish.timeout
    return CLOUD_SECONDS[facts.choice.tier]


def tag_of(number: int) -> str:
    """What a machine knows the device of its volume by, counted from 0."""
    return f"labshare{number}"


def mounts_of(facts: NodeFacts) -> tuple[str, ...]:
    """The folders that the machine mounts as it boots."""
    node = facts.node
    volumes = (disk.mount for disk in node.disks if disk.mount)
    return (*volumes, *(mount.target for mount in node.volumes), *(memory.target for memory in node.tmpfs))


def disk_of(facts: NodeFacts) -> VmDisk:
    """Its files on this host."""
    lab, node, place = facts.lab, facts.node, facts.place
    boot = BootConfig(
        hostname=facts.hostname,
        interfaces=tuple(Nic(i.name, i.mac, i.addresses, i.up, i.mtu) for i in place.interfaces),
        gateway4=place.gateway4,
        gateway6=place.gateway6,
        routes=tuple(Route(r.to, r.via, r.interface, r.metric) for r in node.routes),
        dns=place.dns,
        search=(place.search,) if place.search else (),
        ipv6=node.ipv6,
        sysctls=dict(node.sysctls),
        env=facts.env,
        command=facts.command,
        cwd=facts.workdir,
        user=facts.user,
        stop_signal=facts.stop_signal,
        stop_seconds=node.stop_timeout,
        hosts_containers=facts.is_container_host,
        init=node.init,
        volumes=disks.volumes_of(facts),
        shares=tuple(Share(tag_of(n), m.target, m.read_only) for n, m in enumerate(node.volumes)),
        memories=tuple(Memory(t.target, t.size or 0, t.mode or "1777") for t in node.tmpfs),
        read_only=node.read_only,
    )
    return VmDisk(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=("folder:lab",),
        folder=str(lab.node_folder(node.name)),
        backing=facts.disk,
        boot=boot,
        key_file=str(lab.key_file),
        host_key_file=str(lab.folder / "ssh" / node.name),
        seed=seed_of(node, lab.profile),
        layers=facts.image.layers,
        cloud=node.cloud,
        size=node.disk or (0 if node.cloud else DEFAULT_BYTES),
    )


def nvram_of(facts: NodeFacts) -> list[Nvram]:
    """What its firmware remembers, where that is UEFI."""
    if not facts.firmware:
        return []
    return [
        Nvram(
            owner=facts.lab.owner,
            name=facts.node.name,
            node=facts.node.name,
            needs=("folder:lab",),
            path=str(facts.lab.node_folder(facts.node.name) / NVRAM),
            template=facts.firmware_template,
        )
    ]


def domain_of(facts: NodeFacts) -> Domain:
    """The domain of a virtual machine of this host."""
    disk, record = disk_of(facts), record_of_vm(facts)
    lab, node, kernel = facts.lab, facts.node, facts.kernel
    assert kernel is not None, "the planner gives every VM a kernel"
    xen = node.hypervisor is Hypervisor.XEN
    emulated = node.devices is Devices.EMULATED
    bus, nic = ("ide", "e1000") if emulated else ("virtio", "virtio")
    made = node.vm or Vm()
    # The image's own init may take the SMBIOS identity for its own, which a snapshot would give to others.
    # Nor can a shared folder be taken into a snapshot: its daemon's state is on this host.
    # One that goes on from another's memory would not know of its own firmware's, nor a cloud image's init of
    # its new identity.
    resting = node.init or node.volumes or facts.firmware or node.cloud
    parks = facts.image.arch == "x86_64" and not resting
    cmdline = kernel.xen_cmdline if xen else kernel.cmdline
    screen = screen_of(facts) is not Graphics.NONE
    if screen and cmdline and not xen:
        cmdline = f"console=tty0 {cmdline}"  # the kernel's words; the last one named stays /dev/console
    further = disks.domain_disks(facts)
    return Domain(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(
            f"vmdisk:{node.name}",
            *disks.keys_of(facts),
            *(f"nvram:{item.name}" for item in nvram_of(facts)),
            *volume_keys(node),
            *bridge_keys(facts),
            *(("libvirtd:libvirtd",) if lab.libvirt_home else ()),
        ),
        after=("firewall:lab", "dns:lab", *waits_for(facts)),
        uri=lab.uri,
        home_state=str(lab.libvirt_home.state) if lab.libvirt_home else "",
        home_cache=str(lab.libvirt_home.cache) if lab.libvirt_home else "",
        domain=record.domain,
        title=f"labctl: {lab.name}/{node.name}",
        type="kvm" if facts.choice.tier == "hardware" else "qemu",
        arch=facts.image.arch,
        machine=node.machine,
        cpu=node.cpu or _host_cpu(facts),
        vcpus=node.vcpus,
        topology=(made.topology.sockets, made.topology.cores, made.topology.threads) if made.topology else (),
        pin=made.pin,
        kvm_paravirt=made.kvm_paravirt,
        hugepages=made.hugepages,
        balloon=made.balloon,
        memory_bytes=record.memory,
        # UEFI starts what is a program of its own: the kernel as its package has it, with its EFI stub.
        kernel=kernel.packed or kernel.kernel if facts.firmware else kernel.kernel,
        firmware=facts.firmware,
        nvram=next((item.path for item in nvram_of(facts)), ""),
        initrd=kernel.initrd,
        cmdline=f"{cmdline} {WORD}" if parks and cmdline else cmdline,
        hypervisor=facts.hypervisor,
        hypervisor_args=_xen_args(facts) if xen else "",
        scsi=node.hypervisor is not None or any(disk.bus == "scsi" for disk in further),
        disks=(
            DomainDisk(
                path=str(disk.disk),
                format="qcow2",
                serial=ROOT_SERIAL,
                bus=bus,
                backing=disk.backing,
                backing_format=form_of(disk.backing),
                cache=str(made.disk_cache),
                io=str(made.disk_io or ""),
            ),
            DomainDisk(path=str(disk.config), format="raw", serial=CONFIG_SERIAL, readonly=True, bus=bus),
            *further,
            # Found by their serial, which only virtio has; without one the image is sent over SSH.
            *(
                DomainDisk(path=path, format="raw", serial=disk_serial(digest), readonly=True)
                for digest, path in (() if emulated else facts.carried)
            ),
        ),
        nics=tuple(
            DomainNic(bridge=i.bridge, ifname=i.host_name, mac=i.mac, model=nic, mtu=i.mtu)
            for i in facts.place.interfaces
        ),
        console_log=str(Path(disk.folder, "console.log")),
        shares=tuple(
            DomainShare(path=volume_source(facts, m), tag=tag_of(n)) for n, m in enumerate(node.volumes)
        ),
        channels=(CHANNEL,) if parks else (),
        graphics=screen,
        snapshots=str(lab.home.cache / "snapshots"),
        snapshot=lab.snapshot,
    )


def _host_cpu(facts: NodeFacts) -> str:
    """The CPU of a machine that runs others; "" for labctl's usual choice.

    Xen's libvirt knows no AMD model that QEMU emulates, and the `max` of TCG has SMAP, at which dom0 dies.
    """
    if facts.node.hypervisor is None or facts.choice.tier == "hardware":
        return ""
    return "Nehalem,+rdrand" if facts.node.hypervisor is Hypervisor.XEN else "qemu64,+svm,+npt,+rdrand"


def _xen_args(facts: NodeFacts) -> str:
    """Xen's own command line (docs/misc/xen-command-line in its sources).

    dom0 gets what it needs and the guests the rest.  The two page table defences are for guests of strangers;
    what runs in a lab's own host is the lab's own.
    """
    dom0 = DOM0_BYTES >> 20
    words = ("com1=115200,8n1", "console=com1", f"dom0_mem={dom0}M,max:{dom0}M", "dom0_max_vcpus=1")
    return " ".join((*words, "xpti=no", "pv-l1tf=no"))
