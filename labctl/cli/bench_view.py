"""How a run looks while it goes on: a live table on a terminal, a line a benchmark elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from labctl.bench.happenings import CellClosed, Planned, Sampled, TaskBegun, TaskEnded
from labctl.bench.numbers import number
from labctl.cli import progress
from labctl.cli.screen import seconds
from labctl.cli.session import Session
from labctl.events import Emit, Event, Note


@contextmanager
def drawing(session: Session) -> Iterator[Emit]:
    """An Emit that draws on stderr until the block ends."""
    how = progress.choose(session.progress, sys.stderr)
    if how == "tty" and not session.quiet:
        from labctl.cli.bench_live import Board

        with Board() as board:
            yield board
        return
    with progress.drawing(how, verbose=session.verbose, quiet=session.quiet) as inner:
        yield inner if how == "json" else Lines(inner, quiet=session.quiet)


def line(event: Event) -> str:
    """What a person reads of an event of the run; "" for those that need no line."""
    if isinstance(event, Planned):
        return f"{len(event.tasks)} benchmarks in {', '.join(event.places)}; samples go to {event.folder}"
    if isinstance(event, TaskBegun):
        return f"[{event.number}/{event.total}] {event.key}: {event.title} (about {seconds(event.left)} left)"
    if isinstance(event, CellClosed):
        return f"{event.key} in {event.place}: {event.reason}"
    return ""


class Lines:
    """Turns the run's events into notes, so that they are drawn as all lines are."""

    def __init__(self, inner: Emit, *, quiet: bool) -> None:
        self._inner, self._quiet = inner, quiet
        self._last: dict[tuple[str, str], Sampled] = {}

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Sampled):
            if event.phase == "measured":
                self._last[event.key, event.place] = event
        elif isinstance(event, TaskEnded):
            self._inner(Note(event.lab, f"{event.key}: {self._medians(event.key)}{event.reason}"))
        elif isinstance(event, CellClosed):
            self._inner(Note(event.lab, line(event), "warning" if event.failed else "info"))
        elif text := line(event):
            self._inner(Note(event.lab, text))
        else:
            self._inner(event)

    def _medians(self, key: str) -> str:
        found = [sample for (of, _place), sample in self._last.items() if of == key]
        told = ", ".join(f"{_label(s)} {number(s.median)} {s.unit}" for s in found)
        return f"{told}; " if told else ""


def _label(sample: Sampled) -> str:
    return f"{sample.place} ({sample.mark})" if sample.mark else sample.place
