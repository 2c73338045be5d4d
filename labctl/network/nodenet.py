"""The network of a node that shares the host's kernel: a namespace with its interfaces, made in batches."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Any, ClassVar, Self

from labctl.errors import Foreign, LabError
from labctl.linux import netlink, netnode
from labctl.linux.netlink import Netlink
from labctl.linux.netnode import Nic, Node
from labctl.looks import ABSENT, PRESENT, Look, Outlook, Owner, Presence, Signs, Way
from labctl.network.model import Interface, NodeRoute
from labctl.records import dataclass


@dataclass(frozen=True, kw_only=True)
class NodeNet:
    """A network namespace, bind-mounted at `path`, with all its veths, addresses, routes and sysctls.

    `gateway4` and `gateway6` are "" for none.  Of `sysctls` those that begin with `net.` are applied
    here (the others are the container's business); a name of an interface in them is one of
    `interfaces`.  `hostname` is kept for the reader: a UTS namespace belongs to the container.
    """

    kind: ClassVar[str] = "net"
    # Its links take the kernel a grace period; a container that is being killed needs none any more.
    beside: ClassVar[frozenset[str]] = frozenset({"container"})

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    path: str
    userns: str = ""  # where its owning user namespace is kept; "" = the host's owns it
    id_base: int = 0  # the first host id of that user namespace
    hostname: str = ""
    interfaces: tuple[Interface, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    routes: tuple[NodeRoute, ...] = ()
    ipv6: bool = True
    sysctls: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The ownership mark: IFLA_IFALIAS of every link's end on the host."""
        return self.owner.mark(self.kind, self.name)

    def plain(self) -> Node:
        """The same in the words of the ground floor."""
        return Node(
            key=self.name,
            path=self.path,
            nics=tuple(
                Nic(i.host_name, i.name, i.bridge, i.mac, i.addresses, i.up, i.mtu, self.mark)
                for i in self.interfaces
            ),
            gateway4=self.gateway4,
            gateway6=self.gateway6,
            routes=tuple((r.destination, r.gateway, r.interface, r.metric) for r in self.routes),
            ipv6=self.ipv6,
            sysctls=tuple(self.sysctls.items()),
            userns=self.userns,
            id_base=self.id_base,
        )

    def make(self) -> None:
        """Make it; one that is ours and whole is left as it is.  Raises Foreign, LabError."""
        for error in self.make_many([self]).values():
            raise error

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Make many, about 2 ms each; what failed, by name.  A node that fails leaves nothing."""
        owned = [item for item in items if item.userns]
        plain = [item for item in items if not item.userns]
        failures = _by_name(netnode.make_nodes, plain) if plain else {}
        return {**failures, **(_by_name(netnode.make_owned_nodes, owned) if owned else {})}

    def look(self) -> Look:
        """What the host says now; see look_many."""
        return self.look_many([self])[self.name]

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many from one dump of the host's links; what a node did inside is its own affair."""
        with Netlink() as kernel:
            links = netlink.by_name(kernel.links())
        names = {link.index: link.name for link in links.values()}
        looks = {}
        for item in items:
            foreign = [n for n in (i.host_name for i in item.interfaces) if item._foreign(links.get(n))]
            fault = netnode.faults(item.plain(), links, names)
            if foreign:
                looks[item.name] = Look(Presence.FOREIGN, f"link {foreign[0]} is somebody else's")
            elif fault == "":
                looks[item.name] = PRESENT
            else:
                looks[item.name] = ABSENT if fault == "absent" else Look(Presence.BROKEN, fault)
        return looks

    def signs(self) -> Signs:
        """The host's ends of its links, and the mounts that keep its namespaces."""
        places = (self.path, self.userns) if self.userns else (self.path,)
        return Signs(links=tuple(i.host_name for i in self.interfaces), places=places)

    def outlook(self, old: NodeNet, look: Look | None) -> Outlook:
        """Further interfaces are added while the node runs; anything else means another network."""
        wiring: dict[str, Any] = {"interfaces": old.interfaces, "needs": old.needs, "after": old.after}
        more = self.interfaces[len(old.interfaces) :]
        only_more = (
            replace(self, **wiring) == old and self.interfaces[: len(old.interfaces)] == old.interfaces
        )
        # Of a network that is whole but for them, the first is what a look misses.
        whole = look is None or look.there or look.detail in [f"link {i.host_name} is missing" for i in more]
        return Outlook(Way.LIVE, "attached live") if only_more and more and whole else Outlook(Way.ANEW)

    def change(self, old: NodeNet) -> bool:
        """Add the further interfaces.  Raises Foreign, LabError."""
        try:
            netnode.extend_node(self.plain(), len(old.interfaces))
        except OSError as error:
            raise _error(error) from error
        return True

    def _foreign(self, link: netlink.Link | None) -> bool:
        return link is not None and link.alias != self.mark

    def unmake(self) -> None:
        """Delete its links and let its namespace go; absence is fine.  Raises LabError."""
        for error in self.unmake_many([self]).values():
            raise error

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Unmake many: all links in one grace period.  When it returns they are gone."""
        return _by_name(netnode.unmake_nodes, items)


def _by_name(
    work: Callable[[Sequence[Node]], dict[str, OSError]], items: Sequence[NodeNet]
) -> dict[str, LabError]:
    try:
        failures = work([item.plain() for item in items])
    except OSError as error:
        failures = {item.name: error for item in items}
    return {name: _error(error) for name, error in failures.items()}


def _error(error: OSError) -> LabError:
    kind = Foreign if error.errno == errno.EEXIST else LabError
    denied = error.errno == errno.EPERM and os.geteuid() != 0
    return kind(error.strerror or str(error), hint="run as root" if denied else "")
