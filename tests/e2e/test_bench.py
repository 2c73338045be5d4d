"""`labctl bench`, whole: measured, interrupted, continued, reported, compared; and whether it is true.

The truth tests count work, or ask the control group, where a clock would depend on what else runs.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labctl.bench import store, tasks
from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, until

pytestmark = [pytest.mark.needs(*CONTAINERS), pytest.mark.long, pytest.mark.timeout(400)]

PROFILE = """
name: truth
nodes:
  one: {tier: container, image: micro, memory: 64MiB}
  two: {tier: container, image: micro, memory: 64MiB}
"""

# A counted loop of the shell, a write of known size, a sleep, a program that fails in the second container
# only, one that can't be read, one that never ends, and a tool that no image has.
SUITE = """
name: mine
description: Work of known size.
benchmarks:
  count:
    title: a counted loop
    command: 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo "counted $i"'
    metrics:
      counted: {unit: rounds, better: neither, regex: 'counted ([0-9]+)'}
      seconds: {unit: s, better: lower, wall: true}
  write:
    title: a write of known size
    command: 'dd if=/dev/zero of={data}/f bs=4096 count=256 2>/dev/null; wc -c < {data}/f'
    cleanup: rm -f {data}/f
    metrics:
      bytes: {unit: B, better: neither, regex: '([0-9]+)'}
  sleep:
    title: a sleep of 0.3 s
    command: [sleep, '0.3']
    metrics:
      seconds: {unit: s, better: lower, wall: true}
  breaks:
    title: fails in one place only
    command: 'test "$(hostname)" != two && echo 1'
    warmup: 0
    metrics: {v: {unit: x, better: neither, regex: '([0-9])'}}
  unreadable:
    title: prints no figure
    command: echo nothing of use
    warmup: 0
    metrics: {v: {unit: x, better: neither, regex: '([0-9]+)'}}
  hangs:
    title: never ends
    command: [sleep, '1000']
    limit: 1s
    warmup: 0
    metrics: {v: {unit: s, better: neither, wall: true}}
  lacks:
    title: a tool that is not there
    command: [no-such-tool]
    needs: [no-such-tool]
    metrics: {v: {unit: s, better: neither, wall: true}}
"""


def _results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads((folder / "results.json").read_text())["results"]
    return {(f"{row['task']}.{row['figure']}", row["place"]): row for row in found}


def test_work_of_known_size_is_measured_alike_and_trouble_stays_in_its_cell(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "truth", PROFILE)
    suite, out = tmp_path / "mine.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    words = ("bench", str(lab.file), "--suite", str(suite), "--runs", "5", "--out", str(out))
    lab.good(*words, timeout=300)
    found = _results(out)
    for place in ("host", "one", "two"):
        assert (
            found["mine.count.counted", place]["minimum"]
            == 20000
            == found["mine.count.counted", place]["maximum"]
        )
        assert found["mine.write.bytes", place]["median"] == 256 * 4096
        assert found["mine.sleep.seconds", place]["minimum"] >= 0.3
        assert found["mine.count.seconds", place]["count"] == 5
        assert "no-such-tool" in found["mine.lacks.v", place]["reason"]
        assert "fits the regular expression" in found["mine.unreadable.v", place]["reason"]
        assert "failed 2 times" in found["mine.hangs.v", place]["reason"]
    assert found["mine.breaks.v", "one"]["count"] == 5
    assert found["mine.breaks.v", "two"]["count"] == 0 and found["mine.breaks.v", "two"]["reason"]
    kept = [
        line for line in store.read(out) if line["type"] == "failure" and line["task"] == "mine.unreadable"
    ]
    assert kept and "nothing of use" in kept[0]["output"]

    assert lab.labs() == []
    assert not list((home.state / "bench").glob("*"))
    assert host_inventory() == []
    assert "complete run" in lab.fails(2, *words)
    told = lab.good("bench", "compare", str(out), str(out), "--fail-on", "10%")
    assert "nothing is shown" in told


def test_an_interrupted_run_keeps_its_samples_and_goes_on(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "truth", PROFILE)
    suite, out = tmp_path / "mine.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    lab.good("up", str(lab.file), timeout=200)
    keys = "mine.count,mine.sleep"
    suite.write_text("\n".join(SUITE.split("  breaks:")[0].splitlines()) + "\n")
    words = ("bench", "truth", "--suite", str(suite), "--runs", "8", "--out", str(out), "--baseline", "one")

    def samples() -> int:
        return (out / store.NAME).read_text().count('"phase": "measured"') if store.exists(out) else 0

    process = lab.begin(*words)
    until(lambda: samples() >= 3, f"samples of {keys}", 120)
    process.send_signal(signal.SIGINT)
    _told, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and str(out) in errors
    before = samples()
    assert before < 3 * 2 * 8
    lab.good("bench", "report", str(out))
    assert "Not finished" in (out / "report.html").read_text()

    lab.good(*words, timeout=200)
    found = _results(out)
    assert {row["count"] for row in found.values()} == {8}
    assert samples() == 3 * 2 * 8 and before > 0
    assert lab.states() == {"one": "ready", "two": "ready"}  # a lab that was up stays up


def test_a_killed_run_goes_on_and_takes_its_lab_down(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "truth", PROFILE)
    suite, out = tmp_path / "mine.yaml", tmp_path / "out"
    suite.write_text(SUITE.split("  breaks:")[0])
    words = ("bench", str(lab.file), "--suite", str(suite), "--runs", "4", "--out", str(out))
    process = lab.begin(*words)
    until(lambda: store.exists(out) and '"measured"' in (out / store.NAME).read_text(), "a sample", 120)
    process.kill()
    process.communicate(timeout=60)
    assert lab.states() == {"one": "ready", "two": "ready"}

    lab.good(*words, timeout=200)
    assert {row["count"] for row in _results(out).values()} == {4}
    assert lab.labs() == []
    assert not list((home.state / "bench").glob("*"))
    assert host_inventory() == []


def test_a_node_that_dies_in_the_middle_is_started_again(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "truth", PROFILE)
    suite, out = tmp_path / "mine.yaml", tmp_path / "out"
    suite.write_text(SUITE.split("  write:")[0])
    lab.good("up", str(lab.file), timeout=200)
    words = ("bench", "truth", "--suite", str(suite), "--runs", "12", "--out", str(out), "--baseline", "one")
    process = lab.begin(*words)
    until(lambda: store.exists(out) and '"measured"' in (out / store.NAME).read_text(), "a sample", 120)
    lab.good("stop", "truth/two")
    _told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert min(row["count"] for row in _results(out).values()) >= 11  # the run it died in is lost
    assert any(line["type"] == "failure" and line["place"] == "two" for line in store.read(out))


def test_half_a_processor_is_half_a_processor(home: Home, tmp_path: Path) -> None:
    text = (
        "name: half\nnodes:\n  half: {tier: container, image: bench, cpus: 0.5, memory: 128MiB, pids: 64}\n"
    )
    lab = Lab(home, tmp_path, "half", text)
    out = tmp_path / "out"
    suites = "isolation.limit-cpu,isolation.limit-memory,isolation.limit-pids"
    lab.good("bench", str(lab.file), "--suite", suites, "--runs", "3", "--out", str(out), timeout=300)
    found = _results(out)
    # The control group's own count over the time that passed: a busy machine can only lower it.
    assert 0 < found["isolation.limit-cpu.cpus", "half"]["median"] <= 0.53
    assert 0.5 < found["isolation.limit-memory.share", "half"]["median"] <= 1.0
    assert 0.5 < found["isolation.limit-pids.share", "half"]["median"] <= 1.0


@pytest.mark.needs("libvirt", "tcg", "kernel")
def test_the_quick_suite_measures_host_container_and_emulated_machine_and_marks_it(
    home: Home, tmp_path: Path
) -> None:
    lab = Lab(home, tmp_path, "bench", "")
    out = tmp_path / "out"
    words = ("--skip-unavailable", "--nested", "never", "--suite", "quick", "--budget", "150s")
    lab.good("bench", "bench", *words, "--out", str(out), timeout=380)
    found = _results(out)
    alone = {"lifecycle.restart", "cost.idle"}  # the host is not started, and does not pay for itself
    for task in tasks.choose(["quick"]):
        key = f"{task.key}.{task.figures[0].name}"
        measured = {place for name, place in found if name == key and found[name, place]["count"]}
        assert measured == {"box", "emu", *(() if task.key in alone else ("host",))}, key
    assert {row["emulated"] for (_k, place), row in found.items() if place == "emu"} == {True}
    assert found["kernel.fork.time", "emu"]["ratio"] > 2  # a computer in software: of this there is no doubt
    assert found["cost.idle.pss", "emu"]["median"] > found["cost.idle.pss", "box"]["median"] > 0
    page = (out / "report.html").read_text()
    assert "emulated" in page and "emu (emulated)" in page
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", page)  # works offline
