"""`labctl bench`: a lab brought up, measured with the bare host beside it, and taken down again."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.bench import conditions, extra, host, made, store, tasks
from labctl.bench import plan as plans
from labctl.bench import site as sites
from labctl.bench.plan import Plan
from labctl.bench.run import Run
from labctl.bench.site import Site
from labctl.bench.store import SCHEMA, Journal
from labctl.bench.tasktypes import Task
from labctl.errors import Interrupted, LabError, UsageError
from labctl.events import Emit, Note, silent
from labctl.lab import api
from labctl.lab.model import Options
from labctl.profile.models import Profile

ROOM = 64 << 20  # bytes that must be free for results


@dataclass(frozen=True)
class Request:
    """What is asked for: a lab that is up by its name, or a profile to bring up."""

    suites: tuple[str, ...]
    folder: Path
    plan: Plan
    lab: str = ""
    profile: Profile | None = None
    keep: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.  `seconds` of the whole, `inside` of them in workloads."""

    folder: Path
    lab: str
    samples: int
    failed: int  # benchmarks that have no figure in some place though they should
    seconds: float
    inside: float


def bench(request: Request, options: Options, emit: Emit = silent) -> Outcome:
    """Measure.  A folder that holds an unfinished run of the same work is continued.

    Raises UsageError and SuiteError before anything is made, HostCannot when libraries are missing,
    Interrupted on Ctrl-C: what was measured is kept.
    """
    extra.need()
    chosen = tasks.choose(request.suites)
    if not chosen:
        raise UsageError("no benchmark was chosen", hint="labctl bench list")
    earlier = _earlier(request.folder)
    _room(request.folder)
    _possible(request)
    began = time.monotonic()
    with ExitStack() as stack:
        journal = Journal(request.folder)
        stack.callback(journal.close)
        lab = _lab(request, options, emit, stack)
        site = sites.survey(lab, options, emit)
        _baseline(site, request, stack, emit)
        _begin(journal, site, chosen, request, earlier)
        state = "interrupted"
        try:
            Run(site, chosen, request.plan, journal, emit, str(request.folder), earlier).all()
            state = "complete"
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; what was measured is in {request.folder}",
                hint=f"the same command with --out {request.folder} goes on; "
                f"`labctl bench report {request.folder}` shows it",
            ) from error
        finally:
            journal.write("end", {"state": state, "seconds": round(time.monotonic() - began, 3)})
    return outcome(request.folder, lab, time.monotonic() - began)


def outcome(folder: Path, lab: str, seconds: float) -> Outcome:
    """The outcome of a run from its lines."""
    lines = store.read(folder)
    samples = [line for line in lines if line["type"] == "sample"]
    return Outcome(
        folder=folder,
        lab=lab,
        samples=sum(line["phase"] == "measured" for line in samples),
        failed=sum(line["type"] == "cell" and line["failed"] for line in lines),
        seconds=seconds,
        inside=sum(float(line["seconds"]) for line in samples),
    )


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """The lines of an unfinished run in the folder.  Raises UsageError when it is finished or no run."""
    if not store.exists(folder):
        # A run that ended while its lab came up leaves these, and no sample.
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {store.NAME, made.NAME}:
            raise UsageError(
                f"{folder} is not empty and holds no run", hint="choose another folder with --out"
            )
        return []
    lines = store.read(folder)
    if any(line["type"] == "end" and line.get("state") == "complete" for line in lines):
        raise UsageError(
            f"{folder} holds a complete run",
            hint=f"labctl bench report {folder}, or choose another folder with --out",
        )
    return lines


def _room(folder: Path) -> None:
    """Refuse to begin where there is no space for results."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < ROOM:
        raise UsageError(
            f"only {free >> 20} MiB are free at {place}; results need {ROOM >> 20}",
            hint="choose another folder with --out",
        )


def _possible(request: Request) -> None:
    """Refuse a baseline that can't be, before anything is made for it."""
    wanted = request.plan.baseline
    if wanted == "host":
        host.allowed()
    elif wanted != "none" and request.profile is not None:
        _among(wanted, request.profile.nodes)


def _among(wanted: str, places: Iterable[str]) -> None:
    if wanted not in places:
        raise UsageError(
            f"--baseline {wanted}: the lab has no such place",
            hint=f"host, none, or one of {', '.join(places)}",
        )


def _lab(request: Request, options: Options, emit: Emit, stack: ExitStack) -> str:
    """The lab's name, once it is up.  One that was brought up here is taken down at the end."""
    if request.profile is None:
        return request.lab
    name = request.profile.name
    own = made.by_this_run(request.folder, name)
    if not own and any(status.lab == name for status in api.labs(options)):
        emit(Note(name, f"lab {name} is up already: it is measured as it is, and stays"))
        return name
    if request.keep:
        made.forget(request.folder)
    else:
        made.note(request.folder, name)
        stack.callback(_down, name, request.folder, options, emit)
    api.up(request.profile, options, emit)
    return name


def _down(name: str, folder: Path, options: Options, emit: Emit) -> None:
    try:
        if any(status.lab == name for status in api.labs(options)):
            api.down(name, options, emit)
        made.forget(folder)
    except LabError as error:
        # The measurements stand; the ledger still names what is left.
        emit(
            Note(name, f"lab {name} could not be taken down: {error.message}; labctl down {name}", "warning")
        )


def _baseline(site: Site, request: Request, stack: ExitStack, emit: Emit) -> None:
    wanted = request.plan.baseline
    if wanted == "none":
        return
    if wanted == "host":
        folder = site.options.home.state / "bench" / secrets.token_hex(4)
        sites.add_host(site, stack, folder)
    else:
        _among(wanted, site.places)
    for name, reason in site.skipped.items():
        emit(Note(site.lab, f"{name} is not measured: {reason}", "warning"))


def _told(profile: Profile) -> Profile:
    """The profile as results tell it: with its file's name, without the folders of this machine."""
    return profile.model_copy(update={"source": Path(profile.source).name})


def _begin(
    journal: Journal, site: Site, chosen: Sequence[Task], request: Request, earlier: Sequence[dict[str, Any]]
) -> None:
    """Write down what is run, where and how.  Raises UsageError for the folder of another run."""
    from labctl import __version__

    digest = plans.digest(chosen, list(site.places), request.plan)
    if earlier and earlier[0].get("digest") != digest:
        raise UsageError(
            f"{request.folder} holds an unfinished run of other benchmarks or places",
            hint="choose another folder with --out, or the same profile, suites and baseline to continue it",
        )
    if not earlier:
        journal.write(
            "run",
            {
                "schema": SCHEMA,
                "id": secrets.token_hex(6),
                "labctl": __version__,
                "digest": digest,
                "lab": site.lab,
                "profile": _told(site.profile).to_json(),
                "suites": list(request.suites),
                "plan": request.plan.to_json(),
                "command": sys.argv[:1] and [Path(sys.argv[0]).name, *sys.argv[1:]],
                "skipped": site.skipped,
            },
        )
        for task in chosen:
            journal.write("task", task.to_json())
        for place in site.places.values():
            journal.write("place", place.to_json())
    journal.write("conditions", {"host": conditions.host(), "versions": conditions.versions(site, chosen)})
    for name, place in site.places.items():
        if not place.is_host:
            journal.write("conditions", {"place": name, "node": conditions.node(site, place)})
