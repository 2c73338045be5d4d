"""Containers inside a virtual machine of the lab: the container tier's plan, carried out in the VM.

The VM's kernel, cgroups and bridges take the place of the host's; paths are the VM's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from labctl.errors import LabError, UsageError
from labctl.guest.inside_driver import BASE
from labctl.guest.inside_link import Link, disk_serial, layer_place
from labctl.guest.ssh import Endpoint, SshMachine, banner_up
from labctl.home import Home
from labctl.looks import ABSENT, PRESENT, Look, Outlook, Owner, Presence, Way
from labctl.records import dataclass
from labctl.resource.protocol import Resource
from labctl.tiers.common import life, record_of, waits_for
from labctl.tiers.container import asked_in, changed_limits, config_of, etc_files, net_of
from labctl.tiers.context import NodeFacts, Planned
from labctl.tiers.record import SshPlace
from labctl.tiers.seed import Seed, seed_of, write_tar

REACH_SECONDS = 30.0
BANNER_SECONDS = 2.0  # a VM that doesn't greet by then is taken as gone: it is being torn down
_VM_HOME = Home(Path(BASE), Path(BASE, "cache"))

_links: dict[str, Link] = {}


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a container inside a VM.  Raises UsageError without that VM."""
    node, lab, host = facts.node, facts.lab, facts.host_record
    if host is None or host.ssh is None:
        raise UsageError(f"{node.name} is inside {node.inside}, which is no machine of this lab")
    there = _in_the_vm(facts)
    net = net_of(there)
    folder = str(there.lab.node_folder(node.name))
    record = record_of(facts, ssh=host.ssh, container=node.name)
    record = replace(record, runs_on=f"node {node.inside}", folder=folder)
    container = InsideContainer(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(f"reach:{node.inside}",),
        after=waits_for(facts),
        machine=node.inside,
        ssh=host.ssh,
        folder=folder,
        net=json.dumps(asdict(net.plain()), sort_keys=True),
        config=json.dumps(config_of(there, net), sort_keys=True),
        files=etc_files(facts),
        image=facts.image.digest,
        layers=facts.image.layers,
        seed=seed_of(node, lab.profile),
    )
    steps = life(facts, record, f"inside:{node.name}", REACH_SECONDS, netns=asked_in(facts, net))
    resources: list[Resource] = [container, *steps]
    return Planned(resources, record)


def _in_the_vm(facts: NodeFacts) -> NodeFacts:
    """The same facts with the VM's paths and bridges: its n-th card is a port of its bridge lab<n>."""
    assert facts.host_record is not None
    bridges = {card.network: f"lab{n}" for n, card in reversed([*enumerate(facts.host_record.interfaces)])}
    if missing := [name for name in facts.place.networks if name not in bridges]:
        raise UsageError(
            f"{facts.node.inside}, which {facts.node.name} is inside, is not on {missing[0]}",
            hint=f"add {missing[0]} to its networks",
        )
    interfaces = tuple(
        replace(interface, bridge=bridges[network])
        for interface, network in zip(facts.place.interfaces, facts.place.networks, strict=True)
    )
    return replace(
        facts,
        lab=replace(facts.lab, home=_VM_HOME),
        image=replace(facts.image, layers=tuple(layer_place(layer) for layer in facts.image.layers)),
        place=replace(facts.place, interfaces=interfaces),
    )


@dataclass(frozen=True, kw_only=True)
class InsideContainer:
    """A container in a VM, with its network, its folder and its image's layers there."""

    kind: ClassVar[str] = "inside"
    follows: ClassVar[bool] = True  # it goes off with its machine, whose disk has its files
    loses: ClassVar[str] = "its writable layer is made anew"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    machine: str  # the VM's node
    ssh: SshPlace
    folder: str  # in the VM
    net: str  # labctl.linux.netnode.Node as JSON
    config: str  # config.json
    files: dict[str, str]
    image: str  # its digest
    layers: tuple[str, ...]  # on this host, bottom first
    seed: Seed

    def make(self) -> None:
        """Start it; running already is fine, a stopped one is started again with its writable layer."""
        for error in self.make_many([self]).values():
            raise error

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Start many: one batch for each VM."""

        def make(group: Sequence[Self]) -> dict[str, str]:
            link = _link(group[0])
            link.prepare({disk_serial(item.image): item.layers for item in group})
            for item in group:
                if item.seed:
                    item._put_seed(link)
            wanted = [
                {"name": i.name, "folder": i.folder, "net": json.loads(i.net), "config": i.config}
                | {"files": i.files, "disk": disk_serial(i.image)}
                for i in group
            ]
            answer: dict[str, str] = link.call("make", {"items": wanted})
            return answer

        return _by_machine(items, make)

    def _put_seed(self, link: Link) -> None:
        # In the lab's folder, which goes with the lab: a kill leaves it nowhere else.
        with tempfile.TemporaryDirectory(prefix="seed-", dir=Path(self.ssh.key_file).parent) as folder:
            archive = Path(folder, "seed.tar")
            write_tar(self.seed, archive, self.layers)
            link.seed(f"{self.folder}/seed", str(archive))

    def look(self) -> Look:
        """What the VM's kernel says of it; absent when the VM doesn't answer."""
        return self.look_many([self])[self.name]

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many with one question to each VM."""
        looks = {item.name: ABSENT for item in items}

        def look(group: Sequence[Self]) -> dict[str, str]:
            if _answers(group[0].ssh):
                states = _link(group[0]).call("keep", {"operation": "states"})
                looks.update({item.name: _look_of(states.get(item.name)) for item in group})
            return {}

        for name, error in _by_machine(items, look).items():
            looks[name] = Look(Presence.ABSENT, str(error))
        return looks

    def outlook(self, old: InsideContainer, look: Look | None) -> Outlook:
        """Limits change while it runs; anything else means another container."""
        same = replace(self, config="") == replace(old, config="")
        broken = look is not None and look.presence is Presence.BROKEN
        live = same and not broken and changed_limits(self.config, old.config) is not None
        return Outlook(Way.LIVE if live else Way.ANEW)

    def change(self, old: InsideContainer) -> bool:
        """Set its limits; one that has ended is started again with them.  Raises LabError."""
        limits = changed_limits(self.config, old.config)
        if limits is None:
            return False
        if not self.look().there:
            self.make()
            return True
        one = {"name": self.name, "folder": self.folder, "config": self.config, "limits": limits}
        link = _link(self)
        link.prepare({})  # the runtime there may be an older labctl's
        for text in link.call("update", one).values():
            raise LabError(f"container {self.name}: its limits can't be changed: {text}")
        return True

    def unmake(self) -> None:
        """End it and remove what it has in the VM; with a VM that is gone all of it is gone."""
        for error in self.unmake_many([self]).values():
            raise error

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """End many: one call for each VM."""

        def unmake(group: Sequence[Self]) -> dict[str, str]:
            if not _answers(group[0].ssh):
                return {}
            doomed = [{"name": i.name, "folder": i.folder, "net": json.loads(i.net)} for i in group]
            answer: dict[str, str] = _link(group[0]).call("remove", {"items": doomed})
            return answer

        return _by_machine(items, unmake)


def _by_machine(
    items: Iterable[InsideContainer], work: Callable[[Sequence[Any]], dict[str, str]]
) -> dict[str, LabError]:
    """Do it for the containers of each VM; by name, what failed."""
    groups: dict[SshPlace, list[InsideContainer]] = {}
    for item in items:
        groups.setdefault(item.ssh, []).append(item)
    failures: dict[str, LabError] = {}
    for group in groups.values():
        try:
            said = work(group)
        except LabError as error:
            failures.update({item.name: error for item in group})
        else:
            failures.update({name: LabError(f"container {name}: {text}") for name, text in said.items()})
    return failures


def _answers(place: SshPlace) -> bool:
    """Whether the VM is there.  One whose key was not made yet never was: `up` was killed before."""
    if not Path(place.host_key_file).exists():
        return False
    return bool(place.address) and banner_up(place.address, place.port, timeout=BANNER_SECONDS)


def _link(item: InsideContainer) -> Link:
    """The way into the item's VM; one for each in a process, since it keeps its connections."""
    place = item.ssh
    try:
        host_key = " ".join(Path(place.host_key_file).read_text().split()[:2])
    except OSError as error:
        raise LabError(
            f"{item.machine}: its host key {place.host_key_file} cannot be read: {error.strerror}"
        ) from error
    key = f"{place.address}:{place.port}:{host_key}"
    if key not in _links:
        endpoint = Endpoint(
            host=place.address,
            port=place.port,
            user=place.user,
            key_file=place.key_file,
            host_key=host_key,
            node=item.machine,
        )
        _links[key] = Link(SshMachine(endpoint))
    return _links[key]


def _look_of(state: Any) -> Look:
    if state is None:
        return ABSENT
    status = state["status"]
    if status == "stopped":
        code = state["exit_code"]
        return Look(Presence.STOPPED, f"ended with {code}", {"exit_code": code})
    if status == "paused":
        return Look(Presence.PRESENT, "paused", {"pid": state["pid"]})
    return PRESENT if status in ("running", "created") else Look(Presence.BROKEN, status)
