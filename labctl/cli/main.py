"""The program `labctl`: a lazy group of verbs, each in a module of its own that is imported on use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Section → verb → (module under labctl.cli, one line of help).  Help is here as well as in the
# modules, so that `labctl --help` imports none of them; a test keeps the two equal.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Labs": {
        "up": ("lifecycle", "Bring a lab up, or go on with one that is there."),
        "plan": ("lifecycle", "Show what `up` would do, touching nothing."),
        "down": ("lifecycle", "Take a lab down and leave the host as it was."),
        "status": ("lifecycle", "Show a lab and its nodes as they are now."),
        "ls": ("lifecycle", "List the labs of this home."),
        "wait": ("lifecycle", "Wait until nodes are in a state."),
        "check": ("lifecycle", "Run the checks of a lab's profile."),
    },
    "Nodes": {
        "exec": ("nodes", "Run a command in a node, as if it were here."),
        "run": ("nodes", "Run a command in many nodes."),
        "ssh": ("nodes", "Open a login shell in a node."),
        "console": ("nodes", "Attach to a VM's serial console (leave with Ctrl-])."),
        "cp": ("nodes", "Copy files into a node or out of it."),
        "logs": ("nodes", "Show what a node's command printed."),
        "start": ("power", "Start stopped nodes."),
        "stop": ("power", "Stop nodes; they keep their disks."),
        "restart": ("power", "Stop nodes and start them again."),
        "pause": ("power", "Freeze nodes where they are."),
        "resume": ("power", "Let paused nodes go on."),
    },
    "Understanding": {
        "compare": ("views", "Make the same observations in every node, side by side."),
        "inspect": ("views", "Show everything known about a lab or a node."),
        "graph": ("views", "Draw a lab: text, Mermaid or SVG."),
        "doctor": ("views", "Try what this host can do, and say what to do about the rest."),
        "gc": ("views", "Remove what labs left behind that no ledger names."),
    },
    "Profiles": {
        "init": ("profiles", "Write a commented profile to start from."),
        "validate": ("profiles", "Check a profile and show all its mistakes."),
        "schema": ("profiles", "Print the JSON Schema of profiles, for editors."),
    },
    "Images": {
        "image": ("images", "Build, list, move and check images."),
        "registry": ("registry", "Run an image registry for a class on this host."),
    },
}
GROUPS = ("image", "registry")  # verbs that have verbs of their own
ALIASES = {"deploy": "up", "destroy": "down"}


class LazyCommands(MutableMapping[str, Any]):
    """The verbs by name; a verb's module is imported when the verb is looked up."""

    def __init__(self) -> None:
        self._where = {name: spec[0] for verbs in VERBS.values() for name, spec in verbs.items()}
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            real = ALIASES.get(name, name)
            group = typer.main.get_group(import_module(f"labctl.cli.{self._where[real]}").app)
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
comes with labctl (spectrum, hello, vms, inside, namespaces, web).

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


def main() -> None:
    """Run the command line and end the process with its exit code."""
    import gc

    from labctl.cli.report import guarded

    # Of what a command makes hardly anything is garbage: looking for it often costs a tenth of the time.
    gc.set_threshold(200_000, 20, 100)
    code: object
    try:
        code = guarded(lambda: typer.main.get_command(app).main(prog_name="labctl"))
    except SystemExit as end:
        code = end.code
    _leave(code)


def _leave(code: object) -> None:
    """End the process at once: taking the interpreter apart piece by piece takes 10 ms and more.

    What must be done at the end is done; where it can't be known, the process ends the long way.
    """
    import atexit
    import os
    import threading

    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if others or not (code is None or isinstance(code, int)):
        sys.exit(code)  # type: ignore[arg-type]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit((code or 0) & 0xFF)
