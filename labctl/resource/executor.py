"""The only place that acts: makes what is wanted and missing, unmakes what is no longer wanted.

One transaction writes every intent before the first object is made, and every `leaving` before the
first is unmade.  So a command costs a few fsyncs, however many objects it handles, and a kill at
any instant leaves only objects that the ledger names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from labctl.errors import Failures, LabError, NoRoom
from labctl.events import Emit, Note, StepDone, StepFailed, StepStarted
from labctl.looks import Look, Way
from labctl.records import dataclass
from labctl.resource import faults, flow
from labctl.resource.changes import Action, Change, changes
from labctl.resource.codec import decode, encode
from labctl.resource.graph import Graph, order
from labctl.resource.ledger import Claim, LabRow, Ledger, Row
from labctl.resource.protocol import Resource, Resting, beside, follows, key_of, loses
from labctl.resource.registry import class_of


@dataclass(frozen=True)
class Applied:
    """What `apply` did."""

    changes: tuple[Change, ...]
    seconds: float


def load(row: Row) -> Resource:
    """The resource that a ledger row describes.  Raises LabError when it can't be read."""
    return decode(class_of(row.kind), row.spec)


def look_all(resources: Iterable[Resource]) -> dict[str, Look]:
    """Look at many resources, with one question per kind where the kind allows it; by key."""
    found: dict[str, Look] = {}
    groups: dict[type[Resource], list[Resource]] = {}
    for resource in resources:
        groups.setdefault(type(resource), []).append(resource)
    for cls, group in groups.items():
        if len(group) > 1 and hasattr(cls, "look_many"):
            looks = cast(Any, cls).look_many(group)
            found.update({key_of(item): looks[item.name] for item in group})
        else:
            found.update({key_of(item): item.look() for item in group})
    return found


def difference(ledger: Ledger, lab: str, graph: Graph) -> list[Change]:
    """What `apply` would do, without doing it."""
    rows = ledger.resources(lab)
    return changes(graph, rows, look_all(graph[row.key] for row in rows if row.key in graph))


def apply(
    ledger: Ledger,
    lab: LabRow,
    graph: Graph,
    emit: Emit,
    *,
    nodes: Mapping[str, str],
    claims: Sequence[Claim],
) -> Applied:
    """Make the host match the graph.  The caller holds the lab's lock.

    Raises Failures with every failure; what stands is kept and named by the ledger.
    """
    began = time.monotonic()
    rows = {row.key: row for row in ledger.resources(lab.id)}
    todo = difference(ledger, lab.id, graph)
    doing = [change for change in todo if change.action is not Action.KEEP]
    faults.point("intent:before")
    if doing or ledger.lab(lab.id) != lab or ledger.nodes(lab.id) != dict(nodes):
        fresh = [
            _row(lab.id, graph[change.key], ledger.boot)
            for change in doing
            if change.action is Action.MAKE and _to_intend(graph[change.key], rows.get(change.key))
        ]
        ledger.intend(lab, fresh, nodes=nodes, claims=claims)
    faults.point("intent:after")
    step = _Steps(ledger, lab.id, emit)
    late = _late(doing, graph)
    replaced = step.change_in_place([c for c in doing if c.key not in late], rows, graph)
    late -= replaced
    afresh = replaced | {c.key for c in doing if c.action is Action.RESTART}
    leaving = [rows[c.key] for c in doing if c.action is Action.REMOVE or c.key in afresh]
    step.rest(afresh, rows)
    failures = step.unmake(leaving)
    if not failures:
        if afresh:
            ledger.intend(lab, [_row(lab.id, graph[key], ledger.boot) for key in afresh])
        made = {c.key for c in doing if c.action is Action.MAKE} | afresh | late
        before = {key_of(item): graph.before(key_of(item)) for item in graph}
        old = {key: rows[key] for key in late}
        failures = step.make([item for item in graph if key_of(item) in made], _reach(before, made), old)
    if failures:
        raise Failures(f"{len(failures)} of {len(doing)} steps failed", list(failures.values()))
    return Applied(tuple(_told(todo, replaced, graph)), time.monotonic() - began)


def destroy(ledger: Ledger, lab: str, emit: Emit) -> dict[str, LabError]:
    """Unmake everything the ledger knows of a lab; the caller holds its lock.

    Works on after a failure, so that one stuck object doesn't keep the others; returns key →
    failure and keeps the rows of what failed.
    """
    rows = ledger.resources(lab)
    ledger.make_room()
    return _Steps(ledger, lab, emit).unmake(rows, to_end=True)


def _row(lab: str, item: Resource, boot: str) -> Row:
    key = key_of(item)
    return Row(
        lab,
        key,
        item.kind,
        item.name,
        item.node,
        encode(item),
        item.needs,
        item.after,
        "intent",
        boot,
        time.time(),
        0,
        "",
    )


def _told(todo: Sequence[Change], replaced: set[str], graph: Graph) -> list[Change]:
    """The changes as they came about: one that was not possible in place has replaced what needs it too."""
    told: list[Change] = []
    for change in todo:
        if change.key in replaced and change.action in (Action.CHANGE, Action.KEEP):
            reason = change.reason
            if not reason:
                reason = next(f"{need} is replaced" for need in graph[change.key].needs if need in replaced)
            gone = loses(type(graph[change.key]))
            change = replace(change, action=Action.REPLACE, reason=reason, loses=gone)
        told.append(change)
    return told


def _late(doing: Sequence[Change], graph: Graph) -> set[str]:
    """The changes in place that must wait for something they need and that is still to be made, such as
    a name server told of a new bridge, and those that what stands on them must be off for.  What others need
    is late only where it is sure that it won't be replaced, since they would have to be replaced with it."""
    starts = (Action.MAKE, Action.RESTART, Action.REPLACE)
    awaited = {change.key for change in doing if change.action in starts}
    needed = {need for item in graph for need in item.needs}
    late: set[str] = set()
    for change in doing:
        if change.action is not Action.CHANGE:
            continue
        sure = change.way in (Way.LIVE, Way.STILL) or change.key not in needed
        if change.way == Way.STILL or (sure and (awaited | late) & set(graph[change.key].needs)):
            late.add(change.key)
    return late


def _to_intend(item: Resource, row: Row | None) -> bool:
    """Whether what is made is not what the ledger has as made.

    What follows others is made again though nothing of it is missing: nobody could see that it has not been.
    """
    return row is None or row.state != "made" or row.spec != encode(item) or follows(item)


def _reach(before: Mapping[str, Iterable[str]], chosen: set[str]) -> dict[str, set[str]]:
    """Order among the chosen keys, also where it goes through keys that are not chosen."""
    reach: dict[str, set[str]] = {}
    for key in order(before):
        mine: set[str] = set()
        for other in before[key]:
            mine |= {other} if other in chosen else reach.get(other, set())
        reach[key] = mine
    return {key: reach[key] for key in chosen}


class _Steps:
    """The verbs, each with its events, its marks in the ledger and its fault points."""

    def __init__(self, ledger: Ledger, lab: str, emit: Emit) -> None:
        self.ledger, self.lab, self.emit = ledger, lab, emit

    def change_in_place(self, doing: Sequence[Change], rows: Mapping[str, Row], graph: Graph) -> set[str]:
        """Try every CHANGE in place; returns the keys to be replaced, with all that need them."""
        replaced = {change.key for change in doing if change.action is Action.REPLACE}
        for change in doing:
            if change.action is Action.CHANGE and not self._changed(
                graph[change.key], rows[change.key], replaced
            ):
                replaced.add(change.key)
        for item in graph:
            if key_of(item) in rows and any(need in replaced for need in item.needs):
                replaced.add(key_of(item))
        return replaced

    def _changed(self, item: Resource, row: Row, replaced: set[str]) -> bool:
        if any(need in replaced for need in item.needs):
            return False
        attempt = getattr(item, "change", None)
        if attempt is None or row.state != "made":
            return False
        faults.point(f"change:before:{key_of(item)}")
        if not self._timed("change", item, lambda: attempt(load(row))):
            return False
        # A change in place that dies between the act and this line is seen as a difference again.
        now = replace(_row(self.lab, item, self.ledger.boot), state="made", seconds=row.seconds)
        self.ledger.intend(self._lab_row(), [now])
        faults.point(f"change:after:{key_of(item)}")
        return True

    def _lab_row(self) -> LabRow:
        found = self.ledger.lab(self.lab)
        if found is None:
            raise LabError(f"lab {self.lab} is gone from the ledger")
        return found

    def _timed(self, verb: str, item: Resource, act: Callable[[], object]) -> object:
        """Do one step and tell it.  A False answer is told as nothing: the step did not apply."""
        self.emit(StepStarted(self.lab, verb, item.kind, item.name, item.node))
        began = time.monotonic()
        try:
            answer = act()
        except LabError as error:
            self.emit(StepFailed(self.lab, verb, item.kind, item.name, item.node, error.message, error.hint))
            raise
        if answer is not False:
            self.emit(StepDone(self.lab, verb, item.kind, item.name, item.node, time.monotonic() - began))
        return answer

    def make(
        self, items: Sequence[Resource], before: Mapping[str, Iterable[str]], late: Mapping[str, Row]
    ) -> dict[str, LabError]:
        """Make the items in their order; those of `late` (key → row) are there and are only changed."""

        def work(group: Sequence[Resource]) -> Mapping[str, LabError]:
            if row := late.get(key_of(group[0])):
                if self._changed(group[0], row, set()):
                    return {}
                self.ledger.intend(self._lab_row(), [_row(self.lab, group[0], self.ledger.boot)])
                if failures := self._group("unmake", [load(row)])[1]:
                    return failures
            seconds, failures = self._group("make", group)
            failed = {key: (seconds, error.message) for key, error in failures.items()}
            made = {key_of(item): (seconds, "") for item in group if key_of(item) not in failures}
            if made:
                self.ledger.mark(self.lab, "made", made)
            if failed:
                self.ledger.mark(self.lab, "intent", failed)
            faults.point(f"made:{key_of(group[0])}")
            return failures

        def batches(item: Resource) -> bool:
            return _makes_many(item) and key_of(item) not in late

        return flow.run(items, before, work, batches=batches).failures

    def rest(self, keys: set[str], rows: Mapping[str, Row]) -> None:
        """Let what is to be made again, and all that needs it, come to rest: what needs others first.

        One that does not is told, and ended all the same.
        """
        going, more = set(keys), set(keys)
        while more:
            more = {row.key for row in rows.values() if more & set(row.needs)} - going
            going |= more
        there = [row for row in rows.values() if row.key in going and row.state == "made"]
        items = [item for item in map(load, there) if isinstance(item, Resting)]
        users: dict[str, list[str]] = {row.key: [] for row in there}
        for row in there:
            for need in row.needs:
                if need in users:
                    users[need].append(row.key)

        def work(group: Sequence[Resource]) -> Mapping[str, LabError]:
            faults.point(f"rest:before:{key_of(group[0])}")
            try:
                cast(Resting, group[0]).rest()
            except LabError as error:
                self.emit(Note(self.lab, f"{group[0].name} did not end in good order: {error}", "warning"))
            faults.point(f"rest:after:{key_of(group[0])}")
            return {}

        if items:
            before = _reach(users, {key_of(item) for item in items})
            flow.run(reversed(items), before, work, batches=lambda item: False)

    def unmake(self, rows: Sequence[Row], *, to_end: bool = False) -> dict[str, LabError]:
        """Unmake rows in reverse order; keeps going after a failure.

        `to_end`: the whole lab goes, even where the ledger's disk is full.
        """
        if not rows:
            return {}
        faults.point("leaving:before")
        try:
            self.ledger.mark(self.lab, "leaving", {row.key: (row.seconds, row.error) for row in rows})
        except NoRoom:
            if not to_end:
                raise
            # To unmake things makes room, and what is not marked is found gone by the next `down` or `up`.
        faults.point("leaving:after")
        failures: dict[str, LabError] = {}
        items: list[Resource] = []
        users: dict[str, list[str]] = {row.key: [] for row in rows}
        free: dict[str, frozenset[str]] = {}
        for row in rows:
            try:
                items.append(load(row))
                free[row.key] = beside(items[-1])
            except LabError as error:
                failures[row.key] = error
        for row in rows:
            for other in (*row.needs, *row.after):
                if other in users and row.kind not in free.get(other, ()):
                    users[other].append(row.key)

        def work(group: Sequence[Resource]) -> Mapping[str, LabError]:
            return self._group("unmake", group)[1]

        result = flow.run(reversed(items), users, work, batches=_unmakes_many, keep_going=True)
        failures.update(result.failures)
        faults.point("forget:before")
        self.ledger.forget(self.lab, result.done)
        faults.point("forget:after")
        return failures

    def _group(self, verb: str, group: Sequence[Resource]) -> tuple[float, dict[str, LabError]]:
        """Make or unmake one item, or a batch of one kind; (seconds each, key → failure)."""
        for item in group:
            self.emit(StepStarted(self.lab, verb, item.kind, item.name, item.node))
        for item in group:
            faults.point(f"{verb}:before:{key_of(item)}")
        began = time.monotonic()
        failures, told = _act(verb, group)
        for text in told:
            self.emit(Note(self.lab, text, "warning"))
        seconds = (time.monotonic() - began) / len(group)
        for item in group:
            faults.point(f"{verb}:after:{key_of(item)}")
            error = failures.get(key_of(item))
            about = (self.lab, verb, item.kind, item.name, item.node)
            self.emit(StepFailed(*about, error.message, error.hint) if error else StepDone(*about, seconds))
        return seconds, failures


def _makes_many(item: Resource) -> bool:
    return hasattr(type(item), "make_many") and bool(getattr(item, "batched", True))


def _unmakes_many(item: Resource) -> bool:
    return hasattr(type(item), "unmake_many")


def _act(verb: str, group: Sequence[Resource]) -> tuple[dict[str, LabError], tuple[str, ...]]:
    """Do it; key → failure, and what a person should be told although it did not fail."""
    if len(group) > 1:
        cls = cast(Any, type(group[0]))  # flow batches only kinds that have these
        failures: dict[str, LabError] = cls.make_many(group) if verb == "make" else cls.unmake_many(group)
        keys = {item.name: key_of(item) for item in group}
        return {keys[name]: error for name, error in failures.items()}, ()
    try:
        told = group[0].make() if verb == "make" else group[0].unmake()
    except LabError as error:
        return {key_of(group[0]): error}, ()
    return {}, tuple(told or ())
