"""`-s PATH=VALUE`: changes to a profile from the command line, before anything is merged or checked.

PATH is keys joined by dots, with [N] for list members (nodes.web.memory, checks[0].within); the rest after
`sysctls` or `labels` is one key, and any key may stand in double quotes.  VALUE is YAML; none at all takes
the key away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from labctl.errors import Problem, ProfileError, Where
from labctl.profile.resolve import IMPLIED
from labctl.profile.tree import Item, Problems, join, printable
from labctl.profile.words import nearest, shown
from labctl.profile.yamlread import MOST_DEPTH, read_yaml

_STEP = re.compile(r'(?:^|\.)(?:"([^"]*)"|([^."\[\]=]+))|\[([0-9]{1,6})\]')
_WHOLE_REST = ("sysctls", "labels")
Steps = list[str | int]


def apply_sets(root: Item, sets: Sequence[str], problems: Problems) -> Item:
    """The tree with every option applied in order; what can't be applied is noted."""
    for option in sets:
        try:
            steps, value = _parse(option)
        except ProfileError as error:
            for problem in error.problems:
                problems.add(
                    Item(None, file=problem.where.file if problem.where else ""),
                    problem.message,
                    problem.hint,
                )
            continue
        root = _put(root, steps, value, problems, "")
    return root


def _parse(option: str) -> tuple[Steps, Item]:
    file = f"-s {printable(option if len(option) <= 60 else option[:59] + '…')}"
    path, equals, text = option.partition("=")
    steps: Steps = []
    at = 0
    while equals and at < len(path):
        match = _STEP.match(path, at)
        if not match:
            break
        at = match.end()
        steps.append(int(match[3]) if match[3] else (match[1] if match[1] is not None else match[2]))
        if (
            steps[-1] in _WHOLE_REST
            and len(steps) > 1
            and path[at : at + 1] == "."
            and path[at + 1 :][:1] != '"'
        ):
            steps.append(path[at + 1 :])
            at = len(path)
    if not steps or at < len(path) or isinstance(steps[0], int) or len(steps) > MOST_DEPTH:
        hint = "for example -s nodes.web.memory=512MiB"
        raise ProfileError([Problem("an override must be PATH=VALUE", Where(file), hint)])
    value = read_yaml(text, file)
    where = ""
    for step in steps:
        where = join(where, step)
    return steps, _relocate(value, where)


def _relocate(item: Item, path: str) -> Item:
    """The same value with its place counted from the option: lines mean nothing there."""
    value = item.value
    if isinstance(value, dict):
        value = {key: _relocate(child, join(path, key)) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_relocate(child, join(path, index)) for index, child in enumerate(value)]
    return replace(item, value=value, path=path, line=0, column=0, key_line=0, key_column=0)


def _put(item: Item, steps: Steps, value: Item, problems: Problems, path: str) -> Item:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    here = join(path, step)
    if path in ("nodes", "networks") and isinstance(item.value, list) and isinstance(step, str):
        names = {child.text: child.like({}) for child in item.items if child.text}
        item = item.like(names) if step in names else item
    if isinstance(item.value, list):
        index = int(step) if isinstance(step, int) or (step.isdigit() and len(step) < 7) else -1
        if not 0 <= index <= len(item.items):
            count = len(item.items)
            problems.add(
                replace(value, path=here), f"{path} is a list of {count}; write {path}[0] … [{count}]"
            )
            return item
        old = item.items[index] if index < len(item.items) else _empty(value, here)
        return item.like(
            [*item.items[:index], _put(old, rest, value, problems, here), *item.items[index + 1 :]]
        )
    if item.value is None:
        item = item.like({})
    if isinstance(step, int) or not isinstance(item.value, dict):
        what = f"{path or 'the profile'} is {item.kind}, so it has no part {shown(step)}"
        problems.add(replace(value, path=here), what)
        return item
    implied = path == "networks" and step == IMPLIED and not item.map
    if path in ("nodes", "networks", "groups") and rest and step not in item.map and not implied:
        kind = path.removesuffix("s")
        message = f"there is no {kind} {shown(step)}{nearest(step, item.map)}"
        problems.add(replace(value, path=here), message)
        return item
    child = _put(item.map.get(step) or _empty(value, here), rest, value, problems, here)
    return item.like({**item.map, step: child})


def _empty(value: Item, path: str) -> Item:
    return Item(None, file=value.file, path=path)
