"""Rules about who runs where, who waits for whom, and the checks."""

from __future__ import annotations

import re

from labctl.profile.models import Check, Node
from labctl.profile.plainly import Loc
from labctl.profile.rules import Rules, is_blank
from labctl.profile.types import Hypervisor, Tier
from labctl.profile.words import shown


def check(rules: Rules) -> None:
    """Note what is wrong with `inside`, `depends_on` and `checks`."""
    nodes = rules.profile.nodes
    edges: dict[str, list[str]] = {}
    for key, node in nodes.items():
        if node.inside:
            _inside(rules, key, node)
        edges[key] = [node.inside] if node.inside in nodes and node.inside != key else []
        for other in node.depends_on:
            if other == key:
                rules.say(("nodes", key, "depends_on", other), f"{key} can't depend on itself")
            elif other in nodes:
                edges[key].append(other)
            elif not rules.is_broken("nodes", other):
                _no_node(rules, ("nodes", key, "depends_on", other), other)
    _circles(rules, edges)
    for index, one in enumerate(rules.profile.checks):
        _check(rules, index, one)


def _no_node(rules: Rules, loc: Loc, name: str) -> None:
    """A node that isn't there: also one that is there under numbers, or not at all (replicas: 0)."""
    replicas = rules.names.get(name)
    if replicas:
        rules.say(loc, f"there is no node {shown(name)}", f"its replicas are {replicas[0]} … {replicas[-1]}")
    elif replicas is None:
        known = [*rules.profile.nodes, *rules.names]
        rules.unknown(loc, "node", name, dict.fromkeys(known))


def _inside(rules: Rules, key: str, node: Node) -> None:
    loc: Loc = ("nodes", key, "inside")
    host = rules.profile.nodes.get(node.inside)
    if node.inside == key:
        rules.say(loc, f"{key} can't be inside itself")
    elif host is None:
        if not rules.is_broken("nodes", node.inside):
            _no_node(rules, loc, node.inside)
    elif rules.is_broken("nodes", node.inside):
        return
    elif host.tier is Tier.CONTAINER:
        vms = [name for name, other in rules.profile.nodes.items() if other.tier is not Tier.CONTAINER]
        hint = f"machines of this lab: {', '.join(vms[:5])}" if vms else "give it a tier such as emulation"
        what = "a container" if node.tier is Tier.CONTAINER else "a machine"
        rules.say(loc, f"{node.inside} is a container; {what} can be inside a virtual machine only", hint)
    else:
        if node.tier is not Tier.CONTAINER:
            _guest(rules, loc, key, node, host)
        if node.arch and node.arch != host.arch:
            of = host.arch or "the architecture of the host"
            rules.say(("nodes", key, "arch"), f"{key} is inside {node.inside}, whose architecture is {of}")
        there = {at.network for at in host.networks}
        for index, at in enumerate(node.networks):
            if at.network not in there and at.network in rules.profile.networks:
                message = f"{node.inside}, which {key} is inside, is not on {at.network}"
                rules.say(("nodes", key, "networks", index), message, f"add {at.network} to its networks")


# The hypervisor that a machine's host must run, by the machine's tier.
_NEEDED = {Tier.PARA: Hypervisor.XEN, Tier.HARDWARE: Hypervisor.KVM}


def _guest(rules: Rules, loc: Loc, key: str, node: Node, host: Node) -> None:
    """A machine inside a machine: the outer one's hypervisor must be the kind that the tier is made by."""
    needed = _NEEDED.get(node.tier)
    if host.inside:
        rules.say(loc, f"{node.inside} is itself inside {host.inside}: no hypervisor runs in there")
    elif needed is None:
        rules.say(
            loc, f"{key} has tier {node.tier}: such a machine runs on this host only", "leave out inside"
        )
    elif host.hypervisor is not needed:
        has = f"has hypervisor: {host.hypervisor}" if host.hypervisor else "has no hypervisor"
        rules.say(
            loc, f"{node.inside} {has}; tier {node.tier} runs under {needed}", f"give it hypervisor: {needed}"
        )


def _circles(rules: Rules, edges: dict[str, list[str]]) -> None:
    """One problem for each circle of nodes that wait for each other, with its path."""
    state: dict[str, int] = {}  # 1 on the trail, 2 done
    for start in edges:
        if start in state:
            continue
        trail = [start]
        stack = [iter(edges[start])]
        state[start] = 1
        while stack:
            other = next(stack[-1], None)
            if other is None:
                stack.pop()
                state[trail.pop()] = 2
            elif other not in state:
                state[other] = 1
                trail.append(other)
                stack.append(iter(edges[other]))
            elif state[other] == 1:
                circle = trail[trail.index(other) :]
                last = circle[-1]
                waits = other in rules.profile.nodes[last].depends_on
                loc: Loc = ("nodes", last, "depends_on", other) if waits else ("nodes", last, "inside")
                rules.say(loc, f"these wait for each other in a circle: {' → '.join([*circle, other])}")


def _check(rules: Rules, index: int, one: Check) -> None:
    place: Loc = ("checks", index)
    if one.node not in rules.profile.nodes and not rules.is_broken("nodes", one.node):
        _no_node(rules, (*place, "node"), one.node)
    for name in one.needs:
        if name not in rules.profile.nodes and not rules.is_broken("nodes", name):
            _no_node(rules, (*place, "needs"), name)
    if is_blank(one.command):
        rules.say((*place, "command"), "must not be empty", "the command whose outcome the check is about")
    if one.interval <= 0 or one.timeout <= 0:
        rules.say(place, "interval and timeout must be more than 0")
    expect = one.expect
    if expect.matches is not None:
        try:
            re.compile(expect.matches)
        except re.error as error:
            where = f" at character {error.pos + 1}" if error.pos is not None else ""
            hint = "a backslash is written once between single quotes"
            rules.say(
                (*place, "expect", "matches"), f"this is no regular expression: {error.msg}{where}", hint
            )
        except (RecursionError, OverflowError):
            rules.say((*place, "expect", "matches"), "this regular expression is too large")
    if expect.range is not None:
        low, high = expect.range
        if low is None and high is None:
            rules.say((*place, "expect", "range"), "the range has no ends, so that everything is in it")
        elif low is not None and high is not None and low > high:
            rules.say((*place, "expect", "range"), f"the range ends ({high:g}) before it begins ({low:g})")
    if (expect.exit, expect.output, expect.equals, expect.matches, expect.range) == (None,) * 5:
        rules.say((*place, "expect"), "nothing is expected, so that the check can't fail")
