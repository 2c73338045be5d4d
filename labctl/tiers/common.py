"""What all tiers plan alike: the record of a node, and the steps of its life after its start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from labctl.tiers.record import InterfaceRecord, NodeRecord, PortRecord
from labctl.tiers.steps import Provision, Reach, ReadyWait, Script

if TYPE_CHECKING:
    from labctl.image.bootconfig import BootConfig
    from labctl.profile.models import Mount, Node
    from labctl.resource.protocol import Resource
    from labctl.tiers.context import NodeFacts


def record_of(facts: NodeFacts, **more: Any) -> NodeRecord:
    """The record of a node; `more` are the fields that only its tier knows."""
    node, lab = facts.node, facts.lab
    interfaces = tuple(
        InterfaceRecord(i.name, network, i.host_name, i.mac, i.addresses)
        for i, network in zip(facts.place.interfaces, facts.place.networks, strict=True)
    )
    fields: dict[str, Any] = {
        "cpus": node.cpus or 0.0,
        "memory": node.memory or 0,
        **more,
    }
    return NodeRecord(
        name=node.name,
        tier=facts.choice.tier,
        asked=str(node.tier),
        image=node.image,
        digest=facts.image.digest,
        arch=facts.image.arch,
        hostname=facts.hostname,
        runs_on=facts.choice.runs_on,
        accelerator=facts.choice.accelerator,
        inside=node.inside,
        skipped=facts.choice.skipped,
        remedy=facts.choice.remedy,
        interfaces=interfaces,
        ports=tuple(
            PortRecord(str(p.proto), p.host_ip, host_port, p.node_port)
            for p, host_port in zip(node.ports, facts.ports, strict=True)
        ),
        folder=str(lab.node_folder(node.name)),
        env=facts.env,
        workdir=facts.workdir,
        user=facts.user,
        stop_signal=facts.stop_signal,
        stop_timeout=node.stop_timeout,
        startup=node.startup,
        labels=dict(node.labels),
        replica_of=node.replica_of,
        privileged=node.privileged,
        isolation="" if facts.choice.tier != "container" else str(node.isolation),
        **fields,
    )


def skipped_record(facts: NodeFacts) -> NodeRecord:
    """The record of a node that this host can't run: it holds no address and publishes nothing."""
    return replace(record_of(facts), interfaces=(), ports=(), runs_on="", accelerator="")


def way_to(record: NodeRecord) -> NodeRecord:
    """Only what it takes to reach the node: a new label or limit must not make its steps run again."""
    return NodeRecord(
        name=record.name,
        tier=record.tier,
        asked=record.asked,
        image="",
        digest="",
        arch="",
        hostname="",
        runs_on="",
        inside=record.inside,
        interfaces=tuple(replace(i, mac="", host_name="") for i in record.interfaces),
        ssh=record.ssh,
        run_root=record.run_root,
        container=record.container,
        folder=record.folder if record.tier == "container" and record.engine else "",
        engine=record.engine if record.tier == "container" else "",
        cgroup=record.cgroup,
    )


def waits_for(facts: NodeFacts) -> tuple[str, ...]:
    """The keys that stand for what the node's `depends_on` waits for; skipped nodes are not waited for."""
    from labctl.profile.types import Condition

    keys = []
    for name, condition in facts.node.depends_on.items():
        keys.append(f"{'ready' if condition is Condition.READY else 'reach'}:{name}")
    return tuple(keys)


def volume_keys(node: Node) -> tuple[str, ...]:
    """The keys of the named volumes that a node mounts."""
    from labctl.profile.types import MountKind

    return tuple(dict.fromkeys(f"volume:{m.source}" for m in node.volumes if m.kind is MountKind.VOLUME))


def volume_source(facts: NodeFacts, mount: Mount) -> str:
    """The folder (or file) of this host behind a mount."""
    from labctl.profile.types import MountKind

    named = mount.kind is MountKind.VOLUME
    return str(facts.lab.folder / "volumes" / mount.source) if named else mount.source


def life(
    facts: NodeFacts,
    record: NodeRecord,
    main: str,
    reach_seconds: float,
    *,
    mounts: tuple[str, ...] = (),
    console: str = "",
    netns: str = "",
    boot: BootConfig | None = None,
) -> list[Resource]:
    """Reach it (and run its start-up script), provision it, wait for it: always all that apply.

    `mounts` are the folders that a machine mounts by itself as it boots.  `console` is the file of what its
    serial line said, which is quoted when it can't be reached.  `netns` is the network namespace in which its
    ports are asked for, "" where this host reaches them.  `boot` is what a machine is told, where it can be
    told of more while it runs.
    """
    from labctl.image.bootconfig import resolver_text, told_later

    node, owner = facts.node, facts.lab.owner
    record = way_to(record)
    steps: list[Resource] = [
        Reach(
            owner=owner,
            name=node.name,
            node=node.name,
            needs=(main,),
            record=record,
            timeout=reach_seconds,
            startup=node.startup,
            mounts=mounts,
            told=told_later(boot) if boot else (),
            resolver=resolver_text(boot) if boot else "",
            console=console,
        )
    ]
    last = f"reach:{node.name}"
    if node.provision:
        scripts = tuple(
            Script(step.name or step.run.strip().splitlines()[0][:60], step.run, step.timeout)
            for step in node.provision
        )
        steps.append(
            Provision(
                owner=owner, name=node.name, node=node.name, needs=(last,), record=record, steps=scripts
            )
        )
        last = f"provision:{node.name}"
    wish = node.ready
    steps.append(
        ReadyWait(
            owner=owner,
            name=node.name,
            node=node.name,
            needs=tuple(dict.fromkeys((f"reach:{node.name}", last))),
            record=record,
            port=(wish.port or 0) if wish else 0,
            command=(wish.command or ()) if wish else (),
            http=wish.http if wish else "",
            timeout=wish.timeout if wish else 60.0,
            interval=wish.interval if wish else 1.0,
            netns=netns,
        )
    )
    return steps
