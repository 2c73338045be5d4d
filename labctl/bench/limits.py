"""Whether the limits of nodes hold: each is pushed against, and what got through is told over the limit."""

from __future__ import annotations

import time

from labctl.bench import reading
from labctl.bench.faults import Failed, NotHere
from labctl.bench.model import Better
from labctl.bench.places import Place
from labctl.bench.site import Site
from labctl.bench.tasktypes import Figure, Task
from labctl.errors import LabError
from labctl.guest.machine import Measures

SECONDS = 2.0  # of burning processors


def cpu(site: Site, place: Place) -> dict[str, float]:
    """Processor time used while every processor is asked for, over the limit (cgroup's own count)."""
    if not place.cpu_limit or place.is_host:
        raise NotHere("it has no limit on processors (`cpus` in the profile)")
    machine = place.machine
    if not isinstance(machine, Measures):
        raise NotHere("a machine has processors, not a limit on them")
    before, began = machine.stats().cpu_seconds, time.perf_counter()
    _run(place, ["labbench", "burn", "cpu", str(SECONDS)])
    after, took = machine.stats().cpu_seconds, time.perf_counter() - began
    if before is None or after is None:
        raise NotHere("this host does not count processor time by control group")
    return {"share": (after - before) / took / place.cpu_limit, "cpus": (after - before) / took}


def memory(site: Site, place: Place) -> dict[str, float]:
    """Memory that a process could touch before it was stopped, over the limit."""
    if not place.memory or place.is_host:
        raise NotHere("it has no limit on memory (`memory` in the profile)")
    if not isinstance(place.machine, Measures):
        raise NotHere("a machine has memory, not a limit on it")
    limit = place.memory / (1 << 20)
    told = _run(place, ["labbench", "fill", str(int(limit * 1.5) + 16)])
    if not told["killed"] and not told["refused"]:
        raise Failed(
            f"{told['mib']:.0f} MiB were touched with a limit of {limit:.0f} MiB, and nothing stopped it"
        )
    return {"share": told["mib"] / limit}


def pids(site: Site, place: Place) -> dict[str, float]:
    """Processes at one time before a fork was refused, over the limit."""
    if not place.pids_limit or place.is_host:
        raise NotHere("it has no limit on processes (`pids` in the profile)")
    told = _run(place, ["labbench", "forks", str(place.pids_limit + 64)])
    if not told["limited"]:
        raise Failed(
            f"{told['processes']:.0f} processes with a limit of {place.pids_limit}, and none was refused"
        )
    return {"share": told["processes"] / place.pids_limit}


def _run(place: Place, argv: list[str]) -> dict[str, float]:
    done = place.machine.run(argv, timeout=60)
    if done.code:
        raise Failed(f"{argv[0]} ended with {done.code}", done.text + done.errors)
    try:
        return {key: float(value) for key, value in reading.document(done.text, argv[0]).items()}
    except LabError as error:
        raise Failed(error.message, done.text) from error


def _share(what: str) -> Figure:
    return Figure("share", f"{what} that got through, over the limit", "× limit", Better.NEITHER)


TASKS = (
    Task(
        suite="isolation",
        name="limit-cpu",
        title="processor time that got through, over the limit",
        about="1 means that the limit holds exactly. Counted by the control group itself.",
        tool="labbench, cgroup",
        figures=(_share("processor time"), Figure("cpus", "processors used", "CPUs", Better.NEITHER)),
        warmup=0,
        needs=("labbench",),
        function=cpu,
    ),
    Task(
        suite="isolation",
        name="limit-memory",
        title="memory that got through, over the limit",
        about="Below 1: the node's own processes and its kernel had the rest.",
        tool="labbench",
        figures=(_share("memory"),),
        warmup=0,
        needs=("labbench",),
        function=memory,
    ),
    Task(
        suite="isolation",
        name="limit-pids",
        title="processes that got through, over the limit",
        about="Below 1 by the node's own processes.",
        tool="labbench",
        figures=(_share("processes"),),
        warmup=0,
        needs=("labbench",),
        function=pids,
    ),
)
