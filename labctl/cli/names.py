"""Which lab and which nodes a person means: LAB, LAB/NODE, NODE, and patterns of these.

Read from the ledger alone, so that completion and a wrong name are quick.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from labctl.errors import UsageError
from labctl.home import Home
from labctl.records import dataclass


class Address(NamedTuple):
    """One node of one lab."""

    lab: str
    node: str

    def __str__(self) -> str:
        return f"{self.lab}/{self.node}"


@dataclass(frozen=True)
class Names:
    """The labs of a home, each with its nodes' records (labctl.tiers.record, as JSON objects)."""

    labs: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    def read(cls, home: Home) -> Names:
        """Read the ledger; no ledger means no labs, and none is made."""
        if not home.used():
            return cls({})
        from labctl.resource.ledger import Ledger

        ledger = Ledger(home.ledger)
        try:
            found = {}
            for row in ledger.labs():
                records = ledger.nodes(row.id)
                found[row.name] = {name: json.loads(text) for name, text in records.items()}
            return cls(found)
        finally:
            ledger.close()

    def lab(self, name: str = "") -> str:
        """The lab of that name; without a name the only one.  Raises UsageError naming the nearest."""
        if name in self.labs:
            return name
        if name:
            raise UsageError(f"no lab is called {name!r}", hint=_nearest(name, list(self.labs), "labctl ls"))
        if not self.labs:
            raise UsageError("no lab is up", hint="labctl up hello")
        # One without nodes is a registry, which nobody means.
        meant = [lab for lab, nodes in self.labs.items() if nodes] or list(self.labs)
        if len(meant) > 1:
            raise UsageError(f"several labs are up: {', '.join(meant)}", hint="name one of them")
        return meant[0]

    def node(self, text: str) -> Address:
        """The node that LAB/NODE or NODE means.  Raises UsageError when there is none."""
        lab, slash, node = text.partition("/")
        lab, node = (self.lab(lab), node) if slash else (self.lab_of(text), text)
        if node not in self.labs[lab]:
            hint = _nearest(node, list(self.labs[lab]), f"labctl status {lab}")
            raise UsageError(f"lab {lab} has no node {node!r}", hint=hint)
        return Address(lab, node)

    def lab_of(self, node: str) -> str:
        """The lab that a node's name alone stands in: the only one, or the only one that has it."""
        having = [lab for lab, nodes in self.labs.items() if node in nodes]
        if sum(bool(nodes) for nodes in self.labs.values()) < 2:
            return self.lab()
        if len(having) == 1:
            return having[0]
        if having:
            raise UsageError(f"several labs have a node {node!r}", hint=f"say {having[0]}/{node}")
        raise UsageError(f"no lab has a node {node!r}", hint=f"labs: {', '.join(self.labs)}")

    def select(self, pattern: str, *, tier: str = "", labels: dict[str, str] | None = None) -> list[Address]:
        """The nodes that a pattern means: "web-*", "LAB/web-*", "a,b", or a lab's name for all its nodes.

        `tier` and `labels` narrow it down.  Nodes that were skipped on this host are left out of
        patterns.  Raises UsageError when nothing is left.
        """
        found: list[Address] = []
        for part in filter(None, pattern.split(",")):
            found += [address for address in self._part(part) if address not in found]
        kept = [a for a in found if self._fits(a, tier, labels or {})]
        if not kept:
            raise UsageError(f"no node fits {pattern!r}" + (" and the filter" if tier or labels else ""))
        return kept

    def _part(self, part: str) -> list[Address]:
        lab, slash, node = part.partition("/")
        if not slash:
            if part in self.labs:
                lab, node = part, "*"
            elif not any(char in part for char in "*?["):
                return [self.node(part)]
            else:
                lab, node = self.lab(), part
        elif not any(char in node for char in "*?["):
            return [self.node(part)] if node else self._part(f"{lab}/*")
        lab = self.lab(lab)
        return [
            Address(lab, name)
            for name, record in self.labs[lab].items()
            if fnmatchcase(name, node) and not record.get("skipped")
        ]

    def _fits(self, address: Address, tier: str, labels: dict[str, str]) -> bool:
        record = self.labs[address.lab][address.node]
        worn = record.get("labels", {})
        return (not tier or record.get("tier") == tier) and all(worn.get(k) == v for k, v in labels.items())


def _nearest(word: str, known: list[str], otherwise: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else otherwise


def _names() -> Names:
    """For completion: whatever is wrong, there is just nothing to complete."""
    from labctl.errors import LabError

    try:
        return Names.read(Home.find())
    except (LabError, ValueError, OSError):
        return Names({})


def complete_lab(incomplete: str) -> list[str]:
    """Names of labs that begin so."""
    return [lab for lab in _names().labs if lab.startswith(incomplete)]


def complete_node(incomplete: str) -> list[str]:
    """Nodes that begin so: NODE where one lab is up, LAB/NODE always."""
    labs = _names().labs
    words = [f"{lab}/{node}" for lab, nodes in labs.items() for node in nodes]
    if len(labs) == 1 and "/" not in incomplete:
        words = [node for nodes in labs.values() for node in nodes]
    return [word for word in words if word.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Profiles that come with labctl, and YAML files here."""
    from pathlib import Path

    from labctl.data import data

    shipped = [path.stem for path in sorted(data("profiles").glob("*.yaml"))]
    folder, _slash, _rest = incomplete.rpartition("/")
    here = Path(folder) if folder else Path()
    try:
        files = [str(path) + ("/" if path.is_dir() else "") for path in sorted(here.iterdir())]
    except OSError:
        files = []
    wanted = [name for name in files if name.endswith(("/", ".yaml", ".yml"))]
    return [word for word in [*shipped, *wanted] if word.startswith(incomplete)]
