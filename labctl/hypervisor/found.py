"""What gc finds by marks: domains by their metadata, QEMU processes by their environment; never by name."""

from __future__ import annotations

from typing import Any

from labctl.home import Home
from labctl.hypervisor import private, processes
from labctl.hypervisor.connection import Libvirt, Missing
from labctl.hypervisor.domain import DESTROY_SECONDS, read_mark, remove
from labctl.looks import parse_mark
from labctl.records import dataclass


@dataclass(frozen=True)
class Found:
    """An object with our mark.  `lab` is the lab's id, `detail` a sentence for a person."""

    kind: str
    name: str
    lab: str
    detail: str
    link: Libvirt | None = None
    domain: str = ""
    mark: str = ""
    pid: int = 0

    def remove(self) -> None:
        """Remove it; fine when it is gone already or has become someone else's.  TimedOut, LabError."""
        if self.link is not None and self.domain:
            try:
                self.link.call(f"domain {self.domain}", self._remove_domain, seconds=DESTROY_SECONDS)
            except Missing:
                return
        elif self.pid and processes.marked().get(self.pid) == self.mark:
            private.end_processes({self.pid}, processes.END_SECONDS)

    def _remove_domain(self, conn: Any) -> None:
        found = conn.lookupByName(self.domain)
        if read_mark(found)[0] == self.mark:
            remove(found)


def find_marked(instance: str, link: Libvirt | None) -> list[Found]:
    """Domains of this labctl instance at `link`, then QEMU processes that no domain there accounts for.

    Without a link (no libvirtd runs and none should be started) only processes are found.
    """
    found = _domains(instance, link) if link is not None else []
    known = {item.mark for item in found}
    for pid, mark in processes.marked().items():
        parsed = parse_mark(mark)
        if parsed is None or parsed[0].instance != instance or mark in known:
            continue
        owner, kind, name = parsed
        if kind == "uml":
            detail = f"User Mode Linux, process {pid}"
        else:
            kind, detail = "qemu", f"QEMU process {pid} that its libvirtd no longer knows"
        found.append(Found(kind, name, owner.lab, detail, mark=mark, pid=pid))
    return found


def _domains(instance: str, link: Libvirt) -> list[Found]:
    def gather(conn: Any) -> list[tuple[str, str]]:
        return [(item.name(), read_mark(item)[0]) for item in conn.listAllDomains()]

    found = []
    for name, mark in link.call("the list of domains", gather):
        parsed = parse_mark(mark)
        if parsed is not None and parsed[0].instance == instance:
            detail = f"libvirt domain {name} at {link.uri}"
            found.append(Found("domain", parsed[2], parsed[0].lab, detail, link, name, mark))
    return found


def find_daemon(home: Home) -> set[int]:
    """Processes of the private libvirtd of this home when it has no domain left: release(home) ends them."""
    return private.members(home) if not private.domains(home) else set()
