"""The words every room shares about an object on the host: what a look at it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from labctl.records import dataclass


class Presence(StrEnum):
    """What the host says about one object now."""

    ABSENT = "absent"  # not there
    PRESENT = "present"  # there, ours, as described
    STOPPED = "stopped"  # there and ours, defined but not running (a domain, a container, a daemon)
    BROKEN = "broken"  # there and ours, but not as described: unmake and make again
    FOREIGN = "foreign"  # something of that name is there and is not ours


@dataclass(frozen=True)
class Look:
    """The result of looking at an object: never what we remember, always what the host says."""

    presence: Presence
    detail: str = ""
    data: Mapping[str, object] = field(default_factory=dict)

    @property
    def there(self) -> bool:
        """Whether the object is there, ours and usable as it is."""
        return self.presence is Presence.PRESENT


class Way(StrEnum):
    """How an object that is there comes to what is wanted of it now."""

    LIVE = "live"  # changed while what needs it goes on
    STILL = "still"  # changed while what stands on it is off
    RESTART = "restart"  # unmade and made again, and nothing is lost by that
    ANEW = "anew"  # unmade and made again, and what it held is lost


@dataclass(frozen=True)
class Outlook:
    """What a change will come to, said before anything is done; `told` is for a person."""

    way: Way
    told: str = ""


ABSENT = Look(Presence.ABSENT)
PRESENT = Look(Presence.PRESENT)


@dataclass(frozen=True)
class Signs:
    """What a look at an object goes by: while none of it changes, another look says what the last one said.

    `links`: network links, with index, owner, bridge and state; `addresses`: links whose addresses count;
    `files`: identity, size and times; `places`: folders and mounts, identity and rights alone; `processes`:
    pids with their start; `values`: what small files of the kernel say; `commands`: what programs print;
    `firewall`: inet tables of nftables, and whether there are rules of iptables among nftables'.
    """

    links: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    processes: tuple[int, ...] = ()
    values: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    firewall: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owner:
    """Who an object belongs to, as written on the object itself.

    `instance` is the random id of one LABCTL_HOME, `lab` the id of a lab in it.  The mark
    `labctl:INSTANCE:LAB:KIND:NAME` goes wherever the kernel or libvirt lets us write one
    (IFLA_IFALIAS, domain metadata, an nft comment), so that `gc` finds what a lost ledger forgot.
    """

    instance: str
    lab: str

    def mark(self, kind: str, name: str) -> str:
        """The text to write on the object."""
        return f"labctl:{self.instance}:{self.lab}:{kind}:{name}"


def parse_mark(text: str) -> tuple[Owner, str, str] | None:
    """Read a mark back: (owner, kind, name), or None when the text is no mark of ours."""
    parts = text.split(":", 4)
    if len(parts) != 5 or parts[0] != "labctl":
        return None
    return Owner(parts[1], parts[2]), parts[3], parts[4]
