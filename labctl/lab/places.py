"""What only some tiers have: a profile that asks for it elsewhere is refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from labctl.errors import Problem, ProfileError
from labctl.profile.models import Node, Profile
from labctl.profile.types import Engine, MountKind, Tier
from labctl.profile.words import cpus_in
from labctl.tiers.context import Choice
from labctl.tiers.hosts import DEFAULT_GUEST as DEFAULT_MEMORY


def refuse_out_of_place(profile: Profile) -> None:
    """Refuse what a tier can't do, instead of doing without it.  Raises ProfileError naming all of it."""
    wrong = [problem for node in profile.nodes.values() for problem in _problems(node)]
    if wrong:
        raise ProfileError(wrong)


def refuse_without_daemon(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """See that this host can share folders where a machine has volumes.  Raises HostCannot."""
    if any(
        n.volumes and n.tier is not Tier.CONTAINER and not chosen[n.name].skipped
        for n in profile.nodes.values()
    ):
        from labctl.hypervisor import shares

        shares.daemon()


def refuse_beyond_host(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """See that this host has the CPUs and huge pages that machines ask for.  Raises HostCannot."""
    for node in profile.nodes.values():
        if node.vm is None or node.tier is Tier.CONTAINER or node.inside or chosen[node.name].skipped:
            continue
        from labctl.hypervisor import resources

        wanted = set().union(*(cpus_in(pin) for pin in node.vm.pin))
        resources.refuse_missing_cpus(node.name, wanted)
        if node.vm.hugepages:
            resources.refuse_without_hugepages(node.name, node.memory or DEFAULT_MEMORY)


def _problems(node: Node) -> Iterator[Problem]:
    place = f"nodes.{node.name}"
    if node.tier is Tier.CONTAINER:
        if node.init:
            yield Problem(f"{place}.init: only a VM runs the image's own init")
        if node.inside and node.volumes:
            yield Problem(
                f"{place}.volumes: not for a container inside a VM yet", hint="use `files` or `root`"
            )
        return
    # Capabilities and a limit of processes that defaults or a group give to all nodes do no harm in
    # a machine, whose root has its own kernel; stated for one machine, the profile's rules refuse them.
    yield from _shares(node, place)


def _shares(node: Node, place: str) -> Iterator[Problem]:
    """Volumes of a machine are folders of this host, by virtiofs, which QEMU has."""
    if node.volumes and (node.inside or node.tier is Tier.PARA):
        where = (
            "User Mode Linux" if node.engine is Engine.UML else f"a machine inside another (tier {node.tier})"
        )
        yield Problem(
            f"{place}.volumes: not for {where}: it has no way to a folder of this host",
            hint="use `files` or `root`, or tier: emulation or hardware",
        )
        return
    for mount in node.volumes:
        if mount.kind is MountKind.BIND and not Path(mount.source).is_dir():
            yield Problem(
                f"{place}.volumes: {mount.source} is no folder, and a VM shares folders only",
                hint="`files` puts a copy of a single file into it",
            )
