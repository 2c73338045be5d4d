"""Tiers: each turns a node of the profile into resources, and hands out the machine for it.

A tier has or hasn't an ability (console, pause, snapshot); it has no method that says
"not supported".  See docs/adding-a-tier.md.
"""

from __future__ import annotations

from labctl.tiers.context import NodeFacts, Planned


def plan_node(facts: NodeFacts) -> Planned:
    """The resources and the record of a node, from the tier that was chosen for it."""
    if facts.choice.tier == "container":
        if facts.node.inside:
            from labctl.tiers import inside

            return inside.plan(facts)
        from labctl.tiers import container

        return container.plan(facts)
    if facts.node.inside:
        from labctl.tiers import guests

        return guests.plan(facts)
    from labctl.tiers import vm

    return vm.plan(facts)
