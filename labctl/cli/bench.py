"""Verbs of the comparison: `bench PROFILE` measures; the others are about what was measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from labctl.cli import light as typer
from labctl.cli import names, screen
from labctl.cli.backend import planning
from labctl.cli.lifecycle import Fallback, Name, Nested, Privileged, Skip
from labctl.cli.profiles import SetOption, load
from labctl.cli.session import Session, verb
from labctl.errors import CheckFailed, LabError, UsageError

if TYPE_CHECKING:
    from labctl.bench.bench import Outcome
    from labctl.bench.plan import Plan
    from labctl.bench.regression import Compared


What = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE|LAB",
        help="A profile to bring up, or a lab that is up.",
        autocompletion=names.complete_profile,
    ),
]
Suites = Annotated[
    list[str],
    typer.Option(
        "--suite", metavar="SUITE", help="quick, full, a suite, SUITE.BENCHMARK or a YAML file.  [quick]"
    ),
]
Runs = Annotated[
    int, typer.Option("--runs", metavar="N", help="So many runs each; 0: as --precision asks for.")
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="SHARE", help="Run until the interval is ± so narrow.")
]
Budget = Annotated[
    str, typer.Option("--budget", metavar="TIME", help="Spend at most so long.  [quick 4m, else 1h]")
]
Baseline = Annotated[
    str, typer.Option("--baseline", metavar="PLACE", help="host, a node to compare with, or none.")
]


class _Bench(typer.Typer):
    """`labctl bench PROFILE` is `labctl bench run PROFILE`."""

    def group(self) -> Any:
        """See light.Typer.group."""
        from labctl.cli.default_verb import DefaultVerb

        self.settings["cls"] = DefaultVerb
        return super().group()


app = _Bench(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure a lab's nodes and the bare host, and compare.\n\n"
    "`labctl bench PROFILE` is `labctl bench run PROFILE`.  It needs the extra labctl[bench].",
)


def _share(text: str, option: str) -> float:
    """5% or 0.05 as 0.05."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UsageError(f"{option} {text}: a share such as 5% is expected")
    return value


def _duration(text: str, option: str) -> float:
    from labctl.profile.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def _plan(suites: list[str], runs: int, precision: str, budget: str, baseline: str, seed: int) -> Plan:
    from labctl.bench import plan

    quick = suites == ["quick"]
    if not 0 <= runs <= 10_000:
        raise UsageError(f"--runs {runs}: between 1 and 10000 is expected, or 0 for as many as are needed")
    spent = _duration(budget, "--budget") if budget else plan.QUICK_BUDGET if quick else plan.BUDGET
    return plan.Plan(
        runs=runs,
        precision=_share(precision, "--precision"),
        budget=spent,
        most=plan.QUICK_MOST if quick else plan.MOST,
        baseline=baseline,
        seed=seed,
    )


@app.command()
@verb()
def run(
    session: Session,
    what: What,
    suite: Suites = [],  # noqa: B006
    runs: Runs = 0,
    precision: Precision = "5%",
    budget: Budget = "",
    baseline: Baseline = "host",
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where results go; an unfinished run there goes on.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave a lab that was brought up here.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the order of the places.")] = 1,
    name: Name = "",
    sets: SetOption = [],  # noqa: B006
    skip_unavailable: Skip = False,
    fallback: Fallback = "",
    nested: Nested = "",
    allow_privileged: Privileged = False,
) -> int:
    """Measure the nodes of a lab and the bare host, and write a report.

    The lab is brought up and taken down again; one that is up is left as it is.  Nodes with the label
    `bench: peer` are not measured.  Ctrl-C keeps what was measured.

    \b
    Examples:
      labctl bench bench --suite quick --skip-unavailable
      labctl bench lab.yaml --suite cpu,kernel --runs 20 --out results
      labctl bench bench --suite ./mine.yaml --baseline box
    """
    from labctl.bench import bench, report
    from labctl.cli.bench_view import drawing

    suites = suite or ["quick"]
    plan = _plan(suites, runs, precision, budget, baseline, seed)
    how = planning(
        session,
        skip_unavailable=skip_unavailable,
        fallback=fallback,
        nested=nested,
        allow_privileged=allow_privileged,
        snapshot="never",  # what a start costs is measured: machines boot
    )
    is_lab = what in names.Names.read(session.home).labs and not name
    if is_lab and sets:
        raise UsageError(f"{what} is a lab that is up: --set changes profiles", hint="take it down first")
    profile = None if is_lab else load(what, sets, name)
    lab = profile.name if profile else what
    folder = Path(out or f"bench-{lab}-{time.strftime('%Y%m%d-%H%M%S')}")
    request = bench.Request(tuple(suites), folder, plan, lab, profile, keep)
    with drawing(session) as emit:
        outcome = bench.bench(request, how, emit)
    report.write(folder)
    _show(session, folder, outcome)
    return 0 if outcome.samples else 1


def _show(session: Session, folder: Path, outcome: Outcome) -> None:
    from labctl.bench import export
    from labctl.bench.results import Results

    results = Results(folder)
    if session.json:
        body = {"folder": str(folder), "outcome": outcome, "results": export.summaries(results)}
        screen.document(screen.plain(body))
        return
    if session.quiet:
        return
    screen.line(_table(results))
    screen.line()
    screen.line(results.drift.sentence)
    if any(place.mark for place in results.places.values()):
        from labctl.bench.words import MARKED

        screen.line(MARKED)
    if outcome.failed:
        screen.line(f"{outcome.failed} benchmarks lack a figure in some place; the report says why.")
    screen.line(f"\n{outcome.samples} runs in {screen.seconds(outcome.seconds)}: {folder}/report.html")


def _table(results: Any) -> str:
    from labctl.bench.numbers import interval, number

    places = list(results.places.values())
    rows = []
    for row in results.rows:
        cells = [f"{row.key}", row.unit]
        for place in places:
            cell = row.cells[place.name]
            text = interval(cell.summary) if cell.summary else ""
            if cell.ratio:
                text += f"  {number(cell.ratio.ratio)}×"
            cells.append(text)
        rows.append(cells)
    return screen.table(["benchmark", "unit", *(place.label for place in places)], rows)


@app.command(name="report")
@verb()
def report_(
    session: Session,
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Write there instead of into the run's folder.")
    ] = "",
) -> None:
    """Make the report of runs again, from their samples.

    HTML, Markdown, plots as SVG and PNG, figures as CSV, JSON and Parquet, a citation.

    \b
    Examples:
      labctl bench report results
      labctl bench report results --out /srv/www/bench
    """
    from labctl.bench import report

    if out and len(folders) > 1:
        raise UsageError("--out is for one run", hint="leave it out: each report goes into its run's folder")
    written = [report.write(Path(folder), Path(out) if out else None) for folder in folders]
    for one in written:
        if not session.json:
            screen.line(str(one.html))
    if session.json:
        screen.document({"reports": [screen.plain(one) for one in written]})


@app.command()
@verb()
def compare(
    session: Session,
    before: Annotated[str, typer.Argument(metavar="A", help="The folder of the run before.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The folder of the run after.")],
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="SHARE", help="Exit code 3 when something got so much worse.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="List also what shows no difference.")] = False,
) -> int:
    """Compare two runs: what became worse or better, and whether that is shown.

    A difference counts when the Mann-Whitney test (p < 0.01) and the interval of the ratio say so.

    \b
    Examples:
      labctl bench compare before after
      labctl bench compare before after --fail-on 10%
    """
    from labctl.bench import regression

    limit = _share(fail_on, "--fail-on") if fail_on else None
    found = regression.compare(Path(before), Path(after))
    worse = found.regressions(limit) if limit is not None else []
    if session.json:
        screen.document(_compared(found, [f"{c.row.key} in {c.place}" for c in worse]))
    else:
        _show_compared(found, everything)
        for change in worse:
            screen.line(f"FAIL  {change.row.key} in {change.place}: {change.worse_by:.1%} worse")
        if limit is not None and not worse:
            screen.line(f"nothing is shown to be more than {limit:.3g} times worse" if limit >= 1 else
                        f"nothing is shown to be more than {limit:.0%} worse")  # fmt: skip
    return CheckFailed.exit_code if worse else 0


def _show_compared(found: Compared, everything: bool) -> None:
    from labctl.bench.numbers import interval, ratio, verdict

    for key, (one, other) in found.conditions.items():
        screen.line(screen.clean(f"differs: {key}: {one[:60]} → {other[:60]}"))
    rows = []
    for change in found.changes:
        if not (everything or change.shown) or not (change.before.summary and change.after.summary):
            continue
        way = "worse" if change.worse_by > 0 else "better" if change.worse_by < 0 else ""
        shown = f"{ratio(change.ratio)} {way if change.shown else ''}"
        rows.append(
            (change.row.key, change.place, change.row.unit, interval(change.before.summary),
             interval(change.after.summary), shown.strip(), verdict(change.ratio))
        )  # fmt: skip
    if rows:
        screen.line(screen.table(["benchmark", "place", "unit", "before", "after", "ratio", "shown"], rows))
    same = sum(not change.shown for change in found.changes)
    screen.line(f"{len(found.changes)} figures in both runs; no difference is shown in {same}")


def _compared(found: Compared, worse: list[str]) -> dict[str, Any]:
    changes = [
        {
            "benchmark": change.row.key,
            "place": change.place,
            "unit": change.row.unit,
            "before": change.before.summary,
            "after": change.after.summary,
            "ratio": change.ratio,
            "worse_by": change.worse_by,
            "shown": change.shown,
        }
        for change in found.changes
    ]
    body = {
        "changes": changes,
        "conditions": found.conditions,
        "only_before": found.only_before,
        "only_after": found.only_after,
        "regressions": worse,
    }
    told: dict[str, Any] = screen.plain(body)
    return told


@app.command(name="list")
@verb()
def list_(
    session: Session,
    suite: Annotated[list[str], typer.Argument(metavar="[SUITE...]", help="Only these suites.")] = [],  # noqa: B006
) -> None:
    """List the suites and their benchmarks.

    \b
    Examples:
      labctl bench list
      labctl bench list cpu kernel
      labctl bench list ./mine.yaml
    """
    from labctl.bench import tasks

    found = tasks.choose(suite) if suite else tasks.shipped()
    if session.json:
        screen.document({"benchmarks": [{**task.to_json(), "quick": task.quick} for task in found]})
        return
    rows = [
        (task.key, "quick" if task.quick else "", ", ".join(dict.fromkeys(f.unit for f in task.figures)),
         task.tool, task.title)
        for task in found
    ]  # fmt: skip
    if not rows:
        raise LabError("there is no benchmark", hint="labctl was installed without its suites")
    screen.line(screen.table(["benchmark", "in", "unit", "tool", "what it measures"], rows))
