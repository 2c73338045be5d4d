"""stats: what nodes use now, whatever their tier.

Containers by their control groups, machines by their libvirt, containers inside machines through those: their
CPU time is then the machine's own.  One question a keeper and one a machine, however many nodes there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labctl.errors import LabError
from labctl.lab import nesting
from labctl.lab.looking import opened, record_named
from labctl.lab.model import Options
from labctl.records import dataclass
from labctl.resource import executor
from labctl.resource.ledger import Ledger
from labctl.resource.protocol import Resource
from labctl.tiers.record import NodeRecord
from labctl.workers import Pool

Key = tuple[str, str]
"""A lab's and a node's name."""

_AT_ONCE = 8
_RESTS = ("paused", "stopped", "absent")


@dataclass(frozen=True)
class NodeFigures:
    """One node at one moment.  Bytes and seconds; None where its tier can't say.

    `state` is running, paused, stopped, absent (not made, or gone), skipped, or unknown with the `reason`.
    `cpu_percent` is of one CPU since the sample before; under `emulated` what it costs the host and not what
    a real machine would need.  `inside` is the machine that a container's figures come from.
    """

    lab: str
    node: str
    tier: str
    state: str
    emulated: bool = False
    inside: str = ""
    reason: str = ""
    cpu_percent: float | None = None
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None
    pids: int | None = None
    oom_kills: int | None = None


@dataclass(frozen=True)
class _Node:
    record: NodeRecord
    main: Resource | None
    blank: NodeFigures

    def filled(self, state: str, found: Any = None, **more: Any) -> NodeFigures:
        """Its row with the figures of a Stats or a Figures."""
        values = {
            name: getattr(found, name)
            for name in NodeFigures.__dataclass_fields__
            if name.endswith("_bytes") or name in ("pids", "oom_kills", "cpu_seconds")
            if getattr(found, name, None) is not None
        }
        return replace(self.blank, state=state, **values, **more)

    def unknown(self, error: LabError) -> NodeFigures:
        """Its row when it can't be asked."""
        return replace(self.blank, state="unknown", reason=error.message)


class Meter:
    """Samples of some nodes.  The CPU's share is known from the second sample on."""

    def __init__(self, targets: Sequence[Key], options: Options) -> None:
        self._targets = list(targets)
        self._options = options
        self._last: dict[Key, tuple[float, float]] = {}  # when (monotonic seconds), CPU seconds until then

    def sample(self) -> list[NodeFigures]:
        """All nodes now, in their order.  Raises UsageError for one that is in no lab."""
        with opened(self._options) as ledger:
            levels = _levels(ledger, self._targets)
        found: dict[Key, NodeFigures] = {}
        for level in levels:
            found |= _measured(level, found)
        return [self._with_share(key, found[key]) for key in self._targets]

    def _with_share(self, key: Key, row: NodeFigures) -> NodeFigures:
        now, before = time.monotonic(), self._last.pop(key, None)
        if row.cpu_seconds is None:
            return row
        self._last[key] = now, row.cpu_seconds
        if before is None or row.cpu_seconds < before[1]:  # the first sample, or it has been started anew
            return row
        share = (row.cpu_seconds - before[1]) / max(now - before[0], 1e-3)
        return replace(row, cpu_percent=round(100 * share, 2))


def _levels(ledger: Ledger, targets: Sequence[Key]) -> list[list[_Node]]:
    """The nodes and the machines that they are inside of, machines first."""
    placed = {}
    waiting = list(targets)
    while waiting:
        lab, name = waiting.pop(0)
        if (lab, name) not in placed:
            placed[lab, name] = record_named(ledger, lab, name)
            inside = placed[lab, name][1].inside
            waiting += [(lab, inside)] if inside else []
    rows = {row.id: {r.key: r for r in ledger.resources(row.id)} for row, _ in placed.values()}
    levels: list[list[_Node]] = []
    for level in nesting.machines_first(list(placed.values())):
        levels.append([])
        for row, record in level:
            made = rows[row.id].get(record.main_key)
            blank = NodeFigures(
                row.name,
                record.name,
                record.label,
                "skipped" if record.skipped else "absent",
                emulated=record.emulated,
                inside=record.inside if record.tier == "container" else "",
                reason=record.skipped,
            )
            levels[-1].append(_Node(record, executor.load(made) if made else None, blank))
    return levels


def _measured(level: Sequence[_Node], above: Mapping[Key, NodeFigures]) -> dict[Key, NodeFigures]:
    """The rows of a level, when those of the machines above are known."""
    found: dict[Key, NodeFigures] = {}
    groups: dict[tuple[str, str], list[_Node]] = {}
    for node in level:
        key = node.blank.lab, node.record.name
        machine = above.get((node.blank.lab, node.record.inside))
        if machine and (machine.state in _RESTS or machine.reason):
            state = "absent" if machine.state == "absent" else machine.state
            found[key] = replace(node.blank, state=state, reason=f"with its machine {machine.node}")
        elif node.main is None:
            found[key] = node.blank
        else:
            place = node.record.inside or node.record.run_root
            alone = node.record.tier != "container" or bool(node.record.engine)
            groups.setdefault((node.blank.lab, f"/{node.record.name}" if alone else place), []).append(node)
    with Pool(min(_AT_ONCE, len(groups) or 1), "stats") as pool:
        for rows in pool.map(_asked, list(groups.values())):
            found |= rows
    return found


def _asked(group: Sequence[_Node]) -> dict[Key, NodeFigures]:
    """The rows of a machine, or of containers that one question answers for."""
    record = group[0].record
    try:
        if record.tier != "container":
            rows = {record.name: _machine(group[0])}
        elif record.engine:
            rows = {record.name: _of_engine(group[0])}
        elif record.inside:
            rows = _inside(group)
        else:
            rows = _containers(group)
    except LabError as error:
        rows = {node.record.name: node.unknown(error) for node in group}
    return {(node.blank.lab, node.record.name): rows[node.record.name] for node in group}


def _machine(node: _Node) -> NodeFigures:
    from labctl.hypervisor import figures
    from labctl.hypervisor.domain import Domain
    from labctl.hypervisor.uml import UmlMachine

    if isinstance(node.main, UmlMachine):
        found = node.main.figures()
    else:
        assert isinstance(node.main, Domain)
        found = figures.figures(node.main)
    cpu = None if found.cpu_ns is None else found.cpu_ns / 1e9
    return node.filled(found.state, found, cpu_seconds=cpu)


def _containers(group: Sequence[_Node]) -> dict[str, NodeFigures]:
    from labctl.guest.container import stats_of
    from labctl.runtime.client import KeeperClient
    from labctl.runtime.errors import ContainerError

    client = KeeperClient(Path(group[0].record.run_root))
    names = [node.record.container for node in group]
    try:
        states = client.states()
        stats = client.stats([name for name in names if name in states])
    except (ContainerError, OSError) as error:
        raise LabError(f"its keeper's folder can't be read: {error}") from error
    return {
        node.record.name: _container(node, state.status if (state := states.get(name)) else "absent", found)
        for node, name in zip(group, names, strict=True)
        for found in [stats_of(vars(stats[name])) if name in stats else None]
    }


def _of_engine(node: _Node) -> NodeFigures:
    from labctl.guest.engine import EngineMachine
    from labctl.tiers import machines

    found = machines.machine(node.record)
    assert isinstance(found, EngineMachine)
    status = found.status()
    return _container(node, status, found.stats() if status in ("running", "paused") else None)


def _container(node: _Node, status: str, found: Any) -> NodeFigures:
    """The row of a container; one that has ended uses nothing, whatever its group still counts."""
    return node.filled(status, None if status in ("stopped", "absent") else found)


def _inside(group: Sequence[_Node]) -> dict[str, NodeFigures]:
    from labctl.guest.container import stats_of
    from labctl.tiers import machines

    link = machines.link_to(group[0].record)
    names = [node.record.container for node in group]
    states = link.call("keep", {"operation": "states"}, 60.0)
    stats = link.call("keep", {"operation": "stats", "ids": [n for n in names if n in states]}, 60.0)
    return {
        node.record.name: _container(
            node,
            str(states[name]["status"]) if name in states else "absent",
            stats_of(stats[name]) if name in stats else None,
        )
        for node, name in zip(group, names, strict=True)
    }
