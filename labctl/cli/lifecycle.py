"""Verbs about whole labs: up, plan, down, status, ls, wait, check."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from labctl.cli import light as typer
from labctl.cli import names, screen
from labctl.cli.backend import options, planning
from labctl.cli.profiles import ProfileArgument, SetOption, load
from labctl.cli.session import Session, verb
from labctl.errors import CheckFailed, Interrupted, UsageError
from labctl.lab import again, api, inputs

if TYPE_CHECKING:
    from labctl.lab.checks import CheckResult
    from labctl.lab.model import UpResult

app = typer.Typer(rich_markup_mode=None)

Name = Annotated[
    str, typer.Option("--name", metavar="NAME", help="Call the lab NAME instead of the profile's name.")
]
Skip = Annotated[
    bool, typer.Option("--skip-unavailable", help="Leave out nodes whose tier this host can't run.")
]
Fallback = Annotated[
    str, typer.Option("--fallback", metavar="TIER", help="Run such nodes on TIER instead: emulation.")
]
Nested = Annotated[
    str,
    typer.Option(
        "--nested",
        metavar="WHEN",
        help="Add a host machine for a tier that this host can't run: auto (para), always, never.",
    ),
]
Privileged = Annotated[bool, typer.Option("--allow-privileged", help="Allow nodes that ask for all rights.")]
LabArgument = Annotated[
    str, typer.Argument(metavar="[LAB]", help="The lab.", autocompletion=names.complete_lab)
]
Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", help="Wait so long for another labctl at work on the lab."),
]


@app.command()
@verb()
def up(
    session: Session,
    profile: ProfileArgument,
    name: Name = "",
    sets: SetOption = [],  # noqa: B006
    skip_unavailable: Skip = False,
    fallback: Fallback = "",
    nested: Nested = "",
    allow_privileged: Privileged = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="When a first `up` fails, remove what it made.")
    ] = False,
    checks: Annotated[
        bool, typer.Option("--check", help="Run the profile's checks once the lab is up.")
    ] = False,
    from_snapshot: Annotated[
        bool | None,
        typer.Option(
            "--from-snapshot/--boot",
            help="Start machines from a memory snapshot, or boot them all.  By default a machine goes on "
            "from a snapshot when one of its shape is there, and the first of a shape leaves one.",
            show_default=False,
        ),
    ] = None,
    wait: Wait = 0.0,
) -> int:
    """Bring a lab up, or go on with one that is there.

    What is there and as described stays untouched: a second `up` with an edited profile changes
    only what differs and says why.  Ctrl-C leaves a lab that `up` continues and `down` removes.

    \b
    Examples:
      labctl up spectrum
      labctl up lab.yaml --name mine -s nodes.web.memory=1GiB
      labctl up spectrum --skip-unavailable
      labctl up spectrum --fallback emulation --check
    """
    how = planning(
        session,
        skip_unavailable=skip_unavailable,
        fallback=fallback,
        nested=nested,
        allow_privileged=allow_privileged,
        rollback=rollback,
        snapshot="auto" if from_snapshot is None else "always" if from_snapshot else "never",
        wait=wait,
    )
    # The checks run each time: an `up` with them is never answered without them.
    with inputs.watching([] if checks else again.asked):
        loaded = load(profile, sets, name)
        try:
            with session.drawing() as emit:
                result = api.up(loaded, how, emit)
        except (KeyboardInterrupt, Interrupted) as error:
            words = shlex.join(["labctl", "up", profile, *(["--name", name] if name else [])])
            raise Interrupted(
                f"interrupted; lab {loaded.name} is incomplete",
                hint=f"`{words}` continues it, `labctl down {loaded.name}` removes it",
            ) from error
    results: list[CheckResult] = []
    if checks:
        with session.drawing() as emit:
            results = api.checks(loaded.name, how, emit)
    if session.json:
        more = {"checks": results} if checks else {}
        show_document(result, **more)
    elif not session.quiet:
        show_result(result)
        if checks:
            show_checks(results)
    return _verdict(results)


def show_document(result: UpResult, **more: object) -> None:
    """What `up` did, as one JSON document."""
    body = screen.plain(result)
    screen.document({**body.pop("status"), **body, **more})


def show_result(result: UpResult) -> None:
    """What `up` did, for people."""
    show_changes(result.changes)
    show_status(result.status)
    still = all(str(change.action) == "keep" for change in result.changes)
    told = "was up already, nothing to do" if still else "is up"
    screen.line(f"\n{result.status.lab} {told} ({screen.seconds(result.seconds)})")


def show_standing(answer: dict[str, Any], words: Sequence[str], seconds: float) -> None:
    """The answer of an `up` that has nothing to do (again.standing), as the whole way would show it."""
    from labctl.lab.model import UpResult
    from labctl.resource.codec import decode

    values = typer.read(app.verbs["up"], words[1:]) or {}
    if values.get("quiet") and not values.get("json"):
        return
    result = decode(UpResult, json.dumps({**answer, "seconds": seconds}))
    if values.get("json"):
        show_document(result)
    else:
        show_result(result)


def _verdict(results: Sequence[CheckResult]) -> int:
    """Exit code 3 when a check did not hold; one that was skipped with its node is no failure."""
    failed = any(not result.passed and not result.skipped for result in results)
    return CheckFailed.exit_code if failed else 0


@app.command()
@verb()
def plan(
    session: Session,
    profile: ProfileArgument,
    name: Name = "",
    sets: SetOption = [],  # noqa: B006
    skip_unavailable: Skip = False,
    fallback: Fallback = "",
    nested: Nested = "",
    allow_privileged: Privileged = False,
    everything: Annotated[bool, typer.Option("--all", help="List also what stays as it is.")] = False,
) -> None:
    """Show what `up` would do, touching nothing.

    \b
    Examples:
      labctl plan spectrum
      labctl plan lab.yaml --json | jq '.changes[] | select(.action != "keep")'
    """
    how = planning(
        session,
        skip_unavailable=skip_unavailable,
        fallback=fallback,
        nested=nested,
        allow_privileged=allow_privileged,
    )
    result = api.plan(load(profile, sets, name), how)
    if session.json:
        screen.document(screen.plain(result))
        return
    kept = [change for change in result.changes if str(change.action) == "keep"]
    shown = [change for change in result.changes if everything or change not in kept]
    if shown:
        rows = [(change.action, change.kind, change.name, change.node, _why(change)) for change in shown]
        screen.line(screen.table(["do", "kind", "name", "node", "why"], rows))
        screen.line()
    for node in result.nodes:
        if node.state == "skipped":
            screen.line(f"{node.name}: skipped: {node.reason}")
    for note in result.notes:
        screen.line(f"note: {note}")
    counts = Counter(str(change.action) for change in result.changes)
    told = ", ".join(f"{count} to {action}" for action, count in counts.items() if action != "keep")
    screen.line(f"{result.lab}: {told or 'nothing to do'}" + (f", {len(kept)} as they are" if kept else ""))


def show_changes(changes: Any) -> None:
    """Why a second `up` did what it did; a first one makes everything, which the table of nodes says."""
    if all(str(change.action) == "make" for change in changes):
        return
    for change in changes:
        if str(change.action) != "keep":
            screen.line(f"{change.action} {change.kind} {change.name}: {_why(change)}")


def _why(change: Any) -> str:
    return f"{change.reason}; {change.loses}" if change.loses else str(change.reason)


def show_status(status: Any) -> None:
    """A lab's nodes as a table, and under it the reasons of failed and skipped ones."""
    rows = [
        (
            node.name,
            node.tier,
            node.state,
            node.runs_on,
            ", ".join(node.addresses),
            node.image,
            _took(node.seconds),
        )
        for node in status.nodes
    ]
    screen.line(screen.table(["node", "tier", "state", "runs on", "addresses", "image", "start"], rows))
    for node in status.nodes:
        if node.reason and node.reason != node.state:
            remedy = f" ({node.remedy})" if node.remedy else ""
            screen.line(f"{node.name}: {node.state}: {screen.clean(node.reason)}{remedy}")
        for port in node.ports:
            screen.line(f"{node.name}: {port}")
        if node.viewer:
            screen.line(f"{node.name}: screen: {node.viewer}")
        for disk in node.disks:
            place = f" on {disk.mount}" if disk.mount else ""
            sealed = ", read-only" if disk.read_only else ""
            size = f"{screen.size(disk.size)} " if disk.size else ""
            screen.line(f"{node.name}: disk {disk.name}: {size}{disk.format} by {disk.bus}{sealed}{place}")
    if status.leftovers:
        screen.line(f"{status.leftovers} objects are still to be removed: labctl down {status.lab}")


def _took(seconds: float) -> str:
    return screen.seconds(seconds) if seconds else ""


@app.command()
@verb()
def down(
    session: Session,
    lab: LabArgument = "",
    everything: Annotated[bool, typer.Option("--all", help="All labs of this home.")] = False,
    wait: Wait = 0.0,
) -> None:
    """Take a lab down and leave the host as it was.

    Needs no profile; works after a crash, after a reboot of the host, and twice.  Images stay in
    the cache.

    \b
    Examples:
      labctl down spectrum
      labctl down --all
    """
    if everything and lab:
        raise UsageError("either a lab or --all")
    if not everything and not lab:
        raise UsageError("which lab?", hint="labctl down LAB, or --all")
    with session.drawing() as emit:
        result = api.down(None if everything else lab, options(session, wait=wait), emit)
    gone = screen.plain(result)
    if session.json:
        screen.document(gone if isinstance(gone, dict) else {"labs": gone or []})


@app.command()
@verb()
def status(session: Session, lab: LabArgument = "") -> None:
    """Show a lab and its nodes as they are now.

    States: planned, starting, running, ready, stopped, paused, failed, skipped.

    \b
    Examples:
      labctl status
      labctl status spectrum --json | jq -r '.nodes[] | .name + " " + .state'
    """
    name = names.Names.read(session.home).lab(lab)
    found = api.status(name, options(session))
    if session.json:
        screen.document(screen.plain(found))
        return
    show_status(found)
    for network in found.networks:
        subnets = ", ".join(filter(None, (network.subnet4, network.subnet6))) or "no addresses"
        screen.line(
            f"network {network.name}: {subnets} on {network.bridge}" + (", NAT" if network.internet else "")
        )


@app.command()
@verb()
def ls(session: Session) -> None:
    """List the labs of this home.

    \b
    Examples:
      labctl ls
      labctl ls --json | jq -r '.labs[].lab'
    """
    import time

    found = api.labs(options(session))
    if session.json:
        screen.document({"labs": found})
        return
    rows = []
    for lab in found:
        states = Counter(node.state for node in lab.nodes)
        told = ", ".join(f"{count} {state}" for state, count in states.items())
        rows.append((lab.lab, len(lab.nodes), told, screen.seconds(time.time() - lab.created), lab.source))
    screen.line(screen.table(["lab", "nodes", "states", "age", "profile"], rows))


@app.command()
@verb()
def wait(
    session: Session,
    nodes: Annotated[
        list[str],
        typer.Argument(metavar="NODE...", help="Nodes or a lab.", autocompletion=names.complete_node),
    ],
    state: Annotated[
        str, typer.Option("--for", metavar="STATE", help="ready, running, stopped or paused.")
    ] = "ready",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Give up after so long.")
    ] = 120.0,
) -> None:
    """Wait until nodes are in a state.

    Exit code 1 when the time is over.

    \b
    Examples:
      labctl wait spectrum
      labctl wait web --for stopped --timeout 30
    """
    known = ("ready", "running", "stopped", "paused")
    if state not in known:
        raise UsageError(f"--for {state}: one of {', '.join(known)} is expected")
    chosen = names.Names.read(session.home).select(",".join(nodes))
    api.wait(chosen, state, timeout, options(session))


@app.command()
@verb()
def check(session: Session, lab: LabArgument = "") -> int:
    """Run the checks of a lab's profile.

    Exit code 3 when one does not hold.

    \b
    Examples:
      labctl check namespaces
      labctl check web --json
    """
    name = names.Names.read(session.home).lab(lab)
    with session.drawing() as emit:
        results = api.checks(name, options(session), emit)
    if session.json:
        screen.document({"lab": name, "checks": results})
    else:
        show_checks(results)
    return _verdict(results)


def show_checks(results: Sequence[CheckResult]) -> None:
    """A line a check, and what was found instead where one did not hold."""
    for result in results:
        mark = "skip" if result.skipped else "ok  " if result.passed else "FAIL"
        screen.line(f"{mark}  {screen.clean(result.name)}")
        if not result.passed:
            screen.line(f"      {screen.clean(result.detail)}")
            if result.hint:
                screen.line(f"      hint: {screen.clean(result.hint)}")
    good = sum(1 for result in results if result.passed)
    asked = sum(1 for result in results if not result.skipped)
    screen.line(
        f"{good} of {asked} checks hold"
        + (f", {len(results) - asked} skipped" if asked < len(results) else "")
    )
