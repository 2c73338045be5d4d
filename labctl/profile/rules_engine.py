"""Rules about `engine`: what makes a para node, and what runs a container."""

from __future__ import annotations

from labctl.profile.models import Node
from labctl.profile.rules import Rules
from labctl.profile.types import Engine, Isolation, Tier

_NOT_UML = ("kernel", "machine", "cpu", "devices", "cpus", "disks", "hypervisor", "inside", "vm")
_PARA = (Engine.XEN, Engine.UML)
_NOT_YET = {
    Engine.DOCKER: "Docker joins no network namespace that was made before",
    Engine.LXC: "labctl does not drive libvirt's lxc:/// yet",
}


def check(rules: Rules, key: str, node: Node) -> None:
    """Note an engine that the tier hasn't got, and what an engine has no use for.

    User Mode Linux has one CPU, its own kernel and no emulated hardware.  An engine in `defaults` is fine,
    since other nodes may have its tier.
    """
    if rules.is_broken("nodes", key, "tier") or rules.is_broken("nodes", key, "engine"):
        return
    if node.tier is Tier.PARA and node.engine is Engine.UML:
        for name in _NOT_UML:
            if _given(rules, key, name) and not (name == "cpus" and (node.cpus or 0) <= 1):
                place = ("nodes", key, name)
                rules.say(place, f"User Mode Linux has no {name}", f"{key} has engine: uml", key=True)
    place = ("nodes", key, "engine")
    if node.tier is Tier.CONTAINER:
        _container(rules, key, node)
    elif _given(rules, key, "engine"):
        if node.tier is not Tier.PARA:
            hint = f"{key} has tier: {node.tier}"
            rules.say(place, "only tier: para and tier: container have an engine", hint, key=True)
        elif node.engine not in _PARA:
            rules.say(place, f"{node.engine} runs containers, and {key} has tier: para", "xen or uml")


def _container(rules: Rules, key: str, node: Node) -> None:
    place = ("nodes", key, "engine")
    if node.engine in _PARA:
        if _given(rules, key, "engine"):
            hint = "labctl, runc, crun or podman"
            rules.say(place, f"{node.engine} runs para nodes, and {key} has tier: container", hint)
        return
    if node.engine is None or node.engine is Engine.LABCTL:
        return
    if node.engine in _NOT_YET:
        rules.say(place, _NOT_YET[node.engine], "engine: labctl, runc, crun or podman runs it")
    if node.inside:
        hint = f"leave out engine, or nodes.{key}.inside"
        rules.say(place, f"a container inside {node.inside} is run by labctl's own runtime", hint)
    if node.isolation is not Isolation.DOCKER and not rules.is_broken("nodes", key, "isolation"):
        where = ("nodes", key, "isolation") if _given(rules, key, "isolation") else place
        hint = "leave out engine, or isolation"
        rules.say(where, f"{node.engine} knows no isolation: {node.isolation}, which is labctl's alone", hint)
    if _given(rules, key, "logging"):
        hint = "leave out engine, or logging"
        rules.say(("nodes", key, "logging"), f"{node.engine} keeps no log that has bounds", hint, key=True)


def _given(rules: Rules, key: str, name: str) -> bool:
    """Whether the node itself says it."""
    item, depth = rules.tree.find(("nodes", key, name))
    return depth >= 3 and not item.path.startswith(("defaults", "groups"))
