"""The difference between what is wanted and what the ledger and the host say: pure, touches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum

from labctl.looks import Look, Presence
from labctl.records import dataclass
from labctl.resource.codec import diff_fields, encode
from labctl.resource.graph import Graph
from labctl.resource.ledger import Row
from labctl.resource.protocol import Resource, follows, key_of


class Action(StrEnum):
    """What is to be done about one resource."""

    KEEP = "keep"
    MAKE = "make"
    CHANGE = "change"  # try in place first, replace if the resource says it can't
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True)
class Change:
    """One line of a plan: the action and why."""

    key: str
    kind: str
    name: str
    node: str
    action: Action
    reason: str


def changes(graph: Graph, rows: Sequence[Row], looks: Mapping[str, Look]) -> list[Change]:
    """What `apply` would do: makes, changes and keeps in making order, removals last.

    `looks` holds a look for every row that is in the graph; a row without one counts as there.
    """
    known = {row.key: row for row in rows}
    found: list[Change] = []
    redo: dict[str, Action] = {}
    for resource in graph:
        key = key_of(resource)
        action, reason = _judge(resource, known.get(key), looks.get(key), redo)
        if action is not Action.KEEP:
            redo[key] = action
        found.append(Change(key, resource.kind, resource.name, resource.node, action, reason))
    for row in reversed(rows):
        if row.key not in graph:
            found.append(
                Change(row.key, row.kind, row.name, row.node, Action.REMOVE, "no longer in the profile")
            )
    return found


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
    resource: Resource, row: Row | None, look: Look | None, redo: Mapping[str, Action]
) -> tuple[Action, str]:
    if row is None:
        return Action.MAKE, "new"
    replaced = [need for need in resource.needs if redo.get(need) is Action.REPLACE]
    spec = encode(resource)
    if row.state == "leaving":
        return Action.REPLACE, "its removal was not finished"
    if replaced:
        return Action.REPLACE, f"{replaced[0]} is replaced"
    if spec != row.spec and differs(resource, row.spec, spec):
        in_place = row.state == "made" and hasattr(resource, "change")
        return Action.CHANGE if in_place else Action.REPLACE, "; ".join(diff_fields(row.spec, spec))
    if look is not None and look.presence is Presence.ABSENT:
        return Action.MAKE, look.detail or ("missing" if row.state == "made" else "was not finished")
    if look is not None and look.presence is Presence.STOPPED:
        return Action.MAKE, look.detail or "stopped"
    if look is not None and look.presence in (Presence.BROKEN, Presence.FOREIGN):
        return Action.REPLACE, look.detail or look.presence.value
    if row.state != "made":
        return Action.MAKE, "was not finished"
    # A change in place starts nothing anew; where it turns into a replacement, this is replaced with it.
    again = [need for need in resource.needs if redo.get(need) in (Action.MAKE, Action.REPLACE)]
    if again and follows(resource):
        return Action.MAKE, f"{again[0]} is made again"
    return Action.KEEP, ""
