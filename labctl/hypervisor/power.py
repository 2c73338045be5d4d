"""What a virtual machine can be told while it is there: start, stop, reboot, pause, resume; and its state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from labctl.errors import Foreign, LabError
from labctl.hypervisor import access, processes, snapshot
from labctl.hypervisor.connection import Missing, Refused, library
from labctl.hypervisor.domain import DESTROY_SECONDS, Domain
from labctl.hypervisor.processes import Usage
from labctl.records import dataclass

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How a machine was stopped: by itself, or by force after `seconds`."""

    graceful: bool
    seconds: float


def state(domain: Domain) -> str:
    """running, paused, stopped, crashed or absent: one word for a person and for `status`."""
    if domain.daemonless:
        return "absent"
    libvirt = library()
    try:
        number, reason = domain.with_domain(lambda found: found.state()[:2])
    except (Missing, Foreign):
        return "absent"
    if number in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
        return "running"
    if number in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        return "paused"
    crashes = (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)
    if number == libvirt.VIR_DOMAIN_CRASHED or (number == libvirt.VIR_DOMAIN_SHUTOFF and reason in crashes):
        return "crashed"
    return "stopped"


def start(domain: Domain) -> None:
    """Start it when it is off; a paused one is resumed.  Missing when it isn't defined."""
    now = state(domain)
    if now == "running":
        return
    if now == "paused":
        resume(domain)
        return
    access.prepare(domain, access.run_as(domain.link))
    snapshot.start(domain)


def stop(domain: Domain, timeout: float, graceful: Callable[[], object] | None = None) -> Ended:
    """Ask the guest to power off, by `graceful` (say, over SSH) or else by the ACPI power button; after
    `timeout` seconds destroy it.  Stays defined.  Off already: fine.  Returns when QEMU has ended.

    A `graceful` that raises LabError counts as a guest that does not listen.  timeout 0: at once by force.
    """
    begun = monotonic()
    now = state(domain)
    if now in ("stopped", "crashed", "absent"):
        return Ended(True, 0.0)
    willing = now == "running" and timeout > 0 and _ask(domain, graceful)
    while willing and monotonic() - begun < timeout:
        if state(domain) in ("stopped", "crashed", "absent"):
            processes.end(domain.uuid)
            return Ended(True, monotonic() - begun)
        sleep(_POLL_SECONDS)
    with contextlib.suppress(Missing):
        domain.with_domain(_destroy, seconds=DESTROY_SECONDS)
    processes.end(domain.uuid)
    return Ended(False, monotonic() - begun)


def _ask(domain: Domain, graceful: Callable[[], object] | None) -> bool:
    try:
        if graceful is not None:
            graceful()
        else:
            domain.with_domain(lambda found: found.shutdown())
    except LabError:
        return False
    return True


def _destroy(found: Any) -> None:
    libvirt = library()
    try:
        found.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise


def reboot(domain: Domain, timeout: float, graceful: Callable[[], object] | None = None) -> Ended:
    """Stop and start it again: a new QEMU, so that it also gets over a changed description."""
    ended = stop(domain, timeout, graceful)
    start(domain)
    return ended


def pause(domain: Domain) -> None:
    """Freeze its CPUs; memory stays.  Paused already: fine."""
    if state(domain) != "paused":
        domain.with_domain(lambda found: found.suspend())


def resume(domain: Domain) -> None:
    """Let it go on.  Running already: fine."""
    if state(domain) != "running":
        domain.with_domain(lambda found: found.resume())


@dataclass(frozen=True)
class Stats:
    """What a machine has and costs.  Bytes, nanoseconds; 0 where it is unknown."""

    memory_bytes: int
    cpu_ns: int  # by libvirt: also right on a remote host
    vcpus: int
    usage: Usage  # of QEMU, where it runs on this host


def stats(domain: Domain) -> Stats:
    """Memory, CPU time and what QEMU uses.  Missing when it isn't defined."""
    info = domain.with_domain(lambda found: found.info())
    return Stats(int(info[1]) * 1024, int(info[4]), int(info[3]), processes.usage(domain.uuid))


def qemu_pid(domain: Domain) -> int:
    """The pid of its QEMU on this host, or 0."""
    return processes.pid_of(domain.uuid)


__all__ = [
    "Ended", "Refused", "Stats", "pause", "qemu_pid", "reboot", "resume", "start", "state", "stats", "stop",
]  # fmt: skip
