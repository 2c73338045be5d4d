"""From a file to a Profile: read, change, merge, check; everything that is wrong is said at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from labctl.errors import Problem, ProfileError, Where
from labctl.profile import shapes_lab, shapes_node, words
from labctl.profile.merge import Merger, multiply, spread_checks
from labctl.profile.models import Node, Profile
from labctl.profile.overrides import apply_sets
from labctl.profile.plainly import Loc, explain
from labctl.profile.resolve import resolve
from labctl.profile.rules import check_rules
from labctl.profile.shapes import Shaping
from labctl.profile.source import read_text
from labctl.profile.tree import Item, Problems
from labctl.profile.yamlread import read_yaml


def load(
    path: str | Path,
    sets: Sequence[str] = (),
    *,
    name: str | None = None,
    images: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """The normalised profile of a file, of a shipped one by its name, or of standard input ("-").

    `sets` are `-s` options ("nodes.web.memory=1G"), applied in order; `name` replaces the lab's name;
    with `images`, an image that is not among them is an error.  Raises ProfileError with every problem.
    """
    source = read_text(path)
    profile = load_text(
        source.text,
        sets,
        name=name,
        file=source.name,
        folder=source.folder,
        images=images,
        environ=environ,
    )
    return profile.model_copy(update={"source": source.file})


def load_text(
    text: str,
    sets: Sequence[str] = (),
    *,
    name: str | None = None,
    file: str = "profile",
    folder: Path | None = None,
    images: Collection[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """Like `load`, from text; relative paths start from `folder` (default: the working folder)."""
    problems = Problems()
    shaping = Shaping(problems, folder or Path.cwd())
    root = read_yaml(text, file)
    if root.value is None:
        raise ProfileError([Problem("is empty", Where(file), "`labctl init` writes one to start from")])
    root = apply_sets(root, sets, problems)
    if not isinstance(root.value, dict):
        message = f"a profile is a map (name: …, nodes: …), not {root.kind}"
        raise ProfileError([*problems.found.values(), Problem(message, root.where())])
    if name is not None:
        asked = Item(name, text=name, file="--name", path="")
        root = root.like({**root.map, "name": asked})
    with _no_plugins():
        tree, names = _canonical(root, shaping)
        plain = tree.plain()
        assert isinstance(plain, dict)
        profile, broken = _validate(plain, tree, problems)
    if profile is not None:
        profile = resolve(profile)
        env = os.environ if environ is None else environ
        check_rules(profile, tree, problems, broken=broken, names=names, images=images, environ=env)
    problems.raise_any()
    assert profile is not None
    return profile


@contextmanager
def _no_plugins() -> Iterator[None]:
    """No plugins for pydantic: it would read a file of every package installed to find them."""
    name = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(name)
    os.environ[name] = "__all__"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _canonical(root: Item, shaping: Shaping) -> tuple[Item, dict[str, list[str]]]:
    """The whole file in the models' form, `defaults` and `groups` gone, replicas written out."""
    parts = dict(root.map)
    _refuse_filled(root, shaping.problems)
    parts.pop("source", None)
    for key in ("name", "description"):
        if key in parts:
            parts[key] = parts[key].as_text()
    defaults, groups = parts.pop("defaults", None), parts.pop("groups", None)
    base = shapes_node.node(defaults, shaping) if defaults else root.like({})
    if defaults and "extends" in base.map:
        shaping.problems.add(base.map["extends"], "defaults can't extend a group", key=True)
        base = base.like({k: v for k, v in base.map.items() if k != "extends"})
    shaped = shapes_lab.named(groups, shapes_node.node, shaping) if groups else root.like({})
    if not isinstance(shaped.value, dict):
        shaping.problems.add(shaped, f"must be a map (NAME: {{…}}), not {shaped.kind}")
    merger = Merger(base, shaped.map, shaping)
    _check_apart(base, shaped, merger, shaping.problems)
    nodes = shapes_lab.named(parts["nodes"], shapes_node.node, shaping) if "nodes" in parts else None
    names: dict[str, list[str]] = {}
    if nodes is not None:
        if isinstance(nodes.value, dict):
            merged = {key: merger.node(item) for key, item in nodes.map.items()}
            many, names = multiply(merged, shaping)
            nodes = nodes.like(many)
        parts["nodes"] = nodes
    shapes = {"networks": shapes_lab.network, "volumes": shapes_lab.volume, "secrets": shapes_lab.secret}
    for key, shape in shapes.items():
        if key in parts:
            parts[key] = shapes_lab.named(parts[key], shape, shaping)
    if "checks" in parts:
        parts["checks"] = spread_checks(shapes_lab.checks(parts["checks"], shaping), names, shaping)
    return root.like({k: v for k, v in parts.items() if v.value is not None}), names


def _refuse_filled(root: Item, problems: Problems) -> None:
    """What labctl fills in is not for people to write."""
    if "source" in root.map:
        problems.add(root.map["source"], "unknown key 'source'", "remove it", key=True)
    places = [
        child for part in ("nodes", "groups") if part in root.map for child in root.map[part].map.values()
    ]
    places += [root.map["defaults"]] if "defaults" in root.map else []
    for child in places:
        for key in ("name", "replica_of"):
            if key in child.map:
                hint = "the key above is the name; hostname and aliases give others"
                problems.add(child.map[key], f"unknown key {words.shown(key)}", hint, key=True)


def _check_apart(defaults: Item, groups: Item, merger: Merger, problems: Problems) -> None:
    """Mistakes in `defaults` and in every group, also in one that no node extends."""
    for name in groups.map:
        merger.group(name, ())
    for item in (defaults, *groups.map.values()):
        kept = item.like({k: v for k, v in item.map.items() if v.value is not None and k != "extends"})
        lone = kept if isinstance(item.value, dict) else item
        if lone.value == {}:
            continue  # nothing said, nothing wrong; the model of a node takes 20 ms to build
        try:
            Node.model_validate(_without_nothing(lone).plain())
        except ValidationError as error:
            explain(error, Node, lone, problems)


def _without_nothing(item: Item) -> Item:
    """`env: {A: }` takes A away; on its own it says nothing."""
    merged = {
        key: child.like({k: v for k, v in child.map.items() if v.value is not None})
        for key, child in item.map.items()
        if key in ("env", "labels", "sysctls", "depends_on") and isinstance(child.value, dict)
    }
    return item.like({**item.map, **merged}) if isinstance(item.value, dict) else item


# What stands in for a required field with a mistake, so that the other rules can still be looked at.
_STAND_INS: dict[str | int, object] = {"name": "lab", "command": ["true"]}


def _validate(plain: dict[str, object], tree: Item, problems: Problems) -> tuple[Profile | None, set[Loc]]:
    """The profile, or the best that is left of it without the broken parts, and which those were."""
    broken: set[Loc] = set()
    for attempt in range(4):
        try:
            return Profile.model_validate(plain), broken
        except ValidationError as error:
            if not attempt:  # what comes later follows from what was taken out
                explain(error, Profile, tree, problems)
            for one in error.errors(include_url=False, include_context=False, include_input=False):
                broken.add(_drop(plain, tuple(one["loc"])))
    return None, broken


def _drop(plain: dict[str, object], loc: Loc) -> Loc:
    """Take a broken part out of the plain data: the nearest key of a map above it.  Returns its path."""
    holder: dict[str, object] = plain
    at: object = plain
    path: Loc = ()
    cut: Loc = ()
    for step in loc:
        if isinstance(at, dict) and step in at:
            holder, cut = at, (*path, step)
            at = at[step]
        elif isinstance(at, list) and isinstance(step, int) and step < len(at):
            at = at[step]
        elif isinstance(at, dict) and step in _STAND_INS and step == loc[-1]:
            at[str(step)] = _STAND_INS[step]
            return (*path, step)
        else:
            break
        path = (*path, step)
    if cut:
        holder.pop(str(cut[-1]), None)
        if cut[-1] in _STAND_INS and cut == loc:
            holder[str(cut[-1])] = _STAND_INS[cut[-1]]
    return cut
