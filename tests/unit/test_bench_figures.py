"""The comparison's pure parts: suites and mistakes, figures, statistics, journal, tables, reports."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from labctl.bench import conditions, plan, reading, regression, statistics, store, tasks, words
from labctl.bench.drift import judged
from labctl.bench.faults import Unreadable
from labctl.bench.model import Benchmark, filled
from labctl.bench.results import Results
from labctl.bench.statistics import Verdict
from labctl.errors import Busy, UsageError


def test_every_shipped_benchmark_loads_and_the_quick_ones_span_the_suites() -> None:
    found = tasks.shipped()
    assert len({task.key for task in found}) == len(found) > 50
    assert {task.suite for task in found} == set(tasks.ORDER)
    quick = {task.suite for task in tasks.choose(["quick"])}
    assert {"lifecycle", "cost", "cpu", "kernel", "memory", "disk", "network"} <= quick
    assert [task.key for task in tasks.choose(["cpu.spin,cpu.lu"])] == ["cpu.spin", "cpu.lu"]


def test_a_wrong_word_names_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        tasks.choose(["cpu.spim"])
    assert "cpu.spin" in error.value.hint


def test_mistakes_of_a_suite_are_told_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nbenchmarks:\n  a:\n    title: x\n    command: [ls]\n    bettr: lower\n"
        "    metrics:\n      v: {unit: s, better: lowr, regex: 'abc'}\n"
    )
    with pytest.raises(tasks.SuiteError) as error:
        tasks.choose([str(file)])
    told = [str(problem) for problem in error.value.problems]
    assert [line for line in told if line.startswith(f"{file}:6:") and "bettr" in line]
    assert [line for line in told if line.startswith(f"{file}:8:") and "lower" in line]
    assert [line for line in told if "group" in line]


def _spec(**metric: object) -> Benchmark:
    body = {"title": "x", "command": ["x"], "metrics": {"v": {"unit": "s", "better": "lower", **metric}}}
    return Benchmark.model_validate(body)


@pytest.mark.parametrize(
    ("metric", "output", "value"),
    [
        ({"regex": r"took ([0-9.]+)"}, "took 1.5\ntook 2.5\n", 2.5),
        ({"json": "jobs.0.iops"}, 'warning {x\n{"jobs": [{"iops": 7}]}', 7.0),
        ({"json": "a.-1", "factor": 0.001}, '{"a": [1, 3000]}', 3.0),
        ({"wall": True}, "", 4.25),
    ],
)
def test_figures_are_read(metric: dict[str, object], output: str, value: float) -> None:
    assert reading.figures(_spec(**metric), output, 4.25) == {"v": value}


@pytest.mark.parametrize(
    ("metric", "output", "said"),
    [
        ({"regex": "took ([0-9]+)"}, "nothing", "took"),
        ({"regex": "took (.*)"}, "took long", "no number"),
        ({"json": "a.b"}, '{"a": {}}', "a.b"),
        ({"json": "a"}, '{"error": "unable to connect"}', "unable to connect"),
        ({"json": "a"}, "no json", "no JSON"),
        ({"json": "a"}, '{"a": "nan"}', "no figure"),
    ],
)
def test_what_cannot_be_read_says_why(metric: dict[str, object], output: str, said: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(said)):
        reading.figures(_spec(**metric), output, 1.0)


def test_only_known_words_are_filled_in() -> None:
    assert filled("x {seconds} ${HOME} {other}", {"seconds": "2"}) == "x 2 ${HOME} {other}"


def test_equal_places_are_called_different_in_at_most_1_of_20() -> None:
    rng = random.Random(7)
    called = 0
    for _ in range(20):
        first = [rng.lognormvariate(0, 0.1) for _ in range(12)]
        second = [rng.lognormvariate(0, 0.1) for _ in range(12)]
        ratio = statistics.compared(first, second)
        assert ratio is not None
        called += ratio.verdict is not Verdict.SAME
    assert called <= 1


def test_a_difference_is_shown_with_its_way_and_size() -> None:
    slow, fast = [2.0, 2.1, 2.2, 2.05, 2.15], [1.0, 1.1, 1.2, 1.05, 1.15]
    ratio = statistics.compared(slow, fast)
    assert ratio is not None and ratio.verdict is Verdict.HIGHER and ratio.effect == 1.0
    assert ratio.low < ratio.ratio < ratio.high and ratio.low > 1
    few = statistics.compared(slow[:3], fast[:3])
    assert few is not None and few.verdict is Verdict.FEW


def test_outliers_are_found_and_kept() -> None:
    found = statistics.summary([1.0, 1.1, 0.9, 1.0, 1.05, 9.0])
    assert found.outliers == (5,) and found.maximum == 9.0 and found.count == 6
    assert statistics.summary([3.0, 3.0, 3.0]).precision == 0.0


def test_drift_is_told() -> None:
    assert not judged([1.0, 1.01, 1.0, 1.01, 1.0, 1.0]).drifted
    slower = judged([1.0, 1.0, 1.1, 1.2, 1.3, 1.3])
    assert slower.drifted and "slower" in slower.sentence


def test_the_order_changes_from_turn_to_turn_and_can_be_made_again() -> None:
    turns = [tuple(plan.order(["a", "b", "c"], "k", turn, 1)) for turn in range(12)]
    assert len(set(turns)) > 1 and {tuple(sorted(turn)) for turn in turns} == {("a", "b", "c")}
    assert turns == [tuple(plan.order(["c", "b", "a"], "k", turn, 1)) for turn in range(12)]


def test_a_torn_line_is_dropped_and_two_writers_are_refused(tmp_path: Path) -> None:
    journal = store.Journal(tmp_path)
    journal.write("run", {"schema": 1})
    with pytest.raises(Busy):
        store.Journal(tmp_path)
    journal.close()
    with (tmp_path / store.NAME).open("a") as file:
        file.write('{"type": "sam')
    assert [line["type"] for line in store.read(tmp_path)] == ["run"]
    again = store.Journal(tmp_path)
    again.write("end", {})
    again.close()
    assert [line["type"] for line in store.read(tmp_path)] == ["run", "end"]


def test_files_of_other_versions_and_broken_ones_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / store.NAME
    file.write_text('{"type": "run", "schema": 99}\n')
    with pytest.raises(UsageError, match="newer"):
        store.read(tmp_path)
    file.write_text('{"type": "run", "schema": 1}\n{broken\n{}\n')
    with pytest.raises(UsageError) as error:
        store.read(tmp_path)
    assert str(error.value).startswith(f"{file}:2")


def _run(folder: Path, factor: float = 1.0) -> Path:
    """A run as it is kept: a baseline, a container like it, and an emulated machine ten times slower."""
    rng = random.Random(3)
    journal = store.Journal(folder)
    head = {"schema": 1, "id": "abc", "labctl": "1", "digest": "d", "lab": "l", "profile": "{}"}
    journal.write("run", {**head, "suites": ["cpu"], "plan": {"baseline": "host"}, "skipped": {}})
    figure = {"name": "t", "title": "work <b>", "unit": "s", "better": "lower"}
    task = {"key": "cpu.x", "suite": "cpu", "title": "work", "about": "", "tool": "t", "figures": [figure]}
    journal.write("task", task)
    for name, cost in (("host", 1.0), ("box", 1.0), ("emu", 10.0)):
        place = {"name": name, "tier": "t", "accelerator": "TCG", "emulated": name == "emu", "nested": False}
        journal.write("place", place)
        for turn in range(8):
            value = cost * (factor if name == "box" else 1) * rng.uniform(0.99, 1.01)
            body = {"task": "cpu.x", "place": name, "phase": "measured", "values": {"t": value}, "turn": turn}
            journal.write("sample", {**body, "seconds": value})
    journal.write("conditions", {"host": {"cpu_model": "some"}, "versions": {"labctl": "1"}})
    journal.write("end", {"state": "complete", "seconds": 100})
    journal.close()
    return folder


def test_an_emulated_place_is_marked_and_never_in_a_sentence_with_a_native_one(tmp_path: Path) -> None:
    results = Results(_run(tmp_path / "a"))
    row = results.rows[0]
    box, emu = row.cells["box"].ratio, row.cells["emu"].ratio
    assert box is not None and box.verdict is Verdict.SAME
    assert emu is not None and emu.verdict is Verdict.HIGHER and 9 < emu.ratio < 11
    parts = words.summary(results)
    native = [(head, said) for head, said in parts if head.startswith("box")]
    marked = [(head, said) for head, said in parts if head.startswith("emu")]
    assert native and marked and "emulated" in marked[0][0] and marked[0][1][0] == words.MARKED
    assert not [s for _head, said in native for s in said if "emu" in s]
    assert not [s for _head, said in marked for s in said if "box" in s]


def test_the_report_is_one_file_without_requests_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    from labctl.bench import report

    written = report.write(_run(tmp_path / "a"))
    page = written.html.read_text()
    outside = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(https?:[^"\')\s]+)', page)
    assert [link for link in outside if "w3.org" not in link] == []
    assert "work &lt;b&gt;" in page and "emulated" in page and page.count("<svg") >= 3
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    names = {path.name for path in written.folder.iterdir()}
    assert {"report.html", "report.md", "samples.csv", "results.csv", "results.json", "citation.bib"} <= names
    assert json.loads((written.folder / "results.json").read_text())["results"]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(written.folder / "samples.parquet")
    assert table.num_rows == len((written.folder / "samples.csv").read_text().splitlines()) - 1
    assert table.num_rows and {"place", "value", "emulated"} <= set(table.column_names)


def test_two_runs_are_compared_and_a_regression_is_found(tmp_path: Path) -> None:
    before, same, slower = _run(tmp_path / "a"), _run(tmp_path / "b"), _run(tmp_path / "c", 1.5)
    assert regression.compare(before, same).regressions(0.1) == []
    found = regression.compare(before, slower).regressions(0.1)
    assert [(change.row.key, change.place) for change in found] == [("cpu.x.t", "box")]
    assert 0.4 < found[0].worse_by < 0.6
    assert regression.compare(slower, before).regressions(0.1) == []


def test_only_kernel_parameters_that_bear_on_speed_are_told() -> None:
    line = "root=UUID=1-2 console=ttyS0 mitigations=auto,nosmt isolcpus=3 token=s3cret -- --password kvm"
    assert conditions.kernel_parameters(line) == "mitigations=auto,nosmt isolcpus=3"
