"""Short forms written out: the pieces that nodes, networks and checks share.

Every shape takes an Item as written and gives an Item in the models' form, with the same places in the
file, so that a later error still points at what was written.  What a shape can't make sense of it leaves
as it is: the models say what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from labctl.profile.tree import Item, Problems, Scalar
from labctl.profile.words import shown
from labctl.records import dataclass

SHELL = ("/bin/sh", "-c")
Fields = dict[str, Item]


@dataclass
class Shaping:
    """What shapes need besides the item: where to complain, and where relative paths start from."""

    problems: Problems
    folder: Path


Shape = Callable[[Item, Shaping], Item]


def shape_map(item: Item, shapes: Mapping[str, Shape], shaping: Shaping) -> Item:
    """A map with each key's shape applied; anything else as it is."""
    if not isinstance(item.value, dict):
        return item
    return item.like({k: shapes[k](v, shaping) if k in shapes else v for k, v in item.map.items()})


def text(item: Item, _: Shaping) -> Item:
    """A scalar as the text that was written."""
    return item.as_text()


def texts(item: Item, _: Shaping) -> Item:
    """One text, or a list of them."""
    if isinstance(item.value, list):
        return item.like([child.as_text() for child in item.items])
    return item if is_map(item) or item.value is None else item.like([item.as_text()])


def command(item: Item, shaping: Shaping) -> Item:
    """Text runs in a shell; a list is run as it is."""
    if isinstance(item.value, list) or is_map(item) or item.value is None:
        return texts(item, shaping)
    return item.like([*(made(item, word) for word in SHELL), item.as_text()])


def path(item: Item, shaping: Shaping) -> Item:
    """A path on the host, made absolute: relative ones start at the profile's folder."""
    item = item.as_text()
    if not isinstance(item.value, str) or not item.value:
        return item
    try:
        full = shaping.folder / Path(item.value).expanduser()
    except (RuntimeError, ValueError) as error:
        shaping.problems.add(item, f"{shown(item.value)} is no path: {error}")
        return item
    # normpath, not resolve: a symbolic link that a person put there is meant.
    import os.path

    return item.like(os.path.normpath(full))


def text_map(item: Item, shaping: Shaping) -> Item:
    """A map of texts, or a list of KEY=VALUE."""
    if is_map(item):
        return item.like({key: child.as_text() for key, child in item.map.items()})
    if not isinstance(item.value, list):
        return item
    pairs: Fields = {}
    for child in item.items:
        key, equals, value = child.text.partition("=")
        if not equals or not key:
            given = shown(child.text) if child.text else child.kind
            shaping.problems.add(child, f"must be KEY=VALUE, not {given}")
        elif key in pairs:
            shaping.problems.add(child, f"{shown(key)} is given twice")
        else:
            pairs[key] = made(child, value)
    return item.like(pairs)


def is_map(item: Item) -> bool:
    """Whether it is a map."""
    return isinstance(item.value, dict)


def each(item: Item, shape: Callable[[Item], Item]) -> Item:
    """A list with every member shaped; anything else as it is."""
    return item.like([shape(child) for child in item.items]) if isinstance(item.value, list) else item


def made(item: Item, value: Scalar) -> Item:
    """A scalar that stands where `item` stands."""
    return replace(item, value=value, text="" if value is None else str(value))


def key_of(child: Item, name: str) -> Item:
    """The key of a map as a text of its own, at the key's place."""
    at = replace(child, value=name, text=name)
    return replace(at, line=child.key_line, column=child.key_column) if child.key_line else at


def rows(
    item: Item,
    key: str,
    known: Iterable[str],
    *,
    bare: Callable[[Item], Item | list[Item] | None],
    valued: Callable[[Item], Fields],
) -> Item:
    """A list of maps from any of its short forms.

    - {a: VALUE, b: {…}}: keys go under `key`, a VALUE that is no map through `valued`;
    - [x, {…}, {a: VALUE}]: an x that is no map through `bare` (None: it has complained itself);
    - x alone: as [x].
    """
    fields = set(known)

    def keyed(at: Item) -> list[Item]:
        members = []
        for name, child in at.map.items():
            rest = child.map if is_map(child) else {} if child.value is None else valued(child)
            members.append(child.like({key: key_of(child, name), **rest}))
        return members

    if item.value is None:
        return item
    if is_map(item):
        return item.like(keyed(item))
    result: list[Item] = []
    for member in item.items if isinstance(item.value, list) else [item]:
        if is_map(member):
            only = len(member.map) == 1 and not fields & set(member.map)
            result += keyed(member) if only else [member]
        elif (one := bare(member)) is not None:
            result += one if isinstance(one, list) else [one]
    return item.like(result)
