"""What labs went through: written, put aside, read, followed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from labctl.cli import moments
from labctl.errors import LabError, UsageError
from labctl.events import Event, NodePhase, Note, StepDone, StepFailed
from labctl.home import Home
from labctl.lab import journal
from labctl.lab.journal import Happening, happenings
from labctl.linux.cgroups import Layout
from labctl.runtime import ends
from labctl.runtime.state import Store


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "state").mkdir()
    return Home(tmp_path / "state", tmp_path / "cache")


def test_a_verb_is_kept_from_its_begin_to_its_end(home: Home) -> None:
    passed: list[Event] = []
    events = [
        NodePhase("id1", "web", "ready", at=2e9),
        StepDone("id1", "make", "net", "web", "web", at=2e9),
        Note("id1", "all is well", at=2e9),
        Note("id1", "mind the gap", "warning", at=2e9),
        StepFailed("id1", "make", "net", "web", "web", "no room", at=2e9),
    ]
    with pytest.raises(LabError), journal.kept(home, "shop", "id1", "up", passed.append) as emit:
        for event in events:
            emit(event)
        raise LabError("it broke")
    assert passed == events
    found = [(one.event, one.node, one.detail) for one in sorted(happenings(home), key=lambda one: one.at)]
    assert found == [
        ("up-began", "", ""),
        ("up-failed", "", "it broke"),
        ("ready", "web", ""),
        ("warning", "", "mind the gap"),
        ("step-failed", "web", "could not make net web: no room"),
    ]
    assert [one.event for one in happenings(home, since=1.9e9)] == ["ready", "warning", "step-failed"]
    assert list(happenings(home, "other")) == []


def test_a_full_journal_is_put_aside_and_still_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST", 2000)
    monkeypatch.setattr(journal, "_POLL_SECONDS", 0.01)
    follower = happenings(home, follow=True)
    for number in range(30):
        journal.write(home, [Happening(float(number), "shop", "id1", "ready", "n" * 50)])
        assert next(follower).at == number, "a follower misses nothing when the journal begins anew"
    assert 10 < len(list(happenings(home))) < 30
    assert sum(path.stat().st_size for path in home.state.iterdir()) < 5000


def test_a_damaged_line_and_a_disk_that_can_not_be_written(home: Home) -> None:
    journal.path_of(home).write_bytes(
        b'{"at": 1\n\xff\xfe\n[1]\n{"at":1,"lab":"a","id":"b","event":"up","new":2}\n{"at"'
    )
    assert [one.event for one in happenings(home)] == ["up"]
    journal.write(Home(home.state / "nowhere", home.cache), [Happening(1.0, "a", "b", "up")])


def test_what_a_keeper_saw_outlives_its_folder(home: Home) -> None:
    run = home.lab("id1") / "run"
    run.mkdir(parents=True)
    watch = ends.Watch(Store(str(run)), Layout("", {}))
    watch.begin("nobody")
    watch.end("web", 3)
    watch.end("db", None)
    journal.take_over(home, "shop", "id1")
    journal.take_over(home, "shop", "id1")
    found = [(one.lab, one.node, one.event, one.exit_code) for one in happenings(home)]
    assert found == [("shop", "web", "ended", 3), ("shop", "db", "ended", None)]


def test_two_verbs_write_whole_lines(home: Home) -> None:
    def many() -> None:
        for number in range(200):
            journal.write(home, [Happening(float(number), "shop", "id1", "ready", "n" * 300)])

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(happenings(home))) == 800


def test_moments() -> None:
    assert moments.parse("", "--since") == 0
    assert moments.parse("1h30m", "--since", now=10_000.0) == 4600
    assert moments.parse("1700000000.5", "--since") == 1700000000.5
    assert moments.parse("2026-01-31T09:30:00Z", "--since") == 1769851800
    assert moments.parse("2026-01-31T09:30:00", "--since") > 1769700000
    assert moments.parse(moments.show(1769851800.25), "--since") == 1769851800.25
    for text in (
        "yesteryear",
        "5",
        "-3m",
        "2026-13-01",
        "10x",
        "\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661",
    ):
        with pytest.raises(UsageError):
            moments.parse(text, "--since")
