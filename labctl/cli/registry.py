"""Verbs about registries on this host: `registry serve` and the others of its group."""

from __future__ import annotations

from typing import Annotated

from labctl.cli import light as typer
from labctl.cli import screen
from labctl.cli.session import Session, verb

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Run an image registry for a class on this host.\n\nIt is Debian's docker-registry.",
)


def _complete(incomplete: str) -> list[str]:
    from labctl.errors import LabError
    from labctl.home import Home
    from labctl.lab.model import Options
    from labctl.lab.registries import listed

    try:
        names = [entry["name"] for entry in listed(Options(home=Home.find()))]
    except (LabError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


@app.command()
@verb()
def serve(
    session: Session,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is called.")] = "registry",
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", help="Where; 0.0.0.0:5000 for everybody.")
    ] = "127.0.0.1:5000",
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="Where it keeps images.")] = "",
    certificate: Annotated[str, typer.Option("--tls-cert", metavar="FILE", help="For TLS (PEM).")] = "",
    key: Annotated[str, typer.Option("--tls-key", metavar="FILE", help="The certificate's key (PEM).")] = "",
    htpasswd: Annotated[
        str, typer.Option("--htpasswd", metavar="FILE", help="Logins, as `htpasswd -B` writes them.")
    ] = "",
) -> None:
    """Start a registry that goes on in the background; again with other options to change it.

    `registry stop`, `down NAME` and `down --all` end it; the images stay for the next time.

    \b
    Examples:
      labctl registry serve
      labctl registry serve --listen 0.0.0.0:5000 --name class
      labctl image push base localhost:5000/class/base:1
    """
    from labctl.lab import registries
    from labctl.lab.model import Options

    wanted = registries.Wanted(name, listen, data, certificate, key, htpasswd)
    with session.drawing() as emit:
        told = registries.serve(wanted, Options(home=session.home), emit)
    if session.json:
        screen.document({"registry": told})
    else:
        screen.line(f"{told['name']} answers on {told['url']}; its images are in {told['data']}")


@app.command()
@verb()
def ls(session: Session) -> None:
    """List the registries of this home.

    \b
    Examples:
      labctl registry ls
    """
    from labctl.lab import registries
    from labctl.lab.model import Options

    found = registries.listed(Options(home=session.home))
    if session.json:
        screen.document({"registries": found})
        return
    rows = [(one["name"], one["url"], one["state"], one["data"]) for one in found]
    screen.line(screen.table(["registry", "url", "state", "data"], rows))


@app.command()
@verb()
def stop(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Which one.", autocompletion=_complete)
    ] = "registry",
) -> None:
    """End a registry; what was pushed into it stays.

    \b
    Examples:
      labctl registry stop
    """
    from labctl.lab import registries
    from labctl.lab.model import Options

    with session.drawing() as emit:
        was = registries.stop(name, Options(home=session.home), emit)
    if session.json:
        screen.document({"stopped": [name] if was else []})
    elif not was:
        session.say(f"no registry is called {name}")
