"""doctor: try what labctl needs on this host, for real, and say what is missing and what helps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from labctl import engines
from labctl.errors import LabError
from labctl.events import Emit, Progress, silent
from labctl.hypervisor.capability import Capability
from labctl.lab.facts import this_arch
from labctl.lab.model import Options

Finding = Capability

PROGRAMS = {
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
}
LOW_DISK = 5 << 30
LOW_MEMORY = 1 << 30


def doctor(options: Options, emit: Emit = silent, *, fresh: bool = False) -> list[Finding]:
    """All findings, tiers first.  With `fresh` nothing remembered is used.  Takes some seconds at most."""
    home = options.home

    def emulation(arch: str) -> Callable[[], Finding]:
        from labctl.hypervisor.probe import probe_emulation

        return lambda: probe_emulation(home, arch, fresh=fresh)

    def hardware() -> Finding:
        from labctl.hypervisor.probe import probe_hardware
        from labctl.lab.hosts import doctor_hardware

        return doctor_hardware(home, probe_hardware(home, fresh=fresh, emit=emit))

    def para() -> Finding:
        from labctl.lab.hosts import doctor_para

        return doctor_para(home)

    def uml() -> Finding:
        from labctl.hypervisor.probe_uml import probe_uml

        return probe_uml(home, fresh=fresh, emit=emit)

    def container() -> Finding:
        from labctl.lab.containers import trial

        return trial(home)

    def engine(name: str) -> Callable[[], Finding]:
        from labctl.engines.trial import probe

        return lambda: probe(home, name, fresh=fresh)

    other = "aarch64" if this_arch() == "x86_64" else "x86_64"
    steps: list[tuple[str, Callable[[], Finding]]] = [
        ("container", container),
        ("emulation", emulation(this_arch())),
        (f"emulation of {other}", emulation(other)),
        ("hardware", hardware),
        ("para", para),
        ("para by User Mode Linux", uml),
        *((f"container by {name}", engine(name)) for name in engines.NAMES),
        ("rights", _rights),
        ("programs", _programs),
        ("firewall", _firewall),
        ("libvirt", lambda: _libvirt(options)),
        ("nested", _nested),
        ("memory", _memory),
        ("disk", lambda: _disk(options)),
        ("subnets", _subnets),
    ]
    found = []
    for place, (name, step) in enumerate(steps):
        emit(Progress("", f"trying {name}", place, len(steps)))
        began = monotonic()
        try:
            finding = step()
        except LabError as error:
            finding = Finding(name, False, error.message, error.hint)
        found.append(replace(finding, name=name, seconds=finding.seconds or monotonic() - began))
    return found


def _rights() -> Finding:
    if os.geteuid() == 0:
        return Finding("rights", True, detail="root")
    return Finding("rights", False, "bridges, namespaces and cgroups need root", "run labctl with sudo")


def _programs() -> Finding:
    missing = [
        name
        for name in PROGRAMS
        if not shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    ]
    if missing:
        packages = " ".join(PROGRAMS[name] for name in missing)
        return Finding(
            "programs", False, f"not installed: {', '.join(missing)}", f"apt-get install {packages}"
        )
    return Finding("programs", True, detail=", ".join(PROGRAMS))


def _firewall() -> Finding:
    from labctl.network import nft

    nft.lab_tables()  # HostCannot without nft, LabError without rights
    return Finding("firewall", True, detail="nftables answers")


def _libvirt(options: Options) -> Finding:
    from labctl.hypervisor import connection, private

    uri = connection.choose_uri(options.libvirt or None, options.home)
    if uri == private.uri(options.home):
        if shutil.which("libvirtd", path="/usr/sbin:/sbin:/usr/bin"):
            return Finding(
                "libvirt", True, detail="none runs; labctl starts one of its own when a VM needs it"
            )
        return Finding("libvirt", False, "libvirtd is not installed", "apt-get install libvirt-daemon")
    link = connection.connect(options.libvirt or None, options.home)
    version = link.call("libvirt's version", lambda conn: conn.getLibVersion())
    return Finding("libvirt", True, detail=f"{uri}, version {version // 1000000}.{version // 1000 % 1000}")


def _nested() -> Finding:
    for module in ("kvm_intel", "kvm_amd"):
        file = Path("/sys/module", module, "parameters/nested")
        if file.exists():
            if file.read_text().strip() in ("1", "Y", "y"):
                return Finding("nested", True, detail=f"{module} lets guests use KVM")
            return Finding(
                "nested",
                False,
                f"{module} doesn't let guests use KVM",
                f"modprobe -r {module}; modprobe {module} nested=1",
            )
    return Finding(
        "nested", False, "neither kvm_intel nor kvm_amd is loaded", "only needed for KVM inside VMs"
    )


def _memory() -> Finding:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    text = f"{free >> 20} MiB free"
    if free < LOW_MEMORY:
        return Finding("memory", False, text, "a VM takes 256 MiB unless its profile says less")
    return Finding("memory", True, detail=text)


def _disk(options: Options) -> Finding:
    place = options.home.cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free >> 20} MiB free for {options.home.cache}"
    if free < LOW_DISK:
        return Finding("disk", False, text, "labctl image prune, or move LABCTL_HOME")
    return Finding("disk", True, detail=text)


def _subnets() -> Finding:
    from labctl.lab.facts import libvirt_subnets
    from labctl.network.subnets import host_holders

    holders = [*host_holders(), *libvirt_subnets()]
    text = "; ".join(
        dict.fromkeys(f"{h.subnet}: {h.who}" for h in holders if h.subnet.startswith(("10.", "172.", "192.")))
    )
    return Finding("subnets", True, detail=text or "no private subnet is in use")
