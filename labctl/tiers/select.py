"""Which tier each node gets on this host, decided before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from labctl.errors import Failures, HostCannot, UsageError
from labctl.profile.models import Node, Profile
from labctl.profile.types import Isolation, Tier
from labctl.records import dataclass
from labctl.tiers.context import Choice
from labctl.tiers.record import QEMU_USER


@dataclass(frozen=True)
class Ability:
    """Whether this host can run a tier (for an architecture), and if not why and what helps."""

    ok: bool
    reason: str = ""
    remedy: str = ""
    detail: str = ""  # what it is that runs it: "Xen 4.17 PV"


# What a probe is asked about the machine of a lab that can run a tier which this host can't.
HOST_WORDS = {Tier.PARA: "xen-host", Tier.HARDWARE: "kvm-host"}

# What may run a container in labctl's place.
CONTAINER_ENGINES = frozenset(("lxc", "podman", "docker", "runc", "crun"))

# What a probe is asked about containers of another CPU.
FOREIGN_WORD = "container-foreign"

MACHINES = tuple(str(tier) for tier in Tier if tier is not Tier.CONTAINER)

Probe = Callable[[str, str], Ability]  # (tier, architecture) → ability


def choose(
    profile: Profile, host_arch: str, probe: Probe, *, skip_unavailable: bool, fallback: str
) -> dict[str, Choice]:
    """The choice for every node, by name.

    A node whose tier can't run here gets the `fallback` tier if that can, is skipped with
    `skip_unavailable`, and else stops everything.

    Raises HostCannot (all reasons in one message) before anything is made, UsageError for a fallback
    that is no tier of machines.
    """
    if fallback and fallback not in MACHINES:
        raise UsageError(f"--fallback {fallback}: one of {', '.join(MACHINES)} is expected")
    found: dict[str, Choice] = {}
    refused: dict[str, Ability] = {}
    for node in profile.nodes.values():
        if node.inside:
            continue
        found[node.name] = _one(node, host_arch, probe, skip_unavailable, fallback, refused)
    for node in outermost_first(profile):
        if node.inside:
            found[node.name] = _inside(node, found[node.inside], probe, skip_unavailable, refused)
    if refused:
        causes = [HostCannot(f"{name}: {a.reason}", hint=a.remedy) for name, a in refused.items()]
        if len(causes) == 1:
            raise causes[0]
        raise CannotRun("this host can't run these nodes", causes)
    return {name: found[name] for name in profile.nodes}


def outermost_first(profile: Profile) -> list[Node]:
    """The nodes, each after the machine that it is inside of."""

    def depth(node: Node) -> int:
        return 1 + depth(profile.nodes[node.inside]) if node.inside else 0

    return sorted(profile.nodes.values(), key=depth)


def _inside(node: Node, host: Choice, probe: Probe, skip: bool, refused: dict[str, Ability]) -> Choice:
    """The choice of a node inside a machine of the lab: it shares that machine's fate."""
    if host.skipped:
        return Choice(str(node.tier), skipped=f"its machine {node.inside} is skipped", remedy=host.remedy)
    if node.tier is Tier.CONTAINER:
        return Choice("container", f"node {node.inside}", host.accelerator)
    ability = probe(HOST_WORDS[node.tier], node.arch)
    if not ability.ok:
        if not skip:
            why = f"{node.inside} can't run {node.tier}: {ability.reason}"
            refused[node.name] = Ability(False, why, _hint(ability))
        return Choice(str(node.tier), skipped=ability.reason, remedy=ability.remedy)
    return Choice(
        str(node.tier), f"node {node.inside}", f"{ability.detail}, on {_host_words(node.tier, host)}"
    )


def _host_words(tier: Tier, host: Choice) -> str:
    kind = "a Xen host" if tier is Tier.PARA else "a KVM host"
    return f"{kind} under {'KVM' if host.tier == 'hardware' else 'TCG'}"


class CannotRun(Failures, HostCannot):
    """Several nodes can't run here: exit code 4, all reasons kept."""

    exit_code = HostCannot.exit_code


def _one(
    node: Node,
    host_arch: str,
    probe: Probe,
    skip: bool,
    fallback: str,
    refused: dict[str, Ability],
) -> Choice:
    arch = node.arch or host_arch
    engine = engine_of(node)
    foreign = node.tier is Tier.CONTAINER and arch != host_arch
    ability = (
        _foreign(node, arch, probe, engine)
        if foreign
        else _ability(node.tier, arch, host_arch, probe, engine)
    )
    if ability.ok and foreign:
        by = f"{QEMU_USER}, emulated {arch}, on the host's kernel"
        return Choice("container", "this host", by, emulator=ability.detail)
    if ability.ok:
        found = _named(str(node.tier), arch, host_arch, engine)
        if _is_other(node, engine):
            return replace(found, engine=engine, runs_on=f"{ability.detail} on this host")
        return found
    # A cloud image starts by a PC's firmware, which a guest of Xen PV has none of.
    unfit = node.cloud and fallback == Tier.PARA
    if fallback and fallback != node.tier and node.tier is not Tier.CONTAINER and not unfit:
        other = _ability(Tier(fallback), arch, host_arch, probe)
        if other.ok:
            return _named(fallback, arch, host_arch)
    if skip:
        return Choice(str(node.tier), skipped=ability.reason, remedy=ability.remedy)
    hint = _hint(ability, fallback)
    if _is_other(node, engine):
        ways = "say engine: labctl, or leave such nodes out with --skip-unavailable"
        hint = f"{ability.remedy}; or {ways}" if ability.remedy else ways
    what = f"engine {engine}" if _is_other(node, engine) else str(node.tier)
    refused[node.name] = Ability(False, f"{what} can't run here: {ability.reason}", hint)
    return Choice(str(node.tier), skipped=ability.reason)


def _foreign(node: Node, arch: str, probe: Probe, engine: str) -> Ability:
    """Whether a container of another CPU can run here, and by which program ("": the host's choice)."""
    if engine:
        return Ability(False, f"{engine} is given no images for {arch}", "leave out `engine`")
    plain = probe(str(Tier.CONTAINER), "")
    if not plain.ok:
        return plain
    ability = probe(FOREIGN_WORD, arch)
    if ability.ok and ability.detail and node.isolation in (Isolation.CHROOT, Isolation.VSERVER):
        return Ability(
            False,
            f"isolation: {node.isolation} has no user namespace to register an emulator in",
            "isolation: docker or lxc",
        )
    return ability


def engine_of(node: Node) -> str:
    """The engine that a node asks for, "" for its tier's usual one; that of another tier says nothing."""
    engine = str(node.engine or "")
    fits = CONTAINER_ENGINES if node.tier is Tier.CONTAINER else {"uml"} if node.tier is Tier.PARA else ()
    return engine if engine in fits else ""


def _is_other(node: Node, engine: str) -> bool:
    """Whether it is a container that labctl does not run itself."""
    return node.tier is Tier.CONTAINER and bool(engine)


def _hint(ability: Ability, fallback: str = "") -> str:
    """The remedy, and the ways around it that were not tried already."""
    ways = "or leave such nodes out with --skip-unavailable"
    if not fallback:
        ways += ", or emulate them with --fallback emulation"
    return f"{ability.remedy}; {ways}" if ability.remedy else ways


def _ability(tier: Tier, arch: str, host_arch: str, probe: Probe, engine: str = "") -> Ability:
    if tier is not Tier.EMULATION and arch != host_arch:
        return Ability(
            False,
            f"{tier} runs the host's own architecture {host_arch} only, not {arch}",
            "use tier: emulation for a foreign architecture",
        )
    if tier is Tier.CONTAINER and engine:
        plain = probe(str(tier), arch)  # what every container needs comes first
        return probe(f"engine:{engine}", arch) if plain.ok else plain
    return probe("uml" if tier is Tier.PARA and engine == "uml" else str(tier), arch)


def _named(tier: str, arch: str, host_arch: str, engine: str = "") -> Choice:
    if tier == "para" and engine == "uml":
        return Choice(tier, "this host", "User Mode Linux")
    if tier == "hardware":
        return Choice(tier, "this host", "KVM")
    if tier == "emulation":
        return Choice(tier, "this host", f"QEMU TCG, emulated {arch}")
    return Choice(tier, "this host", "the host's kernel")


def abilities(answers: Mapping[tuple[str, str], Ability]) -> Probe:
    """A probe that answers from a table (for plans that must not touch the host)."""
    return lambda tier, arch: answers.get((tier, arch)) or answers[tier, ""]
