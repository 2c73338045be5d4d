"""labctl's own libvirtd as a resource of each lab that uses it, so that the ledger names it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from labctl.home import Home
from labctl.hypervisor import private
from labctl.hypervisor.connection import reach, release
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence
from labctl.records import dataclass


@dataclass(frozen=True, kw_only=True)
class LibvirtDaemon:
    """The private libvirtd of a home.  Labs share it: the last one's unmake ends it."""

    kind: ClassVar[str] = "libvirtd"
    cost: ClassVar[float] = 1.0

    owner: Owner
    name: str = "libvirtd"
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    home_state: str
    home_cache: str

    @property
    def home(self) -> Home:
        """The home it belongs to."""
        return Home(Path(self.home_state), Path(self.home_cache))

    def make(self) -> None:
        """Start it unless it runs.  HostCannot without libvirt or root's rights, TimedOut, LabError."""
        reach(private.uri(self.home), self.home)

    def look(self) -> Look:
        """Whether it listens.  One that was killed while domains were there is STOPPED: make starts it."""
        if private.answers(self.home):
            return PRESENT
        if private.domains(self.home) or private.members(self.home):
            return Look(Presence.STOPPED, "not listening")
        return ABSENT

    def unmake(self) -> None:
        """End it when no domain is left, of any lab, and no other labctl uses it; else leave it to them."""
        release(self.home)
