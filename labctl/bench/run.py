"""The run: every task in every place, in turns, until it is precise enough or the time is spent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labctl.bench import conditions, drift, statistics
from labctl.bench import site as sites
from labctl.bench.faults import Failed, NotHere
from labctl.bench.happenings import CellClosed, Planned, Sampled, TaskBegun, TaskEnded
from labctl.bench.measuring import Measuring, Taken
from labctl.bench.places import Place
from labctl.bench.plan import Plan, order
from labctl.bench.site import Site
from labctl.bench.store import OUTPUT_LIMIT, Journal
from labctl.bench.tasktypes import Task
from labctl.errors import LabError
from labctl.events import Emit, Note

MOST_FAILURES = 2  # of one task in one place
CLOCK_JUMP = 0.5  # seconds between the wall clock and the monotonic one, in one run
PROBE_EVERY = 15.0  # seconds between two looks at whether the host drifts
_FIRST_GUESS = 1.0  # seconds a run is taken to last before one was made


@dataclass
class Cell:
    """A task in a place so far.  `closed` says why it gets no further runs."""

    samples: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: int = 0
    closed: str = ""


class Run:
    """Measures; every sample is in the journal before the next is begun.  `earlier` are its lines so far."""

    def __init__(
        self,
        site: Site,
        tasks: Sequence[Task],
        plan: Plan,
        journal: Journal,
        emit: Emit,
        folder: str,
        earlier: Sequence[Mapping[str, object]] = (),
    ) -> None:
        self._site, self._tasks, self._plan = site, tasks, plan
        self._journal, self._emit, self._folder = journal, emit, folder
        self._earlier = earlier
        self._cells: dict[str, dict[str, Cell]] = {}
        self._ended: set[str] = set()
        self._lack: dict[str, set[str]] = {}
        self._dead: dict[str, str] = {}
        self._probed = 0.0
        self._pace = _FIRST_GUESS
        self._deadline = time.monotonic() + plan.budget if plan.budget else float("inf")
        # Seconds that a long task leaves to each later one; a number of runs that was asked for is made.
        self._share = 0.0 if plan.runs else plan.budget / max(1, len(tasks))

    def all(self) -> None:
        """Run every task.  Raises LabError when samples can't be written; what was measured is kept."""
        site = self._site
        self._emit(Planned(site.lab, tuple(t.key for t in self._tasks), tuple(site.places), self._folder))
        self._ask_for_programs()
        self._probe(always=True)
        ended = {str(line["task"]) for line in self._earlier if line.get("type") == "task-ended"}
        todo = [task for task in self._tasks if task.key not in ended]
        for number, task in enumerate(todo):
            self._tell(task, number + 1 + len(ended), len(todo) - number)
            self._turns(task, self._plan.least, self._deadline - self._share * (len(todo) - number - 1))
            if self._plan.runs or task.early or self._precise(task) or not self._still_open(task):
                self._end(task)
        wide = [task for task in todo if task.key not in self._ended]
        for number, task in enumerate(wide):
            now = time.monotonic()
            if self._deadline > now:
                self._tell(task, len(self._tasks) - len(wide) + number + 1, len(wide) - number)
                self._turns(task, self._plan.limit, now + (self._deadline - now) / (len(wide) - number))
            self._end(task)
        self._probe(always=True)

    def _tell(self, task: Task, number: int, left: int) -> None:
        budget = self._deadline - time.monotonic()
        guess = left * self._pace * len(self._site.places) * self._plan.least
        # With a precision to reach, the time that there is will be used.
        told = guess if self._plan.runs else min(budget, 4 * guess)
        event = TaskBegun(
            self._site.lab, task.key, task.title, number, len(self._tasks), max(0.0, min(told, budget))
        )
        self._emit(event)

    def _end(self, task: Task) -> None:
        runs = max((len(cell.samples) for cell in self._cells_of(task).values()), default=0)
        word = (
            "precise enough"
            if self._precise(task)
            else "done"
            if self._plan.runs
            else "as precise as the time allowed"
        )
        reason = f"{word} after {runs} runs" if runs else "no figure in any place"
        self._ended.add(task.key)
        self._journal.write("task-ended", {"task": task.key, "reason": reason})
        self._emit(TaskEnded(self._site.lab, task.key, reason))

    def _cells_of(self, task: Task) -> dict[str, Cell]:
        """The cells of a task, with what an interrupted run has measured already."""
        if task.key not in self._cells:
            self._cells[task.key] = {name: self._before(task, name) for name in self._site.places}
        return self._cells[task.key]

    def _still_open(self, task: Task) -> bool:
        return any(not cell.closed for cell in self._cells_of(task).values())

    def _precise(self, task: Task) -> bool:
        """Whether every place that has a figure has it precisely enough."""
        found = [cell.samples for cell in self._cells_of(task).values() if cell.samples and not cell.closed]
        if not found or min(map(len, found)) < self._plan.least:
            return False
        return all(statistics.summary(samples).precision <= self._plan.precision for samples in found)

    def _turns(self, task: Task, runs: int, until: float) -> None:
        """One task in all places by turns, up to `runs` in each, until it is precise or `until` comes."""
        cells = self._cells_of(task)
        turn = min((len(cell.samples) for cell in cells.values() if not cell.closed), default=runs)
        if turn >= runs:
            return
        if time.monotonic() >= self._deadline:
            for name in cells:
                if not cells[name].samples and not cells[name].closed:
                    cells[name].closed = "not run: the time budget was spent"
                    self._close(task, name, cells[name].closed, failed=True)
            return
        measuring = Measuring(self._site, task)
        begun: list[Place] = []
        try:
            self._prepare(task, cells, measuring, begun)
            while turn < runs and self._still_open(task):
                if (turn >= self._plan.least and self._precise(task)) or (turn and time.monotonic() >= until):
                    return
                for name in order(list(cells), task.key, turn, self._plan.seed):
                    if len(cells[name].samples) <= turn and not cells[name].closed:
                        self._one(task, name, cells[name], measuring, "measured")
                turn += 1
                self._probe()
        finally:
            for place in begun:
                measuring.finish(place)

    def _prepare(self, task: Task, cells: dict[str, Cell], measuring: Measuring, begun: list[Place]) -> None:
        """Make every place ready and warm it up."""
        for name, cell in cells.items():
            if self._open(task, name, cell):
                begun.append(self._site.places[name])
                self._ready(task, name, cell, measuring)
        for _ in range(task.warmup):
            for name, cell in cells.items():
                if not cell.closed:
                    self._one(task, name, cell, measuring, "warm-up")

    def _before(self, task: Task, name: str) -> Cell:
        """The cell with what an interrupted run has measured already."""
        cell = Cell()
        first = task.figures[0].name
        for line in self._earlier:
            if line.get("task") != task.key or line.get("place") != name:
                continue
            values = line.get("values")
            if line.get("type") == "sample" and line.get("phase") == "measured" and isinstance(values, dict):
                cell.samples.append(float(values[first]))
            elif line.get("type") == "cell":
                cell.closed = str(line.get("reason"))
        return cell

    def _open(self, task: Task, name: str, cell: Cell) -> bool:
        """Whether the task can run there at all; closes the cell with the reason when not."""
        if cell.closed:
            return False
        lacking = sorted(self._lack.get(name, set()) & set(task.needs))
        if name in self._dead:
            cell.closed = self._dead[name]
        elif lacking:
            cell.closed = f"its image has no {', '.join(lacking)}"
        if cell.closed:
            self._close(task, name, cell.closed, failed=True)
        return not cell.closed

    def _close(self, task: Task, name: str, reason: str, *, failed: bool) -> None:
        self._journal.write("cell", {"task": task.key, "place": name, "reason": reason, "failed": failed})
        self._emit(CellClosed(self._site.lab, task.key, name, reason, failed))

    def _ready(self, task: Task, name: str, cell: Cell, measuring: Measuring) -> None:
        """Prepare a place; what fails closes the cell."""
        try:
            measuring.prepare(self._site.places[name])
        except NotHere as error:
            cell.closed = error.message
            self._close(task, name, error.message, failed=False)
        except LabError as error:
            cell.closed = error.message
            self._failed(task, name, "preparation", error)
            self._close(task, name, error.message, failed=True)

    def _one(self, task: Task, name: str, cell: Cell, measuring: Measuring, phase: str) -> None:
        """One run in one place, written down whatever comes of it."""
        wall, steady = time.time(), time.monotonic()
        try:
            taken = measuring.measure(self._site.places[name])
        except NotHere as error:
            cell.closed = error.message
            self._close(task, name, error.message, failed=False)
            return
        except LabError as error:
            cell.failures += 1
            self._failed(task, name, phase, error)
            self._after_failure(task, name, cell, error)
            return
        took = time.monotonic() - steady
        jump = time.time() - wall - took
        self._keep(task, name, cell, phase, taken, jump)

    def _keep(self, task: Task, name: str, cell: Cell, phase: str, taken: Taken, jump: float) -> None:
        place = self._site.places[name]
        body = {
            "task": task.key,
            "place": name,
            "phase": phase,
            "values": taken.values,
            "seconds": round(taken.seconds, 6),
            "turn": len(cell.samples),
            "emulated": place.emulated,
            "nested": place.nested,
            **conditions.now(),
        }
        if abs(jump) > CLOCK_JUMP:
            body["clock_jump"] = round(jump, 3)
            self._emit(
                Note(self._site.lab, f"{task.key}: the clock jumped by {jump:+.1f} s during a run", "warning")
            )
        self._journal.write("sample", body)
        figure = task.figures[0]
        value = taken.values[figure.name]
        if phase == "measured":
            cell.samples.append(value)
        cell.seconds.append(taken.seconds)
        self._pace = 0.8 * self._pace + 0.2 * taken.seconds
        middle = sorted(cell.samples)[len(cell.samples) // 2] if cell.samples else value
        self._emit(
            Sampled(
                self._site.lab,
                task.key,
                name,
                place.mark,
                phase,
                value,
                figure.unit,
                len(cell.samples),
                middle,
                taken.seconds,
            )
        )

    def _failed(self, task: Task, name: str, phase: str, error: LabError) -> None:
        output = error.output[-OUTPUT_LIMIT:] if isinstance(error, Failed) else ""
        body = {"task": task.key, "place": name, "phase": phase, "error": str(error), "output": output}
        self._journal.write("failure", {**body, **conditions.now()})

    def _after_failure(self, task: Task, name: str, cell: Cell, error: LabError) -> None:
        """Look whether the node is there still; start it again once, or close what can't be measured."""
        place = self._site.places[name]
        if not place.is_host:
            try:
                sites.revive(self._site, name)
            except LabError as gone:
                self._dead[name] = f"the node died in the middle and did not come back: {gone.message}"
                cell.closed = self._dead[name]
        if cell.failures >= MOST_FAILURES and not cell.closed:
            cell.closed = f"failed {cell.failures} times: {error.message}"
        if cell.closed:
            self._close(task, name, cell.closed, failed=True)
        else:
            self._emit(Note(self._site.lab, f"{task.key} in {name}: {error.message}", "warning"))

    def _ask_for_programs(self) -> None:
        """Which programs each place lacks, asked once."""
        wanted = sorted({program for task in self._tasks for program in task.needs})
        for name, place in self._site.places.items():
            try:
                self._lack[name] = sites.missing_programs(place, wanted)
            except LabError as error:
                self._dead[name] = error.message

    def _probe(self, *, always: bool = False) -> None:
        if always or time.monotonic() - self._probed > PROBE_EVERY:
            self._journal.write("probe", {"seconds": round(drift.probe(), 6), **conditions.now()})
            self._probed = time.monotonic()
