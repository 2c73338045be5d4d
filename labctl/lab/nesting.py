"""Nodes inside machines of the lab: a machine's state is theirs as well, and orders what is done to them.

What is inside is reached through its machine, so it is ended and frozen before the machine, and started and
let go on after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from labctl.errors import LabError
from labctl.looks import ABSENT, Look, Presence
from labctl.resource import executor
from labctl.resource.ledger import LabRow, Ledger
from labctl.tiers.record import NodeRecord

Placed = tuple[LabRow, NodeRecord]
"""A node and the lab it is in."""


def machines_first(nodes: Sequence[Placed]) -> list[list[Placed]]:
    """The nodes in levels, a machine before what is inside it."""
    inside = {(row.id, record.name): record.inside for row, record in nodes}
    levels: dict[int, list[Placed]] = {}
    for row, record in nodes:
        depth, above = 0, record.inside
        while above:
            depth, above = depth + 1, inside.get((row.id, above), "")
        levels.setdefault(depth, []).append((row, record))
    return [levels[depth] for depth in sorted(levels)]


def inside_first(nodes: Sequence[Placed]) -> list[list[Placed]]:
    """The nodes in levels, a machine after what is inside it."""
    return machines_first(nodes)[::-1]


def with_inside(ledger: Ledger, nodes: Sequence[Placed], machines: Sequence[Placed]) -> list[Placed]:
    """The nodes, and with them all that has been made inside any of those machines."""
    found = {(row.id, record.name): (row, record) for row, record in nodes}
    hosts = {(row.id, record.name) for row, record in machines}
    for row in {row.id: row for row, _ in machines}.values():
        made = {r.key for r in ledger.resources(row.id) if r.state == "made"}
        for text in ledger.nodes(row.id).values():
            record = NodeRecord.from_json(text)
            if (row.id, record.inside) in hosts and record.main_key in made:
                found.setdefault((row.id, record.name), (row, record))
    return list(found.values())


def machine_state(ledger: Ledger, node: Placed) -> str:
    """running, paused or stopped: what the machine that the node is inside is; "" for a node inside none."""
    row, record = node
    if not record.inside:
        return ""
    host = NodeRecord.from_json(ledger.nodes(row.id)[record.inside])
    main = next((r for r in ledger.resources(row.id) if r.key == host.main_key), None)
    look = executor.load(main).look() if main else ABSENT
    if look.presence is Presence.PRESENT:
        return "paused" if look.detail.startswith("paused") else "running"
    return "stopped"


def looks(
    records: Iterable[NodeRecord], ask: Callable[[Sequence[NodeRecord]], dict[str, Look]]
) -> dict[str, Look]:
    """The looks at nodes by their main keys, by `ask`, which is not asked for what is inside a machine that
    rests: nobody would answer."""
    found: dict[str, Look] = {}
    left = {record.name: record for record in records}
    machines = dict(left)
    while left:
        level = [record for record in left.values() if record.inside not in left]
        awake = []
        for record in level:
            del left[record.name]
            machine = machines.get(record.inside)
            rest = machine and _resting(found.get(machine.main_key, ABSENT), machine.name)
            if rest:
                found[record.main_key] = rest
            else:
                awake.append(record)
        found.update(ask(awake))
    return found


def _resting(machine: Look, name: str) -> Look | None:
    if machine.presence is Presence.STOPPED:
        return Look(Presence.STOPPED, f"with its machine {name}")
    if machine.presence is Presence.PRESENT and machine.detail.startswith("paused"):
        return Look(Presence.PRESENT, f"paused, with its machine {name}")
    return None


def need_machine(ledger: Ledger, node: Placed) -> None:
    """Raises LabError for a node inside a machine that is paused or off."""
    state = machine_state(ledger, node)
    if state in ("paused", "stopped"):
        record = node[1]
        verb = "resume" if state == "paused" else "start"
        raise LabError(
            f"the machine it is inside, {record.inside}, is {state}", hint=f"labctl {verb} {record.inside}"
        )
