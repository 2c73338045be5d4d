"""The container tier: namespaces and cgroups on the host's own kernel, by labctl's own runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from labctl.errors import LabError
from labctl.home import write_hint
from labctl.linux import binfmt
from labctl.looks import ABSENT, PRESENT, Look, Outlook, Owner, Presence, Signs, Way
from labctl.network.model import NodeRoute
from labctl.network.nodenet import NodeNet
from labctl.records import dataclass
from labctl.runtime import spec
from labctl.runtime.client import KeeperClient, Launch
from labctl.runtime.errors import ContainerError
from labctl.tiers import isolation
from labctl.tiers.chroot import root_of, tree_of
from labctl.tiers.common import life, record_of, volume_keys, volume_source, waits_for
from labctl.tiers.context import NodeFacts, Planned, bridge_keys
from labctl.tiers.folders import remove_trees
from labctl.tiers.management import leads_there
from labctl.tiers.seed import Seed, extract, seed_of

if TYPE_CHECKING:
    from labctl.profile.models import Node
    from labctl.resource.protocol import Resource

REACH_SECONDS = 30.0
LAUNCH_SECONDS = 60.0
DEFAULT_PIDS = 4096  # enough for any workload, and a fork bomb stays in its box


def cgroup_path(owner: Owner, node: str) -> str:
    """A container's cgroup, which says whose it is."""
    return f"/labctl/{owner.instance}/{owner.lab}/{node}"


def plan(facts: NodeFacts) -> Planned:
    """The resources and the record of a container."""
    node, lab = facts.node, facts.lab
    net = net_of(facts) if isolation.has_own_network(facts) else None
    bare = node.isolation == "chroot"
    before: list[Resource] = [tree_of(facts, mounts_of(facts))] if bare else [net] if net else []
    folder = lab.node_folder(node.name)
    record = record_of(facts, run_root=str(lab.folder / "run"), container=node.name)
    needs = tuple(f"{item.kind}:{item.name}" for item in before) or bridge_keys(facts)
    container = ContainerNode(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=(*needs, "keeper:lab", *volume_keys(node)),
        after=("firewall:lab", "dns:lab", *waits_for(facts)),
        folder=str(folder),
        run_root=record.run_root,
        config=json.dumps(config_of(facts, net), sort_keys=True),
        seed=Seed() if bare else seed_of(node, lab.profile),
        layers=() if bare else facts.image.layers,
        files=etc_files(facts),
        stop_timeout=node.stop_timeout,
    )
    resources: list[Resource] = [
        *before,
        container,
        *life(facts, record, f"container:{node.name}", REACH_SECONDS, netns=asked_in(facts, net)),
    ]
    return Planned(resources, record)


def asked_in(facts: NodeFacts, net: NodeNet | None) -> str:
    """Where its ports are asked for: its own namespace when this host is on none of its networks."""
    profile = facts.lab.profile
    reached = net is None or any(leads_there(profile, at) for at in facts.node.networks)
    return "" if reached or net is None else net.path


def net_of(facts: NodeFacts) -> NodeNet:
    """The container's network, owned by its user namespace so that its root may configure it."""
    node, lab = facts.node, facts.lab
    return NodeNet(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=("folder:lab", *bridge_keys(facts)),
        path=str(lab.folder / "net" / node.name),
        userns=str(lab.folder / "net" / f"{node.name}.user"),
        id_base=spec.id_range(cgroup_path(lab.owner, node.name)),
        hostname=facts.hostname,
        interfaces=facts.place.interfaces,
        gateway4=facts.place.gateway4,
        gateway6=facts.place.gateway6,
        routes=tuple(NodeRoute(r.to, r.via, r.interface, r.metric) for r in node.routes),
        ipv6=node.ipv6,
        # Anybody in a container may send echo requests, as Docker has it: no raw socket needed for ping.
        sysctls={"net.ipv4.ping_group_range": "0 65535", **network_sysctls(node)},
    )


def network_sysctls(node: Node) -> dict[str, str]:
    """Those of the node's kernel settings that belong to its network."""
    return {key: value for key, value in node.sysctls.items() if key.replace("/", ".").startswith("net.")}


def etc_files(facts: NodeFacts) -> dict[str, str]:
    """The files that say who and where a node is, and what its init starts."""
    if facts.node.isolation == "chroot":
        return {}  # it is the host, where the host is
    lines = [f"search {facts.place.search}"] if facts.place.search else []
    lines += [f"nameserver {address}" for address in facts.place.dns]
    found = {
        "/etc/hostname": facts.hostname + "\n",
        "/etc/hosts": facts.hosts,
        "/etc/resolv.conf": "\n".join(lines) + "\n",
    }
    own = _own_files(facts.node, found)
    return {**{path: text for path, text in found.items() if path not in own}, **isolation.files(facts)}


def _own_files(node: Node, paths: Iterable[str]) -> set[str]:
    """Which of these files the profile gives the node itself: they stand, as on a machine."""
    given = {file.path for file in node.files} | {mount.target for mount in node.volumes}
    return {path for path in paths if path in given or (node.root and Path(f"{node.root}{path}").exists())}


def mounts_of(facts: NodeFacts) -> list[dict[str, Any]]:
    """Volumes, binds and tmpfs as OCI mounts; root inside is the owner outside, by idmapped mounts where
    there is a user namespace."""
    owners = ["idmap"] if isolation.has_own_users(facts) else []
    found: list[dict[str, Any]] = []
    for mount in facts.node.volumes:
        mode = ["ro"] if mount.read_only else ["rw"]
        found.append(
            {
                "destination": mount.target,
                "type": "bind",
                "source": volume_source(facts, mount),
                "options": ["rbind", "rprivate", *owners, *mode],
            }
        )
    for tmp in facts.node.tmpfs:
        options = ["nosuid", "nodev", f"mode={tmp.mode or '1777'}"]
        options += [f"size={tmp.size}"] if tmp.size else []
        found.append({"destination": tmp.target, "type": "tmpfs", "source": "tmpfs", "options": options})
    return found


def config_of(facts: NodeFacts, net: NodeNet | None) -> dict[str, Any]:
    """The container's OCI configuration."""
    node, lab = facts.node, facts.lab
    folder = lab.node_folder(node.name)
    dropped = list(node.capabilities.drop)
    if "ALL" in dropped:
        from labctl.linux import capabilities

        dropped = [
            name for name in capabilities.names(capabilities.known()) if name not in node.capabilities.add
        ]
    seeded = bool(seed_of(node, lab.profile))
    lowers = [*facts.image.layers, *([str(folder / "seed")] if seeded else [])]
    plain: dict[str, Any] = {
        "args": facts.command or IDLE,
        "cgroup": cgroup_path(lab.owner, node.name),
        "hostname": facts.hostname,
        "env": facts.env,
        "cwd": facts.workdir,
        "user": facts.user,
        "lowers": lowers,
        "upper": "" if node.read_only else str(folder / "upper"),
        "work": "" if node.read_only else str(folder / "work"),
        "netns": net.path if net else "",
        "userns": net.userns if net else "",
        "id_base": net.id_base if net else 0,
        "memory": node.memory or 0,
        "cpus": node.cpus or 0.0,
        "pids": node.pids or DEFAULT_PIDS,
        "extra_capabilities": node.capabilities.add,
        "drop_capabilities": dropped,
        "privileged": node.privileged,
        "files": {path: str(folder / "etc" / Path(path).name) for path in etc_files(facts)},
        "mounts": mounts_of(facts),
        "sysctls": {k: v for k, v in node.sysctls.items() if k not in network_sysctls(node)},
        "stop_signal": facts.stop_signal,
        "stdout": str(folder / "log" / "stdout"),
        "stderr": str(folder / "log" / "stderr"),
        "annotations": log_bounds(node),
    }
    if facts.choice.emulator:
        plain |= {
            "mounts": [_BINFMT, *plain["mounts"]],
            "annotations": {
                **plain["annotations"],
                spec.BINFMT: binfmt.entry(facts.image.arch, facts.choice.emulator),
            },
        }
    return isolation.config(facts, plain, root_of(facts))


def log_bounds(node: Node) -> dict[str, str]:
    """How much of its log is kept, where the profile says so."""
    if node.logging is None:
        return {}
    return {
        spec.LOG_MAX_SIZE: str(node.logging.max_size),
        spec.LOG_MAX_FILES: str(node.logging.max_files),
    }


# One of the container's user namespace: the kernel looks there first when it is to start a program.
_BINFMT = {
    "destination": "/dev/binfmt_misc",  # nothing may lie over /proc
    "type": binfmt.FILESYSTEM,
    "source": binfmt.FILESYSTEM,
    "options": ["nosuid", "nodev", "noexec"],
}


@dataclass(frozen=True, kw_only=True)
class LabKeeper:
    """The process that forks and reaps a lab's containers; a launch that finds none starts another."""

    kind: ClassVar[str] = "keeper"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    run_root: str

    def make(self) -> None:
        """Start it, while the lab's networks are made.  Raises LabError."""
        try:
            KeeperClient(Path(self.run_root)).start()
        except (ContainerError, OSError) as error:
            raise LabError(f"the lab's keeper does not start: {error}") from error

    def look(self) -> Look:
        """Containers go on without it, and the next launch starts another."""
        return PRESENT

    def signs(self) -> Signs:
        """None: see look."""
        return Signs()

    def unmake(self) -> None:
        """End it.  Raises LabError when it doesn't answer."""
        try:
            KeeperClient(Path(self.run_root)).close()
        except (ContainerError, OSError) as error:
            raise LabError(f"the lab's keeper does not end: {error}") from error


_NAMES = ("/etc/hosts", "/etc/resolv.conf")  # what is read again by those who go by it

# What a container without a command does: be there, so that commands can be run in it.
IDLE = ("sleep", "infinity")


@dataclass(frozen=True, kw_only=True)
class ContainerNode:
    """A container of the lab, with its folder (bundle, writable layer, logs)."""

    kind: ClassVar[str] = "container"
    loses: ClassVar[str] = "its writable layer is made anew, volumes are kept"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    folder: str
    run_root: str
    config: str  # config.json
    seed: Seed
    layers: tuple[str, ...]
    files: dict[str, str]
    stop_timeout: float = 10.0  # seconds

    def make(self) -> None:
        """Start it; running already is fine, a stopped one is started again with its writable layer."""
        for error in self.make_many([self]).values():
            raise error

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Start many in one batch: the keeper forks them all and attaches their cgroups together."""
        failures: dict[str, LabError] = {}
        for root in dict.fromkeys(item.run_root for item in items):
            group = [item for item in items if item.run_root == root]
            client = KeeperClient(Path(root))
            there = client.states()
            wanted = [i for i in group if i.name not in there or there[i.name].status == "stopped"]
            client.delete([i.name for i in wanted if i.name in there])
            ready: list[Self] = []
            for item in wanted:
                try:
                    item._write()
                    ready.append(item)
                except LabError as error:
                    failures[item.name] = error
            launches = [Launch(id=i.name, bundle=i.folder) for i in ready]
            for name, text in client.launch(launches, LAUNCH_SECONDS).items():
                if text:
                    failures[name] = LabError(f"container {name}: {text}")
        return failures

    def _write(self) -> None:
        write_files(self.name, self.folder, self.files, self.seed, self.layers, {"config.json": self.config})

    def look(self) -> Look:
        """What the kernel says of it."""
        return self.look_many([self])[self.name]

    @classmethod
    def look_many(cls, items: Sequence[Self]) -> dict[str, Look]:
        """The looks of many with one question to each lab's keeper folder."""
        looks: dict[str, Look] = {}
        for root in dict.fromkeys(item.run_root for item in items):
            states = KeeperClient(Path(root)).states()
            for item in items:
                if item.run_root == root:
                    looks[item.name] = _look_of(states.get(item.name))
        return looks

    def signs(self) -> Signs | None:
        """Its state on disk, its first process, and whether its control group is frozen."""
        return self.signs_many([self])[self.name]

    @classmethod
    def signs_many(cls, items: Sequence[Self]) -> dict[str, Signs | None]:
        """The signs of many, by name."""
        clients = {root: KeeperClient(Path(root)) for root in {item.run_root for item in items}}
        told: dict[str, Signs | None] = {}
        for item in items:
            found = clients[item.run_root].signs(item.name)
            told[item.name] = found and Signs(processes=(found[0],), files=found[1], values=found[2])
        return told

    def outlook(self, old: ContainerNode, look: Look | None) -> Outlook:
        """Limits and names change while it runs; anything else means another container."""
        mild: dict[str, Any] = {"config": "", "stop_timeout": 0.0, "files": {}}
        same = replace(self, **mild) == replace(old, **mild) and self.files.keys() == old.files.keys()
        names = all(self.files[path] == old.files[path] for path in self.files if path not in _NAMES)
        broken = look is not None and look.presence is Presence.BROKEN
        if same and names and not broken and changed_limits(self.config, old.config) is not None:
            return Outlook(Way.LIVE)
        return Outlook(Way.ANEW)

    def change(self, old: ContainerNode) -> bool:
        """Set its limits and names; one that has ended is started again with them."""
        limits = changed_limits(self.config, old.config)
        if limits is None:
            return False
        client = KeeperClient(Path(self.run_root))
        state = client.states().get(self.name)
        if state is None or state.status == "stopped":
            self.make()
            return True
        try:
            for path in _NAMES:
                if self.files.get(path) != old.files.get(path):
                    _put(
                        f"{self.folder}/etc/{Path(path).name}", self.files[path]
                    )  # the file that it has mounted
            if self.config != old.config:
                client.update(self.name, limits)
            Path(self.folder, "config.json").write_text(self.config)
        except (ContainerError, OSError) as error:
            raise LabError(f"container {self.name}: its limits can't be changed: {error}") from error
        return True

    def unmake(self) -> None:
        """End it and remove its folder."""
        for error in self.unmake_many([self]).values():
            raise error

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """End many at once, killing: whatever they hold goes with the lab."""
        failures: dict[str, LabError] = {}
        for root in dict.fromkeys(item.run_root for item in items):
            group = {item.name: item for item in items if item.run_root == root}
            client = KeeperClient(Path(root))
            for name, text in client.delete(list(group)).items():
                if text:
                    failures[name] = LabError(f"container {name}: {text}")
            client.settle()  # whoever writes their logs is done with the folders
            folders = {Path(item.folder): name for name, item in group.items() if name not in failures}
            for folder, error in remove_trees(list(folders)).items():
                failures[folders[folder]] = error
        return failures


def write_files(
    name: str,
    base: str,
    files: Mapping[str, str],
    seed: Seed,
    layers: Sequence[str],
    documents: Mapping[str, str],
) -> None:
    """Write what a container starts from into its folder `base`: of /etc `files`, its `seed` once, and the
    `documents` that its runtime reads.  Raises LabError."""
    try:
        for part in ("", "/etc", "/log", "/upper", "/work", *(("/seed",) if seed else ())):
            os.makedirs(base + part, exist_ok=True)  # noqa: PTH103 - a third of Path's time
        for path, text in files.items():
            _put(f"{base}/etc/{path.rpartition('/')[2]}", text)
        if seed and not os.listdir(f"{base}/seed"):  # noqa: PTH208
            extract(seed, Path(base, "seed"), layers)
        for title, text in documents.items():
            _put(f"{base}/{title}", text)
    except OSError as error:
        raise LabError(
            f"container {name}: cannot write {error.filename or base}: {error.strerror}",
            hint=write_hint(Path(base), error),
        ) from error


def _put(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)


def changed_limits(new: str, old: str) -> dict[str, Any] | None:
    """The limits of a config.json that differs from an old one in these alone; None when anything else
    differs, and when a limit is taken away, which needs a new container."""
    after, before = json.loads(new), json.loads(old)
    limits: dict[str, Any] = after["linux"].pop("resources", {})
    former = before["linux"].pop("resources", {})
    return limits if after == before and set(limits) >= set(former) else None


def _look_of(state: Any) -> Look:
    if state is None:
        return ABSENT
    if state.status == "stopped":
        return Look(Presence.STOPPED, f"ended with {state.exit_code}", {"exit_code": state.exit_code})
    if state.status == "paused":
        return Look(Presence.PRESENT, "paused", {"pid": state.pid})
    return PRESENT if state.status in ("running", "created") else Look(Presence.BROKEN, state.status)
