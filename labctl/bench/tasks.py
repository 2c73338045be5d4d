"""From suites to tasks: what there is to run, chosen by names and files.

A task is a benchmark of a YAML suite, or one that is a function of ours because it handles the lab
itself (life cycle, the host's memory, limits).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from labctl.bench.model import Benchmark, Better, Suite
from labctl.bench.tasktypes import Figure, Task
from labctl.data import data
from labctl.errors import Problem, ProfileError, UsageError

QUICK, FULL = "quick", "full"
#: Order of the report; other suites come after these.
ORDER = (
    "lifecycle",
    "cost",
    "cpu",
    "kernel",
    "memory",
    "disk",
    "volume",
    "network",
    "applications",
    "isolation",
)


class SuiteError(ProfileError):
    """A suite has mistakes."""

    what = "suite"


def of_suite(suite: Suite, *, quick: bool = False, origin: str = "") -> list[Task]:
    """The tasks of a suite."""
    return [_task(suite.name, name, spec, quick, origin) for name, spec in suite.benchmarks.items()]


def _task(suite: str, name: str, spec: Benchmark, quick: bool, origin: str) -> Task:
    # What a neighbour leaves is a share, and more of it is better, whichever way the figure itself is.
    figures = tuple(
        Figure(key, metric.title or spec.title, metric.unit, Better.HIGHER if spec.beside else metric.better)
        for key, metric in spec.metrics.items()
    )
    return Task(
        suite=suite,
        name=name,
        title=spec.title,
        figures=figures,
        about=spec.about,
        tool=spec.tool,
        warmup=spec.warmup,
        limit=spec.limit,
        seconds=spec.quick_seconds if quick and spec.quick else spec.seconds,
        needs=spec.needs,
        quick=spec.quick,
        spec=spec,
        origin=origin,
    )


def load(path: Path) -> Suite:
    """Read a suite of one's own.  Raises SuiteError with every mistake at its place."""
    from pydantic import ValidationError

    from labctl.profile.plainly import explain
    from labctl.profile.source import read_text
    from labctl.profile.tree import Problems
    from labctl.profile.yamlread import read_yaml

    try:
        source = read_text(path)
        tree = read_yaml(source.text, source.name)
        problems = Problems()
        if not isinstance(tree.value, dict):
            problems.add(tree, f"a suite is a map (name: …, benchmarks: …), not {tree.kind}")
            problems.raise_any()
        try:
            return Suite.model_validate(tree.plain())
        except ValidationError as error:
            explain(error, Suite, tree, problems)
            problems.raise_any()
            raise SuiteError([Problem(str(error))]) from error  # pydantic found what `explain` did not
    except SuiteError:
        raise
    except ProfileError as error:
        raise SuiteError(error.problems) from error


def shipped(*, quick: bool = False) -> list[Task]:
    """All tasks that come with labctl, in the report's order."""
    from labctl.bench import host_memory, lifecycle, limits

    found: list[Task] = [*lifecycle.TASKS, *host_memory.TASKS, *limits.TASKS]
    for file in sorted(data("suites").glob("*.yaml")):
        found += of_suite(load(file), quick=quick)
    return sorted(found, key=lambda task: ORDER.index(task.suite))


def choose(words: Iterable[str]) -> list[Task]:
    """The tasks that words mean: quick, full, a suite, SUITE.NAME, or a file of one's own.

    Raises UsageError for a word that means nothing, SuiteError for a file with mistakes.
    """
    wanted = [word for text in words for word in text.split(",") if word]
    quick = QUICK in wanted
    known = shipped(quick=quick)
    found: dict[str, Task] = {}
    for word in wanted:
        chosen = _meant(word, known, quick)
        for task in chosen:
            if task.key in found and found[task.key].origin != task.origin:
                raise UsageError(f"two suites have a benchmark {task.key}", hint="rename one of them")
            found.setdefault(task.key, task)
    return list(found.values())


def _meant(word: str, known: list[Task], quick: bool) -> list[Task]:
    if "/" in word or word.endswith((".yaml", ".yml")):
        return of_suite(load(Path(word)), quick=quick, origin=word)
    if word == FULL:
        return known
    if word == QUICK:
        return [task for task in known if task.quick]
    chosen = [task for task in known if word in (task.suite, task.key)]
    if not chosen:
        names = [QUICK, FULL, *dict.fromkeys(task.suite for task in known), *(task.key for task in known)]
        near = difflib.get_close_matches(word, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else "labctl bench list"
        raise UsageError(f"--suite {word}: no suite or benchmark is called so", hint=hint)
    return chosen
