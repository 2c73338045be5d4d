"""start, stop, restart, pause, resume and wait: nodes whatever their tier."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from labctl.errors import Failures, LabError, TimedOut, UsageError
from labctl.events import Emit, NodePhase, Note, silent
from labctl.home import Home
from labctl.lab import journal, nesting, stopping
from labctl.lab.looking import lab_status, opened, record_named
from labctl.lab.model import Options
from labctl.resource import executor, faults
from labctl.resource.ledger import LabRow, Ledger, Row
from labctl.resource.lock import locked
from labctl.resource.protocol import Resource
from labctl.tiers.record import NodeRecord
from labctl.workers import Pool

Target = tuple[str, str]
POLL_SECONDS = 0.1


def start(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """Start stopped nodes, and what is inside machines that were off, and wait until they are ready again.

    Running ones are left as they are.  Raises Failures, Busy.
    """
    with _held(targets, options, "start", emit) as (ledger, found, tell):
        for row in {row.id: row for row, _ in found}.values():
            finish_stops(ledger, row, options.home, tell)
        off = [node for node in found if not _main(ledger, node).look().there]
        _each(ledger, nesting.machines_first(nesting.with_inside(ledger, found, off)), "start", tell, _start)


def stop(targets: Sequence[Target], options: Options, emit: Emit = silent, *, force: bool = False) -> None:
    """Ask nodes, and before a machine what is inside it, to end, and end them after their stop_timeout (at
    once with `force`); disks are kept.  Raises Failures, Busy."""
    with _held(targets, options, "stop", emit) as (ledger, found, tell):
        if not force:
            found = nesting.with_inside(ledger, found, found)
        _each(
            ledger,
            nesting.inside_first(found),
            "stop",
            tell,
            lambda books, row, record, told: _stop(books, row, record, told, force, options.home),
        )


def finish_stops(ledger: Ledger, row: LabRow, home: Home, emit: Emit = silent) -> None:
    """Finish the stops that a killed labctl has begun; the caller holds the lab's lock.

    A machine that can't be asked is left to whoever looks at it next.
    """
    records = ledger.nodes(row.id)
    for name in stopping.begun(home, row):
        if name in records:
            try:
                _stop(ledger, row, NodeRecord.from_json(records[name]), emit, False, home)
            except LabError as error:
                emit(Note(row.id, f"{name}: its stop could not be finished: {error.message}", "warning"))
        stopping.forget(home, row, name)


def restart(targets: Sequence[Target], options: Options, emit: Emit = silent, *, force: bool = False) -> None:
    """Stop and start."""
    stop(targets, options, emit, force=force)
    start(targets, options, emit)


def pause(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """Freeze nodes: their memory stays, their CPUs rest.  Raises Failures, Busy."""
    with _held(targets, options, "pause", emit) as (ledger, found, tell):
        _each(ledger, nesting.inside_first(found), "pause", tell, lambda *four: _freeze(*four, on=True))


def resume(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """Let paused nodes go on.  Raises Failures, Busy."""
    with _held(targets, options, "resume", emit) as (ledger, found, tell):
        _each(ledger, nesting.machines_first(found), "resume", tell, lambda *four: _freeze(*four, on=False))


@contextmanager
def _held(
    targets: Sequence[Target], options: Options, verb: str, emit: Emit
) -> Iterator[tuple[Ledger, list[nesting.Placed], Emit]]:
    """The nodes of a command, while it holds the locks of their labs, and an Emit that keeps the journal.

    Raises UsageError, Busy.
    """
    with opened(options) as ledger, ExitStack() as stack:
        found = [record_named(ledger, lab, node) for lab, node in targets]
        for record in (record for _, record in found if record.skipped):
            raise UsageError(f"{record.name} was skipped: {record.skipped}", hint=record.remedy)
        for name in dict.fromkeys(row.id for row, _ in found):
            stack.enter_context(locked(options.home.state / "locks" / name, verb, wait=options.wait))
        names = {row.id: row.name for row, _ in found}
        yield ledger, found, journal.recording(options.home, names, emit)


def _each(
    ledger: Ledger,
    levels: Sequence[Sequence[nesting.Placed]],
    verb: str,
    emit: Emit,
    act: Callable[[Ledger, LabRow, NodeRecord, Emit], None],
) -> None:
    """Do it to every node, level after level, several of one level at once.  Raises Failures.

    What is inside a machine that failed is left out: it would only fail in its turn.
    """
    failures: list[LabError] = []
    failed: set[tuple[str, str]] = set()
    for level in levels:
        with Pool(8) as pool:
            jobs = [
                (row, record, pool.submit(_pointed, verb, act, ledger, row, record, emit))
                for row, record in level
                if (row.id, record.inside) not in failed
            ]
            for row, record, job in jobs:
                try:
                    job.result()
                except LabError as error:
                    failed.add((row.id, record.name))
                    failures.append(type(error)(f"{record.name}: {error.message}", hint=error.hint))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise Failures(f"{verb} failed for {len(failures)} nodes", failures)


def _pointed(
    verb: str,
    act: Callable[[Ledger, LabRow, NodeRecord, Emit], None],
    ledger: Ledger,
    row: LabRow,
    record: NodeRecord,
    emit: Emit,
) -> None:
    faults.point(f"{verb}:before:{record.name}")
    act(ledger, row, record, emit)
    faults.point(f"{verb}:after:{record.name}")


def _main(ledger: Ledger, node: nesting.Placed) -> Resource:
    """What the node is on the host: its machine or container.  Raises LabError when it wasn't made."""
    row, record = node
    return executor.load(_row({r.key: r for r in ledger.resources(row.id)}, record))


def _start(ledger: Ledger, row: LabRow, record: NodeRecord, emit: Emit) -> None:
    rows = {r.key: r for r in ledger.resources(row.id)}
    main = executor.load(_row(rows, record))
    nesting.need_machine(ledger, (row, record))
    if main.look().there:
        return
    emit(NodePhase(row.id, record.name, "starting"))
    for kind in ("net", "vmdisk", "plugs"):  # a reboot of the host may have taken what the machine stands on
        if below := rows.get(f"{kind}:{record.name}"):
            if kind == "net":  # what the node did to its links, routes and rules ended with it
                executor.load(below).unmake()
            executor.load(below).make()
    for text in main.make() or ():
        emit(Note(row.id, text, "warning"))
    for kind, phase in (("reach", "running"), ("ready", "ready")):
        if step := rows.get(f"{kind}:{record.name}"):
            for text in executor.load(step).make() or ():
                emit(Note(row.id, text, "warning"))
            emit(NodePhase(row.id, record.name, phase))


def _row(rows: dict[str, Row], record: NodeRecord) -> Row:
    if record.main_key not in rows:
        raise LabError(f"{record.name} has not been made", hint="labctl up")
    return rows[record.main_key]


def _stop(ledger: Ledger, row: LabRow, record: NodeRecord, emit: Emit, force: bool, home: Home) -> None:
    timeout = 0.0 if force else record.stop_timeout
    rows = {r.key: r for r in ledger.resources(row.id)}
    main = executor.load(_row(rows, record))
    if nesting.machine_state(ledger, (row, record)) == "stopped":
        emit(NodePhase(row.id, record.name, "stopped"))  # with its machine
        return
    nesting.need_machine(ledger, (row, record))
    with stopping.noted(ledger, home, row, record.name, rows[record.main_key]):
        _end(main, record, timeout)
        # A container's namespace would go on answering pings and forwarding packets.
        if net := rows.get(f"net:{record.name}"):
            executor.load(net).unmake()
    emit(NodePhase(row.id, record.name, "stopped"))


def _end(main: Resource, record: NodeRecord, timeout: float) -> None:
    if record.tier == "container":
        from labctl.tiers import machines

        machines.container(record).stop(timeout)
    else:
        from labctl.hypervisor import power
        from labctl.hypervisor.domain import Domain
        from labctl.hypervisor.uml import UmlMachine

        if isinstance(main, UmlMachine):
            main.stop(timeout, lambda: _power_off(record))
        else:
            assert isinstance(main, Domain)
            power.stop(main, timeout, lambda: _power_off(record))


def _power_off(record: NodeRecord) -> None:
    """Ask the guest over SSH: it works on machines without a power button as well."""
    from labctl.tiers.machines import machine

    target = machine(record)
    power_off = getattr(target, "power_off", None)
    if power_off is None:
        raise LabError(f"{record.name} can't be asked to power off")
    power_off()


def _freeze(ledger: Ledger, row: LabRow, record: NodeRecord, emit: Emit, *, on: bool) -> None:
    main = _main(ledger, (row, record))
    if on and nesting.machine_state(ledger, (row, record)) == "paused":
        return  # with its machine
    nesting.need_machine(ledger, (row, record))
    if record.tier != "container":
        from labctl.hypervisor import power
        from labctl.hypervisor.domain import Domain
        from labctl.hypervisor.uml import UmlMachine

        if isinstance(main, UmlMachine):
            (main.pause if on else main.resume)()
        else:
            assert isinstance(main, Domain)
            (power.pause if on else power.resume)(main)
    else:
        from labctl.tiers import machines

        target = machines.container(record)
        (target.pause if on else target.resume)()
    emit(NodePhase(row.id, record.name, "paused" if on else "running"))


def console(lab: str, node: str, options: Options, fd_in: int, fd_out: int, *, force: bool = False) -> None:
    """Join two descriptors to a machine's console until Ctrl-] is typed, input ends or the machine goes off.

    Raises UsageError for a node without a console, Busy when someone is there already (`force` joins beside
    them), LabError when it is off.
    """
    from labctl.hypervisor import console as local
    from labctl.hypervisor.domain import Domain
    from labctl.hypervisor.uml import UmlMachine
    from labctl.tiers import consoles

    with opened(options) as ledger:
        row, record = record_named(ledger, lab, node)
        if record.skipped:
            raise UsageError(f"{record.name} was skipped: {record.skipped}", hint=record.remedy)
        main = executor.load(_row({r.key: r for r in ledger.resources(row.id)}, record))
    if isinstance(main, UmlMachine):
        local.join(main.terminal(), main.name, fd_in, fd_out, force=force)
    elif isinstance(main, Domain):
        consoles.attach(main, fd_in, fd_out, force=force)
    else:
        raise UsageError(f"{lab}/{node} has no console: it is no machine", hint=f"labctl ssh {lab}/{node}")


def wait(targets: Sequence[Target], state: str, timeout: float, options: Options) -> None:
    """Wait until every node is in the state ("running" is also met by ready).  Raises TimedOut."""
    deadline = time.monotonic() + timeout
    wanted = ("running", "ready") if state == "running" else (state,)
    with opened(options) as ledger:
        labs = {lab: record_named(ledger, lab, node)[0] for lab, node in targets}
        while True:
            now = {
                (lab, node.name): node.state
                for lab, row in labs.items()
                for node in lab_status(ledger, row).nodes
            }
            late = [
                f"{lab}/{node} is {now[lab, node]}" for lab, node in targets if now[lab, node] not in wanted
            ]
            if not late:
                return
            if time.monotonic() >= deadline:
                raise TimedOut(f"not {state} within {timeout:g} s: {', '.join(late)}")
            time.sleep(POLL_SECONDS)
