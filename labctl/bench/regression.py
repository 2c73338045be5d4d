"""Two runs beside each other: what became slower or faster, and whether that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.bench import extra, statistics
from labctl.bench.model import Better
from labctl.bench.results import CellResult, Results, Row
from labctl.bench.statistics import Ratio, Verdict
from labctl.errors import UsageError

# Conditions whose change makes two runs hard to compare.
_MATTER = ("cpu_model", "cpus_usable", "kernel", "mitigations", "governor", "smt", "turbo", "cgroups")


@dataclass(frozen=True)
class Change:
    """One figure in one place, in both runs.  `ratio` is the second over the first."""

    row: Row
    place: str
    before: CellResult
    after: CellResult
    ratio: Ratio

    @property
    def worse_by(self) -> float:
        """How much worse: 0.1 is 10 % worse, below 0 better; 0 for figures without a direction."""
        if self.row.better is Better.NEITHER or self.ratio.ratio <= 0:
            return 0.0
        cost = self.ratio.ratio if self.row.better is Better.LOWER else 1 / self.ratio.ratio
        return cost - 1

    @property
    def shown(self) -> bool:
        """Whether the difference is one, by test and interval."""
        return self.ratio.verdict in (Verdict.HIGHER, Verdict.LOWER)


@dataclass(frozen=True)
class Compared:
    """What two runs have in common, and what was different around them."""

    before: Results
    after: Results
    changes: tuple[Change, ...]
    conditions: dict[str, tuple[str, str]]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def regressions(self, limit: float) -> list[Change]:
        """What became worse by more than `limit` (a share), and shown to be so."""
        return [change for change in self.changes if change.shown and change.worse_by > limit]


def compare(before: Path, after: Path) -> Compared:
    """Compare two runs.  Raises UsageError when they have nothing in common, HostCannot without SciPy."""
    extra.need()
    first, second = Results(before), Results(after)
    rows = {row.key: row for row in first.rows}
    changes, mine, theirs = [], set(), set()
    for row in second.rows:
        for place, cell in row.cells.items():
            theirs.add(f"{row.key} in {place}")
            old = rows[row.key].cells.get(place) if row.key in rows else None
            if old is None or not old.samples or not cell.samples:
                continue
            if ratio := statistics.compared(cell.samples, old.samples):
                changes.append(Change(row, place, old, cell, ratio))
    for row in first.rows:
        mine |= {f"{row.key} in {place}" for place in row.cells}
    if not changes:
        raise UsageError(
            f"{before} and {after} have no figure in common",
            hint="compare runs of the same suites whose nodes have the same names",
        )
    return Compared(
        first, second, tuple(changes), _different(first, second), tuple(sorted(mine - theirs)),
        tuple(sorted(theirs - mine)),
    )  # fmt: skip


def _different(first: Results, second: Results) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}

    def note(name: str, one: Any, other: Any) -> None:
        if one != other:
            found[name] = (str(one), str(other))

    for key in _MATTER:
        note(key.replace("_", " "), first.conditions.get(key), second.conditions.get(key))
    for key in sorted({*first.versions, *second.versions}):
        note(f"version of {key}", first.versions.get(key), second.versions.get(key))
    for name in sorted({*first.places} & {*second.places}):
        note(f"tier of {name}", first.places[name].tier, second.places[name].tier)
        note(f"accelerator of {name}", first.places[name].accelerator, second.places[name].accelerator)
    return found
