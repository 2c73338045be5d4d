"""Resources as JSON text and back, by the type hints of their fields.

Unknown fields of a newer version are ignored and missing ones take their default, so that any
version can unmake what another made.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from labctl.errors import LabError

T = TypeVar("T")


def plain(value: object) -> Any:
    """A dataclass, tuple or mapping as plain JSON values."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def encode(resource: object) -> str:
    """The canonical JSON text of a resource: equal texts mean equal resources."""
    return json.dumps(plain(resource), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def decode(cls: type[T], text: str) -> T:
    """Build a dataclass from its JSON text.

    Raises LabError when the text does not fit the class.
    """
    try:
        return typing.cast(T, _build(cls, json.loads(text)))
    except (ValueError, TypeError, KeyError) as error:
        raise LabError(f"the ledger's record of a {cls.__name__} cannot be read: {error}") from error


def diff_fields(old: str, new: str) -> list[str]:
    """What differs between two canonical texts, as sentences such as "memory: 128 → 256"."""
    before, after = json.loads(old), json.loads(new)
    found: list[str] = []
    _diff("", before, after, found)
    return found


def _diff(path: str, before: object, after: object, found: list[str]) -> None:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            inner = f"{path}.{name}" if path else str(name)
            _diff(inner, before.get(name), after.get(name), found)
        return
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            _diff(f"{path}[{index}]", one, other, found)
        return
    if isinstance(before, list) and isinstance(after, list):
        gone = [item for item in before if item not in after]
        new = [item for item in after if item not in before]
        if gone or new:
            found.extend([f"{path}: without {_short(item)}" for item in gone])
            found.extend([f"{path}: with {_short(item)}" for item in new])
            return
    inside = _document(before), _document(after)
    if inside[0] is not None and inside[1] is not None:
        _diff(path, *inside, found)
        return
    found.append(f"{path}: {_short(before)} → {_short(after)}")


def _document(value: object) -> dict[str, Any] | None:
    """The JSON object that a text holds (a container's config.json), or None."""
    if not isinstance(value, str) or not value.startswith("{"):
        return None
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _short(value: object) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise TypeError(f"{hint.__name__} wants an object, not {type(value).__name__}")
        hints = _hints(hint)
        return hint(**{name: _build(hints[name], value[name]) for name in _names(hint) if name in value})
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        inner = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        return _build(inner[0], value) if len(inner) == 1 else value
    if origin is tuple:
        arms = typing.get_args(hint)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_build(arms[0], item) for item in value)
        return tuple(_build(arm, item) for arm, item in zip(arms, value, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        arm = typing.get_args(hint)[1]
        return {key: _build(arm, item) for key, item in value.items()}
    return value
