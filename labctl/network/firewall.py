"""The firewall of one lab: isolation, the way to the internet where asked, published ports."""

from __future__ import annotations

from typing import ClassVar

from labctl.errors import Foreign, LabError
from labctl.linux.netnode import write_sysctl
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, Signs
from labctl.network import firewalld, forwarding, iptables, nft
from labctl.network import former as note
from labctl.network.model import BridgeRule, PublishedPort
from labctl.network.ruleset import digest_of, ruleset
from labctl.records import dataclass


@dataclass(frozen=True, kw_only=True)
class LabFirewall:
    """One nft table `inet TABLE`, with what it takes for it to have the say over the lab's bridges.

    What the rules allow is told in ruleset.py.  `host_services` ("tcp/8000") are services of the host,
    besides DNS and ICMP, that nodes may use.
    """

    kind: ClassVar[str] = "firewall"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    table: str
    bridges: tuple[BridgeRule, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    host_services: tuple[str, ...] = ()
    node_addresses: tuple[str, ...] = ()  # of nodes that have the host's network
    folder: str = ""  # the lab's, for the note of what forwarding was; "" for none

    @property
    def mark(self) -> str:
        """The ownership mark, a comment on the table and on rules elsewhere."""
        return self.owner.mark(self.kind, self.name)

    def text(self, former: dict[str, str] | None = None) -> str:
        """The ruleset."""
        return ruleset(
            self.table,
            self.mark,
            self.bridges,
            self.ports,
            host_services=self.host_services,
            node_addresses=self.node_addresses,
            former=former,
        )

    def _names(self) -> list[str]:
        return [bridge.ifname for bridge in self.bridges]

    def _forwards(self) -> tuple[bool, bool]:
        """Whether the host has to forward v4, v6.  Ports of this host alone don't need it."""
        outside = [port.version for port in self.ports if not port.local_only]
        v4 = 4 in outside or any(bridge.internet and bridge.subnet4 for bridge in self.bridges)
        v6 = any(bridge.internet and bridge.subnet6 for bridge in self.bridges)
        return v4, 6 in outside or (v6 and forwarding.has_default6())

    def _loops(self) -> list[str]:
        return sorted({p.bridge for p in self.ports if p.version == 4 and (p.everywhere or p.local_only)})

    def make(self) -> None:
        """Put it in place, or to rights.  Raises Foreign, HostCannot (no nft), LabError, Busy."""
        with forwarding.lock():
            there = nft.lab_table(self.table)
            if there is not None and there.mark != self.mark:
                raise Foreign(f"the nft table inet {self.table} is there and is not this lab's")
            v4, v6 = self._forwards()
            try:
                known = there.former if there else self._noted()
                former = forwarding.before(v4, v6, [known, *self._others()])
                leaving = {key: value for key, value in known.items() if key not in former}
                self._note({**former, **leaving})
                nft.apply(self.text({**former, **leaving}))
                for name in self._loops():
                    write_sysctl(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
                forwarding.enable(v4, v6, former)
                iptables.make(self.mark, self._names())
                firewalld.trust(self._names())
                if leaving:  # an earlier make of ours needed more than this one
                    forwarding.restore(leaving, self._others())
                    nft.apply(self.text(former))
                    self._note(former)
            except OSError as error:
                raise LabError(f"cannot set up the lab's firewall: {error}") from error

    def _noted(self) -> dict[str, str]:
        return note.read(self.folder) if self.folder else {}

    def _note(self, former: dict[str, str]) -> None:
        if self.folder:
            note.write(self.folder, former)

    def _others(self) -> list[dict[str, str]]:
        return _relied_on(self.table, self.folder)

    def look(self) -> Look:
        """What the host says: also BROKEN when somebody's iptables would now drop our frames."""
        there = nft.lab_table(self.table)
        if there is None:
            return ABSENT
        if there.mark != self.mark:
            return Look(Presence.FOREIGN, f"the nft table inet {self.table} is not this lab's")
        fault = self._fault(there)
        return Look(Presence.BROKEN, fault) if fault else PRESENT

    def _fault(self, there: nft.LabTable) -> str:
        if there.digest != digest_of(self.text()) or there.rules != there.meant:
            return f"the rules of table inet {self.table} are not those described"
        v4, v6 = self._forwards()
        if (v4 and forwarding.read(forwarding.V4) == "0") or (v6 and forwarding.read(forwarding.V6) == "0"):
            return "forwarding is off on this host"
        for name in self._loops():
            if forwarding.read(f"net/ipv4/conf/{name}/route_localnet") == "0":
                return f"route_localnet is off on {name}"
        return iptables.lacking(self.mark, self._names())

    def signs(self) -> Signs | None:
        """The rules, those of iptables among them, and the switches; where the host's routes count as well,
        that is not all."""
        if any(bridge.internet and bridge.subnet6 for bridge in self.bridges):
            return None
        keys = [forwarding.V4, forwarding.V6, *(f"net/ipv4/conf/{n}/route_localnet" for n in self._loops())]
        legacy = ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names")
        return Signs(
            values=(*(f"/proc/sys/{key}" for key in keys), *legacy),
            commands=tuple(iptables.questions()),
            firewall=(self.table,),
        )

    def change(self, old: LabFirewall) -> bool:
        """The table is replaced in one transaction, so no packet sees a host without rules."""
        if (old.table, old.owner, old.name) != (self.table, self.owner, self.name):
            return False
        gone = set(old._names()) - set(self._names())
        if gone:
            iptables.unmake(self.mark)
            firewalld.distrust(sorted(gone))
        self.make()
        return True

    def unmake(self) -> None:
        """Take the table away, and all that was done for it; absence is fine."""
        remove(self.table, self.mark, self._names(), self.folder)


def _relied_on(table: str, folder: str) -> list[dict[str, str]]:
    """What labs other than the one with this table and folder remember of forwarding, and so rely on."""
    tables = [other.former for other in nft.lab_tables() if other.name != table]
    return [*tables, *(note.others(folder) if folder else ())]


def remove(table: str, mark: str, bridges: list[str], folder: str = "") -> None:
    """Undo what a mark names: accept rules, forwarding, then the two records of it: the table and the note
    in the lab's folder."""
    with forwarding.lock():
        try:
            iptables.unmake(mark)
            firewalld.distrust(bridges)
            there = nft.lab_table(table)
            if there is not None and there.mark != mark:
                return
            former = note.read(folder) if folder else {}
            forwarding.restore({**former, **(there.former if there else {})}, _relied_on(table, folder))
            if there is not None:
                nft.delete(table)
            if folder:
                note.write(folder, {})
        except OSError as error:
            raise LabError(f"cannot take the lab's firewall away: {error}") from error
