"""The live table of a run on a terminal.  With `live` the only module that imports rich."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from labctl.bench.happenings import CellClosed, Planned, Sampled, TaskBegun, TaskEnded
from labctl.bench.numbers import number
from labctl.cli.live import STYLES
from labctl.cli.progress import failure
from labctl.cli.screen import clean, seconds
from labctl.events import Event, NodePhase, Note, Progress, StepFailed

_SHOWN = 8  # ended benchmarks that stay in the table


class Board:
    """Draws a run until the block ends; remarks stay on the screen above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._phases: dict[str, str] = {}
        self._plan: Planned | None = None
        self._task: TaskBegun | None = None
        self._since = time.monotonic()
        self._cells: dict[str, dict[str, Sampled | CellClosed]] = {}
        self._work = ""
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take in one event; the table is redrawn four times a second."""
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._plan = event
        elif isinstance(event, TaskBegun):
            self._task, self._since = event, time.monotonic()
            self._cells[event.key] = self._cells.pop(event.key, {})
        elif isinstance(event, Sampled | CellClosed):
            self._cells.setdefault(event.key, {})[event.place] = event
        elif isinstance(event, NodePhase):
            self._phases[event.node] = event.phase
        elif isinstance(event, Progress):
            self._work = "" if event.total and event.done >= event.total else event.what
        elif isinstance(event, Note):
            self._console.print(Text(clean(event.text), style="yellow" if event.level == "warning" else ""))
        elif isinstance(event, StepFailed):
            self._console.print(Text(clean(failure(event)), style="red"))
        elif isinstance(event, TaskEnded):
            pass  # its figures are in the table

    def _draw(self) -> Group:
        with self._lock:
            if self._plan is None:
                grid = Table.grid(padding=(0, 2))
                for node, phase in self._phases.items():
                    grid.add_row(Text(clean(node)), Text(phase, style=STYLES.get(phase, "cyan")))
                return Group(grid, Text(clean(self._work), style="dim"))
            return Group(self._table(self._plan), self._line())

    def _table(self, plan: Planned) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("benchmark")
        for place in plan.places:
            table.add_column(place)
        for key in list(self._cells)[-_SHOWN:]:
            cells = [self._cell(self._cells[key].get(place)) for place in plan.places]
            table.add_row(Text(key, style="bold" if self._task and key == self._task.key else ""), *cells)
        return table

    def _cell(self, event: Sampled | CellClosed | None) -> Text:
        if event is None:
            return Text("")
        if isinstance(event, CellClosed):
            return Text("failed" if event.failed else "–", style="red" if event.failed else "dim")
        if event.phase != "measured":
            return Text("warm-up", style="dim")
        mark = f" {event.mark}" if event.mark else ""
        return Text(f"{number(event.median)} {event.unit} ({event.count}){mark}")

    def _line(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        if self._task:
            left = max(0.0, self._task.left - (time.monotonic() - self._since))
            bar = ProgressBar(total=self._task.total, completed=self._task.number - 1, width=24)
            count = f"{self._task.number}/{self._task.total}"
            grid.add_row(bar, Text(count), Text(f"about {seconds(left)} left", style="dim"),
                         Text(clean(self._task.title)))  # fmt: skip
        return grid
