"""nft: put a table in place, read back what the tables of labs carry, take one away."""

from __future__ import annotations

from dataclasses import field

from labctl.errors import LabError
from labctl.linux import netfilter
from labctl.looks import parse_mark
from labctl.network import tools
from labctl.network.ruleset import RECORD
from labctl.records import dataclass


@dataclass(frozen=True)
class LabTable:
    """What an nft table says about itself: its mark ("" when it is none of ours) and its record."""

    name: str
    mark: str
    digest: str = ""
    rules: int = 0  # how many there are
    meant: int = 0  # how many there should be
    former: dict[str, str] = field(default_factory=dict)


def _nft() -> str:
    return tools.need("nft", "nftables")


def apply(text: str) -> None:
    """Run a ruleset as one transaction.  Raises LabError with nft's words, HostCannot without nft."""
    tools.run([_nft(), "-f", "-"], text=text, what="cannot set up the lab's firewall")


def delete(table: str) -> None:
    """Delete an inet table; absence is fine."""
    apply(f"table inet {table}\ndelete table inet {table}\n")


def text_of_all() -> str:
    """The whole ruleset as text, without counters and handles."""
    return tools.run([_nft(), "-s", "list", "ruleset"], what="cannot read the firewall")


def tables() -> set[tuple[str, str]]:
    """(family, name) of every table.  Raises LabError when the kernel doesn't say."""
    try:
        return netfilter.tables()
    except OSError as error:
        raise LabError(str(error), hint="run as root" if error.errno == 1 else "") from error


def lab_table(name: str) -> LabTable | None:
    """The inet table of that name, ours or not, or None."""
    if ("inet", name) not in tables():
        return None
    return next((table for table in _read() if table.name == name), LabTable(name, ""))


def lab_tables() -> list[LabTable]:
    """All inet tables that carry a mark of ours, of any instance."""
    return [table for table in _read() if table.mark]


def _read() -> list[LabTable]:
    notes: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    try:
        rules = netfilter.rules()
    except OSError as error:
        raise LabError(str(error), hint="run as root" if error.errno == 1 else "") from error
    for rule in rules:
        notes.setdefault(rule.table, [])
        counts.setdefault(rule.table, 0)
        if rule.chain == RECORD:
            notes[rule.table].append(rule.comment)
        else:
            counts[rule.table] += 1
    return [_table(name, texts, counts[name]) for name, texts in notes.items()]


def _table(name: str, texts: list[str], count: int) -> LabTable:
    mark = texts[0] if texts and parse_mark(texts[0]) else ""
    if not mark:
        return LabTable(name, "", rules=count)
    said = dict(text.split("=", 1) for text in texts[1:] if "=" in text)
    digest, meant = said.pop("digest", ""), said.pop("rules", "0")
    return LabTable(name, mark, digest, count, int(meant) if meant.isdigit() else 0, said)
