"""Verbs about profile files: init, validate, schema; and finding the file that a person means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from labctl.cli import light as typer
from labctl.cli import names, screen
from labctl.cli.session import Session, verb
from labctl.data import data
from labctl.errors import ProfileError, UsageError

app = typer.Typer(rich_markup_mode=None)

ProfileArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE",
        help="A YAML file, or the name of a shipped profile.",
        autocompletion=names.complete_profile,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="PATH=VALUE", help="Change one field, e.g. nodes.web.memory=1GiB."),
]


def find(profile: str) -> Path:
    """The file that PROFILE means: a path, or a shipped profile's name.

    Raises UsageError with the nearest name.  A path that is there always wins.
    """
    path = Path(profile)
    if len(profile) > 255 or path.exists() or "/" in profile or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {file.stem: file for file in sorted(data("profiles").glob("*.yaml"))}
    if profile in shipped:
        return shipped[profile]
    from difflib import get_close_matches

    near = get_close_matches(profile, list(shipped), 1)
    known = f"did you mean {near[0]!r}?" if near else f"shipped profiles: {', '.join(shipped) or 'none'}"
    raise UsageError(f"no file and no shipped profile is called {profile!r}", hint=known)


def load(profile: str, sets: list[str], name: str = "") -> Any:
    """Load a profile (labctl.profile.Profile).  Raises ProfileError with all its mistakes."""
    from labctl.profile import load as load_file

    return load_file(find(profile), tuple(sets), name=name or None)


@app.command()
@verb()
def validate(session: Session, profile: ProfileArgument, sets: SetOption = []) -> int:  # noqa: B006
    """Check a profile and show all its mistakes.

    Each is one line: file:line:column, the field, what is wrong, the nearest right word.
    Exit code 2 when there are any.

    \b
    Examples:
      labctl validate lab.yaml
      labctl validate lab.yaml -s nodes.web.memory=1GiB
      labctl validate lab.yaml --json | jq '.problems[].message'
    """
    try:
        loaded = load(profile, sets)
    except ProfileError as error:
        if not session.json:
            raise
        screen.document({"valid": False, "problems": error.problems})
        return error.exit_code
    if session.json:
        screen.document({"valid": True, "problems": [], "profile": loaded})
    else:
        count = len(loaded.nodes)
        screen.line(f"{find(profile)}: {loaded.name} is fine: {count} node{'s' if count != 1 else ''}")
    return 0


@app.command()
@verb(data=False)
def schema(session: Session) -> None:
    """Print the JSON Schema of profiles, for editors.

    JSON Schema 2020-12.  With the YAML language server, this first line in a profile makes an
    editor complete and check it: # yaml-language-server: $schema=labctl.schema.json

    \b
    Examples:
      labctl schema > labctl.schema.json
    """
    from labctl.profile import json_schema

    screen.line(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@app.command()
@verb(data=False)
def init(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; - for stdout.")] = Path(
        "lab.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented profile to start from.

    \b
    Examples:
      labctl init                  writes lab.yaml
      labctl init mine.yaml
      labctl init -                prints it
    """
    from labctl.profile import starter

    if str(file) == "-":
        screen.line(starter().rstrip("\n"))
        return
    try:
        with file.open("w" if force else "x") as stream:
            stream.write(starter())
    except FileExistsError as error:
        raise UsageError(f"{file} is there already", hint="--force writes over it") from error
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    session.say(f"wrote {file}; next: labctl up {file}")
