"""Tiers: each turns a node of the profile into resources, and hands out the machine for it.

A tier has or hasn't an ability (console, pause, snapshot); it has no method that says
"not supported".  See docs/adding-a-tier.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labctl.tiers.context import Choice, NodeFacts, Planned

if TYPE_CHECKING:
    from labctl.profile.models import Node


def plan_node(facts: NodeFacts) -> Planned:
    """The resources and the record of a node, from the tier that was chosen for it."""
    if facts.choice.tier == "container":
        if facts.node.inside:
            from labctl.tiers import inside

            return inside.plan(facts)
        if facts.choice.engine:
            from labctl.tiers import engine

            return engine.plan(facts)
        from labctl.tiers import container

        return container.plan(facts)
    if is_uml(facts.node, facts.choice):
        from labctl.tiers import uml

        return uml.plan(facts)
    if facts.node.inside:
        from labctl.tiers import guests

        return guests.plan(facts)
    from labctl.tiers import vm

    return vm.plan(facts)


def is_uml(node: Node, choice: Choice) -> bool:
    """Whether a node runs as User Mode Linux, as its profile says and this host allows."""
    return choice.tier == "para" and node.engine == "uml"
