"""What labs go through, kept in the home so that it can be read after they are gone.

STATE/events.jsonl has a JSON object a line; at 1 MiB it becomes events.jsonl.1, and what was that goes.
What a keeper sees, the ends of containers and kills for want of memory, is in RUN/ended.jsonl
(labctl.runtime.ends) until `down` takes it over.
A disk that is full or read-only keeps no journal, and no verb from its work.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from labctl.errors import LabError
from labctl.events import Emit, Event, NodePhase, Note, StepFailed
from labctl.home import Home
from labctl.records import dataclass
from labctl.resource.ledger import Ledger
from labctl.runtime.ends import FILE as ENDED

MOST = 1 << 20  # bytes of a journal before it begins anew
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Happening:
    """Something that a lab went through.  `at` is seconds since the epoch; `node` "" is the lab itself.

    `event`: up-began, up, up-failed, down-began, down, down-failed; a node's phase (starting, running,
    ready, stopped, paused, failed); ended (its command, with the `exit_code`, None where nobody saw it); oom
    (`count` processes killed for want of memory); step-failed, warning, error.  `id` is the lab's, which
    stays the same when a lab of that name is made again.
    """

    at: float
    lab: str
    id: str
    event: str
    node: str = ""
    detail: str = ""
    exit_code: int | None = None
    count: int = 0


def path_of(home: Home) -> Path:
    """The journal of a home."""
    return home.state / "events.jsonl"


def write(home: Home, happenings: list[Happening]) -> None:
    """Add to the journal, as far as the disk lets us."""
    text = "".join(json.dumps(_plain(one), ensure_ascii=False) + "\n" for one in happenings)
    lines = text.encode("utf-8", "surrogateescape")  # in one write: two verbs' lines don't mix
    path = path_of(home)
    with contextlib.suppress(OSError):
        with _appending(path) as fd:
            if os.fstat(fd).st_size <= MOST:
                os.write(fd, lines)
                return
            _put_aside(path, fd)
        with _appending(path) as fd:
            os.write(fd, lines)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[int]:
    """The journal, opened.  It is not asked for by its path: what `up` asks for decides its quick answer."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _put_aside(path: Path, fd: int) -> None:
    """Begin a full journal anew, once however many see that it is full."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    if path.stat().st_ino == os.fstat(fd).st_ino:
        path.replace(path.with_name(path.name + ".1"))


def _plain(one: Happening) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in Happening.__dataclass_fields__}
    return {name: value for name, value in values.items() if value not in ("", None) or name == "exit_code"}


@contextlib.contextmanager
def kept(home: Home, name: str, lab: str, verb: str, emit: Emit) -> Iterator[Emit]:
    """An Emit that also writes the journal, while `verb` is at work on a lab; its end is written, too."""
    _tell(home, name, lab, f"{verb}-began")
    try:
        yield recording(home, {lab: name}, emit)
    except (LabError, KeyboardInterrupt) as error:
        detail = error.message if isinstance(error, LabError) else "interrupted"
        _tell(home, name, lab, f"{verb}-failed", detail)
        raise
    _tell(home, name, lab, verb)


def _tell(home: Home, name: str, lab: str, event: str, detail: str = "") -> None:
    write(home, [Happening(time.time(), name, lab, event, detail=detail)])


def recording(home: Home, names: dict[str, str], emit: Emit) -> Emit:
    """An Emit that also writes the journal.  `names` are the labs' by their ids."""

    def tell(event: Event) -> None:
        if found := _of(event, names):
            write(home, [found])
        emit(event)

    return tell


def _of(event: Event, names: dict[str, str]) -> Happening | None:
    about = event.at, names.get(event.lab, event.lab), event.lab
    if isinstance(event, NodePhase):
        return Happening(*about, event.phase, event.node, event.detail)
    if isinstance(event, StepFailed):
        text = f"could not {event.verb} {event.kind} {event.name}: {event.error}"
        return Happening(*about, "step-failed", event.node, text)
    if isinstance(event, Note) and event.level in ("warning", "error"):
        return Happening(*about, event.level, detail=event.text)
    return None


def take_over(home: Home, name: str, lab: str) -> None:
    """Keep what the lab's keeper has seen: its folder is about to go."""
    folder = home.lab(lab) / "run"
    found = [one for path in _ended(folder) for one in _read(path, name, lab)]
    if found:
        write(home, sorted(found, key=lambda one: one.at))
        for path in _ended(folder):
            with contextlib.suppress(OSError):
                path.unlink()


def _ended(folder: Path) -> list[Path]:
    return [path for path in (folder / f"{ENDED}.1", folder / ENDED) if path.exists()]


def _read(path: Path, name: str = "", lab: str = "") -> list[Happening]:
    return _Growing(path, name, lab).more()


class _Growing:
    """A file of lines that others add to, and put another in its place of now and then."""

    def __init__(self, path: Path, name: str = "", lab: str = "") -> None:
        self._path, self._about = path, {"lab": name, "id": lab} if lab else {}
        self._file: BinaryIO | None = None

    def more(self) -> list[Happening]:
        """What has come since.  Lines that are none of ours, or not whole yet, are left."""
        found = self._rest()
        try:
            if self._file and os.fstat(self._file.fileno()).st_ino == self._path.stat().st_ino:
                return found
            fresh = self._path.open("rb")
        except OSError:
            return found  # it isn't there, or not any more
        if self._file:
            self._file.close()
        self._file = fresh
        return found + self._rest()

    def _rest(self) -> list[Happening]:
        found: list[Happening] = []
        while self._file and (line := self._file.readline()):
            if not line.endswith(b"\n"):
                self._file.seek(-len(line), os.SEEK_CUR)
                break
            with contextlib.suppress(ValueError, TypeError):
                row = json.loads(line)
                known = {key: row[key] for key in row if key in Happening.__dataclass_fields__}
                found.append(Happening(**{**known, **self._about}))
        return found


def happenings(home: Home, lab: str = "", since: float = 0.0, *, follow: bool = False) -> Iterator[Happening]:
    """What the home's labs, or one of them, went through since then (seconds since the epoch), in its order;
    with `follow` also what comes, without end.  A lab's name stands also for those of before."""
    old = _Growing(path_of(home).with_name("events.jsonl.1"))
    files: dict[str, _Growing] = {"": _Growing(path_of(home))}
    told: set[tuple[float, str, str, str]] = set()  # what a keeper has seen stands in two files around `down`
    found = old.more()
    while True:
        for row in _labs(home):
            for name in (f"{ENDED}.1", ENDED):
                path = home.lab(row[0]) / "run" / name
                files.setdefault(str(path), _Growing(path, row[1], row[0]))
        found += [one for file in files.values() for one in file.more()]
        for one in sorted(found, key=lambda one: one.at):
            key = one.at, one.id, one.node, one.event
            if key not in told and one.at >= since and (not lab or lab in (one.lab, one.id)):
                yield one
            if one.event in ("ended", "oom"):
                told.add(key)
        if not follow:
            return
        found = []
        time.sleep(_POLL_SECONDS)


def _labs(home: Home) -> list[tuple[str, str]]:
    """(id, name) of the labs that there are."""
    if not home.used():
        return []
    ledger = Ledger(home.ledger)
    try:
        return [(row.id, row.name) for row in ledger.labs()]
    finally:
        ledger.close()
