"""Run steps in the order of their dependences, several at once, in batches where a kind allows it."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from labctl.errors import Interrupted, LabError
from labctl.records import dataclass
from labctl.resource.protocol import Resource, gate_of, key_of

WORKERS = 16
GRACE_SECONDS = 3.0  # after Ctrl-C, how long running steps may still end by themselves

Work = Callable[[Sequence[Resource]], "Mapping[str, LabError]"]


@dataclass(frozen=True)
class Result:
    """The keys whose work was done, and key → failure; keys in neither were never begun."""

    done: frozenset[str]
    failures: dict[str, LabError]


@dataclass(frozen=True)
class _Outcome:
    keys: tuple[str, ...]
    failures: Mapping[str, LabError]
    gate: str
    batch: str = ""  # the kind, when it was a batch


def gate_widths() -> dict[str, int]:
    """How many steps of each gate may run at once: booting machines, one per core and one more; machines
    inside a machine, one."""
    return {"boot": (os.cpu_count() or 1) + 1, "guest": 1}


def run(
    items: Iterable[Resource],
    before: Mapping[str, Iterable[str]],
    work: Work,
    *,
    batches: Callable[[Resource], bool],
    keep_going: bool = False,
) -> Result:
    """Do `work` on every item, each after those that `before` names for it.

    Items of a kind for which `batches` holds are handed over together, as many as are ready, one batch of
    a kind at a time.  After a failure nothing new starts (with `keep_going`: all that don't depend on
    it); what runs ends by itself.  Raises Interrupted on Ctrl-C, leaving steps where they are, which is
    safe by design: the ledger names every object.
    """
    return _Flow(items, before, work, batches, keep_going).run()


class _Flow:
    def __init__(
        self,
        items: Iterable[Resource],
        before: Mapping[str, Iterable[str]],
        work: Work,
        batches: Callable[[Resource], bool],
        keep_going: bool,
    ) -> None:
        self.items = {key_of(item): item for item in items}
        self.waits = {key: {b for b in before.get(key, ()) if b in self.items} for key in self.items}
        self.frees: dict[str, list[str]] = {key: [] for key in self.items}
        for key, others in self.waits.items():
            for other in others:
                self.frees[other].append(key)
        self.ready = [key for key, others in self.waits.items() if not others]
        self.work, self.batches, self.keep_going = work, batches, keep_going
        self.failures: dict[str, LabError] = {}
        self.finished: set[str] = set()
        self.gates = gate_widths()
        self.running = 0
        self.busy: set[str] = set()  # kinds of which a batch runs
        self.done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()

    def run(self) -> Result:
        try:
            while True:
                if not self.failures or self.keep_going:
                    self._start_ready()
                if not self.running:
                    return Result(frozenset(self.finished), self.failures)
                self._settle(self.done.get())
                # Whatever has ended meanwhile frees its share too, so that batches grow.
                while not self.done.empty():
                    self._settle(self.done.get())
        except KeyboardInterrupt:
            self._drain()
            raise Interrupted(
                "interrupted", hint="what stands is kept: `up` continues, `down` removes it"
            ) from None

    def _start_ready(self) -> None:
        left: list[str] = []
        groups: dict[str, list[Resource]] = {}
        for key in self.ready:
            item = self.items[key]
            if self.batches(item):
                groups.setdefault(item.kind, []).append(item)
                continue
            gate = gate_of(item)
            if self.running >= WORKERS or self.gates.get(gate, 1) <= 0:
                left.append(key)
                continue
            if gate in self.gates:
                self.gates[gate] -= 1
            self._start([item], gate)
        # One batch of a kind at a time: what becomes ready meanwhile makes the next one.
        for kind, group in groups.items():
            if kind in self.busy:
                left += [key_of(item) for item in group]
                continue
            self.busy.add(kind)
            self._start(group, "", kind)
        self.ready = left

    def _start(self, group: Sequence[Resource], gate: str, batch: str = "") -> None:
        self.running += 1
        # Daemon threads: after Ctrl-C the process may end without waiting for a slow step.
        threading.Thread(target=self._do, args=(group, gate, batch), daemon=True).start()

    def _do(self, group: Sequence[Resource], gate: str, batch: str) -> None:
        keys = tuple(key_of(item) for item in group)
        try:
            failures = dict(self.work(group))
        except LabError as error:
            failures = dict.fromkeys(keys, error)
        except Exception as error:  # noqa: BLE001 - a thread must hand every failure to the one who waits
            wrapped = LabError(f"{keys[0]}: unexpected {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            failures = dict.fromkeys(keys, wrapped)
        self.done.put(_Outcome(keys, failures, gate, batch))

    def _settle(self, outcome: _Outcome) -> None:
        self.running -= 1
        if outcome.gate in self.gates:
            self.gates[outcome.gate] += 1
        self.busy.discard(outcome.batch)
        self.failures.update(outcome.failures)
        for key in outcome.keys:
            if key in outcome.failures:
                continue
            self.finished.add(key)
            for freed in self.frees[key]:
                self.waits[freed].discard(key)
                if not self.waits[freed]:
                    self.ready.append(freed)

    def _drain(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and (left := deadline - time.monotonic()) > 0:
            try:
                self._settle(self.done.get(timeout=left))
            except queue.Empty:
                return
