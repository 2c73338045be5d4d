"""The command line as typer sees it: a lazy group of verbs, for all that main doesn't read by itself."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from labctl.cli.main import ALIASES, GROUPS, VERBS
from labctl.errors import UsageError


class LazyCommands(MutableMapping[str, Any]):
    """The verbs by name; a verb's module is imported when the verb is looked up."""

    def __init__(self) -> None:
        self._where = {name: spec[0] for verbs in VERBS.values() for name, spec in verbs.items()}
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            real = ALIASES.get(name, name)
            group = import_module(f"labctl.cli.{self._where[real]}").app.group()
            self._made[name] = group if real in GROUPS else group.commands[real]
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._where, *ALIASES])

    def __len__(self) -> int:
        return len(self._where) + len(ALIASES)


class LazyGroup(TyperGroup):
    """The top of the command line: knows its verbs by name and one line of help each."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs in the order of the help, then their aliases."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs by section, without importing their modules."""
        for section, verbs in VERBS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_module, text) in verbs.items()])
        with formatter.section("Aliases"):
            formatter.write_dl([(alias, f"The same as `{real}`.") for alias, real in ALIASES.items()])


EPILOG = """\
A node is LAB/NODE, or NODE alone where one lab is up.  A profile is a file or the name of one that
comes with labctl (spectrum, hello, vms, inside, namespaces, history, engines, web, routing, fabric, dns,
firewall, load-balancer, bench).

\b
Exit codes: 0 done, 1 failed, 2 bad usage or profile, 3 a check failed,
4 this host can't, 130 interrupted; `exec` returns the command's.
"""

app = typer.Typer(
    cls=LazyGroup,
    name="labctl",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


# What typer raises for a command line that it can't read.
_Mistake: Any = typer.BadParameter.__base__


def run() -> None:
    """Read the command line and run the verb.  Raises UsageError for one that is wrong, SystemExit."""
    try:
        code = typer.main.get_command(app).main(prog_name="labctl", standalone_mode=False)
    except _Mistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is the message
            error.show()
            raise SystemExit(error.exit_code) from None
        raise _told(error) from None
    if code:  # of typer.Exit; verbs return nothing
        raise SystemExit(code)


def _told(error: Any) -> UsageError:
    """Typer's mistake as one sentence of ours, with the verb's usage as the way out."""
    said = " ".join(error.format_message().split()).rstrip(".")
    verb = error.ctx.command_path if error.ctx else "labctl"
    usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ") if error.ctx else verb
    return UsageError(f"{verb}: {said[:1].lower()}{said[1:]}", hint=f"{usage} (more: {verb} -h)")


def _version(wanted: bool) -> None:
    if wanted:
        from labctl import __version__

        typer.echo(f"labctl {__version__}")
        raise typer.Exit


@app.callback()
def labctl(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Virtual machines and containers side by side in one lab, from one YAML profile.

    \b
      labctl up spectrum           one node a tier, from one image
      labctl compare spectrum      what differs between the tiers
      labctl exec emu -- uname -a
      labctl down spectrum
    """
