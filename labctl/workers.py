"""Threads that a Ctrl-C does not wait for: the pool that all rooms share.

`concurrent.futures.ThreadPoolExecutor` joins its threads when its block is left and again when the
interpreter ends, so that a command that hangs in one node would hold a Ctrl-C back for as long.  These are
daemon threads.  Ending while they work is safe by design: the ledger names every object, and a command that
loses its caller is ended where it runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """At most `width` threads, begun when there is work for them.

    Leaving the block waits for all work, as ThreadPoolExecutor does; left by KeyboardInterrupt it waits for
    none, and what was not begun never is.
    """

    def __init__(self, width: int, name: str = "worker") -> None:
        self._width, self._name = width, name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: list[Future[Any]] = []
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., R], *words: Any) -> Future[R]:
        """Have `function(*words)` called; the future holds what comes of it."""
        future: Future[R] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*words)
            except BaseException as error:  # noqa: BLE001 - carried to the one who asks for the result
                future.set_exception(error)
            else:
                future.set_result(result)

        self._futures.append(future)
        self._work.put(work)
        if len(self._threads) < self._width:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What becomes of each item, in their order; the first failure is raised."""
        for future in [self.submit(function, item) for item in items]:
            yield future.result()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None:
            for future in self._futures:
                future.cancel()
        for _ in self._threads:
            self._work.put(None)
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            for thread in self._threads:
                thread.join()
