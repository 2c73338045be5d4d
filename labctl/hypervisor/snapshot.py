"""Machines that start from a snapshot instead of booting.

labctl's init parks each machine once, after kernel and drivers and before it has read who it is or looked
at a disk.  Whoever boots the first machine of a shape (kernel, initramfs, memory, CPUs, devices) takes
a snapshot there; every other machine of that shape, whatever its name, disk and addresses, goes on from
it.  Its identity it reads from its own config disk, as after a boot: card addresses by the order of the
cards, the clock from the hardware clock, a seed for its random numbers.

**How the parking works** (templates/init/common, `park`).  The machine reads from a virtio-serial channel.
With nobody at the other end that reads nothing and the machine goes on: so does one whose labctl was killed,
one that reboots by itself, and one that has just come out of a snapshot.  So no message has to get through
for a machine to go on.  (When labctl is killed while QEMU writes the snapshot, the machine doesn't hear it;
it goes on after half a minute, or when labctl looks again.)

**What makes a snapshot valid** is in `shape`: the domain's XML as libvirt completed it, without what is a
machine's own; QEMU's, kernel's and initramfs's file; the versions of libvirt and, under KVM, of the host's
kernel and CPU.  What stays the same in all machines of one snapshot: where the kernel lies in memory (KASLR)
and the SMBIOS identity.  Machines that run the image's own init, which may take the latter for theirs, are
booted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from labctl.errors import LabError, TimedOut
from labctl.hypervisor import private, saveimage
from labctl.hypervisor.connection import library
from labctl.image.boot_files import fresh_file, locked, sweep

if TYPE_CHECKING:
    from labctl.hypervisor.domain import Domain

CHANNEL = "org.labctl.park"
WORD = "labctl.park"  # on the kernel's command line
PARK_SECONDS = 90.0  # for the first boot, as far as the parking place
WAKE_SECONDS = 30.0  # for a restored machine to leave the parking place
LOCK_SECONDS = 120.0  # while another machine of the shape boots
LIMIT_BYTES = 2 << 30  # of all snapshots together; the one not used for longest goes first
_OWN = ("name", "uuid", "title", "metadata", "seclabel")


def parks(domain: Domain) -> bool:
    """Whether a domain can start from a snapshot: it parks, and its QEMU runs on this host."""
    return bool(
        domain.snapshots
        and domain.snapshot != "never"
        and CHANNEL in domain.channels
        and domain.console_log
        and domain.uri.startswith("qemu:///")
    )


def start(domain: Domain) -> list[str]:
    """Start a domain that is defined and off: from a snapshot of its shape, or by a boot that leaves one.

    Gives sentences for what did not go as it should; the machine is started all the same.  Raises LabError
    when it can't be.
    """
    if not parks(domain):
        boot(domain)
        return [f"{domain.name} was booted: {_why_not(domain)}"] if domain.snapshot == "always" else []
    xml = domain.with_domain(_description)
    file = Path(domain.snapshots) / f"{shape(domain, xml)}.save"
    if not file.exists():
        try:
            with locked(file.with_suffix(".lock"), LOCK_SECONDS):
                refused = _refused(file) and domain.snapshot != "always"
                if not file.exists() and not refused:
                    sweep(file)
                    return _boot_and_take(domain, file)
        except TimedOut:
            refused = True  # whoever boots the first machine of this shape takes too long to wait for
        if refused:
            boot(domain)
            return []
    return _restore(domain, file, xml)


def _why_not(domain: Domain) -> str:
    if CHANNEL not in domain.channels:
        return (
            "machines of another architecture, with an init of their own, or with shared folders don't park"
        )
    return f"its QEMU runs on another host ({domain.uri})"


def go_on(domain: Domain) -> None:
    """See that a machine that runs is not parked: its start may have been cut short."""
    if parks(domain) and domain.with_domain(lambda found: _channel_open(found.XMLDesc())):
        with contextlib.suppress(LabError, OSError):
            _connect(domain).close()  # coming and going is heard, when going alone was not


def boot(domain: Domain) -> None:
    """Start it as a boot."""
    from labctl.hypervisor.domain import START_SECONDS

    domain.with_domain(lambda found: found.isActive() or found.create(), seconds=START_SECONDS)


def _description(found: Any) -> str:
    libvirt = library()
    return str(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


def shape(domain: Domain, xml: str) -> str:
    """The key of all machines that can go on from one snapshot.  `xml` is as libvirt completed it."""
    root = ElementTree.fromstring(xml)
    for name in _OWN:
        for element in root.findall(name):
            root.remove(element)
    for element in [e for e in root if e.tag.endswith("}commandline")]:
        root.remove(element)
    for device in root.iterfind("devices/*"):
        own = {"disk": ("source", "backingStore"), "interface": ("mac", "source", "target")}
        for name in own.get(device.tag, ("log", "source")):
            for element in device.findall(name):
                device.remove(element)
    words = [ElementTree.tostring(root, encoding="unicode")]
    emulator = root.findtext("devices/emulator") or ""
    words += [_file(path) for path in (emulator, domain.kernel, domain.initrd)]
    if domain.hypervisor:
        # What libvirt has no words for stands in the command line that was left out above.
        words += [_file(domain.hypervisor), domain.hypervisor_args, domain.cmdline]
    words.append(str(domain.ask(lambda conn: (conn.getLibVersion(), conn.getVersion()))))
    words.append(platform.node() if not Path("/etc/machine-id").exists() else _text("/etc/machine-id"))
    if domain.type == "kvm":
        words += [platform.release(), _cpu()]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _file(path: str) -> str:
    """A file by its place, size and times: as strict as its digest, and free."""
    try:
        info = Path(path).stat()
    except OSError:
        return path
    return f"{path} {info.st_size} {info.st_mtime_ns}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu() -> str:
    lines = _text("/proc/cpuinfo").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith(("cpu MHz", "bogomips", "processor")))


def _marker(file: Path) -> Path:
    return file.with_suffix(".refused")


def _refused(file: Path) -> str:
    """Why no snapshot of this shape could be taken since the host's last boot; "" when none was tried."""
    boot_id, _, reason = _text(str(_marker(file))).partition("\n")
    return reason if boot_id == private.boot_id() else ""


def _boot_and_take(domain: Domain, file: Path) -> list[str]:
    """Boot, and take the snapshot while the machine is parked.  The caller holds the shape's lock."""
    from labctl.hypervisor.domain import START_SECONDS

    libvirt = library()
    domain.with_domain(
        lambda found: found.isActive() or found.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED),
        seconds=START_SECONDS,
    )
    line: socket.socket | None = None
    try:
        line = _connect(domain)
    except (LabError, OSError) as error:
        return [_no_snapshot(domain, file, f"its channel can't be reached: {error}")]
    finally:
        # In any case it runs: without a channel it does not park.
        domain.with_domain(lambda found: found.resume())
    with line:
        try:
            _await_parked(line)
            _take(domain, file)
        except (LabError, OSError) as error:
            return [_no_snapshot(domain, file, str(error))]
    evict(file.parent, keep=file)
    return []


def _no_snapshot(domain: Domain, file: Path, reason: str) -> str:
    with contextlib.suppress(OSError):
        _marker(file).write_text(f"{private.boot_id()}\n{reason}\n")
    return f"{domain.name}: no snapshot was taken, so that machines like it are booted each time: {reason}"


def _connect(domain: Domain) -> socket.socket:
    """The host's end of the channel, told that somebody is there.  Raises LabError, OSError."""
    text = domain.with_domain(lambda found: found.XMLDesc())
    path = _channel_path(text)
    if not path:
        raise LabError("libvirt names no socket for it")
    home = domain.home
    if home is not None and domain.uri == private.uri(home):
        path = private.seen_outside(home, path)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(PARK_SECONDS)
        with private.reachable(Path(path)) as short:
            line.connect(short)
        line.sendall(b"park\n")
    except OSError:
        line.close()
        raise
    return line


def _channel_path(xml: str) -> str:
    for channel in ElementTree.fromstring(xml).iterfind("devices/channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and source is not None and target.get("name") == CHANNEL:
            return source.get("path", "")
    return ""


def _await_parked(line: socket.socket) -> None:
    heard = b""
    while b"parked\n" not in heard:
        try:
            more = line.recv(100)
        except TimeoutError as error:
            raise TimedOut(f"it did not come to its parking place within {PARK_SECONDS:.0f} s") from error
        if not more:
            raise LabError("it ended before it came to its parking place")
        heard += more


def _take(domain: Domain, file: Path) -> None:
    """Write the memory of the parked machine; its CPUs rest meanwhile.  Raises LabError."""
    libvirt = library()
    root = ElementTree.Element("domainsnapshot")
    with fresh_file(file, 0o600) as work:
        work.unlink()  # libvirt makes it
        ElementTree.SubElement(root, "memory", snapshot="external", file=str(work))
        disks = ElementTree.SubElement(root, "disks")
        from labctl.hypervisor.xml import target_names

        for name in target_names(domain.disks):
            ElementTree.SubElement(disks, "disk", name=name, snapshot="no")
        text = ElementTree.tostring(root, encoding="unicode")
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        domain.with_domain(lambda found: found.snapshotCreateXML(text, flags) and None, seconds=60)
        saveimage.read(work)
        if not domain.with_domain(lambda found: _channel_open(found.XMLDesc())):
            # It had waited for too long: the snapshot is of a machine that knows who it is.
            raise LabError("it left its parking place before the snapshot was taken")


def _restore(domain: Domain, file: Path, xml: str) -> list[str]:
    """Let the machine go on from the snapshot; boot it, and say so, when that fails."""
    image = Path(domain.console_log).with_name("memory.img")
    try:
        with contextlib.suppress(OSError):
            os.utime(file)
        saveimage.write_as(file, image, xml)
        flags = library().VIR_DOMAIN_SAVE_RUNNING
        domain.ask(lambda conn: conn.restoreFlags(str(image), None, flags), seconds=60)
        _await_awake(domain)
    except LabError as error:
        file.unlink(missing_ok=True)
        domain.with_domain(lambda found: found.isActive() and found.destroy(), seconds=60)
        boot(domain)
        return [
            f"{domain.name} was booted, since it did not go on from the snapshot, which is dropped: "
            f"{error.message}"
        ]
    finally:
        image.unlink(missing_ok=True)
    return []


def _await_awake(domain: Domain) -> None:
    """Wait until the restored machine has left its parking place: it closes the channel then."""
    end = monotonic() + WAKE_SECONDS
    while True:
        text = domain.with_domain(lambda found: found.XMLDesc() if found.isActive() else "")
        if not text:
            raise LabError("it ended at once")
        if not _channel_open(text):
            return
        if monotonic() > end:
            raise TimedOut(f"it did nothing for {WAKE_SECONDS:.0f} s")
        sleep(0.02)


def _channel_open(xml: str) -> bool:
    for target in ElementTree.fromstring(xml).iterfind("devices/channel/target"):
        if target.get("name") == CHANNEL:
            return target.get("state") == "connected"
    return False


def evict(folder: Path, *, limit: int = LIMIT_BYTES, keep: Path | None = None) -> None:
    """Remove the snapshots that were not used for longest until all fit into `limit` bytes."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.save"):
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            found.append((info.st_mtime, info.st_blocks * 512, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
