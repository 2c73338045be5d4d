"""From the lines of a run to tables: per figure and place the samples, their summary, and the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from labctl.bench import drift, statistics, store
from labctl.bench.drift import Drift
from labctl.bench.model import Better
from labctl.bench.statistics import Ratio, Summary, Verdict
from labctl.errors import UsageError, Where

SUITE_TITLES = {
    "lifecycle": "Life cycle",
    "cost": "What the host pays",
    "cpu": "Processor",
    "kernel": "Crossing into the kernel",
    "memory": "Memory",
    "disk": "Disk (root)",
    "volume": "Disk (volume)",
    "network": "Network",
    "applications": "Applications",
    "isolation": "Isolation",
}


@dataclass(frozen=True)
class PlaceInfo:
    """A place as it was kept."""

    name: str
    tier: str
    accelerator: str = ""
    emulated: bool = False
    nested: bool = False

    @property
    def mark(self) -> str:
        """What stands at its name wherever its figures do."""
        return ", ".join(word for word, so in (("emulated", self.emulated), ("nested", self.nested)) if so)

    @property
    def label(self) -> str:
        """Its name with the mark."""
        return f"{self.name} ({self.mark})" if self.mark else self.name


@dataclass(frozen=True)
class CellResult:
    """One figure in one place.  `reason` says why there is none, or why there are no more samples."""

    samples: tuple[float, ...] = ()
    summary: Summary | None = None
    ratio: Ratio | None = None  # to the baseline
    reason: str = ""
    failed: bool = False
    output: str = ""  # what a failed run said


@dataclass(frozen=True)
class Row:
    """One figure of a task in all places."""

    task: str
    suite: str
    name: str
    title: str
    unit: str
    better: Better
    about: str
    tool: str
    cells: dict[str, CellResult] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SUITE.TASK.FIGURE."""
        return f"{self.task}.{self.name}"

    def cost(self, place: str) -> tuple[float, float, float] | None:
        """How many times the baseline's cost, with its interval: above 1 is worse, whatever the figure.

        None where there is no ratio, or the figure has no good direction.
        """
        cell = self.cells.get(place)
        if cell is None or cell.ratio is None or self.better is Better.NEITHER:
            return None
        ratio = cell.ratio
        three = (ratio.ratio, ratio.low, ratio.high)
        if min(three) <= 0:
            return None
        return three if self.better is Better.LOWER else (1 / three[0], 1 / three[2], 1 / three[1])


class Results:
    """A run, read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = store.read(folder)
        self.header: dict[str, Any] = self.lines[0]
        try:
            self.places = {p.name: p for p in map(_place, self._of("place"))}
            self.tasks = {line["key"]: line for line in self._of("task")}
            self.samples = [line for line in self._of("sample") if line["phase"] == "measured"]
            self.all_samples = self._of("sample")
        except KeyError as error:
            path = folder / store.NAME if folder.is_dir() else folder
            raise UsageError(
                f"a line lacks {error}: this is no run of labctl bench", where=Where(str(path))
            ) from error

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("type") == kind]

    @property
    def baseline(self) -> str:
        """The place that all others are compared with; "" for none."""
        wanted = str(self.header["plan"]["baseline"])
        return wanted if wanted in self.places else ""

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return any(line.get("state") == "complete" for line in self._of("end"))

    @property
    def began(self) -> float:
        """When the run began, in seconds since the epoch."""
        return float(self.header["at"])

    @property
    def seconds(self) -> float:
        """How long it took, all parts of an interrupted run together."""
        return sum(float(line["seconds"]) for line in self._of("end"))

    @property
    def inside(self) -> float:
        """Seconds of it inside workloads."""
        return sum(float(line["seconds"]) for line in self.all_samples)

    @property
    def conditions(self) -> dict[str, Any]:
        """The host's conditions at the (last) start."""
        return next((line["host"] for line in reversed(self._of("conditions")) if "host" in line), {})

    @property
    def versions(self) -> dict[str, str]:
        """Versions of everything."""
        return next((line["versions"] for line in reversed(self._of("conditions")) if "versions" in line), {})

    @property
    def node_conditions(self) -> dict[str, dict[str, Any]]:
        """Each node's conditions."""
        return {line["place"]: line["node"] for line in self._of("conditions") if "place" in line}

    @cached_property
    def drift(self) -> Drift:
        """Whether the host stayed the same."""
        return drift.judged([float(line["seconds"]) for line in self._of("probe")])

    @property
    def clock_jumps(self) -> int:
        """Runs during which the wall clock jumped."""
        return sum("clock_jump" in line for line in self.all_samples)

    @cached_property
    def rows(self) -> list[Row]:
        """All figures, in the order of the run."""
        found = []
        for task in self.tasks.values():
            for figure in task["figures"]:
                cells = self._cells(task["key"], figure["name"])
                found.append(
                    Row(
                        task=task["key"],
                        suite=task["suite"],
                        name=figure["name"],
                        title=figure["title"],
                        unit=figure["unit"],
                        better=Better(figure["better"]),
                        about=task["about"],
                        tool=task["tool"],
                        cells=cells,
                    )
                )
        return found

    def _cells(self, task: str, figure: str) -> dict[str, CellResult]:
        taken: dict[str, list[float]] = {name: [] for name in self.places}
        for line in self.samples:
            if line["task"] == task and figure in line["values"]:
                taken.setdefault(line["place"], []).append(float(line["values"][figure]))
        reasons = {line["place"]: line for line in self._of("cell") if line["task"] == task}
        outputs = {
            line["place"]: line.get("output", "") for line in self._of("failure") if line["task"] == task
        }
        below = taken.get(self.baseline, [])
        cells = {}
        for name, samples in taken.items():
            why = reasons.get(name, {})
            compared = (
                statistics.compared(samples, below) if below and samples and name != self.baseline else None
            )
            cells[name] = CellResult(
                samples=tuple(samples),
                summary=statistics.summary(samples) if samples else None,
                ratio=compared,
                reason=why.get("reason", "" if samples else "not measured"),
                failed=bool(why.get("failed", False)),
                output=outputs.get(name, ""),
            )
        return cells

    def suites(self) -> dict[str, list[Row]]:
        """suite → its rows."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.suite, []).append(row)
        return found

    def suite_cost(self, suite: str, place: str) -> float | None:
        """The geometric mean of a place's costs over the baseline's, over the first figures of a suite."""
        costs = [cost[0] for row in first_figures(self.suites()[suite]) if (cost := row.cost(place))]
        return statistics.geometric_mean(costs) if costs else None


def first_figures(rows: Sequence[Row]) -> list[Row]:
    """One row a task: further figures of the same runs would count twice in a mean."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.task, row)
    return list(found.values())


def _place(line: dict[str, Any]) -> PlaceInfo:
    return PlaceInfo(line["name"], line["tier"], line["accelerator"], line["emulated"], line["nested"])


def suite_title(suite: str) -> str:
    """A suite's name for people."""
    return SUITE_TITLES.get(suite, suite)


__all__ = ["CellResult", "PlaceInfo", "Results", "Row", "Verdict", "first_figures", "suite_title"]
