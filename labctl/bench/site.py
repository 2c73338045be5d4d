"""The lab while it is measured: its places, the nodes at other ends, and the lab's own verbs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from labctl.bench.places import HOST, PEER_LABEL, Place
from labctl.errors import HostCannot, LabError, UsageError
from labctl.events import Emit, silent
from labctl.lab import api
from labctl.lab.compare import Column, Comparison
from labctl.lab.model import LabStatus, NodeStatus, Options
from labctl.profile.models import Profile

_OTHERS_SECONDS = 30.0  # to wait for another labctl that has the lab


@dataclass
class Site:
    """What tasks may use.  `places` are measured, `peers` are at other ends; `skipped` says why not."""

    lab: str
    options: Options
    profile: Profile
    image: str
    status: LabStatus
    seen: Comparison
    places: dict[str, Place] = field(default_factory=dict)
    peers: list[Place] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    host: Place | None = None
    emit: Emit = silent
    scratch: int = 0  # labs made by tasks so far


def survey(lab: str, options: Options, emit: Emit = silent) -> Site:
    """Look at a lab that is up.  Raises UsageError when none of its nodes can be measured."""
    status = api.status(lab, options)
    profile = Profile.from_json(_profile_text(lab, options))
    seen = api.compare(lab, options, emit)
    columns = {column.name: column for column in seen.columns}
    site = Site(lab, options, profile, "", status, seen, emit=emit)
    for node in status.nodes:
        if node.state != "ready":
            site.skipped[node.name] = node.reason or f"it is {node.state}"
            continue
        told = profile.nodes.get(node.name)
        if told is None or told.hypervisor:
            continue  # a host for other nodes, from the profile or added by labctl: they are measured
        if node.name == HOST:
            raise UsageError(f"lab {lab} has a node called {HOST}, which is the bare host's name here")
        place = _place(lab, node, columns[node.name], profile, options)
        if node.labels.get(PEER_LABEL) == "peer":
            site.peers.append(place)
        else:
            site.places[node.name] = place
    if not site.places:
        why = "; ".join(f"{name}: {reason}" for name, reason in site.skipped.items())
        raise UsageError(f"lab {lab} has no node to measure" + (f" ({why})" if why else ""))
    images = [node.image for node in status.nodes if node.name in site.places]
    site.image = next((image for image in images if image.startswith("bench")), images[0])
    return site


def _profile_text(lab: str, options: Options) -> str:
    return json.dumps(api.inspect(lab, "", options)["profile"])


def _place(lab: str, node: NodeStatus, column: Column, profile: Profile, options: Options) -> Place:
    told = profile.nodes[node.name]
    seen = column.seen
    limit = column.cpus_given
    cpus = int(limit) if limit >= 1 else (seen.cpus if seen and seen.cpus and not limit else 1)
    nested = bool(node.inside)  # a container in a machine, or a machine on a host that labctl built
    # What runs inside an emulated machine is emulated as well.
    emulated = column.emulated or (bool(node.inside) and _emulated(node.inside, profile, options, lab))
    return Place(
        name=node.name,
        tier=node.tier,
        machine=api.machine(lab, node.name, options),
        accelerator=column.accelerator,
        emulated=emulated,
        nested=nested,
        inside=node.inside,
        addresses=node.addresses,
        cpus=cpus,
        memory=column.memory_given,
        cpu_limit=limit,
        pids_limit=told.pids or 0,
        volume=told.volumes[0].target if told.volumes else "",
        seconds=node.seconds,
    )


def _emulated(name: str, profile: Profile, options: Options, lab: str) -> bool:
    record = api.inspect(lab, name, options)["record"]
    words = record["accelerator"]
    return record["tier"] == "emulation" or "TCG" in words or "qemu-user" in words


def add_host(site: Site, stack: ExitStack, folder: Path) -> None:
    """Put the bare host first among the places, seeing the files of the lab's image.

    Raises HostCannot, LabError when that can't be done here.
    """
    from labctl.bench.host import HostRoot
    from labctl.image.store import Store

    store = Store(site.options.home.cache / "images")
    image = store.find(site.image)
    if image is None:
        raise LabError(
            f"image {site.image} is not in the store any more", hint=f"labctl image build {site.image}"
        )
    root = stack.enter_context(HostRoot(store.rootfs(image), image.config.env, folder))
    observed = next((c.seen for c in site.seen.columns if c.is_host), None)
    cpus = (observed.cpus if observed else None) or 1
    site.host = Place(
        HOST, "bare host", root, accelerator="its own processor", cpus=cpus, addresses=("127.0.0.1",)
    )
    site.host = replace(site.host, volume="/var/tmp/labctl-bench")
    site.places = {HOST: site.host, **site.places}


def refreshed(site: Site, name: str) -> Place:
    """The place again, after its node was restarted."""
    machine = api.machine(site.lab, name, site.options)
    place = replace(site.places[name], machine=machine)
    site.places[name] = place
    return place


def revive(site: Site, name: str) -> Place:
    """Start a node that died in the middle, once.  Raises LabError when it does not come back.

    A `stop` that ended it still has the lab for a moment.
    """
    state = next(node for node in api.status(site.lab, site.options).nodes if node.name == name)
    if state.state in ("ready", "running"):
        return site.places[name]
    api.start([(site.lab, name)], replace(site.options, wait=_OTHERS_SECONDS), site.emit)
    return refreshed(site, name)


def peer_of(site: Site, place: Place) -> Place | None:
    """The node at the other end for a place: a peer of its own tier first, then any other one."""
    others = [peer for peer in site.peers if peer.name != place.name]
    same = [peer for peer in others if peer.tier == place.tier]
    return next(iter(same or others), None)


def missing_programs(place: Place, programs: Sequence[str], timeout: float = 60.0) -> set[str]:
    """Which of the programs are not on the place's PATH.  Raises LabError when it can't be asked."""
    if not programs:
        return set()
    script = "; ".join(f"command -v {name} >/dev/null 2>&1 || echo {name}" for name in programs)
    done = place.shell(script, timeout)
    if done.code in (126, 127) and not done.stdout:
        raise HostCannot(f"{place.name} has no shell to run benchmarks with")
    return set(done.text.split())
