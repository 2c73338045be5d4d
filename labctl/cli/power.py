"""Verbs that stop nodes and let them go on: start, stop, restart, pause, resume."""

from __future__ import annotations

from typing import Annotated

from labctl.cli import light as typer
from labctl.cli import names, screen
from labctl.cli.backend import options
from labctl.cli.session import Session, verb
from labctl.lab import api

app = typer.Typer(rich_markup_mode=None)

Nodes = Annotated[
    list[str],
    typer.Argument(
        metavar="NODE...",
        help="Nodes, patterns, or a lab for all its nodes.",
        autocompletion=names.complete_node,
    ),
]


def _act(session: Session, action: str, nodes: list[str], **more: object) -> None:
    chosen = names.Names.read(session.home).select(",".join(nodes))
    with session.drawing() as emit:
        getattr(api, action)(chosen, options(session), emit, **more)
    if session.json:
        screen.document({"done": action, "nodes": [str(address) for address in chosen]})


@app.command()
@verb()
def start(session: Session, nodes: Nodes) -> None:
    """Start stopped nodes.

    \b
    Examples:
      labctl start web
      labctl start 'spectrum/*'
    """
    _act(session, "start", nodes)


@app.command()
@verb()
def stop(
    session: Session,
    nodes: Nodes,
    force: Annotated[bool, typer.Option("--force", help="Kill at once instead of asking first.")] = False,
) -> None:
    """Stop nodes; they keep their disks.

    A node is asked to end by its stop signal or a shutdown, and killed after its stop_timeout.

    \b
    Examples:
      labctl stop web
      labctl stop 'spectrum/*' --force
    """
    _act(session, "stop", nodes, force=force)


@app.command()
@verb()
def restart(session: Session, nodes: Nodes) -> None:
    """Stop nodes and start them again.

    \b
    Examples:
      labctl restart web
    """
    _act(session, "restart", nodes)


@app.command()
@verb()
def pause(session: Session, nodes: Nodes) -> None:
    """Freeze nodes where they are.

    \b
    Examples:
      labctl pause web && labctl resume web
    """
    _act(session, "pause", nodes)


@app.command()
@verb()
def resume(session: Session, nodes: Nodes) -> None:
    """Let paused nodes go on.

    \b
    Examples:
      labctl resume web
    """
    _act(session, "resume", nodes)
