"""What pydantic found, in plain words, at its place in the file, with the nearest right word."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from labctl.profile.model import Model
from labctl.profile.models import Node, Profile
from labctl.profile.tree import Item, Problems, join
from labctl.profile.words import nearest, shown

Loc = tuple[str | int, ...]
# What people know from Docker Compose, containerlab, netlab, Vagrant and Kubernetes.
_ELSEWHERE = {
    "services": "write nodes",
    "machines": "write nodes",
    "containers": "write nodes with tier: container",
    "vms": "write nodes with tier: hardware or emulation",
    "topology": "write nodes and networks at the top",
    "links": "write networks: a network has any number of nodes",
    "version": "remove it; there is one format",
    "configs": "write files in a node",
    "environment": "write env",
    "container_name": "write hostname; the key is the name",
    "name": "the key is the name",
    "mem_limit": "write memory",
    "ram": "write memory",
    "mem": "write memory",
    "cpu_limit": "write cpus",
    "vcpus": "write cpus",
    "cores": "write cpus",
    "pids_limit": "write pids",
    "cap_add": "write capabilities: {add: […]}",
    "cap_drop": "write capabilities: {drop: […]}",
    "healthcheck": "write ready",
    "cmd": "write command",
    "args": "write command",
    "exec": "write provision, startup or command",
    "binds": "write volumes",
    "mounts": "write volumes",
    "working_dir": "write workdir",
    "stop_grace_period": "write stop_timeout",
    "scale": "write replicas",
    "count": "write replicas",
    "deploy": "write replicas, memory and cpus in the node itself",
    "kind": "write tier",
    "type": "write tier",
    "build": "write image: ./FOLDER; a folder with a Containerfile or a recipe.yaml is built",
    "restart": "labctl restarts nothing by itself; `labctl start` does",
    "network": "write networks",
    "ip": "write networks: {NAME: ADDRESS}",
    "ipv4_address": "write address",
    "ipv6_address": "write address",
    "mac_address": "write mac",
    "dns": "write files: {/etc/resolv.conf: nameserver ADDRESS}, or dns: false in the network",
    "links_to": "write depends_on",
    "endpoints": "write networks in the nodes",
    "ip_forward": "write sysctls: {net.ipv4.ip_forward: 1}",
    "driver": "networks are bridges",
    "ipam": "write subnet",
    "internal": "write internet: true or false",
    "template": "write extends and groups",
    "groups": "write extends: NAME; groups stand at the top",
    "stdout": "write output",
    "contains": "write output",
    "regex": "write matches",
    "retries": "write within, a time",
}


# Other programs' words for what a tier is.
_TIERS = {
    **dict.fromkeys(("kvm", "hvm", "vm", "qemu-kvm", "libvirt"), "hardware"),
    **dict.fromkeys(("qemu", "tcg", "emulated"), "emulation"),
    **dict.fromkeys(("xen", "pv", "paravirt", "uml"), "para"),
    **dict.fromkeys(("docker", "podman", "lxc", "linux", "ctr", "oci", "runc"), "container"),
}


def explain(error: ValidationError, model: type[BaseModel], tree: Item, problems: Problems) -> None:
    """Note every mistake that pydantic found."""
    for one in error.errors(include_url=False):
        loc: Loc = tuple(one["loc"])
        item, depth = tree.find(loc)
        kind, context = one["type"], one.get("ctx", {})
        if kind == "extra_forbidden":
            _unknown_key(loc, model, item, problems)
        elif kind == "missing":
            inside = loc[:-1]
            if inside and isinstance(loc[-1], int):
                problems.add(item, "must be a list of two numbers, such as [1, 5]")
            else:
                field = join(item.path, loc[-1])
                problems.add(item, f"{loc[-1]} is missing", key=bool(item.key_line), field=field)
        elif not (kind in ("string_type", "list_type") and depth < len(loc) and loc[-1] == "[key]"):
            problems.add(item, _message(kind, context, item, one))


def _unknown_key(loc: Loc, model: type[BaseModel], item: Item, problems: Problems) -> None:
    key = str(loc[-1])
    owner = _model_at(model, loc[:-1])
    filled = {Node: ("name", "replica_of"), Profile: ("source",)}.get(owner or Model, ())
    more = {Node: ("extends",), Profile: ("defaults", "groups")}.get(owner or Model, ())
    known = [k for k in (*(owner.model_fields if owner else ()), *more) if k not in filled]
    guess = nearest(key, known).removeprefix("; ")
    foreign = _ELSEWHERE.get(key, "")
    hint = guess if guess and not foreign else foreign or f"known here: {', '.join(known)}"
    if owner is Profile and key.startswith(("x-", ".")):
        hint = "put it under groups, and write extends in the nodes"
    problems.add(item, f"unknown key {shown(key)}", hint, key=True)


def _message(kind: str, context: Mapping[str, Any], item: Item, one: Any) -> str:
    given = item.kind if isinstance(item.value, (list, dict)) or item.value is None else shown(item.text)
    if kind == "value_error":
        text = str(context["error"])
        return f"{given} {text}" if text.startswith("must ") else text
    if kind == "enum":
        words = [w.strip("' ") for w in str(context["expected"]).replace(" or ", ",").split(",")]
        other = _TIERS.get(item.text.lower(), "") if "container" in words else ""
        guess = f"; did you mean {other}?" if other else nearest(item.text, words)
        return f"{given} is none of {', '.join(words)}{guess}"
    limits = {
        "greater_than_equal": ("ge", "at least"),
        "greater_than": ("gt", "more than"),
        "less_than_equal": ("le", "at most"),
        "less_than": ("lt", "less than"),
    }
    if kind in limits:
        key, words_ = limits[kind]
        limit = context[key]
        number = limit if isinstance(limit, int) else f"{limit:g}"
        return f"must be {words_} {number}, not {given}"
    wants = {
        "string_type": "text",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a map (KEY: VALUE)",
        "model_type": "a map (KEY: VALUE)",
        "model_attributes_type": "a map (KEY: VALUE)",
        "float_type": "a number",
        "float_parsing": "a number",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
    }
    if kind == "tuple_type" and item.path.endswith(("command", "entrypoint")):
        return f"must be text or a list of texts, not {given}"
    if kind in wants:
        return f"must be {wants[kind]}, not {given}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind in ("too_long", "string_too_long"):
        return f"is too long; {context['max_length']} are the limit"
    return str(one["msg"])


def _model_at(model: Any, loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The model that a location is in."""
    at: Any = model
    for step in loc:
        at = _strip(at)
        if isinstance(at, type) and issubclass(at, BaseModel):
            field = at.model_fields.get(str(step))
            at = field.annotation if field else None
        else:
            args = typing.get_args(at)
            at = (args[1] if typing.get_origin(at) is dict else args[0]) if args else None
    at = _strip(at)
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None


def _strip(at: Any) -> Any:
    """A type without None."""
    if typing.get_origin(at) in (typing.Union, types.UnionType):
        return next((arg for arg in typing.get_args(at) if arg is not type(None)), None)
    return at
