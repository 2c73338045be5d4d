"""docs/profile.md, written from the models: `python -m labctl.profile.reference > docs/profile.md`."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from labctl.profile import models, models_vm
from labctl.profile.schema import EXAMPLES, json_schema
from labctl.profile.types import Condition, Devices, MountKind, Protocol, Tier
from labctl.profile.units import format_size

HEAD = """\
# The profile

<!-- Written by `python -m labctl.profile.reference`; change the models, not this page. -->

A lab is one YAML file. `labctl validate FILE` says everything that is wrong with it at once, each with
its line and column; `labctl schema` prints the JSON Schema, so that an editor completes it; `labctl
init` writes one to start from. Unknown keys are mistakes, never ignored.

```yaml
name: demo
networks:
  lan: {}
nodes:
  server: {tier: emulation, image: base, ready: 80, command: "exec python3 -m http.server 80"}
  client: {tier: container, image: base, depends_on: {server: ready}}
checks:
  - {name: the server answers, node: client, command: curl --silent http://server/, expect: Directory listing}
```

## How things are written

- **Sizes**: `256MiB`, `1.5G`, `512m`, or bytes. K, M, G and T count by 1024, KB, MB, GB and TB by 1000.
- **CPUs**: `2`, `0.5` or `500m`. **Times**: `30s`, `2m`, `1h30m`, `200ms`, or seconds.
- **Names** of labs, nodes and networks are host names: letters, digits, `-` and `_`, at most 63 of them.
- **Flags** are `true` and `false` (`yes`, `no`, `on` and `off` are understood). Elsewhere `no`, `on`,
  `0644` and `02:00:00:00:00:01` are the text that you see (YAML 1.2): nothing turns into something else.
- **Commands**: text is a line for the shell, a list is run as it is.
- **Relative paths** start at the profile's folder, also those given with `-s`.
- Anchors (`&name`), aliases (`*name`) and merge keys (`<<`) work. There is no template language; change
  a profile from the command line with `-s nodes.web.memory=1G` (value: YAML; `[0]` for the first of a
  list).

## Defaults, groups and `extends`

`defaults` is what every node has, `groups` are parts that a node takes over with `extends: NAME` (or
several; a later one wins; groups may extend groups). A node passes over what its tier hasn't, such as
`kernel` or `pids`. The nearer wins: defaults, then groups, then the node itself. `env`, `labels`,
`sysctls` and `depends_on` are merged key by key, **everything else is replaced whole**. A key with
nothing behind it (`memory:`) takes away what was inherited.

```yaml
defaults: {image: micro, memory: 256MiB}
groups:
  router: {sysctls: {net.ipv4.ip_forward: 1}}
nodes:
  r1: {extends: router, networks: [left, right]}
```

## Networks of a node

A node that names no networks is on the only one there is, or on `lan`; a container inside a machine is
on the networks of that machine. The order written is the order of the interfaces, eth0 first. All of
these work:

```yaml
networks: [lan]
networks: {lan: 10.1.0.5, wan: [10.2.0.5, "fd00:2::5"]}
networks: [{lan: 10.1.0.5}, {network: wan, mac: "02:00:00:00:00:05", interface: uplink0}]
networks: {lan: none}          # up, and without an address
networks: {lan: {up: false}}   # labctl leaves the link down
networks: []                   # none at all
```

The host has the first address of a subnet that no node has stated, so that a router may have .1. On a /30
between two routers there is none left for it: `host_address: false` leaves it out.

A node has a default route by the host where a network of its has `internet: true`, and by its `gateway` where
it states one; else none, so that scripts and routing daemons set theirs and nothing takes another way.

A network with `subnet: none` gives no addresses: the nodes give themselves theirs. `host_address:
false` takes the host off it, so that it is nothing but an Ethernet. A machine that is on such networks
only gets one more interface, `mgmt0`, on a network of labctl's own, by which the host reaches it; it
carries no names and no default route. Where no DNS answers, the names of the other nodes stand in
`/etc/hosts`. A network with `internet: true` is an uplink.

## Replicas

`replicas: 3` under `web` makes `web-1`, `web-2` and `web-3` (`replicas: 1` makes `web-1`). `depends_on:
web` and a check with `node: web` mean all of them.

## Checks

What `expect` states must all hold: `exit` (0 unless stated; `any`), `output` (text in the standard
output), `equals`, `matches` (Python's regular expressions, `^` and `$` at lines), `range` (`[low, high]`
or `low..high`) of the first number, or of group 1 of `matches`. `expect: 0` and `expect: text` are
short. `negate: true` turns the whole round. `within: 20s` tries again until it holds. `node: all` makes
one check per node.
"""
_SECTIONS = (
    models.Profile,
    models.Network,
    models.Node,
    models.Attachment,
    models.Route,
    models.Port,
    models.File,
    models.Mount,
    models.Tmpfs,
    models_vm.Disk,
    models_vm.Vm,
    models_vm.Topology,
    models.Logging,
    models.SecretUse,
    models.Step,
    models.Ready,
    models.Capabilities,
    models.Volume,
    models.Secret,
    models.Check,
    models.Expect,
)
_TITLES = {
    "Attachment": "networks of a node",
    "Mount": "volumes of a node",
    "Step": "provision",
    "SecretUse": "secrets of a node",
}
_FILLED = {("Node", "name"), ("Node", "replica_of"), ("Profile", "source")}
_ADDED = {
    "Profile": (
        ("defaults", "Node", "What every node has unless it says otherwise."),
        ("groups", "map of Node", "Parts of nodes that nodes take over with `extends`."),
    ),
    "Node": (("extends", "text or list", "Groups whose parts it takes over, the last one first."),),
}
_NAMES = {"Size": "size", "Cpus": "number", "Duration": "time", "Flag": "true/false", "Whole": "whole number"}


def reference() -> str:
    """The page as Markdown."""
    schema = json_schema()
    parts = [HEAD, "\n# All keys\n"]
    for model in _SECTIONS:
        parts.append(_section(model, schema))
    return "\n".join(parts).rstrip() + "\n"


def _section(model: type[BaseModel], schema: dict[str, Any]) -> str:
    name = model.__name__
    title = _TITLES.get(name, name.lower())
    own = schema if name == "Profile" else schema["$defs"][name]
    lines = [f"## {title[0].upper()}{title[1:]}", "", f"{(model.__doc__ or '').strip().splitlines()[0]}", ""]
    lines += ["| key | | default | |", "|---|---|---|---|"]
    for field, kind, text in _ADDED.get(name, ()):
        lines.append(f"| `{field}` | {kind} | | {text} |")
    for field, info in model.model_fields.items():
        if (name, field) not in _FILLED:
            text = own["properties"].get(field, {}).get("description") or info.description or ""
            lines.append(f"| `{field}` | {_kind(info)} | {_default(field, info)} | {_cell(text)} |")
    for field, examples in EXAMPLES.get(name, {}).items():
        if field == next(iter(EXAMPLES[name])):
            lines += ["", "Short forms:", "", "```yaml"]
        for example in examples:
            lines.append(
                yaml.safe_dump({field: example}, default_flow_style=True, width=200, sort_keys=False)[1:-2]
            )
    if name in EXAMPLES:
        lines.append("```")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: str, info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.default
    if value in ("", None, (), {}) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}s`"
    if field in ("memory", "disk", "size", "max_size") and isinstance(value, int):
        return f"`{format_size(value)}`"
    return f"`{value}`"


def _kind(info: FieldInfo) -> str:
    """The type of a field for people."""
    from labctl.profile import types as scalars

    at: Any = info.annotation
    for name, word in _NAMES.items():
        alias = getattr(scalars, name)
        base = typing.get_args(alias)[0]
        marks = typing.get_args(alias)[1:]
        if any(mark in info.metadata for mark in marks) and base is _bare(at):
            return word
        if any(typing.get_origin(arg) is typing.Annotated and arg == alias for arg in typing.get_args(at)):
            return word
    return _word(at)


def _bare(at: Any) -> Any:
    args = [arg for arg in typing.get_args(at) if arg is not type(None)]
    return args[0] if args and typing.get_origin(at) in (typing.Union, types.UnionType) else at


def _word(at: Any) -> str:
    at = _bare(at)
    if typing.get_origin(at) is typing.Annotated:
        at = typing.get_args(at)[0]
    if at in (Tier, Condition, Devices, MountKind, Protocol):
        return ", ".join(f"`{word.value}`" for word in at)
    args = typing.get_args(at)
    if typing.get_origin(at) is tuple:
        return "two numbers" if len(args) == 2 and args[1] is not Ellipsis else f"list of {_word(args[0])}"
    if typing.get_origin(at) is dict:
        return f"map of {_word(args[1])}"
    if isinstance(at, type) and issubclass(at, BaseModel):
        return at.__name__
    return {str: "text", int: "whole number", float: "number", bool: "true/false"}.get(at, "")


if __name__ == "__main__":
    sys.stdout.write(reference())
