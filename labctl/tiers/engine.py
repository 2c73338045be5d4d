"""The container tier by an engine of another make: labctl's network, image and limits, and its runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from labctl.engines import engine
from labctl.engines.launch import TEMPLATE
from labctl.engines.model import Box, Engine, forget_parents
from labctl.errors import LabError
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence
from labctl.records import dataclass
from labctl.tiers import container
from labctl.tiers.common import life, record_of, volume_keys, waits_for
from labctl.tiers.context import NodeFacts, Planned
from labctl.tiers.folders import remove_tree
from labctl.tiers.seed import Seed, seed_of

if TYPE_CHECKING:
    from labctl.resource.protocol import Resource

REACH_SECONDS = 30.0


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a container that `facts.choice.engine` runs.

    Its namespaces belong to the host's users, as those engines have it when root calls them.
    """
    node, lab, name = facts.node, facts.lab, facts.choice.engine
    net = replace(container.net_of(facts), userns="", id_base=0)
    root = str(lab.folder / "engines" / name)
    cgroup = container.cgroup_path(lab.owner, node.name)
    record = record_of(facts, run_root=root, container=node.name, engine=name, cgroup=cgroup)
    item = EngineContainer(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(f"net:{node.name}", *volume_keys(node)),
        after=("firewall:lab", "dns:lab", *waits_for(facts)),
        engine=name,
        root=root,
        folder=record.folder,
        cgroup=cgroup,
        config=json.dumps(container.config_of(facts, net), sort_keys=True),
        seed=seed_of(node, lab.profile),
        layers=facts.image.layers,
        files=container.etc_files(facts),
        stop_timeout=node.stop_timeout,
    )
    steps = life(facts, record, f"engine:{node.name}", REACH_SECONDS, netns=container.asked_in(facts, net))
    resources: list[Resource] = [net, item, *steps]
    return Planned(resources, record)


@dataclass(frozen=True, kw_only=True)
class EngineContainer:
    """A container of the lab that another engine runs, with its folder (bundle, writable layer, logs)."""

    kind: ClassVar[str] = "engine"
    loses: ClassVar[str] = "its writable layer is made anew, volumes are kept"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    engine: str
    root: str  # the engine's own state
    folder: str
    cgroup: str
    config: str  # config.json with labctl's annotations
    seed: Seed
    layers: tuple[str, ...]
    files: dict[str, str]
    stop_timeout: float = 10.0  # seconds

    @property
    def box(self) -> Box:
        """What names it to its engine."""
        return Box(self.name, self.root, self.folder, self.cgroup)

    @property
    def driver(self) -> Engine:
        """What drives it."""
        return engine(self.engine)

    def make(self) -> None:
        """Start it; running already is fine, a stopped one is started again with its writable layer.

        Raises HostCannot when the engine isn't installed any more, LabError with its words.
        """
        driver = self.driver
        if self.look().there:
            return
        driver.delete(self.box)
        documents = {TEMPLATE: self.config}
        container.write_files(self.name, self.folder, self.files, self.seed, self.layers, documents)
        driver.start(self.box)

    def look(self) -> Look:
        """What its engine says of it."""
        found = self.driver.state(self.box)
        if found is None:
            return ABSENT
        if found.status == "stopped":
            if found.exit_code is None:
                return Look(Presence.STOPPED, f"ended; {self.engine} keeps no exit code")
            return Look(Presence.STOPPED, f"ended with {found.exit_code}", {"exit_code": found.exit_code})
        if found.status == "paused":
            return Look(Presence.PRESENT, "paused", {"pid": found.pid})
        return PRESENT if found.status == "running" else Look(Presence.BROKEN, found.status)

    def change(self, old: EngineContainer) -> bool:
        """Limits change while it runs; anything else means another container."""
        limits = container.changed_limits(self.config, old.config)
        if limits is None or replace(self, config="", stop_timeout=0.0) != replace(
            old, config="", stop_timeout=0.0
        ):
            return False
        if not self.look().there or not self.driver.update(self.box, limits):
            return False
        Path(self.folder, TEMPLATE).write_text(self.config)
        return True

    def unmake(self) -> None:
        """End it, killing, let its engine forget it, and remove its folder."""
        self.driver.delete(self.box)
        forget_parents(self.cgroup)
        remove_tree(Path(self.folder))

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Unmake many; name → failure."""
        failures: dict[str, LabError] = {}
        for item in items:
            try:
                item.unmake()
            except LabError as error:
                failures[item.name] = error
        return failures
