"""Which class stands behind a kind.  Filled by the room that knows them all; loaded on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from labctl.errors import LabError
from labctl.resource.protocol import Resource

_paths: dict[str, str] = {}
_classes: dict[str, type[Resource]] = {}


def register(kinds: Mapping[str, str]) -> None:
    """Add kinds, each with the place of its class as "module:Class"."""
    _paths.update(kinds)


def class_of(kind: str) -> type[Resource]:
    """The class behind a kind.  Raises LabError for a kind that this version doesn't know."""
    found = _classes.get(kind)
    if found is None:
        place = _paths.get(kind)
        if place is None:
            raise LabError(
                f"the ledger names an object of the unknown kind {kind!r}",
                hint="it was made by a newer labctl: use that version to take the lab down",
            )
        module, _, name = place.partition(":")
        found = getattr(importlib.import_module(module), name)
        _classes[kind] = found
    return found
