"""The short forms of what is around the nodes: networks, volumes, secrets and checks."""

from __future__ import annotations

import re

from labctl.profile.shapes import (
    Fields,
    Shape,
    Shaping,
    command,
    is_map,
    key_of,
    made,
    path,
    shape_map,
    text,
    text_map,
    texts,
)
from labctl.profile.tree import Item
from labctl.profile.words import shown


def named(item: Item, shape: Shape, shaping: Shaping) -> Item:
    """A map of named things, or a list of their names, each brought to its form by `shape`."""
    if isinstance(item.value, list):
        names: Fields = {}
        for child in item.items:
            if isinstance(child.value, (dict, list)) or child.value is None:
                shaping.problems.add(child, f"must be a name, not {child.kind}", "or write a map: NAME: {…}")
            elif child.text in names:
                shaping.problems.add(child, f"{shown(child.text)} is named twice")
            else:
                names[child.text] = child.like({})
        item = item.like(names)
    if not is_map(item):
        return item if item.value is not None else item.like({})
    return item.like({name: shape(child, shaping) for name, child in item.map.items()})


def network(item: Item, shaping: Shaping) -> Item:
    """A network: nothing, its subnet, or a map."""
    if not is_map(item):
        item = item.like({} if item.value is None else {"subnet": item})
    fields: Fields = {}
    for key, child in item.map.items():
        if key == "subnet":
            fields |= _subnets(child)
        elif key == "host_address":
            fields |= _host_addresses(child)
        elif child.value is not None:
            fields[key] = child
    shapes: dict[str, Shape] = dict.fromkeys(("description", "subnet6", "host_address6", "domain"), text)
    return shape_map(item.like(fields), shapes | {"labels": text_map}, shaping)


def _subnets(item: Item) -> Fields:
    fields: Fields = {}
    for child in item.items or [item]:
        if child.value is False or child.text == "none":
            fields["assign"] = made(child, False)
        elif child.value not in (None, ""):
            fields["subnet6" if ":" in child.text else "subnet"] = child.as_text()
    return fields


def _host_addresses(item: Item) -> Fields:
    fields: Fields = {}
    for child in item.items or [item]:
        if isinstance(child.value, bool) or child.text in ("yes", "no", "on", "off", "none"):
            fields["host"] = made(child, child.value is True or child.text in ("yes", "on"))
        elif child.value not in (None, ""):
            fields["host_address6" if ":" in child.text else "host_address"] = child.as_text()
    return fields


def volume(item: Item, shaping: Shaping) -> Item:
    """A named volume: nothing, or a map."""
    return item.like({}) if item.value is None else shape_map(item, {"description": text}, shaping)


def secret(item: Item, shaping: Shaping) -> Item:
    """A secret: its file, or a map."""
    if not is_map(item) and item.value is not None and not isinstance(item.value, list):
        item = item.like({"file": item})
    return shape_map(item, {"file": path, "env": text}, shaping)


def checks(item: Item, shaping: Shaping) -> Item:
    """A list of checks, or a map of them by name."""
    if is_map(item):
        members = [
            child.like({"name": key_of(child, name), **child.map}) if is_map(child) else child
            for name, child in item.map.items()
        ]
        item = item.like(members)
    if not isinstance(item.value, list):
        return item if item.value is not None else item.like([])
    shapes: dict[str, Shape] = {
        "needs": texts,
        "name": text,
        "command": command,
        "expect": _expect,
        "node": texts,
        "hint": text,
    }
    return item.like([shape_map(child, shapes, shaping) for child in item.items])


def _expect(item: Item, shaping: Shaping) -> Item:
    if item.value is None:
        return item.like({})
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        return item.like({"exit": item})
    if not is_map(item):
        return item.like({"output": item.as_text()}) if not isinstance(item.value, list) else item
    fields: Fields = {}
    for key, child in item.map.items():
        if key in ("exit", "exit_code"):
            fields["exit"] = made(child, None) if child.text == "any" else child
        elif child.value is not None:
            fields[key] = child
    shapes: dict[str, Shape] = dict.fromkeys(("output", "equals", "matches"), text)
    return shape_map(item.like(fields), shapes | {"range": _range}, shaping)


def _range(item: Item, _: Shaping) -> Item:
    """[low, high] with nothing for an open end, or LOW..HIGH."""
    number = r"(-?[0-9]{1,17}(?:\.[0-9]{1,17})?)?"
    match = re.fullmatch(rf"{number}\s*\.\.\s*{number}", item.text.strip(), re.ASCII)
    if not match:
        return item
    return item.like([made(item, float(end) if end else None) for end in match.groups()])
