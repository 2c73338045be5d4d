"""What is done in all nodes of a lab together: the profile's checks, and the comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from labctl.errors import LabError
from labctl.events import Emit, Note, silent
from labctl.lab.checks import CheckResult, run_checks
from labctl.lab.compare import HOST, Column, Comparison, compared
from labctl.lab.looking import lab_named, lab_status, opened
from labctl.lab.model import NodeStatus, Options
from labctl.lab.observe import SECONDS, observe, observe_host
from labctl.profile.models import Check, Profile
from labctl.records import dataclass
from labctl.resource import executor
from labctl.resource.protocol import Resource
from labctl.tiers.record import NodeRecord
from labctl.workers import Pool

if TYPE_CHECKING:
    from labctl.guest.machine import Machine

_AT_ONCE = 4  # observations
_STARTS = 4  # an observation may take this many times as long as the node's start: so slow is the host
_ASLEEP = ("planned", "skipped", "stopped", "paused")  # states in which there is nobody to ask


def checks(name: str, options: Options, emit: Emit = silent) -> list[CheckResult]:
    """Run the checks of the profile that the lab was made from; the results are in the profile's order.

    A check of a skipped node, or one that needs one, is not run.  Raises UsageError when there is no such
    lab.
    """
    with opened(options) as ledger:
        row = lab_named(ledger, name)
        records = {node: NodeRecord.from_json(text) for node, text in ledger.nodes(row.id).items()}
    try:
        wanted = Profile.from_json(row.profile).checks
    except ValueError as error:
        raise LabError(
            f"the profile of lab {name} in the ledger can't be read", hint="labctl up PROFILE"
        ) from error

    def machine_of(node: str) -> Machine:
        from labctl.tiers.machines import machine

        if node not in records:
            raise LabError(f"lab {name} has no node {node!r}", hint="labctl up")
        return machine(records[node])

    skipped = {record.name: record.skipped for record in records.values() if record.skipped}
    return checked(wanted, skipped, machine_of, emit, row.name)


def checked(
    wanted: Sequence[Check],
    skipped: Mapping[str, str],
    machine_of: Callable[[str], Machine],
    emit: Emit,
    lab: str,
) -> list[CheckResult]:
    """Run those checks that can be run; `skipped` are the nodes that aren't there, with the reasons."""
    left_out: dict[int, CheckResult] = {}
    for index, check in enumerate(wanted):
        missing = [node for node in dict.fromkeys((check.node, *check.needs)) if node in skipped]
        if missing:
            why = "; ".join(f"node {node} is skipped on this host: {skipped[node]}" for node in missing)
            title = check.name or f"{check.node}: {' '.join(check.command)[:80]}"
            left_out[index] = CheckResult(title, check.node, False, f"not run: {why}", skipped=True)
            emit(Note(lab, f"check left out: {title}: {why}"))
    todo = [check for index, check in enumerate(wanted) if index not in left_out]
    done = iter(run_checks(todo, machine_of, emit=emit, lab=lab))
    return [left_out[index] if index in left_out else next(done) for index in range(len(wanted))]


@dataclass(frozen=True)
class _Node:
    """What is known of a node before it is asked."""

    record: NodeRecord
    status: NodeStatus
    main: Resource | None


def compare(name: str, options: Options, emit: Emit = silent, *, timeout: float = 0.0) -> Comparison:
    """Ask every node of the lab and the bare host the same questions, side by side and bounded in time.

    Each has `timeout` seconds; 0: 30, or four times what its start took where that is more.  A node that
    can't be asked becomes a column with the reason.  Raises UsageError when there is no such lab.
    """
    with opened(options) as ledger:
        row = lab_named(ledger, name)
        status = {node.name: node for node in lab_status(ledger, row).nodes}
        rows = {r.key: r for r in ledger.resources(row.id)}
        nodes = []
        for node, text in ledger.nodes(row.id).items():
            record = NodeRecord.from_json(text)
            main = rows.get(record.main_key)
            nodes.append(_Node(record, status[node], executor.load(main) if main else None))
    with Pool(min(_AT_ONCE, len(nodes) + 1), "observe") as pool:
        host = pool.submit(lambda: _host(timeout or SECONDS))
        columns = list(pool.map(lambda node: _column(node, emit, row.name, timeout), nodes))
        return compared(row.name, [host.result(), *columns], time.time())


def _host(timeout: float) -> Column:
    column = Column(HOST, runs_on="itself", accelerator="its CPU", state="running")
    try:
        return replace(column, seen=observe_host(timeout))
    except LabError as error:
        return replace(column, reason=error.message, remedy=error.hint)


def _column(node: _Node, emit: Emit, lab: str, timeout: float) -> Column:
    """Look at one node."""
    column = described(node.record, node.status)
    if node.status.state in _ASLEEP:
        return column if column.reason else replace(column, reason="there is nobody to ask")
    from labctl.tiers.machines import machine

    try:
        seconds = timeout or max(SECONDS, _STARTS * node.status.seconds)
        there = machine(node.record)
        seen = observe(there, node.record.name, seconds)
    except LabError as error:
        emit(Note(lab, f"{node.record.name}: {error.message}", "warning"))
        reason, remedy = column.reason or error.message, column.remedy or error.hint
        return replace(column, reason=reason, remedy=remedy, host_memory=_host_memory(node))
    found = replace(column, seen=seen, reason="", remedy="", host_memory=_host_memory(node))
    return replace(found, leaves_root=_leaves_root(there))


def _leaves_root(there: Machine) -> bool | None:
    """Whether root in a container of this host gets out of its /; None where it can't be tried."""
    from labctl.guest.container import ContainerMachine

    if not isinstance(there, ContainerMachine):
        return None
    try:
        return there.leaves_root()
    except LabError:
        return None  # it has ended since, or may not even try


def described(record: NodeRecord, status: NodeStatus) -> Column:
    """The column of a node that was not asked yet."""
    remedy = status.remedy
    if not remedy and status.state in ("stopped", "paused"):
        remedy = f"labctl {'start' if status.state == 'stopped' else 'resume'} {record.name}"
    there = not record.skipped
    reason = status.reason if status.state in (*_ASLEEP, "failed") else ""
    return Column(
        name=record.name,
        tier=record.label,
        state=status.state,
        runs_on=record.runs_on,
        accelerator=record.accelerator,
        inside=record.inside,
        machine=record.tier != "container",
        emulated=there and record.emulated,
        reason=reason if reason != status.state else "",
        remedy=remedy,
        image=record.image,
        isolation=record.isolation if there else "",
        memory_given=record.memory,
        cpus_given=record.cpus,
        start_seconds=status.seconds or None,
        addresses=record.addresses if there else (),
    )


def _host_memory(node: _Node) -> int | None:
    """What the host spends on it, in bytes; None where that isn't known, as on a remote libvirt."""
    record = node.record
    if record.inside:
        return None
    try:
        if record.tier == "container":
            return _container_memory(record)
        from labctl.hypervisor import power
        from labctl.hypervisor.domain import Domain
        from labctl.hypervisor.uml import UmlMachine

        if isinstance(node.main, UmlMachine):
            return node.main.memory() or None
        if not isinstance(node.main, Domain):
            return None
        return power.stats(node.main).usage.pss_bytes or None
    except LabError:
        return None  # the observation stands without its price


def _container_memory(record: NodeRecord) -> int | None:
    if record.engine:
        from labctl.tiers.machines import container

        return container(record).stats().memory_bytes
    from pathlib import Path

    from labctl.runtime.client import KeeperClient
    from labctl.runtime.errors import ContainerError

    try:
        found = KeeperClient(Path(record.run_root)).stats([record.container]).get(record.container)
    except (ContainerError, OSError):
        return None
    return found.memory_bytes if found else None
