"""The live picture of a terminal: a row a node with its phase and time, and one line for the lab's own work.

The only module that imports rich, and only on a terminal.
"""

from __future__ import annotations

import threading
import time
from dataclasses import field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from labctl.cli.progress import failure, topic
from labctl.cli.screen import clean, seconds
from labctl.events import Event, NodePhase, Note, Progress, StepDone, StepFailed, StepStarted
from labctl.records import dataclass

STYLES = {"ready": "green", "running": "green", "failed": "red", "skipped": "yellow", "stopped": "dim"}
ENDS = frozenset({"ready", "failed", "skipped", "stopped", "paused"})


@dataclass
class _Row:
    phase: str = "planned"
    detail: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0


class Picture:
    """Draws events with rich until the block ends; what happened stays on the screen."""

    def __init__(self, *, verbose: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._verbose = verbose
        self._rows: dict[str, _Row] = {}
        self._steps: dict[tuple[str, str], str] = {}
        self._bars: dict[str, Progress] = {}
        self._done = 0
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=8)
        self._spinner = Spinner("dots")

    def __enter__(self) -> Picture:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._steps.clear()
            self._bars.clear()
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in one event; the picture is redrawn eight times a second."""
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, NodePhase):
            row = self._rows.setdefault(event.node, _Row())
            row.phase, row.detail = event.phase, event.detail
            row.ended = time.monotonic() if event.phase in ENDS else 0.0
        elif isinstance(event, StepStarted):
            self._steps[event.kind, event.name] = event.node
        elif isinstance(event, StepDone):
            self._steps.pop((event.kind, event.name), None)
            self._done += 1
            if self._verbose:
                self._say(f"{event.verb} {event.kind} {event.name}: {seconds(event.seconds)}", "dim")
        elif isinstance(event, StepFailed):
            self._steps.pop((event.kind, event.name), None)
            self._say(failure(event), "red")
        elif isinstance(event, Note):
            self._say(event.text, {"warning": "yellow", "error": "red"}.get(event.level, ""))
        elif isinstance(event, Progress):
            self._bars[topic(event)] = event
            if event.total and event.done >= event.total:
                del self._bars[topic(event)]

    def _say(self, text: str, style: str) -> None:
        self._console.print(Text(clean(text), style=style))

    def _draw(self) -> Table:
        with self._lock:
            grid = Table.grid(padding=(0, 2))
            now = time.monotonic()
            for name, row in self._rows.items():
                busy = [f"{kind}" for (kind, _name), node in self._steps.items() if node == name]
                detail = row.detail or ", ".join(busy)
                took = seconds((row.ended or now) - row.began)
                phase = Text(row.phase, style=STYLES.get(row.phase, "cyan"))
                grid.add_row(Text(clean(name)), phase, Text(took, style="dim"), Text(clean(detail)))
            for bar in self._bars.values():
                drawn = ProgressBar(
                    total=bar.total or None, completed=bar.done, width=24, pulse=not bar.total
                )
                grid.add_row(Text(clean(bar.what)), drawn, "", "")
            lab = [f"{kind} {name}" for (kind, name), node in self._steps.items() if not node]
            if lab or (self._steps and not self._rows):
                grid.add_row(
                    self._spinner,
                    Text(f"{self._done} done", style="dim"),
                    "",
                    Text(clean(", ".join(lab[:3]))),
                )
            return grid
