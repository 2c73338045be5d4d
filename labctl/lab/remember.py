"""Leaving the note that lets the next `up` answer quickly (see again)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from labctl.errors import LabError
from labctl.lab import again, inputs
from labctl.lab.model import LabStatus, Options
from labctl.looks import Presence, Signs
from labctl.resource import executor
from labctl.resource.changes import Action, Change
from labctl.resource.codec import plain
from labctl.resource.graph import Graph
from labctl.resource.ledger import Ledger
from labctl.resource.protocol import Resource, Signed, key_of
from labctl.tiers.record import NodeRecord


def remember(
    ledger: Ledger,
    graph: Graph,
    records: Iterable[NodeRecord],
    status: LabStatus,
    watch: inputs.Watch | None,
    options: Options,
) -> None:
    """Leave a note of a lab that stands, where all that matters can be told; the caller holds its lock.

    A note that can't be left costs the next `up` its time and nothing else.
    """
    if watch is None or watch.doubt or not _whole(ledger, graph, records, status):
        return
    try:
        told = _signs(graph)
        if told is None:
            return
        signs = _merged(told.values())
        facts = again.gather(signs)
        # Looked at after that: what changes in between is seen by the one or by the other.
        looks = executor.look_all(item for item in graph if told[key_of(item)] != Signs())
        if any(look.presence is not Presence.PRESENT for look in looks.values()):
            return
        read = [[path, how, found] for (path, how), found in watch.found.items()]
        kept = [Change(f"{i.kind}:{i.name}", i.kind, i.name, i.node, Action.KEEP, "") for i in graph]
        note = {
            "caller": again.caller(watch.words),
            "lab": status.id,
            "inputs": [*read, *inputs.programs()],
            "signs": signs,
            "facts": facts,
            "answer": {"status": plain(status), "changes": plain(kept)},
        }
        _write(options.home.state / again.FOLDER, status.id, again.key(watch.words), json.dumps(note))
    except (OSError, LabError):
        return


def _whole(ledger: Ledger, graph: Graph, records: Iterable[NodeRecord], status: LabStatus) -> bool:
    """Whether all is made and ready, and nothing was left out or put elsewhere."""
    rows = ledger.resources(status.id)
    return (
        all(row.state == "made" and not row.error and row.key in graph for row in rows)
        and len(rows) == len(graph)
        and all(node.state == "ready" and not node.reason for node in status.nodes)
        and all(not record.skipped and record.asked == record.tier for record in records)
    )


def _signs(graph: Graph) -> dict[str, Signs] | None:
    """The signs of all by key, or None when one of them has none."""
    found: dict[str, Signs] = {}
    groups: dict[type[Any], list[Resource]] = {}
    for item in graph:
        groups.setdefault(type(item), []).append(item)
    for cls, group in groups.items():
        many = getattr(cls, "signs_many", None)
        told = many(group) if many else {i.name: i.signs() if isinstance(i, Signed) else None for i in group}
        for item in group:
            signs = told[item.name]
            if signs is None:
                return None
            found[key_of(item)] = signs
    return found


def _merged(all_: Iterable[Signs]) -> dict[str, Any]:
    merged: dict[str, Any] = {field.name: set() for field in fields(Signs)}
    for signs in all_:
        for name, found in merged.items():
            found.update(getattr(signs, name))
    return {name: sorted(found) for name, found in merged.items()}


def _write(folder: Path, lab: str, key: str, text: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    fresh = folder / f".{lab}.{os.getpid()}"
    fresh.write_text(text)
    fresh.replace(folder / f"{lab}-{key}")
