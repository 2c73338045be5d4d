"""The program `labctl`: its verbs, each in a module of its own that is imported on use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

# Section → verb → (module under labctl.cli, one line of help).  Help is here as well as in the
# modules, so that `labctl --help` imports none of them; a test keeps the two equal.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Labs": {
        "up": ("lifecycle", "Bring a lab up, or go on with one that is there."),
        "plan": ("lifecycle", "Show what `up` would do, touching nothing."),
        "down": ("lifecycle", "Take a lab down and leave the host as it was."),
        "status": ("lifecycle", "Show a lab and its nodes as they are now."),
        "ls": ("lifecycle", "List the labs of this home."),
        "stats": ("watching", "Show what nodes use: CPU, memory, network, disks, processes."),
        "wait": ("lifecycle", "Wait until nodes are in a state."),
        "check": ("lifecycle", "Run the checks of a lab's profile."),
    },
    "Nodes": {
        "exec": ("nodes", "Run a command in a node, as if it were here."),
        "run": ("nodes", "Run a command in many nodes."),
        "ssh": ("nodes", "Open a login shell in a node."),
        "console": ("nodes", "Attach to a machine's console (leave with Ctrl-])."),
        "cp": ("nodes", "Copy files into a node or out of it."),
        "logs": ("nodes", "Show what a node's command printed."),
        "attach": ("nodes", "Sit at a node: its console, or its command's output as it comes."),
        "events": ("watching", "Show what labs went through, also those that are gone."),
        "top": ("watching", "List the processes of a node."),
        "start": ("power", "Start stopped nodes."),
        "stop": ("power", "Stop nodes; they keep their disks."),
        "restart": ("power", "Stop nodes and start them again."),
        "pause": ("power", "Freeze nodes where they are."),
        "resume": ("power", "Let paused nodes go on."),
    },
    "Understanding": {
        "compare": ("views", "Make the same observations in every node, side by side."),
        "bench": ("bench", "Measure a lab's nodes and the bare host, and compare."),
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
GROUPS = ("bench", "image", "registry")  # verbs that have verbs of their own
ALIASES = {"deploy": "up", "destroy": "down"}


def main() -> None:
    """Run the command line and end the process with its exit code."""
    import gc

    from labctl.cli import entry
    from labctl.cli.report import guarded

    # Of what a command makes hardly anything is garbage: looking for it often costs a tenth of the time.
    gc.set_threshold(200_000, 20, 100)
    code: object
    words = sys.argv[1:]
    try:
        code = guarded(lambda: _act(words))
    except SystemExit as end:
        code = end.code
    entry.tell_at_once()
    _leave(code)


def _act(words: list[str]) -> None:
    from labctl.cli import entry

    entry.listen_to_ctrl_c()
    if not _standing(words):
        (_plain(words) or _by_typer)()


def _standing(words: list[str]) -> bool:
    """Whether it is an `up` that has nothing to do, which is answered then."""
    if words[:1] != ["up"] and words[:1] != ["deploy"]:
        return False
    import time

    from labctl.lab import again

    began = time.monotonic()
    answer = again.standing(words)
    if answer is None:
        again.asked = words
        return False
    if not ({"-q", "--quiet"} & set(words) and "--json" not in words):
        from labctl.cli import lifecycle

        lifecycle.show_standing(answer, words, time.monotonic() - began)
    return True


def _plain(words: list[str]) -> Callable[[], object] | None:
    """The verb with its values, when the command line is one that needs no typer (see light)."""
    import os

    where = {verb: module for verbs in VERBS.values() for verb, (module, _help) in verbs.items()}
    name = ALIASES.get(words[0], words[0]) if words else ""
    if name not in where or name in GROUPS or "_LABCTL_COMPLETE" in os.environ:
        return None
    from labctl.cli import light

    verb = import_module(f"labctl.cli.{where[name]}").app.verbs[name]
    values = light.read(verb, words[1:])
    return None if values is None else lambda: verb.function(**values)


def _by_typer() -> object:
    from labctl.cli import tree

    tree.run()
    return 0


def __getattr__(name: str) -> Any:
    """What typer needs is loaded with it."""
    if name in ("app", "EPILOG", "LazyCommands", "LazyGroup"):
        return getattr(import_module("labctl.cli.tree"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
