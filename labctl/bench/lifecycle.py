"""Life cycle: how long it takes until a node is there, answers, and is gone; alone and several at once."""

from __future__ import annotations

import os
import time

from labctl.bench.faults import NotHere
from labctl.bench.model import Better
from labctl.bench.places import Place
from labctl.bench.site import Site, refreshed
from labctl.bench.tasktypes import Figure, Task
from labctl.errors import LabError
from labctl.lab import api
from labctl.profile.models import Attachment, Network, Profile

AT_ONCE = 4  # nodes of the parallel start
_NET = "lan"


def execute(site: Site, place: Place) -> dict[str, float]:
    """From asking for a command that does nothing until its exit code is here, in seconds."""
    began = time.perf_counter()
    done = place.machine.run(["true"], timeout=30)
    took = time.perf_counter() - began
    if done.code:
        raise LabError(f"`true` ended with {done.code}: {done.errors.strip()[:200]}")
    return {"seconds": took}


def restart(site: Site, place: Place) -> dict[str, float]:
    """Stop the node and start it again until commands run in it, in seconds."""
    _a_node(place)
    target = [(site.lab, place.name)]
    began = time.perf_counter()
    api.stop(target, site.options)
    stopped = time.perf_counter()
    api.start(target, site.options)
    answered = refreshed(site, place.name).machine.run(["true"], timeout=60)
    ready = time.perf_counter()
    if answered.code:
        raise LabError(f"after its start, `true` ended with {answered.code}")
    return {"start": ready - stopped, "stop": stopped - began}


def create(site: Site, place: Place) -> dict[str, float]:
    """A lab of one such node from nothing to ready, and away again, in seconds."""
    _a_node(place)
    _not_inside(place)
    profile = _lab_of(site, place, 1)
    began = time.perf_counter()
    try:
        result = api.up(profile, site.options)
        made = time.perf_counter()
        node = result.status.nodes[0]
    finally:
        begun_away = time.perf_counter()
        api.down(profile.name, site.options)
    gone = time.perf_counter()
    return {"create": made - began, "machine": node.seconds, "delete": gone - begun_away}


def together(site: Site, place: Place) -> dict[str, float]:
    """A lab of several such nodes at once, in seconds: until all are ready, and each one's own time."""
    import numpy as np

    _a_node(place)
    _not_inside(place)
    profile = _lab_of(site, place, AT_ONCE)
    began = time.perf_counter()
    try:
        result = api.up(profile, site.options)
        made = time.perf_counter()
    finally:
        api.down(profile.name, site.options)
    each = [node.seconds for node in result.status.nodes]
    p50, p95, p99 = (float(v) for v in np.percentile(each, [50, 95, 99]))
    return {"all": made - began, "p50": p50, "p95": p95, "p99": p99}


def _a_node(place: Place) -> None:
    if place.is_host:
        raise NotHere("the host itself is not started or made")
    if place.inside and place.tier == "container":
        raise NotHere(f"it lives and ends with {place.inside}, the machine around it")


def _not_inside(place: Place) -> None:
    if place.inside:
        raise NotHere(f"a lab of its own would need a {place.inside} of its own, and measure that")


def _lab_of(site: Site, place: Place, count: int) -> Profile:
    """A profile with `count` nodes like this one, on one network, and nothing else."""
    site.scratch += 1
    name = f"{site.lab[:40]}-bench-{os.getpid()}-{site.scratch}"
    told = site.profile.nodes[place.name]
    nodes = {}
    for number in range(1, count + 1):
        own = {
            "name": f"n{number}",
            "hostname": f"n{number}",
            "networks": (Attachment(network=_NET, interface="eth0"),),
            "volumes": (),
            "secrets": (),
            "depends_on": {},
            "ports": (),
            "routes": (),
            "aliases": (),
            "replica_of": "",
        }
        nodes[f"n{number}"] = told.model_copy(update=own)
    return Profile(name=name, networks={_NET: Network()}, nodes=nodes)


def _seconds(name: str, title: str) -> Figure:
    return Figure(name, title, "s", Better.LOWER)


TASKS = (
    Task(
        suite="lifecycle",
        name="exec",
        title="a command that does nothing, from the call to its exit code",
        about="What the way into the place costs: nsenter on the host, setns for a container, SSH for a VM.",
        tool="labctl",
        figures=(_seconds("seconds", "a command that does nothing, from the call to its exit code"),),
        quick=True,
        function=execute,
    ),
    Task(
        suite="lifecycle",
        name="restart",
        title="a node started until commands run in it",
        about="The node is there already; its disk and its network are kept. Stop is asked for, not forced.",
        tool="labctl",
        figures=(
            _seconds("start", "a node started until commands run in it"),
            _seconds("stop", "a node asked to stop until it has"),
        ),
        warmup=0,
        limit=180,
        quick=True,
        function=restart,
    ),
    Task(
        suite="lifecycle",
        name="create",
        title="a lab of one node from nothing to ready",
        about="`labctl up` and `down`: planning, network, firewall, names, disk and the node.",
        tool="labctl",
        figures=(
            _seconds("create", "a lab of one node from nothing to ready"),
            _seconds("machine", "the node itself, from its start until it can be reached"),
            _seconds("delete", "a lab of one node until it is gone"),
        ),
        warmup=0,
        limit=300,
        function=create,
    ),
    Task(
        suite="lifecycle",
        name="parallel",
        title=f"{AT_ONCE} nodes started at once until all are ready",
        about="p50, p95 and p99 are over the nodes of one start.",
        tool="labctl",
        figures=(
            _seconds("all", f"{AT_ONCE} nodes started at once until all are ready"),
            _seconds("p50", f"one of {AT_ONCE} nodes until it can be reached, median"),
            _seconds("p95", f"one of {AT_ONCE} nodes until it can be reached, 95th percentile"),
            _seconds("p99", f"one of {AT_ONCE} nodes until it can be reached, 99th percentile"),
        ),
        warmup=0,
        limit=600,
        function=together,
    ),
)
