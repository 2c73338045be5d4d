"""Verbs that help to understand: compare, inspect, graph, doctor, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from labctl.cli import light as typer
from labctl.cli import names, screen
from labctl.cli.backend import options
from labctl.cli.lifecycle import LabArgument
from labctl.cli.session import Session, verb
from labctl.errors import HostCannot, LabError, UsageError
from labctl.lab import api

TIERS = ("emulation", "para", "hardware", "container")

app = typer.Typer(rich_markup_mode=None)


@app.command()
@verb()
def compare(
    session: Session,
    lab: LabArgument = "",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that explains each row.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="How long a node may take to answer; 0: 30, or four times its start where that is more.",
        ),
    ] = 0.0,
) -> None:
    """Make the same observations in every node, side by side.

    What the tiers are shows in what differs: the kernel, PID 1, what is visible, what it costs.

    \b
    Examples:
      labctl compare spectrum
      labctl compare spectrum --html spectrum.html
      labctl compare spectrum --json | jq '.rows[] | select(.key == "kernel")'
    """
    from labctl.cli import comparison

    name = names.Names.read(session.home).lab(lab)
    with session.drawing() as emit:
        found = api.compare(name, options(session), emit, timeout=max(timeout, 0.0))
    if html:
        try:
            html.write_text(comparison.page(found))
        except OSError as error:
            raise LabError(f"cannot write {html}: {error.strerror}") from error
        session.say(f"wrote {html}")
    if session.json:
        screen.document(screen.plain(found))
    elif not html:
        screen.line(comparison.text(found))
        screen.line("\n" + comparison.legend(found))


@app.command()
@verb()
def inspect(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(metavar="[LAB|NODE]", help="A lab, or LAB/NODE.", autocompletion=names.complete_node),
    ] = "",
) -> None:
    """Show everything known about a lab or a node.

    Always JSON: the node's record, its resources and what the host says of each now.

    \b
    Examples:
      labctl inspect spectrum
      labctl inspect spectrum/emu | jq '.node.interfaces'
    """
    known = names.Names.read(session.home)
    if what in known.labs or not what:
        lab, node = known.lab(what), ""
    else:
        lab, node = known.node(what)
    screen.document(screen.plain(api.inspect(lab, node, options(session))))


@app.command()
@verb(data=False)
def graph(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(metavar="LAB|PROFILE", help="A lab, or a profile.", autocompletion=names.complete_lab),
    ],
    form: Annotated[
        str, typer.Option("--format", "-f", metavar="FORM", help="text, mermaid or svg.")
    ] = "text",
) -> None:
    """Draw a lab: text, Mermaid or SVG.

    \b
    Examples:
      labctl graph spectrum
      labctl graph lab.yaml --format mermaid
      labctl graph spectrum -f svg > lab.svg
    """
    if form not in ("text", "mermaid", "svg"):
        raise UsageError(f"--format {form}: one of text, mermaid, svg is expected")
    from labctl.cli import drawing
    from labctl.cli.profiles import load

    if what in names.Names.read(session.home).labs:
        picture = drawing.of_status(api.status(what, options(session)))
    else:
        picture = drawing.of_profile(load(what, []))
    screen.line(getattr(drawing, form)(picture).rstrip("\n"))


@app.command()
@verb()
def doctor(
    session: Session,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Try again what was tried since the host's start.")
    ] = False,
) -> int:
    """Try what this host can do, and say what to do about the rest.

    Each tier is tried for real with a tiny guest, bounded in time.  Exit code 4 when none works.

    \b
    Examples:
      labctl doctor
      labctl doctor --json | jq -r '.findings[] | select(.ok | not) | .remedy'
    """
    with session.drawing() as emit:
        findings = list(api.doctor(options(session), emit, fresh=fresh))
    if session.json:
        screen.document({"findings": findings})
    else:
        show_findings(findings)
    tiers = [finding for finding in findings if finding.name in TIERS]
    return HostCannot.exit_code if tiers and not any(finding.ok for finding in tiers) else 0


def show_findings(findings: Any) -> None:
    """A line a capability, with the reason and the remedy under those that are missing."""
    wide = max((screen.width(finding.name) for finding in findings), default=0)
    for finding in findings:
        mark = "ready  " if finding.ok else "missing"
        name = finding.name + " " * (wide - screen.width(finding.name))
        screen.line(f"{mark}  {name}  {screen.clean(finding.detail or finding.reason)}".rstrip())
        if not finding.ok and finding.reason and finding.detail:
            screen.line(f"         {' ' * wide}  {screen.clean(finding.reason)}")
        if not finding.ok and finding.remedy:
            screen.line(f"         {' ' * wide}  remedy: {screen.clean(finding.remedy)}")


@app.command()
@verb()
def gc(
    session: Session,
    dry: Annotated[bool, typer.Option("--dry-run", "-n", help="Only list it.")] = False,
) -> int:
    """Remove what labs left behind that no ledger names.

    Found by the mark that labctl leaves on everything it makes, never by a name.  Only things of
    this home (LABCTL_HOME) are touched.

    \b
    Examples:
      labctl gc --dry-run
      labctl gc
    """
    with session.drawing() as emit:
        leftovers = list(api.gc(options(session), emit, dry_run=dry))
    if session.json:
        screen.document({"leftovers": leftovers})
    elif leftovers:
        rows = [(i.kind, i.name, i.lab, "removed" if i.removed else i.error or "there") for i in leftovers]
        screen.line(screen.table(["kind", "name", "lab", "now"], rows))
    else:
        screen.line("nothing is left over")
    return 1 if not dry and any(not item.removed for item in leftovers) else 0
