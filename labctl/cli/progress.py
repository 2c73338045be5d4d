"""Drawing the events of a long piece of work, always on stderr: lines, JSON lines, or a live picture."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from labctl.cli.screen import clean, seconds
from labctl.events import Emit, Event, NodePhase, Note, Progress, StepDone, StepFailed, StepStarted

DONE = {"make": "made", "unmake": "removed", "change": "changed", "look": "looked at"}


def choose(wanted: str, stream: TextIO) -> str:
    """Which drawing `auto` means: the picture on a capable terminal, plain lines elsewhere."""
    if wanted != "auto":
        return wanted
    capable = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")
    return "tty" if capable else "plain"


@contextmanager
def drawing(how: str, *, verbose: bool = False, quiet: bool = False) -> Iterator[Emit]:
    """An Emit that draws until the block ends.  Safe to call from several threads."""
    how = choose(how, sys.stderr)
    if how == "json":
        yield JsonLines(sys.stderr)
    elif how == "tty" and not quiet:
        from labctl.cli.live import Picture

        with Picture(verbose=verbose) as picture:
            yield picture
    else:
        yield Lines(sys.stderr, verbose=verbose, quiet=quiet)


class JsonLines:
    """One JSON object a line: the event's class and fields."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        from labctl.cli.screen import SCHEMA_VERSION, plain

        body: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "event": type(event).__name__,
            **plain(event),
        }
        with self._lock:
            print(json.dumps(body, ensure_ascii=False), file=self._stream, flush=True)


class Lines:
    """A line where something changed for a person: phases, failures, notes; every step with --verbose."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, quiet: bool = False) -> None:
        self._stream = stream
        self._verbose = verbose
        self._quiet = quiet
        self._began = time.time()
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write one event, when it is worth a line."""
        with self._lock:
            text = self._text(event)
            if text:
                stamp = f"[{max(0.0, event.at - self._began):6.1f} s] "
                print(stamp + clean(text), file=self._stream, flush=True)

    def _text(self, event: Event) -> str:
        if isinstance(event, StepFailed):
            return failure(event)
        if isinstance(event, Note):
            loud = event.level in ("warning", "error")
            return (f"{event.level}: {event.text}" if loud else event.text) if loud or not self._quiet else ""
        if self._quiet:
            return ""
        if isinstance(event, NodePhase):
            return f"{event.node}: {event.phase}" + (f" ({event.detail})" if event.detail else "")
        if isinstance(event, StepDone) and self._verbose:
            what = f"{DONE.get(event.verb, event.verb)} {event.kind} {event.name}"
            return f"{owner(event)}{what} in {seconds(event.seconds)}"
        if isinstance(event, StepStarted) and self._verbose:
            return f"{owner(event)}{event.verb} {event.kind} {event.name}"
        if isinstance(event, Progress):
            return self._progress(event)
        return ""

    def _progress(self, event: Progress) -> str:
        """The start, the end, and every fifth second between: a log is no place for a bar."""
        what = topic(event)
        now, last = time.monotonic(), self._told.get(what)
        ended = event.total > 0 and event.done >= event.total
        if last is not None and not ended and now - last < 5:
            return ""
        if ended:
            self._told.pop(what, None)
        else:
            self._told[what] = now
        share = f": {100 * event.done / event.total:.0f} %" if event.total else ""
        return f"{event.what}{share}"


def topic(event: Progress) -> str:
    """What the progress is about, without the step that it has come to.

    "image base: libc6" is about "image base"; "trying nft", one of many trials, about "trying".
    """
    return "trying" if event.what.startswith("trying ") else event.what.partition(": ")[0]


def owner(event: StepStarted | StepDone | StepFailed) -> str:
    """The node that a step belongs to, as a prefix; "" for the lab's own."""
    return f"{event.node}: " if event.node else ""


def failure(event: StepFailed) -> str:
    """What a person reads about a failed step."""
    text = f"{owner(event)}could not {event.verb} {event.kind} {event.name}: {event.error}"
    return f"{text} (hint: {event.hint})" if event.hint else text
