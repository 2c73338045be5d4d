"""What a person wrote, with the place of every piece: the tree that errors point into.

An Item is a scalar, a list of Items or a map of Items, and knows its file, line, column and path.
Scalars keep their raw text besides their value, so that `COUNTRY: no` can become the text "no" where
text is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import field, replace

from labctl.errors import Problem, ProfileError, Where
from labctl.records import dataclass

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of a profile and where it stands.  Lines and columns count from 1; 0 is unknown."""

    value: Scalar | list[Item] | dict[str, Item]
    text: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    key_line: int = 0
    key_column: int = 0

    def like(self, value: Scalar | Sequence[Item] | dict[str, Item]) -> Item:
        """Another value at the same place: how a short form is written out."""
        if isinstance(value, (dict, list)):
            return replace(self, value=value, text="")
        if value is None or isinstance(value, (str, int, float)):
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            return replace(self, value=value, text=text)
        return replace(self, value=list(value), text="")

    def as_text(self) -> Item:
        """The scalar as the text that was written; lists, maps and nothing stay as they are."""
        if self.value is None or isinstance(self.value, (list, dict, str)):
            return self
        return replace(self, value=self.text)

    @property
    def map(self) -> dict[str, Item]:
        """The children by key; empty for anything but a map."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Item]:
        """The children in order; empty for anything but a list."""
        return self.value if isinstance(self.value, list) else []

    @property
    def kind(self) -> str:
        """What it is, for a message."""
        value = self.value
        if isinstance(value, dict):
            return "a map"
        if isinstance(value, list):
            return "a list"
        if value is None:
            return "nothing"
        if isinstance(value, bool):
            return "true or false"
        return "text" if isinstance(value, str) else "a number"

    def plain(self) -> object:
        """The bare Python value, for pydantic."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def find(self, loc: Sequence[str | int]) -> tuple[Item, int]:
        """The deepest item on the way to `loc`, and how many steps led to it."""
        item = self
        for depth, step in enumerate(loc):
            if isinstance(step, str) and step in item.map:
                item = item.map[step]
            elif isinstance(step, int) and step < len(item.items):
                item = item.items[step]
            else:
                return item, depth
        return item, len(loc)

    def where(self, *, key: bool = False, field: str = "") -> Where:
        """Its place; with `key`, that of its key in the map above."""
        at_key = key and self.key_line
        line, column = (self.key_line, self.key_column) if at_key else (self.line, self.column)
        return Where(self.file, line, column, field or self.path)

    def walk(self) -> Iterator[Item]:
        """It and everything below."""
        yield self
        for child in [*self.map.values(), *self.items]:
            yield from child.walk()


@dataclass
class Problems:
    """Collects what is wrong, so that all of it is reported at once, in the order of the file."""

    found: dict[tuple[Where | None, str], Problem] = field(default_factory=dict)

    def add(self, item: Item, message: str, hint: str = "", *, key: bool = False, field: str = "") -> None:
        """Note one problem; the same one at the same place (through `defaults`, a replica) counts once."""
        where = item.where(key=key, field=field)
        message, hint = printable(message), printable(hint)
        self.found.setdefault((where, message), Problem(message, where, hint))

    def raise_any(self) -> None:
        """Raise ProfileError with everything noted; return when nothing was."""
        if self.found:

            def order(problem: Problem) -> tuple[int, int]:
                return (problem.where.line, problem.where.column) if problem.where else (0, 0)

            raise ProfileError(sorted(self.found.values(), key=order))


def join(path: str, step: str | int) -> str:
    """A path one step deeper: nodes.web, ports[0], sysctls."net.ipv4.ip_forward"."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    word = step if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", step, re.ASCII) else quoted(step)
    return f"{path}.{word}" if path else word


def printable(text: str) -> str:
    """Text that can't disturb a terminal or a log: control characters escaped, very long text cut."""
    cut = text if len(text) <= 1000 else text[:999] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def quoted(text: str) -> str:
    """A key for a path: in double quotes, unprintable characters escaped, cut when long."""
    cut = text if len(text) <= 60 else text[:59] + "…"
    return '"' + printable(cut.replace("\\", r"\\").replace('"', r"\"")) + '"'
