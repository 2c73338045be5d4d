"""What every verb gets: where labctl lives, how to draw, and the options that all verbs share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

from labctl.cli import config, report
from labctl.cli import light as typer
from labctl.errors import UsageError
from labctl.events import Emit
from labctl.home import Home
from labctl.records import dataclass


@dataclass(frozen=True)
class Session:
    """One call of labctl.  `uri` is the libvirt connection asked for, "" for labctl's choice."""

    home: Home
    uri: str
    progress: str
    fallback: str
    nested: str
    verbose: bool
    quiet: bool
    json: bool

    @contextmanager
    def drawing(self) -> Iterator[Emit]:
        """An Emit that draws on stderr until the block ends."""
        from labctl.cli.progress import drawing

        with drawing(self.progress, verbose=self.verbose, quiet=self.quiet) as emit:
            yield emit

    def say(self, text: str) -> None:
        """A remark on stderr, unless --quiet."""
        if not self.quiet:
            report.warn(text)


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell every step.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell only what went wrong.")]
ProgressOption = Annotated[
    str, typer.Option("--progress", metavar="HOW", help="auto, plain, json or tty.  [default: auto]")
]
LibvirtUri = Annotated[
    str,
    typer.Option(
        "--libvirt", metavar="URI", help="libvirt to use, in place of the system's or a private one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _common(data: bool) -> list[typer.Parameter]:
    kinds: list[tuple[str, Any, object]] = [
        ("verbose", Verbose, False),
        ("quiet", Quiet, False),
        ("progress", ProgressOption, ""),
        ("libvirt", LibvirtUri, ""),
    ]
    if data:
        kinds.insert(0, ("json", Json, False))
    return [typer.parameter(name, kind, default) for name, kind, default in kinds]


def verb(*, data: bool = True) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a function a verb: it gets a Session and, on the command line, the options all verbs share.

    The function returns an exit code, or None for 0.  Its errors become one message and a code.
    `data` adds --json.
    """

    def wrap(function: Callable[..., int | None]) -> Callable[..., None]:
        shared = _common(data)

        def run(**values: Any) -> None:
            result: list[int | None] = []

            def act() -> None:
                common = {parameter.name: values.pop(parameter.name) for parameter in shared}
                result.append(function(_session(**common), **values))

            with terminated():
                code = report.guarded(act)
            if code or (result and result[0]):
                raise SystemExit(code or result[0] or 0)

        run.parameters = lambda: [*typer.written(function), *shared]  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return run

    return wrap


def _session(*, verbose: bool, quiet: bool, progress: str, libvirt: str, json: bool = False) -> Session:
    if progress and progress not in config.PROGRESS:
        raise UsageError(f"--progress {progress}: one of {', '.join(config.PROGRESS)} is expected")
    file = config.load()
    return Session(
        home=Home.find(),
        uri=libvirt or file.libvirt,
        progress=progress or file.progress,
        fallback=file.fallback,
        nested=file.nested,
        verbose=verbose,
        quiet=quiet,
        json=json,
    )


@contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM and SIGHUP end a verb as Ctrl-C does: with its work in order, and exit code 130."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    kept = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup's wish to ignore SIGHUP stands.
        if signal.getsignal(number) is not signal.SIG_IGN:
            kept[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def key_values(words: list[str], option: str) -> dict[str, str]:
    """Options of the form KEY=VALUE; KEY alone takes the value of this environment."""
    pairs = {}
    for word in words:
        key, given, value = word.partition("=")
        if not key or (not given and key not in os.environ):
            raise UsageError(f"{option} {word}: KEY=VALUE is expected")
        pairs[key] = value if given else os.environ[key]
    return pairs
