"""`defaults`, `groups` and `extends` merged into the nodes; replicas and checks multiplied.

The order is defaults < groups in the order of `extends` (a group's own `extends` first) < the node.
`env`, `labels`, `sysctls` and `depends_on` are merged key by key; everything else is replaced whole by
the nearer one.  A key with nothing behind it takes away what was inherited.
"""

from __future__ import annotations

from labctl.profile.shapes import Shaping, made
from labctl.profile.tree import Item
from labctl.profile.words import nearest, shown

MERGED = ("env", "labels", "sysctls", "depends_on")
MOST_NODES = 2000


class Merger:
    """Merges the nodes of one profile; every Item is already in the models' form."""

    def __init__(self, defaults: Item, groups: dict[str, Item], shaping: Shaping) -> None:
        self.defaults, self.groups, self.problems = defaults, groups, shaping.problems
        self.done: dict[str, Item] = {}

    def node(self, own: Item) -> Item:
        """A node with everything inherited, nothing empty left."""
        merged = self._over(self.defaults, self._extended(own, ()))
        kept: dict[str, Item] = {}
        for key, child in merged.map.items():
            if key in MERGED and isinstance(child.value, dict):
                child = child.like({k: v for k, v in child.map.items() if v.value is not None})
            if child.value is not None and key != "extends":
                kept[key] = child
        return merged.like(kept) if isinstance(merged.value, dict) else merged

    def group(self, name: str, trail: tuple[str, ...]) -> Item:
        """A group with the groups that it extends."""
        if name not in self.done:
            self.done[name] = self._extended(self.groups[name], (*trail, name))
        return self.done[name]

    def _extended(self, own: Item, trail: tuple[str, ...]) -> Item:
        extends = own.map.get("extends")
        base = own.like({})
        for child in (extends.items or [extends]) if extends and extends.value not in (None, []) else []:
            name = child.text
            if isinstance(child.value, (list, dict)):
                self.problems.add(child, f"must be the name of a group, not {child.kind}")
            elif name in trail:
                circle = " → ".join([*trail[trail.index(name) :], name])
                self.problems.add(child, f"groups extend each other in a circle: {circle}")
            elif name not in self.groups:
                hint = "" if self.groups else "groups stand under `groups:` at the top"
                self.problems.add(child, f"there is no group {shown(name)}{nearest(name, self.groups)}", hint)
            else:
                base = self._over(base, self.group(name, trail))
        return self._over(base, own)

    @staticmethod
    def _over(base: Item, top: Item) -> Item:
        if not isinstance(top.value, dict):
            return top
        result = dict(base.map)
        for key, child in top.map.items():
            below = result.get(key)
            if key in MERGED and below and isinstance(below.value, dict) and isinstance(child.value, dict):
                child = child.like({**below.map, **child.map})
            result[key] = child
        return top.like(result)


def multiply(nodes: dict[str, Item], shaping: Shaping) -> tuple[dict[str, Item], dict[str, list[str]]]:
    """The nodes with replicas written out, and for each key the names it became.

    A node with `replicas` is NAME-1, NAME-2 … even when there is only one, so that more of them later
    only add to the lab.
    """
    names: dict[str, list[str]] = {}
    for key, item in nodes.items():
        count = item.map["replicas"].value if "replicas" in item.map else None
        sane = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 1000
        names[key] = [f"{key}-{number}" for number in range(1, int(count) + 1)] if sane else [key]  # type: ignore[arg-type]
    if sum(len(of) for of in names.values()) > MOST_NODES:
        first = next(item for key, item in nodes.items() if len(names[key]) > 1 or key)
        shaping.problems.add(first, f"more than {MOST_NODES} nodes, replicas counted", key=True)
        names = {key: [key] for key in nodes}
    result: dict[str, Item] = {}
    for key, item in nodes.items():
        item = _rename(item, names)
        for name in names[key]:
            if name in result or (name != key and name in nodes):
                shaping.problems.add(item, f"replica {shown(name)} has the name of another node", key=True)
            elif not isinstance(item.value, dict) or name == key:
                result[name] = item
            else:
                fields = {k: v for k, v in item.map.items() if k != "replicas"}
                result[name] = item.like({**fields, "replica_of": made(item, key)})
    return result, names


def _rename(item: Item, names: dict[str, list[str]]) -> Item:
    """References to a replicated node, spread to all of its replicas."""
    waits = item.map.get("depends_on")
    if waits is None or not isinstance(waits.value, dict):
        return item
    spread = {name: child for key, child in waits.map.items() for name in names.get(key, [key])}
    return item.like({**item.map, "depends_on": waits.like(spread)})


def spread_checks(checks: Item, names: dict[str, list[str]], shaping: Shaping) -> Item:
    """One check per node: `node` may name several, a replicated one, or `all`."""
    every = [name for of in names.values() for name in of]
    result: list[Item] = []
    for check in checks.items:
        targets = check.map.get("node")
        if targets is None or not isinstance(targets.value, list):
            result.append(check)
            continue
        if not targets.items:
            shaping.problems.add(targets, "names no node", "a node's name, several of them, or all")
        found: list[Item] = []
        for target in targets.items:
            known = (
                every
                if target.text == "all" and "all" not in names
                else names.get(target.text, [target.text])
            )
            found += [made(target, name) if isinstance(target.value, str) else target for name in known]
        if len(result) + len(found) > 10 * MOST_NODES:
            shaping.problems.add(check, f"more than {10 * MOST_NODES} checks")
            break
        label = check.map.get("name")
        for target in found:
            fields = {**check.map, "node": target}
            if (needs := check.map.get("needs")) is not None and needs.items:
                spread = [made(n, name) for n in needs.items for name in names.get(n.text, [n.text])]
                fields["needs"] = needs.like(spread)
            if len(found) > 1 and label is not None and isinstance(label.value, str):
                fields["name"] = made(label, f"{label.value} ({target.text})")
            result.append(check.like(fields))
    return checks.like(result)
