"""Which lab a run brought up itself: on disk before it is made, so that a run that goes on takes it down."""

from __future__ import annotations

from pathlib import Path

from labctl.bench.store import failed

NAME = "lab-of-this-run"


def by_this_run(folder: Path, lab: str) -> bool:
    """Whether an earlier, unfinished part of the run in the folder brought the lab up."""
    try:
        return (folder / NAME).read_text().strip() == lab
    except FileNotFoundError:
        return False
    except OSError as error:
        raise failed(folder / NAME, error) from error


def note(folder: Path, lab: str) -> None:
    """Write down that this run brings the lab up.  Raises LabError (a full disk)."""
    try:
        (folder / NAME).write_text(lab + "\n")
    except OSError as error:
        raise failed(folder / NAME, error) from error


def forget(folder: Path) -> None:
    """The lab is down, or is not this run's any more."""
    (folder / NAME).unlink(missing_ok=True)
