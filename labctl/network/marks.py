"""What networking left on this host, found by ownership marks alone: for `gc` and a lost ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from labctl.errors import LabError
from labctl.linux import netlink, netns
from labctl.linux.netlink import Netlink
from labctl.looks import Owner, parse_mark
from labctl.network import dns, firewall, iptables, nft
from labctl.network.inventory import namespaces
from labctl.records import dataclass


@dataclass(frozen=True)
class Found:
    """An object of ours: `what` in words, and how to remove it (absence is fine, returns when gone)."""

    owner: Owner
    kind: str
    name: str
    what: str
    remove: Callable[[], None] = field(repr=False, compare=False)


def find_marked(instance: str, labs_folder: str = "") -> list[Found]:
    """Everything of this instance, in an order in which it can be removed.

    `labs_folder` is the home's folder of labs: namespaces kept below it (LAB/net/NODE) are ours, since a
    namespace itself carries no mark.
    """
    found = [*_servers(), *_firewalls(), *_links()]
    if labs_folder:
        found += _namespaces(instance, labs_folder)
    return [item for item in found if item.owner.instance == instance]


def _found(mark: str, what: str, remove: Callable[[], None]) -> list[Found]:
    parsed = parse_mark(mark)
    return [Found(*parsed, what, remove)] if parsed else []


def _servers() -> list[Found]:
    found = []
    for pid, mark in dns.servers():

        def remove(pid: int = pid, mark: str = mark) -> None:
            dns.end(pid, lambda number: (number, mark) in list(dns.servers(mark)))

        found += _found(mark, f"dnsmasq, process {pid}", remove)
    return found


def _firewalls() -> list[Found]:
    found = []
    tables = nft.lab_tables()
    for table in tables:

        def remove(name: str = table.name, mark: str = table.mark) -> None:
            firewall.remove(name, mark, [])

        found += _found(table.mark, f"nft table inet {table.name}", remove)
    for mark in iptables.marks() - {table.mark for table in tables}:

        def clear(mark: str = mark) -> None:
            iptables.unmake(mark)

        found += _found(mark, "iptables accept rules", clear)
    return found


def _links() -> list[Found]:
    found = []
    with Netlink() as kernel:
        # Ports before bridges.
        links = sorted(kernel.links(), key=lambda link: link.kind == "bridge")
    for link in links:

        def remove(name: str = link.name, mark: str = link.alias) -> None:
            _delete(name, mark)

        found += _found(link.alias, f"{link.kind or 'network'} link {link.name}", remove)
    return found


def _delete(name: str, mark: str) -> None:
    try:
        with Netlink() as kernel:
            link = netlink.by_name(kernel.links()).get(name)
            if link is not None and link.alias == mark:
                kernel.do(netlink.delete_link(name, index=link.index))
    except OSError as error:
        raise LabError(str(error)) from error


def _namespaces(instance: str, folder: str) -> list[Found]:
    found = []
    base = folder.rstrip("/") + "/"
    for point in namespaces():
        lab, _, rest = point.removeprefix(base).partition("/")
        if not point.startswith(base) or not rest:
            continue

        def remove(path: str = point) -> None:
            try:
                netns.unbind(path)
            except OSError as error:
                raise LabError(str(error)) from error

        owner = Owner(instance, lab)
        name = Path(point).name.removesuffix(".user")
        found.append(Found(owner, "net", name, f"namespace kept at {point}", remove))
    return found
