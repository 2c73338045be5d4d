"""Stops that were begun: noted on disk before a node is asked to end, so that a killed one is finished.

Without that a node that still shuts down would be taken as running by the next `up` or `start`, which would
call it ready, and then it would end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labctl.errors import LabError
from labctl.home import Home, write_hint
from labctl.resource.ledger import LabRow, Ledger, Row


def _folder(home: Home, row: LabRow) -> Path:
    return home.lab(row.id) / "stopping"


@contextmanager
def noted(ledger: Ledger, home: Home, row: LabRow, node: str, main: Row) -> Iterator[None]:
    """Note that the node is being stopped, until it is.  The note stays when the block fails or is killed."""
    # As a change of the lab, which takes away what the last `up` left for a quick answer.
    ledger.mark(row.id, main.state, {main.key: (main.seconds, main.error)})
    note = _folder(home, row) / node
    try:
        note.parent.mkdir(exist_ok=True)
        note.touch()
    except OSError as error:
        raise LabError(f"cannot write {note}: {error.strerror}", hint=write_hint(note, error)) from error
    yield
    note.unlink(missing_ok=True)


def begun(home: Home, row: LabRow) -> list[str]:
    """The nodes whose stop was begun and not finished."""
    folder = _folder(home, row)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forget(home: Home, row: LabRow, node: str) -> None:
    """Take the note away."""
    (_folder(home, row) / node).unlink(missing_ok=True)
