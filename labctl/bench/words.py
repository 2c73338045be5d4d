"""The summary in plain words, made from the figures only.

An emulated or nested place is never put into a sentence with a native one: its figures tell what it costs
on this machine to do without hardware help, not what the technology costs.
"""

from __future__ import annotations

from labctl.bench.model import Better
from labctl.bench.numbers import number, span
from labctl.bench.results import PlaceInfo, Results, Row, first_figures, suite_title
from labctl.bench.statistics import Verdict

MARKED = (
    "Places marked “emulated” or “nested” run their code without the help of this machine's hardware. Their "
    "figures show what that costs here, and say nothing about virtualization with hardware support."
)


def summary(results: Results) -> list[tuple[str, list[str]]]:
    """(heading, sentences): the native places, the marked ones, and how far the run can be trusted."""
    native = [p for p in results.places.values() if not p.mark and p.name != results.baseline]
    marked = [p for p in results.places.values() if p.mark and p.name != results.baseline]
    parts: list[tuple[str, list[str]]] = []
    if results.baseline:
        for place in native:
            if said := _place(results, place):
                parts.append((f"{place.name} ({place.tier}) beside {results.baseline}", said))
        for place in marked:
            if said := _place(results, place):
                parts.append(
                    (
                        f"{place.label}, {place.accelerator or place.tier}, beside {results.baseline}",
                        [MARKED, *said],
                    )
                )
    parts.append(("How far this can be trusted", trust(results)))
    return parts


def _place(results: Results, place: PlaceInfo) -> list[str]:
    said = []
    for suite, rows in results.suites().items():
        told = [row for row in first_figures(rows) if row.cost(place.name)]
        if told:
            said.append(_suite(suite, told, place))
    said += _alone(results, place)
    return said


def _suite(suite: str, rows: list[Row], place: PlaceInfo) -> str:
    """One suite: how many benchmarks differ, and by how much."""
    worse: list[Row] = []
    better: list[Row] = []
    same = few = 0
    for row in rows:
        ratio = row.cells[place.name].ratio
        assert ratio is not None
        if ratio.verdict is Verdict.FEW:
            few += 1
        elif ratio.verdict is Verdict.SAME:
            same += 1
        else:
            is_worse = (ratio.verdict is Verdict.HIGHER) == (row.better is Better.LOWER)
            (worse if is_worse else better).append(row)
    total = len(rows)
    parts = []
    if same:
        parts.append(f"no difference shown in {same} of {total}")
    if worse:
        parts.append(f"worse in {len(worse)} of {total} ({_named(worse, place)})")
    if better:
        parts.append(f"better in {len(better)} of {total} ({_named(better, place)})")
    if few:
        parts.append(f"too few runs to tell in {few} of {total}")
    return f"{suite_title(suite)}: {'; '.join(parts)}."


def _named(rows: list[Row], place: PlaceInfo) -> str:
    """The three largest of them, by ratio."""

    def size(row: Row) -> float:
        cost = row.cost(place.name)
        assert cost is not None
        return max(cost[0], 1 / cost[0])

    told = []
    for row in sorted(rows, key=size, reverse=True)[:3]:
        ratio = row.cells[place.name].ratio
        assert ratio is not None
        told.append(f"{row.title}: {number(ratio.ratio)}× [{number(ratio.low)}, {number(ratio.high)}]")
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return "; ".join(told) + more


def _alone(results: Results, place: PlaceInfo) -> list[str]:
    """Figures without a counterpart on the host."""
    said = []
    for row in results.rows:
        cell = row.cells.get(place.name)
        if (
            cell
            and cell.summary
            and not cell.ratio
            and row.suite in ("lifecycle", "cost")
            and row.better is not Better.NEITHER
        ):
            low, high = number(cell.summary.low), number(cell.summary.high)
            title = f"{row.title[:1].upper()}{row.title[1:]}"
            said.append(f"{title}: {number(cell.summary.median)} {row.unit} [{low}, {high}].")
    return said


def trust(results: Results) -> list[str]:
    """What a reader should know before believing a figure."""
    said = [results.drift.sentence]
    host = results.conditions
    if str(host.get("is_a_virtual_machine", "")).startswith("yes"):
        said.append(
            "The “bare host” is itself a virtual machine: its neighbours can't be seen, and they count."
        )
    load = host.get("load_at_start") or [0]
    if load[0] > 0.5:
        said.append(
            f"The host was not idle at the start: its load was {load[0]:.1f} on {host.get('cpus_usable')} "
            "processors."
        )
    if results.clock_jumps:
        said.append(f"The clock jumped during {results.clock_jumps} runs; they are kept and counted.")
    outliers = sum(len(c.summary.outliers) for row in results.rows for c in row.cells.values() if c.summary)
    samples = sum(len(c.samples) for row in results.rows for c in row.cells.values())
    said.append(f"{outliers} of {samples} figures are outliers by Tukey's fences; none was dropped.")
    failed = [(row, name) for row in first_figures(results.rows) for name, c in row.cells.items() if c.failed]
    if failed:
        said.append(f"{len(failed)} benchmarks have no complete figure in some place; the tables say why.")
    for name, told in results.node_conditions.items():
        if told.get("disk_cache") == "unsafe":
            said.append(
                f"The disk of {name} has the cache mode “unsafe”: fdatasync does not reach the host's disk "
                "there, so its figures for writes, fdatasync and PostgreSQL flatter it."
            )
        if "mitigations=off" in str(told.get("kernel_parameters", "")):
            said.append(
                f"The kernel of {name} runs with mitigations=off, the host's does not say so."
                if "mitigations=off" not in str(host.get("kernel_parameters", ""))
                else f"The kernels of {name} and of the host run with mitigations=off."
            )
    if results.seconds:
        outside = max(0.0, 1 - results.inside / results.seconds)
        said.append(f"The run took {span(results.seconds)}, {outside:.0%} of it outside of workloads.")
    if not results.complete:
        said.append("The run was not finished: what is missing was not measured.")
    return said
