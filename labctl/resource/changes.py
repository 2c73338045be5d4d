"""The difference between what is wanted and what the ledger and the host say: pure, touches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum

from labctl.errors import LabError
from labctl.looks import Look, Outlook, Presence, Way
from labctl.records import dataclass
from labctl.resource.codec import decode, diff_fields, encode
from labctl.resource.graph import Graph
from labctl.resource.ledger import Row
from labctl.resource.protocol import Resource, follows, key_of, loses, restarts, stands_on
from labctl.resource.registry import class_of


class Action(StrEnum):
    """What is to be done about one resource."""

    KEEP = "keep"
    MAKE = "make"
    CHANGE = "change"  # try in place first, replace if the resource says it can't
    RESTART = "restart"  # unmake it and make it again, while what needs it stays
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True)
class Change:
    """One line of a plan: the action and why.

    `loses` is what goes with the object for good, for a person; `way` how it is changed (labctl.looks.Way),
    "" where only the attempt tells.
    """

    key: str
    kind: str
    name: str
    node: str
    action: Action
    reason: str
    loses: str = ""
    way: str = ""


def changes(graph: Graph, rows: Sequence[Row], looks: Mapping[str, Look]) -> list[Change]:
    """What `apply` would do: makes, changes and keeps in making order, removals last.

    `looks` holds a look for every row that is in the graph; a row without one counts as there.  Raises
    UsageError for a change that a resource refuses.
    """
    known = {row.key: row for row in rows}
    found: list[Change] = []
    redo: dict[str, Change] = {}
    for resource in graph:
        key = key_of(resource)
        action, reason, way = _judge(resource, known.get(key), looks.get(key), redo)
        gone = loses(type(resource)) if action is Action.REPLACE else ""
        change = Change(key, resource.kind, resource.name, resource.node, action, reason, gone, way)
        if action is not Action.KEEP:
            redo[key] = change
        found.append(change)
    for row in reversed(rows):
        if row.key not in graph:
            why = "no longer in the profile"
            found.append(
                Change(row.key, row.kind, row.name, row.node, Action.REMOVE, why, _loses_of(row.kind))
            )
    return found


def _loses_of(kind: str) -> str:
    try:
        return loses(class_of(kind))
    except LabError:
        return ""  # of a newer labctl: to remove it will fail in its turn


def differs(resource: Resource, old: str, new: str) -> bool:
    """Whether two texts of a resource differ in more than its class's `volatile` fields: those say how it is
    made, not what it is, and nothing is made again for them."""
    volatile = getattr(type(resource), "volatile", ())
    if not volatile:
        return old != new
    before, after = json.loads(old), json.loads(new)
    for name in volatile:
        before.pop(name, None)
        after.pop(name, None)
    return bool(before != after)


def _judge(
    resource: Resource, row: Row | None, look: Look | None, redo: Mapping[str, Change]
) -> tuple[Action, str, str]:
    """The action, why, and the way of a change."""
    if row is None:
        return Action.MAKE, "new", ""
    below = [redo[need] for need in resource.needs if need in redo]
    replaced = [change.key for change in below if change.action is Action.REPLACE]
    afresh = Action.RESTART if restarts(resource) and not replaced else Action.REPLACE
    if row.state == "leaving":
        return afresh, "its removal was not finished", ""
    if replaced:
        return Action.REPLACE, f"{replaced[0]} is replaced", ""
    spec = encode(resource)
    why = _differences(row.spec, spec) if spec != row.spec and differs(resource, row.spec, spec) else []
    moved = [change for change in below if _moves(change) and change.kind in stands_on(resource)]
    if moved and row.state == "made":
        verb = "is changed" if moved[0].action is Action.CHANGE else "is started again"
        return afresh, "; ".join([*why, f"{moved[0].key} {verb}"]), ""
    # A change in place starts nothing anew; where it turns into a replacement, this is replaced with it.
    starts = (Action.MAKE, Action.REPLACE, Action.RESTART)
    again = [f"{c.key} is made again" for c in below if c.action in starts and follows(resource)]
    if again and row.state == "made":
        return Action.MAKE, "; ".join([*why, again[0]]), ""
    if why:
        return _changed(resource, row, look, why)
    return *_as_it_is(row, look, afresh), ""


def _differences(old: str, new: str) -> list[str]:
    """In words; what it needs is told only where nothing else is."""
    found = diff_fields(old, new)
    return [text for text in found if not text.startswith(("needs", "after"))] or found


def _moves(change: Change) -> bool:
    return change.action is Action.RESTART or (change.action is Action.CHANGE and change.way == Way.STILL)


def _changed(resource: Resource, row: Row, look: Look | None, why: Sequence[str]) -> tuple[Action, str, str]:
    """What to do about a resource of which something else is wanted now."""
    reason = "; ".join(why)
    if row.state != "made":
        return Action.REPLACE, reason, ""
    ask = getattr(resource, "outlook", None)
    if ask is None:
        return Action.CHANGE if hasattr(resource, "change") else Action.REPLACE, reason, ""
    try:
        old = decode(type(resource), row.spec)
    except LabError:
        return Action.REPLACE, reason, ""
    if old == resource:
        return *_as_it_is(row, look, Action.REPLACE), ""  # it is the older words of another version
    outlook: Outlook = ask(old, look)
    if outlook.told:
        reason = f"{reason}; {outlook.told}"
    action = {Way.RESTART: Action.RESTART, Way.ANEW: Action.REPLACE}.get(outlook.way, Action.CHANGE)
    return action, reason, str(outlook.way)


def _as_it_is(row: Row, look: Look | None, afresh: Action) -> tuple[Action, str]:
    """What to do about a resource of which nothing else is wanted, by what the host says of it."""
    if look is not None and look.presence is Presence.ABSENT:
        return Action.MAKE, look.detail or ("missing" if row.state == "made" else "was not finished")
    if look is not None and look.presence is Presence.STOPPED:
        return Action.MAKE, look.detail or "stopped"
    if look is not None and look.presence in (Presence.BROKEN, Presence.FOREIGN):
        return afresh, look.detail or look.presence.value
    if row.state != "made":
        return Action.MAKE, "was not finished"
    return Action.KEEP, ""
