"""Reading a container's log: chosen streams, the last lines, from some time to another, and as it grows.

A line's time is that of its first byte.  Sources: docker-logs(1) for what the choices mean.
"""

from __future__ import annotations

import time
from collections import deque

from labctl.runtime import logbook
from labctl.runtime.logbook import NOTE, GrowingFile, Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from labctl.runtime.logbook import Frame

_PIN_SECONDS = 0.05  # between two looks for segments that a slow reader would miss
_BATCH = 1 << 16


class Wanted:
    """What is to be read: `streams` a mask, `tail` the last lines, `since` and `until` nanoseconds since the
    epoch (0: no bound)."""

    def __init__(self, streams: int, tail: int | None = None, since: int = 0, until: int = 0) -> None:
        self.streams, self.tail, self.since, self.until = streams, tail, since, until


class Lines:
    """Frames as pieces of lines.  A piece comes with the time of its line's first byte."""

    def __init__(self) -> None:
        self._begun: dict[int, int | None] = {}  # stream → its line's time; None: a line whose begin is gone

    def lose(self, streams: int) -> None:
        """These streams go on in the middle of lines whose begin is gone: their rest is left out."""
        for stream in logbook.STREAMS.values():
            if streams & stream:
                self._begun[stream] = None

    def pieces(self, stream: int, at: int, data: bytes) -> Iterator[tuple[int, bytes, bool]]:
        """(time of the line, bytes, whether they begin it), at most a line each."""
        for part in data.splitlines(keepends=True) if b"\r" not in data else _split(data):
            begins = stream not in self._begun
            when = self._begun.setdefault(stream, at)
            if part.endswith(b"\n"):
                del self._begun[stream]
            if when is not None:
                yield when, part, begins


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


class _Chosen:
    """A log's frames, narrowed down to what is wanted."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.lines = Lines()
        self.by_line = wanted.tail is not None or bool(wanted.since or wanted.until)

    def fits(self, when: int) -> bool:
        """Whether a line of that time is wanted; one whose time isn't known is, unless there is a bound."""
        least, most = self.wanted.since, self.wanted.until
        return (not least or when >= least) and (not most or 0 < when <= most)

    def of(self, frames: Iterable[Frame]) -> Iterator[tuple[int, int, bytes, bool]]:
        for stream, at, data in frames:
            if stream == NOTE:
                yield stream, at, data, True
            elif stream & self.wanted.streams:
                if not self.by_line:
                    yield stream, at, data, False
                    continue
                for when, part, begins in self.lines.pieces(stream, at, data):
                    if self.fits(when):
                        yield stream, when, part, begins


def _joined(pieces: Iterable[tuple[int, int, bytes, bool]]) -> Iterator[Frame]:
    """Pieces of one stream and time in one."""
    held: list[bytes] = []
    stream = at = size = 0
    for number, when, data, _ in pieces:
        if held and (number != stream or when != at or size > _BATCH):
            yield stream, at, b"".join(held)
            held, size = [], 0
        stream, at = number, when
        held.append(data)
        size += len(data)
    if held:
        yield stream, at, b"".join(held)


class _Last:
    """The last lines, while they are looked for."""

    def __init__(self, count: int) -> None:
        self._lines: deque[list[tuple[int, int, bytes, bool]]] = deque(maxlen=count)
        self._open: dict[int, list[tuple[int, int, bytes, bool]]] = {}

    def add(self, piece: tuple[int, int, bytes, bool]) -> None:
        """Take a piece of a line in."""
        stream, _, _, begins = piece
        if begins:
            self._open[stream] = []
            self._lines.append(self._open[stream])
        self._open.setdefault(stream, []).append(piece)

    def pieces(self) -> Iterator[tuple[int, int, bytes, bool]]:
        """What is left."""
        for line in self._lines:
            yield from line


def read(
    folder: str,
    wanted: Wanted,
    *,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: True,
    pause: float = 0.1,
) -> Iterator[Frame]:
    """(stream, nanoseconds since the epoch, bytes) in the order of arrival.

    While following, `ended` is asked before each look: when it says so, what there is then is the last.
    Raises OSError.
    """
    old = [(stream, GrowingFile(path)) for stream, path in logbook.old_files(folder).items()]
    old = [(stream, file) for stream, file in old if stream & wanted.streams]
    reader = Reader(folder)
    chosen = _Chosen(wanted)
    try:
        done = not follow or ended()
        yield from _joined(_begin(reader, chosen, old))
        chosen.by_line = bool(wanted.since or wanted.until)  # from here on nothing is left out by lines
        with _pinning(reader, follow):
            while not done:
                time.sleep(pause)
                done = ended() or bool(wanted.until and time.time_ns() > wanted.until)
                if not (wanted.since or wanted.until):
                    for stream, file in old:
                        for data in file.more():
                            yield stream, 0, data
                yield from _joined(chosen.of(reader.more()))
    finally:
        reader.close()


def _begin(
    reader: Reader, chosen: _Chosen, old: list[tuple[int, GrowingFile]]
) -> Iterator[tuple[int, int, bytes, bool]]:
    """What is there already."""
    wanted = chosen.wanted
    if wanted.tail is None:
        if not (wanted.since or wanted.until):
            yield from ((stream, 0, data, False) for stream, file in old for data in file.start(None))
        _at(reader, chosen, 0, 0)
        yield from chosen.of(reader.more())
        return
    number, at = logbook.place_of(reader.folder, wanted.tail, wanted.streams, wanted.until)
    last = _Last(wanted.tail)
    for stream, file in old:
        lines = Lines()
        for data in file.start(0 if number or wanted.since or wanted.until else wanted.tail):
            for when, part, begins in lines.pieces(stream, 0, data):
                last.add((stream, when, part, begins))
    _at(reader, chosen, number, at)
    for piece in chosen.of(reader.more()):
        last.add(piece)
    yield from last.pieces()


def _at(reader: Reader, chosen: _Chosen, number: int, at: int) -> None:
    """Put the reader there; lines whose begin is not read are left out (`place_of` counts on that)."""
    if number and reader.open(number, at):
        chosen.lines.lose(logbook.OUT | logbook.ERR)
        return
    first = logbook.segments(reader.folder)[:1]
    if first and reader.open(first[0]):
        chosen.lines.lose(reader.within)


class _pinning:  # noqa: N801 - used as a context manager
    """Hold newer segments for a slow reader, while following."""

    def __init__(self, reader: Reader, follow: bool) -> None:
        self._thread = self._stop = None
        if follow:
            import threading  # takes long to load in an emulated machine

            self._reader, self._stop = reader, threading.Event()
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def _run(self) -> None:
        assert self._stop is not None
        while not self._stop.wait(_PIN_SECONDS):
            try:
                self._reader.pin()
            except OSError:
                return  # the log's folder can't be read any more: the reader says so itself

    def __enter__(self) -> None:
        if self._thread:
            self._thread.start()

    def __exit__(self, *exc: object) -> None:
        if self._thread and self._stop:
            self._stop.set()
            self._thread.join(1.0)
