"""nft: put a table in place, read back what the tables of labs carry, take one away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from labctl.errors import LabError
from labctl.looks import parse_mark
from labctl.network import tools
from labctl.network.ruleset import RECORD


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
    """(family, name) of every table."""
    out = tools.run([_nft(), "-j", "list", "tables"], what="cannot list the firewall's tables")
    return {(t["table"]["family"], t["table"]["name"]) for t in json.loads(out)["nftables"] if "table" in t}


def lab_table(name: str) -> LabTable | None:
    """The inet table of that name, or None."""
    code, out, err = tools.attempt_run([_nft(), "-j", "list", "table", "inet", name])
    if code == 0:
        for table in _read(out):
            return table
    if code == 0 or "No such file" in err:
        return None
    raise LabError(f"cannot read the firewall's table {name}: {err.strip()[:200]}")


def lab_tables() -> list[LabTable]:
    """All inet tables that carry a mark of ours, of any instance."""
    out = tools.run([_nft(), "-j", "list", "ruleset", "inet"], what="cannot read the firewall")
    return [table for table in _read(out) if table.mark]


def _read(out: str) -> Iterator[LabTable]:
    notes: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for item in json.loads(out)["nftables"]:
        if "table" in item:
            notes[item["table"]["name"]] = []
            counts[item["table"]["name"]] = 0
        elif "rule" in item:
            rule = item["rule"]
            if rule["chain"] == RECORD:
                notes[rule["table"]].append(rule.get("comment", ""))
            else:
                counts[rule["table"]] += 1
    for name, texts in notes.items():
        yield _table(name, texts, counts[name])


def _table(name: str, texts: list[str], count: int) -> LabTable:
    mark = texts[0] if texts and parse_mark(texts[0]) else ""
    if not mark:
        return LabTable(name, "", rules=count)
    said = dict(text.split("=", 1) for text in texts[1:] if "=" in text)
    digest, meant = said.pop("digest", ""), said.pop("rules", "0")
    return LabTable(name, mark, digest, count, int(meant) if meant.isdigit() else 0, said)
