"""Verbs that watch labs and nodes: stats, top and events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from labctl.cli import light as typer
from labctl.cli import moments, names, screen
from labctl.cli.backend import options
from labctl.cli.nodes import Node, machine_of
from labctl.cli.session import Session, verb
from labctl.errors import LabError, UsageError
from labctl.lab import api

if TYPE_CHECKING:
    from labctl.guest.machine import Process
    from labctl.lab.figures import NodeFigures
    from labctl.lab.journal import Happening

app = typer.Typer(rich_markup_mode=None)

_CLEAR = "\x1b[H\x1b[J"  # the terminal: to the upper left corner, and blank from there on


@app.command()
@verb()
def stats(
    session: Session,
    nodes: Annotated[
        list[str],
        typer.Argument(
            metavar="[LAB|NODE...]",
            help="Nodes, patterns, or a lab for all its nodes; without any, all labs.",
            autocompletion=names.complete_node,
        ),
    ] = [],  # noqa: B006
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Once, and not until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="Between two samples.")
    ] = 1.0,
) -> None:
    """Show what nodes use: CPU, memory, network, disks, processes.

    CPU is in percent of one CPU. Memory of a machine is what it takes of its host, so that 100 % is all that
    it was given. Network and disk figures count from the node's start. What a tier can't say shows as "-".
    Figures of containers inside machines are those of the machine's own clock and disks. With --json once.

    \b
    Examples:
      labctl stats
      labctl stats spectrum --no-stream
      labctl stats --json web | jq '.nodes[].memory_bytes'
    """
    if interval < 0.1 or interval > 3600:
        raise UsageError(f"--interval {interval:g}: 0.1 to 3600 seconds are expected")
    known = names.Names.read(session.home)
    if not nodes:
        known.lab(next(iter(known.labs), ""))  # a word for whoever has no lab at all
    words = ",".join(nodes or [name for name, there in known.labs.items() if there])
    chosen = known.select(words)
    meter = api.meter(chosen, options(session))
    meter.sample()
    while True:
        time.sleep(interval)
        rows = meter.sample()
        if session.json:
            screen.document({"interval": interval, "nodes": rows})
            return
        screen.line((_CLEAR if screen.on_terminal() and not no_stream else "") + stats_table(rows))
        if no_stream:
            return
        if not screen.on_terminal():
            screen.line()


def stats_table(rows: Sequence[NodeFigures]) -> str:
    """The table of `stats`, and below it why something could not be asked."""
    many = len({row.lab for row in rows}) > 1
    heads = ["node", "tier", "cpu", "memory / limit", "mem", "net in / out", "disk in / out", "pids"]
    cells = []
    for row in rows:
        tier = f"{row.tier} in {row.inside}" if row.inside else row.tier
        name = f"{row.lab}/{row.node}" if many else row.node
        if row.state not in ("running", "paused"):
            cells.append((name, tier, row.state, *[""] * 5))
            continue
        share = "" if row.cpu_percent is None else f"{row.cpu_percent:.1f} %"
        cells.append(
            (
                name,
                tier,
                row.state if row.state == "paused" else share,
                f"{screen.size(row.memory_bytes)} / {screen.size(row.memory_limit_bytes or None)}",
                _percent(row.memory_bytes, row.memory_limit_bytes),
                _both(row.net_received_bytes, row.net_sent_bytes),
                _both(row.block_read_bytes, row.block_written_bytes),
                "" if row.pids is None else str(row.pids),
            )
        )
    notes = [f"{row.node}: {row.reason}" for row in rows if row.reason]
    return "\n".join([screen.table(heads, cells), *(screen.clean(note) for note in notes)])


def _percent(part: int | None, whole: int | None) -> str:
    return f"{100 * part / whole:.1f} %" if part is not None and whole else ""


def _both(one: int | None, other: int | None) -> str:
    return "" if one is None and other is None else f"{screen.size(one)} / {screen.size(other)}"


@app.command()
@verb()
def top(
    session: Session,
    node: Node,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also the tasks of a machine's kernel.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long a machine may take to answer.")
    ] = 30.0,
) -> None:
    """List the processes of a node.

    As the node numbers them, and its users; the image needs no ps. Containers of this host are shown with the
    host's number of each process, too.

    \b
    Examples:
      labctl top web
      labctl top --all spectrum/emu
      labctl top --json web | jq -r '.processes[].command'
    """
    from labctl.guest.machine import Lists

    address = names.Names.read(session.home).node(node)
    machine = machine_of(session, address)
    if not isinstance(machine, Lists):
        raise LabError(f"the processes of {address} can't be listed", hint=f"labctl exec {address} -- ps")
    found = [one for one in machine.processes(timeout) if everything or not one.kernel]
    if session.json:
        screen.document({"lab": address.lab, "node": address.node, "processes": found})
    else:
        screen.line(process_table(found))


def process_table(processes: Iterable[Process]) -> str:
    """The table of `top`."""
    found = list(processes)
    on_host = any(one.host_pid for one in found)
    heads = ["uid", "pid", "ppid", *(["host pid"] if on_host else []), "state", "threads", "memory", "time"]
    rows = [
        (
            str(one.uid),
            str(one.pid),
            str(one.ppid),
            *([str(one.host_pid)] if on_host else []),
            one.state,
            str(one.threads),
            screen.size(one.memory_bytes),
            _time(one.cpu_seconds),
            one.command,
        )
        for one in found
    ]
    return screen.table([*heads, "command"], rows)


def _time(seconds: float) -> str:
    """CPU time as ps has it: hours, minutes, seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@app.command()
@verb(data=False)
def events(
    session: Session,
    lab: Annotated[
        str,
        typer.Argument(
            metavar="[LAB]",
            help="Only this lab, and those of its name before.",
            autocompletion=names.complete_lab,
        ),
    ] = "",
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="From then on: 10m (ago), a date and time, or seconds."),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Show what labs went through, also those that are gone.

    When they were made and removed, what phases their nodes came into, what failed, and of the containers of
    this host how each ended and, within ten seconds, which processes were killed for want of memory. About a
    megabyte is kept.

    \b
    Examples:
      labctl events
      labctl events shop --since 1h
      labctl events -f --json | jq -r 'select(.event == "oom") | .node'
    """
    start = moments.parse(since, "--since")
    told = False
    for one in api.happenings(lab, start, options(session), follow=follow):
        told = True
        screen.line(happening_line(one) if not as_json else happening_json(one))
        sys.stdout.flush()
    if lab and not told and not start:
        names.Names.read(session.home).lab(lab)  # no such lab, now or before


def happening_line(one: Happening) -> str:
    """A line for people."""
    where = f"{one.lab}/{one.node}" if one.node else one.lab
    detail = one.detail
    if one.event == "ended":
        detail = "its exit code is not known" if one.exit_code is None else f"exit code {one.exit_code}"
    elif one.event == "oom":
        detail = f"{one.count} killed: out of memory"
    return screen.clean(f"{moments.show(one.at)}  {where}  {one.event}{f'  {detail}' if detail else ''}")


def happening_json(one: Happening) -> str:
    """A line for programs."""
    return json.dumps({"schema_version": screen.SCHEMA_VERSION, **screen.plain(one)}, ensure_ascii=False)
