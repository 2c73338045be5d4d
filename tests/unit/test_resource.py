"""The executor, the ledger and the plan, on resources that are real files in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import Busy, Failures, Foreign, LabError
from labctl.events import Event, StepDone, StepFailed, silent
from labctl.looks import ABSENT, Look, Owner, Presence, parse_mark
from labctl.resource import registry
from labctl.resource.changes import Action
from labctl.resource.codec import decode, diff_fields, encode
from labctl.resource.executor import apply, destroy, difference
from labctl.resource.graph import Graph, order
from labctl.resource.ledger import Claim, LabRow, Ledger
from labctl.resource.lock import locked

OWNER = Owner("0a1b2c3d", "11223344")


@dataclass(frozen=True, kw_only=True)
class FileThing:
    """A file whose content is its own mark: the simplest object that can be made and unmade."""

    kind: ClassVar[str] = "file"
    owner: Owner = OWNER
    name: str
    folder: str
    text: str = ""
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return Path(self.folder, self.name)

    def make(self) -> None:
        for need in self.needs:
            assert Path(self.folder, need.partition(":")[2]).exists(), (
                f"{need} is not there before {self.name}"
            )
        if self.text == "fail":
            raise LabError(f"file {self.name} can't be made", hint="write something else")
        if self.path.exists() and not self.path.read_text().startswith("labctl:"):
            raise Foreign(f"{self.path} belongs to somebody else")
        self.path.write_text(self.owner.mark(self.kind, self.name) + "\n" + self.text)

    def look(self) -> Look:
        if not self.path.exists():
            return ABSENT
        mark, _, text = self.path.read_text().partition("\n")
        if parse_mark(mark) is None:
            return Look(Presence.FOREIGN)
        return Look(Presence.PRESENT if text == self.text else Presence.BROKEN)

    def unmake(self) -> None:
        if self.text == "stuck" and Path(self.folder, "hold").exists():
            raise LabError(f"file {self.name} is stuck")
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class ManyThing(FileThing):
    """The same, in batches, and changeable in place."""

    kind: ClassVar[str] = "many"
    batches: ClassVar[list[int]] = []

    @classmethod
    def make_many(cls, items: Sequence[ManyThing]) -> dict[str, LabError]:
        cls.batches.append(len(items))
        failures: dict[str, LabError] = {}
        for item in items:
            try:
                item.make()
            except LabError as error:
                failures[item.name] = error
        return failures

    @classmethod
    def look_many(cls, items: Sequence[ManyThing]) -> dict[str, Look]:
        return {item.name: item.look() for item in items}

    @classmethod
    def unmake_many(cls, items: Sequence[ManyThing]) -> dict[str, LabError]:
        for item in items:
            item.unmake()
        return {}

    def change(self, old: ManyThing) -> bool:
        if self.text.startswith("replace"):
            return False
        self.make()
        return True


@dataclass(frozen=True, kw_only=True)
class StepThing(FileThing):
    """A step that follows what it needs, and can't be looked at: it counts as done once it was."""

    kind: ClassVar[str] = "step"
    follows: ClassVar[bool] = True

    def look(self) -> Look:
        return Look(Presence.PRESENT)


@pytest.fixture(autouse=True)
def kinds() -> None:
    names = {"file": "FileThing", "many": "ManyThing", "step": "StepThing"}
    registry.register({kind: f"{__name__}:{name}" for kind, name in names.items()})
    sys.modules.setdefault(__name__, sys.modules[FileThing.__module__])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def row(ledger: Ledger, name: str = "demo", lab: str = OWNER.lab) -> LabRow:
    return LabRow(lab, name, 1.0, ledger.boot, "demo.yaml", "d", "{}", "{}")


def put(ledger: Ledger, *things: FileThing, events: list[Event] | None = None) -> None:
    emit = events.append if events is not None else silent
    apply(ledger, row(ledger), Graph(things), emit, nodes={}, claims=[])


def actions(ledger: Ledger, *things: FileThing) -> dict[str, tuple[Action, str]]:
    return {c.name: (c.action, c.reason) for c in difference(ledger, OWNER.lab, Graph(things))}


def test_up_twice_then_down_leaves_nothing(tmp_path: Path, ledger: Ledger) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    a = FileThing(name="a", folder=str(folder))
    b = FileThing(name="b", folder=str(folder), needs=("file:a",))
    events: list[Event] = []
    put(ledger, b, a, events=events)
    assert [e.name for e in events if isinstance(e, StepDone)] == ["a", "b"]
    assert {r.state for r in ledger.resources(OWNER.lab)} == {"made"}
    events.clear()
    put(ledger, b, a, events=events)
    assert events == [], "a second up has nothing to do"
    assert destroy(ledger, OWNER.lab, silent) == {}
    assert list(folder.iterdir()) == []
    assert destroy(ledger, OWNER.lab, silent) == {}
    ledger.drop_lab(OWNER.lab)
    assert ledger.labs() == []


def test_what_differs_is_changed_and_says_why(tmp_path: Path, ledger: Ledger) -> None:
    a = FileThing(name="a", folder=str(tmp_path), text="one")
    b = FileThing(name="b", folder=str(tmp_path), needs=("file:a",))
    c = FileThing(name="c", folder=str(tmp_path))
    put(ledger, a, b, c)
    a2 = replace(a, text="two")
    d = FileThing(name="d", folder=str(tmp_path))
    assert actions(ledger, a2, b, d) == {
        "a": (Action.REPLACE, 'text: "one" → "two"'),
        "b": (Action.REPLACE, "file:a is replaced"),
        "c": (Action.REMOVE, "no longer in the profile"),
        "d": (Action.MAKE, "new"),
    }
    events: list[Event] = []
    put(ledger, a2, b, d, events=events)
    done = [(e.verb, e.name) for e in events if isinstance(e, StepDone)]
    assert (
        done.index(("unmake", "b"))
        < done.index(("unmake", "a"))
        < done.index(("make", "a"))
        < done.index(("make", "b"))
    )
    assert a2.path.read_text().endswith("two") and not c.path.exists() and d.path.exists()
    assert all(action is Action.KEEP for action, _ in actions(ledger, a2, b, d).values())


def test_missing_and_broken_objects_are_made_again(tmp_path: Path, ledger: Ledger) -> None:
    a = FileThing(name="a", folder=str(tmp_path), text="x")
    b = FileThing(name="b", folder=str(tmp_path), text="y")
    put(ledger, a, b)
    a.path.unlink()
    b.path.write_text(OWNER.mark("file", "b") + "\nother")
    assert actions(ledger, a, b) == {"a": (Action.MAKE, "missing"), "b": (Action.REPLACE, "broken")}
    put(ledger, a, b)
    assert a.look().there and b.look().there


def test_a_step_that_is_to_be_made_again_is_written_down_beforehand(tmp_path: Path, ledger: Ledger) -> None:
    a = FileThing(name="a", folder=str(tmp_path))
    step = StepThing(name="s", folder=str(tmp_path), needs=("file:a",))
    put(ledger, a, step)
    a.path.unlink()
    states: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, StepDone) and event.name == "a":  # a kill now would leave this
            states.extend(r.state for r in ledger.resources(OWNER.lab) if r.key == "step:s")

    apply(ledger, row(ledger), Graph([a, step]), tell, nodes={}, claims=[])
    assert states == ["intent"]
    assert all(action is Action.KEEP for action, _ in actions(ledger, a, step).values())


def test_batches_and_change_in_place(tmp_path: Path, ledger: Ledger) -> None:
    ManyThing.batches.clear()
    things = [ManyThing(name=f"m{i}", folder=str(tmp_path)) for i in range(30)]
    put(ledger, *things)
    assert ManyThing.batches == [30]
    inode = things[0].path.stat().st_ino
    things[0] = replace(things[0], text="changed")
    events: list[Event] = []
    put(ledger, *things, events=events)
    assert [(e.verb, e.name) for e in events if isinstance(e, StepDone)] == [("change", "m0")]
    assert things[0].path.stat().st_ino == inode
    things[0] = replace(things[0], text="replace me")
    put(ledger, *things)
    assert things[0].look().there


def test_every_failure_is_told_and_what_stands_is_kept(tmp_path: Path, ledger: Ledger) -> None:
    good = FileThing(name="good", folder=str(tmp_path))
    bad = [FileThing(name=f"bad{i}", folder=str(tmp_path), text="fail") for i in range(2)]
    last = FileThing(name="last", folder=str(tmp_path), needs=("file:bad0",))
    events: list[Event] = []
    with pytest.raises(Failures) as caught:
        put(ledger, good, *bad, last, events=events)
    assert {cause.message for cause in caught.value.causes} == {
        f"file bad{i} can't be made" for i in range(2)
    }
    assert {e.hint for e in events if isinstance(e, StepFailed)} == {"write something else"}
    assert good.path.exists() and not last.path.exists()
    fixed = [replace(b, text="") for b in bad]
    put(ledger, good, *fixed, last)
    assert last.path.exists()


def test_down_goes_on_after_a_failure_and_keeps_the_row(tmp_path: Path, ledger: Ledger) -> None:
    base = FileThing(name="base", folder=str(tmp_path))
    stuck = FileThing(name="stuck", folder=str(tmp_path), text="stuck", needs=("file:base",))
    free = FileThing(name="free", folder=str(tmp_path))
    put(ledger, base, stuck, free)
    (tmp_path / "hold").touch()
    assert list(destroy(ledger, OWNER.lab, silent)) == ["file:stuck"]
    assert not free.path.exists() and base.path.exists(), "what a stuck object needs stays under it"
    assert {r.key for r in ledger.resources(OWNER.lab)} == {"file:base", "file:stuck"}
    with pytest.raises(LabError, match="still has 2 objects"):
        ledger.drop_lab(OWNER.lab)
    (tmp_path / "hold").unlink()
    assert destroy(ledger, OWNER.lab, silent) == {}
    assert not base.path.exists()


def test_foreign_objects_are_never_touched(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "a").write_text("mine, says the user")
    with pytest.raises(Failures):
        put(ledger, FileThing(name="a", folder=str(tmp_path)))
    assert (tmp_path / "a").read_text() == "mine, says the user"


def test_claims_belong_to_one_lab(ledger: Ledger) -> None:
    ledger.intend(row(ledger, "one", "aa"), [], claims=[Claim("subnet", "10.1.0.0/24", "aa")])
    with pytest.raises(Foreign, match="belongs to lab one"):
        ledger.intend(row(ledger, "two", "bb"), [], claims=[Claim("subnet", "10.1.0.0/24", "bb")])
    assert [lab.name for lab in ledger.labs()] == ["one"], "the whole transaction is undone"


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(LabError, match="newer labctl") as caught:
        Ledger(path)
    assert "upgrade" in caught.value.hint


def test_a_file_that_is_no_ledger_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(LabError, match="cannot open the ledger"):
        Ledger(tmp_path / "ledger.db")


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "l", "up demo"):
        with pytest.raises(Busy, match=rf"labctl up demo.*pid {os.getpid()}"), locked(tmp_path / "l", "down"):
            pass
        began = time.monotonic()
        with pytest.raises(Busy), locked(tmp_path / "l", "down", wait=0.2):
            pass
        assert time.monotonic() - began >= 0.2
    with locked(tmp_path / "l", "down"):
        pass


def test_a_graph_must_be_sound() -> None:
    a = FileThing(name="a", folder="", needs=("file:b",))
    with pytest.raises(LabError, match="no file:b"):
        Graph([a])
    with pytest.raises(LabError, match="circle: file:a, file:b"):
        Graph([a, FileThing(name="b", folder="", needs=("file:a",))])
    with pytest.raises(LabError, match="twice"):
        Graph([FileThing(name="a", folder=""), FileThing(name="a", folder="")])


@given(st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 30), max_size=4), max_size=30))
def test_order_is_topological(raw: dict[int, list[int]]) -> None:
    before = {str(key): [str(o) for o in others if o < key] for key, others in raw.items()}
    place = {key: i for i, key in enumerate(order(before))}
    assert set(place) == set(before)
    assert all(place[o] < place[key] for key, others in before.items() for o in others if o in place)


@given(st.text(), st.text(), st.lists(st.text()).map(tuple))
def test_a_resource_round_trips_through_json(name: str, text: str, needs: tuple[str, ...]) -> None:
    thing = FileThing(name=name, folder="/x", text=text, needs=needs)
    assert decode(FileThing, encode(thing)) == thing
    assert diff_fields(encode(thing), encode(thing)) == []


@given(st.text(alphabet=st.characters(exclude_characters=":")), st.text())
def test_marks_round_trip(kind: str, name: str) -> None:
    assert parse_mark(OWNER.mark(kind, name)) == (OWNER, kind, name)
    assert parse_mark(name) is None or name.startswith("labctl:")


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_resource as t
from pathlib import Path
t.registry.register({{"file": "test_resource:FileThing", "many": "test_resource:ManyThing"}})
ledger = t.Ledger(Path({home!r}) / "ledger.db")
folder = {folder!r}
things = [t.FileThing(name="a", folder=folder), t.FileThing(name="b", folder=folder, needs=("file:a",)),
          *(t.ManyThing(name=f"m{{i}}", folder=folder, needs=("file:b",)) for i in range(3))]
if {verb!r} == "up":
    t.put(ledger, *things)
else:
    t.destroy(ledger, t.OWNER.lab, t.silent)
"""


@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_kill_at_every_point_leaves_nothing_that_down_cannot_find(tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "host"
    folder.mkdir()

    def run(what: str, fault: str = "") -> int:
        text = PROGRAM.format(
            tests=str(Path(__file__).parent), home=str(tmp_path), folder=str(folder), verb=what
        )
        env = {**os.environ, "LABCTL_FAULT": fault}
        return subprocess.run([sys.executable, "-c", text], env=env, timeout=60, check=False).returncode

    points = tmp_path / "points"
    run("up", f"log:{points}" if verb == "up" else "")
    run("down", f"log:{points}" if verb == "down" else "")
    count = len(points.read_text().splitlines())
    assert count > 10
    for at in range(1, count + 1):
        if verb == "down":
            assert run("up") == 0
        assert run(verb, f"kill:{at}") == -9
        assert run("down") == 0
        assert list(folder.iterdir()) == [], f"killed at point {at}"
        assert Ledger(tmp_path / "ledger.db").resources(OWNER.lab) == []
