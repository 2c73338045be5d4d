"""A segment of a lab: one Linux bridge, with or without an address of the host on it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from ipaddress import ip_interface
from typing import ClassVar, Self

from labctl.errors import Foreign, LabError
from labctl.linux import netlink
from labctl.linux.netlink import Address, Link, Netlink, NetlinkError
from labctl.linux.netnode import delete_links, write_sysctl
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, Signs
from labctl.network.model import LAB_GROUP
from labctl.records import dataclass

_LOCAL_TABLE = 255


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A bridge that forwards at once (no STP, no delay).

    `addresses` are the host's own, like "10.1.2.1/24"; without any it is a pure layer 2 segment on
    which the host has no address at all.  `mtu` 0 is the kernel's default.
    """

    kind: ClassVar[str] = "bridge"
    # Its end takes the kernel a grace period, and nothing of these minds when it goes first.
    beside: ClassVar[frozenset[str]] = frozenset({"net", "firewall", "dns"})

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    ifname: str
    addresses: tuple[str, ...] = ()
    mtu: int = 0

    @property
    def mark(self) -> str:
        """The ownership mark, its IFLA_IFALIAS."""
        return self.owner.mark(self.kind, self.name)

    @property
    def mac(self) -> str:
        """A MAC of its own: without one a bridge takes its lowest port's, and changes with the ports."""
        return "02:" + hashlib.sha256(self.mark.encode()).digest()[:5].hex(":")

    def make(self) -> None:
        """Make it, or bring ours to what is described.  Raises Foreign, LabError."""
        try:
            with Netlink() as kernel:
                link = netlink.by_name(kernel.links()).get(self.ifname)
                if link is not None and link.alias != self.mark:
                    raise Foreign(f"cannot create bridge {self.ifname}: the name is taken by {holder(link)}")
                if link is None:
                    kernel.do(
                        netlink.add_bridge(self.ifname, mac=self.mac, mtu=self.mtu),
                        netlink.set_link(self.ifname, alias=self.mark, group=LAB_GROUP),
                    )
                self._settle(kernel)
        except OSError as error:
            raise LabError(str(error), hint=_hint(error)) from error

    def _settle(self, kernel: Netlink) -> None:
        link = netlink.by_name(kernel.links())[self.ifname]
        v6 = any(":" in address for address in self.addresses)
        base = f"/proc/sys/net/ipv6/conf/{self.ifname}/"
        # Without a v6 address of its own the host isn't there for the nodes' link-local ones either.
        write_sysctl(base + "disable_ipv6", "0" if v6 else "1", may_lack=True)
        for name in ("accept_dad", "accept_ra", "autoconf"):
            write_sysctl(base + name, "0", may_lack=True)
        have = {a.address for a in kernel.addresses() if a.index == link.index and a.scope == 0}
        want = {str(ip_interface(address)) for address in self.addresses}
        stale = [netlink.delete_address(link.index, a, self.ifname) for a in sorted(have - want)]
        fresh = [netlink.add_address(link.index, a, self.ifname) for a in sorted(want - have)]
        kernel.do(
            netlink.set_link(self.ifname, index=link.index, up=True, mtu=self.mtu, group=LAB_GROUP),
            *stale,
            *fresh,
        )
        _wait_for_routes(kernel, link.index, {address for address in want if ":" in address})

    def look(self) -> Look:
        """What the host says: PRESENT, ABSENT, BROKEN (with what differs) or FOREIGN (with the holder)."""
        return self.look_many([self])[self.name]

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many, from one dump."""
        with Netlink() as kernel:
            links = netlink.by_name(kernel.links())
            addresses = kernel.addresses()
        return {item.name: item._look(links, addresses) for item in items}

    def _look(self, links: dict[str, Link], addresses: Sequence[Address]) -> Look:
        link = links.get(self.ifname)
        if link is None:
            return ABSENT
        if link.alias != self.mark:
            return Look(Presence.FOREIGN, holder(link))
        have = {a.address for a in addresses if a.index == link.index and a.scope == 0}
        want = {str(ip_interface(address)) for address in self.addresses}
        if not link.up:
            return Look(Presence.BROKEN, f"{self.ifname} is down")
        if have != want:
            return Look(Presence.BROKEN, f"{self.ifname} has {sorted(have)} instead of {sorted(want)}")
        if self.mtu and link.mtu != self.mtu:
            return Look(Presence.BROKEN, f"{self.ifname} has MTU {link.mtu} instead of {self.mtu}")
        return PRESENT

    def signs(self) -> Signs:
        """The link, and the host's addresses on it."""
        return Signs(links=(self.ifname,), addresses=(self.ifname,))

    def change(self, old: Bridge) -> bool:
        """Addresses and MTU change in place; another name or owner means another bridge."""
        if (old.ifname, old.owner, old.name) != (self.ifname, self.owner, self.name):
            return False
        if old.mtu and not self.mtu:
            return False  # the kernel's default is only found out by making it anew
        self.make()
        return True

    def unmake(self) -> None:
        """Delete it if it is ours; absence is fine.  Its ports stay, without a bridge."""
        for error in self.unmake_many([self]).values():
            raise error

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Delete many in one grace period; what failed, by name."""
        try:
            with Netlink() as kernel:
                links = netlink.by_name(kernel.links())
                doomed = [links[i.ifname] for i in items if i.ifname in links]
                ours = {item.mark for item in items}
                doomed = [link for link in doomed if link.alias in ours]
                delete_links(kernel, doomed, {link.group for link in links.values()})
        except OSError as error:
            return {item.name: LabError(str(error), hint=_hint(error)) for item in items}
        return {}


def _wait_for_routes(kernel: Netlink, index: int, addresses: set[str]) -> None:
    """Wait until the host answers on its v6 addresses: the kernel adds the local route of each in a work
    queue, after it has answered the request.  Takes no time or a millisecond; bounded by half a second."""
    awaited = {f"{ip_interface(address).ip}/128" for address in addresses}
    until = time.monotonic() + 0.5
    while awaited and time.monotonic() < until:
        there = {r.destination for r in kernel.routes() if r.table == _LOCAL_TABLE and r.index == index}
        if awaited <= there:
            return
        time.sleep(0.001)


def holder(link: Link) -> str:
    """A link that is not ours, in words."""
    if link.alias:
        return f"a {link.kind or 'network'} link with the alias {link.alias!r}"
    return f"a {link.kind or 'network'} link that is not of this lab"


def _hint(error: OSError) -> str:
    if error.errno == 1:
        return "run as root"
    if isinstance(error, NetlinkError) and error.errno == 95:
        return "this kernel has no bridges: modprobe bridge"
    return ""
