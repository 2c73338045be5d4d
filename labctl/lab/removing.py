"""down and gc: a lab taken down without a trace, and what even a lost ledger forgot."""

from __future__ import annotations

from labctl.errors import Failures, LabError, UsageError
from labctl.events import Emit, Note, silent
from labctl.lab import journal
from labctl.lab.looking import opened
from labctl.lab.model import Leftover, Options
from labctl.resource import executor, faults
from labctl.resource.ledger import LabRow, Ledger
from labctl.resource.lock import locked


def down(name: str | None, options: Options, emit: Emit = silent) -> dict[str, list[str]]:
    """Take down one lab, or all with None.  Works without the profile, after a crash, and twice.

    Returns {"labs": names taken down}.  Raises Busy, and Failures naming what could not be removed;
    the ledger keeps that, so that another `down` goes on there.
    """
    if not options.home.used():
        return {"labs": []}
    gone: list[str] = []
    failures: list[LabError] = []
    with opened(options) as ledger:
        rows = ledger.labs() if name is None else [row for row in [ledger.lab(name)] if row]
        if name is not None and not rows:
            emit(Note(name, f"no lab is called {name!r}: nothing to take down", "warning"))
        if name is None or not rows:
            _tell_strays(ledger, options, emit)
        for row in rows:
            with locked(options.home.state / "locks" / row.id, f"down {row.name}", wait=options.wait):
                try:
                    with journal.kept(options.home, row.name, row.id, "down", emit) as tell:
                        journal.take_over(options.home, row.name, row.id)
                        remove(ledger, row, options, tell)
                    gone.append(row.name)
                except Failures as error:
                    failures += error.causes
    if failures:
        raise Failures(
            f"{len(failures)} objects could not be removed",
            failures,
            hint="the ledger still names them: mend the cause and run `labctl down` again",
        )
    return {"labs": gone}


def _tell_strays(ledger: Ledger, options: Options, emit: Emit) -> None:
    """A ledger that was emptied or lost knows of nothing to take down: say so where there is something."""
    labs = options.home.state / "labs"
    known = {row.id for row in ledger.labs()}
    strays = sorted({path.name for path in labs.iterdir()} - known) if labs.is_dir() else []
    for stray in strays:
        text = f"{labs / stray} is of a lab that the ledger does not name: `labctl gc` removes what it left"
        emit(Note(stray, text, "warning"))


def remove(ledger: Ledger, row: LabRow, options: Options, emit: Emit) -> None:
    """Unmake everything of a lab and forget it; the caller holds its lock.  Raises Failures."""
    failures = executor.destroy(ledger, row.id, emit)
    if failures:
        raise Failures(
            f"lab {row.name}: {len(failures)} objects could not be removed", list(failures.values())
        )
    from labctl.image.pins import Pins  # not the store: `down` would load all that reads images

    Pins(options.home.cache / "images" / "pins").drop(f"lab:{row.id}")
    ledger.drop_lab(row.id)


def collect(options: Options, emit: Emit = silent, *, dry_run: bool = True) -> list[Leftover]:
    """Find objects that carry our mark and belong to no lab of the ledger; remove them unless `dry_run`.

    Goes by marks only, never by a name's prefix, and only by this home's.  Raises UsageError when the
    home has never been used, so that nothing is ever guessed.
    """
    if not (options.home.state / "instance").exists():
        raise UsageError(f"{options.home.state} has never been used by labctl", hint="set LABCTL_HOME")
    instance = options.home.instance()
    with opened(options) as ledger:
        known = {row.id for row in ledger.labs()}
    from labctl.lab.leftovers import find

    found: list[Leftover] = []
    for thing in find(options.home, instance):
        if thing.lab in known:
            continue
        error = ""
        if not dry_run:
            faults.point(f"gc:before:{thing.kind}:{thing.name}")
            try:
                thing.remove()
            except LabError as failure:
                error = failure.message
        found.append(Leftover(thing.kind, thing.name, thing.lab, not dry_run and not error, error))
    return found
