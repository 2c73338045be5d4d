"""Dataclasses that cost nothing until they are used.

The standard decorator writes and compiles up to six methods for each class while its module is imported:
half a millisecond, and a command of labctl imports 150 such classes, most of which it never uses.  This
decorator leaves them to methods that all classes share, and asks the standard one for the fields alone, when
the first instance is made or the first question is asked.  To type checkers it is the standard one.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As dataclasses.dataclass; what isn't among the options handled here is left to that one."""
        if cls is not None:
            return _deferred(cls, options)
        return lambda cls: _deferred(cls, options)


_FIELDS = "__dataclass_fields__"
_HANDLED = {"frozen", "kw_only"}
_MISSING = dataclasses.MISSING
_lock = threading.RLock()


def _deferred(cls: type, options: dict[str, Any]) -> type:
    own = vars(cls)
    if not options.keys() <= _HANDLED or any(
        "InitVar" in str(kind) for kind in own.get("__annotations__", {}).values()
    ):
        return dataclasses.dataclass(**options)(cls)
    frozen = options.get("frozen", False)
    shape = _Shape(cls, options)
    methods: dict[str, Any] = {"__init__": _init_of(shape), "__repr__": _repr, "__eq__": _eq}
    if not frozen:
        cls.__hash__ = None  # type: ignore[assignment]
    else:
        methods |= {"__hash__": _hash, "__setattr__": _refuse_set, "__delattr__": _refuse_delete}
    for name, method in methods.items():
        # A class that has __eq__ of its own has __hash__ None from that.
        if name not in own or (name == "__hash__" and own[name] is None):
            setattr(cls, name, method)
    setattr(cls, _FIELDS, shape)
    return cls


class _Shape:
    """What a class is made of, found out when first asked for; stands in for its fields until then."""

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self.cls, self.options = cls, options
        self.rows: tuple[tuple[str, bool, Any, Any], ...] | None = None  # name, settable, default, factory
        self.places: tuple[str, ...] = ()  # what may be given by position
        self.after = False

    def __get__(self, instance: object, owner: type) -> Any:
        self.finish()
        return getattr(owner, _FIELDS)

    def finish(self) -> tuple[tuple[str, bool, Any, Any], ...]:
        """The fields; a second thread waits for the first one's work."""
        with _lock:
            if self.rows is None:
                kw_only = self.options.get("kw_only", False)
                dataclasses.dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(self.cls)
                fields = dataclasses.fields(self.cls)
                self.places = tuple(field.name for field in fields if field.init and not field.kw_only)
                self.after = hasattr(self.cls, "__post_init__")
                self.rows = tuple((f.name, f.init, f.default, f.default_factory) for f in fields)
            return self.rows


def _init_of(shape: _Shape) -> Any:
    def init(self: Any, /, *args: object, **given: object) -> None:
        rows = shape.rows or shape.finish()
        if args:
            _place(shape, args, given)
        state = self.__dict__
        missing = []
        for name, settable, default, factory in rows:
            if name in given and settable:
                state[name] = given.pop(name)
            elif default is not _MISSING:
                state[name] = default
            elif factory is not _MISSING:
                state[name] = factory()
            elif settable:
                missing.append(name)
        what = f"{shape.cls.__qualname__}.__init__()"
        if given:
            raise TypeError(f"{what} got an unexpected keyword argument {next(iter(given))!r}")
        if missing:
            raise TypeError(f"{what} missing {len(missing)} required arguments: {', '.join(missing)}")
        if shape.after:
            self.__post_init__()

    init.__name__, init.__qualname__ = "__init__", f"{shape.cls.__qualname__}.__init__"
    return init


def _place(shape: _Shape, args: tuple[object, ...], given: dict[str, object]) -> None:
    """Add the arguments given by position to those given by name."""
    what = f"{shape.cls.__qualname__}.__init__()"
    if len(args) > len(shape.places):
        most = len(shape.places) + 1
        raise TypeError(f"{what} takes at most {most} positional arguments but {len(args) + 1} were given")
    for name, value in zip(shape.places, args, strict=False):
        if name in given:
            raise TypeError(f"{what} got multiple values for argument {name!r}")
        given[name] = value


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, field.name) for field in dataclasses.fields(record) if field.compare)


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_set(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
