"""What a virtual machine uses now, by its libvirt: on this host and on any other, under QEMU and under Xen.

Sources: the libvirt API reference (virDomainGetInfo, MemoryStats, InterfaceStats, BlockStats).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from labctl.errors import Foreign
from labctl.hypervisor.connection import Missing, library
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.hypervisor.domain import Domain

SECONDS = 10.0  # a machine that answers later is told as silent


@dataclass(frozen=True)
class Figures:
    """A machine's use of its host.  `state` is running, paused, stopped or absent; None: not known.

    `memory_bytes` is what the host spends on it, where its hypervisor says so, else what it was given.
    """

    state: str
    cpu_ns: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    net_received_bytes: int | None = None  # as the machine sees it
    net_sent_bytes: int | None = None
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None


def figures(domain: Domain) -> Figures:
    """Ask its libvirt.  Raises LabError, TimedOut."""
    if domain.daemonless:
        return Figures("absent")
    try:
        return domain.with_domain(_of, seconds=SECONDS)
    except (Missing, Foreign):
        return Figures("absent")


def _of(found: Any) -> Figures:
    libvirt = library()
    state, most, given, _cpus, cpu_ns = (int(value) for value in found.info())
    paused = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED)
    if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, *paused):
        return Figures("stopped")
    memory = given
    with contextlib.suppress(libvirt.libvirtError):  # Xen's driver has no word for what it costs
        memory = int(found.memoryStats().get("rss") or given)
    devices = ElementTree.fromstring(found.XMLDesc()).find("devices")
    net = _traffic(found.interfaceStats, _targets(devices, "interface"), 0, 4)
    blocks = _traffic(found.blockStats, _targets(devices, "disk"), 1, 3)
    return Figures(
        "paused" if state in paused else "running",
        cpu_ns,
        memory * 1024,
        most * 1024,
        *(net or (None, None)),
        *(blocks or (None, None)),
    )


def _targets(devices: ElementTree.Element | None, kind: str) -> list[str]:
    found = [] if devices is None else devices.findall(f"{kind}/target")
    return [name for target in found if (name := target.get("dev"))]


def _traffic(ask: Any, targets: list[str], came: int, went: int) -> tuple[int, int] | None:
    """The sum of what all those devices have let in and out; None where one of them can't be asked."""
    try:
        rows = [ask(name) for name in targets]
    except library().libvirtError:
        return None
    return sum(max(int(row[came]), 0) for row in rows), sum(max(int(row[went]), 0) for row in rows)


def tap(name: str) -> tuple[int, int]:
    """(received, sent) by the machine behind a tap of this host: what the tap sends, the machine receives."""
    counts = []
    for way in ("tx", "rx"):
        try:
            counts.append(int(Path(f"/sys/class/net/{name}/statistics/{way}_bytes").read_text()))
        except OSError:
            counts.append(0)  # it went with its machine
    return counts[0], counts[1]
