"""YAML text to a tree of Items, strictly and within bounds.

Scalars follow the core schema of YAML 1.2 (section 10.3.2) without its odd numbers, so `no`, `on`,
`0644` and `02:00:00:00:00:01` are text and only `true` and `false` are flags.  Duplicate keys, unknown
tags and second documents are refused; anchors, aliases and merge keys (`<<`) are understood, bounded in
number and depth, so that no small file grows into a large tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from labctl.errors import Problem, ProfileError, Where
from labctl.profile.tree import Item, Problems, Scalar, join, quoted

MOST_ITEMS = 100_000
MOST_DEPTH = 40
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]{1,17}\.[0-9]{0,17}([eE][-+]?[0-9]{1,2})?", re.ASCII)
_WORDS: dict[str, Scalar] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_TAGS = {
    None,
    "!",
    *(f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null", "map", "seq")),
}
_BAD = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PARSER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = (
    (
        "mapping values are not allowed",
        "a ':' where no key can be",
        "indent like its neighbours, or quote the text",
    ),
    ("could not find expected ':'", "a key without ':'", "write KEY: VALUE, or quote text of several lines"),
    ("did not find expected key", "something is not indented like its neighbours", ""),
    ("expected <block end>", "something is not indented like its neighbours", ""),
    ("did not find expected '-'", "something is not indented like the list around it", ""),
    (
        "did not find expected <document start>",
        "a profile is a map (name: …, nodes: …), and goes on after its end here",
        "is it another kind of file?",
    ),
    ("found unexpected end of stream", "a quote is opened and never closed", ""),
    ("did not find expected ',' or ']'", "a [ is opened and never closed", "write [a, b]"),
    ("did not find expected ',' or '}'", "a { is opened and never closed", "write {a: 1, b: 2}"),
    ("expected ',' or ']'", "a [ is opened and never closed", "write [a, b]"),
    ("expected ',' or '}'", "a { is opened and never closed", "write {a: 1, b: 2}"),
)


class _Refused(Exception):
    """The one mistake after which nothing more can be read."""

    def __init__(self, message: str, mark: Any, hint: str = "", path: str = "") -> None:
        self.message, self.mark, self.hint, self.path = message, mark, hint, path


def read_yaml(text: str, file: str) -> Item:
    """The tree of a YAML text; raises ProfileError for what is no YAML or out of bounds."""
    text = text.removeprefix("\ufeff")
    if bad := _BAD.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - (text.rfind("\n", 0, bad.start()) + 1) + 1
        where = Where(file, line, column)
        raise ProfileError([Problem(f"the character U+{ord(bad[0]):04X} can't stand in YAML", where)])
    problems = Problems()
    loader = _PARSER(text)
    try:
        item = _Reader(loader, file, problems).document()
    except _Refused as no:
        mark = no.mark
        where = Where(file, mark.line + 1, mark.column + 1, no.path)
        raise ProfileError([*problems.found.values(), Problem(no.message, where, no.hint)]) from None
    except yaml.YAMLError as error:
        raise ProfileError([*problems.found.values(), _plainly(error, file, text)]) from error
    finally:
        loader.dispose()
    problems.raise_any()
    return item


def _plainly(error: yaml.YAMLError, file: str, text: str) -> Problem:
    """A YAML error in plain words, at its place."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = " ".join(str(part) for part in (getattr(error, "problem", None) or error,) if part)
    where = Where(file, mark.line + 1, mark.column + 1) if mark else Where(file)
    lines = text.split("\n")
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    here = line[mark.column : mark.column + 1] if mark else ""
    if here == "\t" or (mark and "\t" in line[: len(line) - len(line.lstrip())]):
        return Problem("a tab where YAML wants spaces", where, "indent with spaces")
    if "cannot start any token" in said:
        return Problem(f"text can't begin with {here or 'this character'}", where, "put the text in quotes")
    for part, message, hint in _PLAIN:
        if part in said:
            opened = getattr(error, "context_mark", None)
            if "never closed" in message and opened:  # the end of the file helps nobody
                where = Where(file, opened.line + 1, opened.column + 1)
            return Problem(message, where, hint)
    return Problem(f"this is no YAML: {said}", where)


class _Reader:
    """Builds Items from the parser's events."""

    def __init__(self, loader: Any, file: str, problems: Problems) -> None:
        self.loader, self.file, self.problems = loader, file, problems
        self.anchors: dict[str, Item | None] = {}
        self.count = 0

    def event(self) -> Any:
        return self.loader.get_event()

    def document(self) -> Item:
        self.event()  # the stream's start
        if self.loader.check_event(yaml.StreamEndEvent):
            return Item(None, file=self.file)
        self.event()  # the document's start
        item = self.item(self.event(), "", 0)
        self.event()  # the document's end
        if not self.loader.check_event(yaml.StreamEndEvent):
            mark = self.event().start_mark
            raise _Refused("a second document (---) in one file; a profile is one document", mark)
        return item

    def item(self, event: Any, path: str, depth: int) -> Item:
        mark = event.start_mark
        if depth > MOST_DEPTH:
            raise _Refused(f"nested more than {MOST_DEPTH} deep", mark)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path)
        self.spend(1, mark)
        if event.tag not in _TAGS:
            raise _Refused(f"the tag {event.tag[:60]} is not allowed", mark, "remove it", path)
        if event.anchor:
            self.anchors[event.anchor] = None  # being built: an alias to it now would be a circle
        place = Item(None, file=self.file, line=mark.line + 1, column=mark.column + 1, path=path)
        if isinstance(event, yaml.ScalarEvent):
            text_only = event.style not in (None, "") or event.tag in ("!", "tag:yaml.org,2002:str")
            value = event.value if text_only else _scalar(event.value)
            item = replace(place, value=value, text=event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            item = replace(place, value=list(self.members(path, depth)))
        else:
            item = replace(place, value=self.mapping(path, depth))
        if event.anchor:
            self.anchors[event.anchor] = item
        return item

    def spend(self, items: int, mark: Any) -> None:
        self.count += items
        if self.count > MOST_ITEMS:
            raise _Refused(f"more than {MOST_ITEMS} values, aliases (*name) counted each time", mark)

    def alias(self, event: Any, path: str) -> Item:
        if event.anchor not in self.anchors:
            raise _Refused(
                f"*{event.anchor} names no anchor (&{event.anchor}) above", event.start_mark, path=path
            )
        item = self.anchors[event.anchor]
        if item is None:
            raise _Refused(f"*{event.anchor} contains itself", event.start_mark, path=path)
        self.spend(sum(1 for _ in item.walk()), event.start_mark)
        return item

    def members(self, path: str, depth: int) -> Iterator[Item]:
        index = 0
        while not isinstance(event := self.event(), yaml.SequenceEndEvent):
            yield self.item(event, join(path, index), depth + 1)
            index += 1

    def mapping(self, path: str, depth: int) -> dict[str, Item]:
        own: dict[str, Item] = {}
        merged: dict[str, Item] = {}
        while not isinstance(event := self.event(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                template = isinstance(event, yaml.MappingStartEvent)
                hint = (
                    "there is no template language; labctl up -s PATH=VALUE sets values" if template else ""
                )
                raise _Refused("a key must be plain text", event.start_mark, hint, path)
            mark: Any = event.start_mark
            key = event.value
            self.spend(1, mark)
            value = self.item(self.event(), join(path, key), depth + 1)
            if key == "<<" and event.style in (None, ""):
                self.merge_key(value, merged, mark, path)
                continue
            value = replace(value, key_line=mark.line + 1, key_column=mark.column + 1)
            if key in own:
                first = f"it is already on line {own[key].key_line}"
                self.problems.add(value, f"the key {quoted(key)} is written twice", first, key=True)
                continue
            own[key] = value
        return own | {key: value for key, value in merged.items() if key not in own}

    def merge_key(self, value: Item, merged: dict[str, Item], mark: Any, path: str) -> None:
        for source in value.items or [value]:
            if not isinstance(source.value, dict):
                raise _Refused("<< wants a map, or a list of maps", mark, "write <<: *name", path)
            for key, child in source.map.items():
                merged.setdefault(key, child)  # the earlier of several wins (yaml.org/type/merge.html)


def _scalar(text: str) -> Scalar:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
