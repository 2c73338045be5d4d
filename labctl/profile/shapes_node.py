"""The short forms of a node."""

from __future__ import annotations

import re
from pathlib import Path

from labctl.profile import models, models_vm
from labctl.profile.ports import parse_ports
from labctl.profile.shapes import (
    Fields,
    Shape,
    Shaping,
    command,
    each,
    is_map,
    made,
    path,
    rows,
    shape_map,
    text,
    text_map,
    texts,
)
from labctl.profile.source import LIMIT
from labctl.profile.tree import Item
from labctl.profile.words import shown

_CONDITIONS = {"service_started": "started", "service_healthy": "ready", "healthy": "ready"}


def node(item: Item, shaping: Shaping) -> Item:
    """A node in the models' form; keys with nothing behind them stay, so that they can undo a default."""
    if item.value is None:
        return item.like({})
    item = _gateways(item)
    return shape_map(item, _SHAPES, shaping)


def addresses(item: Item) -> Fields:
    """One address, a list of them, or `none`."""
    if item.value is False or item.text == "none" or item.value == []:
        return {"addresses": item.like([]), "assign": made(item, False)}
    if isinstance(item.value, list):
        return {"addresses": item.like([child.as_text() for child in item.items])}
    return {"addresses": item if is_map(item) else item.like([item.as_text()])}


def _networks(item: Item, shaping: Shaping) -> Item:
    listed = rows(
        item,
        "network",
        (*models.Attachment.model_fields, "address"),
        bare=lambda child: child.like({"network": child.as_text()}) if not child.items else child,
        valued=addresses,
    )
    return each(listed, lambda child: _attachment(child, shaping))


def _attachment(item: Item, shaping: Shaping) -> Item:
    if not is_map(item):
        return item
    fields: Fields = {}
    for key, child in item.map.items():
        if key in ("address", "addresses") and child.value is not None:
            found = addresses(child)
            if before := fields.get("addresses"):
                found["addresses"] = child.like([*before.items, *found["addresses"].items])
            fields |= found
        elif key != "address":
            fields[key] = child
    shapes: dict[str, Shape] = {"network": text, "mac": text, "interface": text, "aliases": texts}
    return shape_map(item.like(fields), shapes, shaping)


def _gateways(item: Item) -> Item:
    """`gateway: [v4, v6]`, one of either, or none for both."""
    given = item.map.get("gateway")
    if given is None or given.value is None:
        return item
    fields = {key: child for key, child in item.map.items() if key != "gateway"}
    for child in given.items or [given]:
        if child.value is False or child.text == "none":
            fields |= {
                "gateway": made(child, "none"),
                "gateway6": fields.get("gateway6", made(child, "none")),
            }
        else:
            fields["gateway6" if ":" in child.text else "gateway"] = child.as_text()
    return item.like(fields)


def _ports(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item | list[Item] | None:
        try:
            return [child.like({k: made(child, v) for k, v in p.items()}) for p in parse_ports(child.text)]
        except ValueError as error:
            given = (
                f"{shown(child.text) if child.text else child.kind} " if str(error).startswith("must") else ""
            )
            shaping.problems.add(child, f"{given}{error}")
            return None

    return rows(item, "host_port", models.Port.model_fields, bare=bare, valued=lambda c: {"node_port": c})


def _files(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item | None:
        parts = child.text.split(":")
        if len(parts) not in (2, 3):
            shaping.problems.add(
                child, "must be SOURCE:PATH or SOURCE:PATH:MODE", "or write {path: …, content: …}"
            )
            return None
        return child.like(
            dict(zip(("source", "path", "mode"), (made(child, p) for p in parts), strict=False))
        )

    def valued(child: Item) -> Fields:
        return {"content": child.as_text()}

    listed = rows(item, "path", models.File.model_fields, bare=bare, valued=valued)
    shapes: dict[str, Shape] = dict.fromkeys(("path", "content", "mode", "owner"), text) | {"source": path}
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _volumes(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item | None:
        parts = child.text.split(":")
        if len(parts) not in (2, 3) or parts[2:] not in ([], ["ro"], ["rw"]):
            shaping.problems.add(child, "must be VOLUME:PATH or ./FOLDER:PATH, with :ro for read-only")
            return None
        fields = {"source": made(child, parts[0]), "target": made(child, parts[1])}
        return child.like(fields | ({"read_only": made(child, parts[2] == "ro")} if parts[2:] else {}))

    def valued(child: Item) -> Fields:
        return {"target": child.as_text()}

    listed = rows(item, "source", models.Mount.model_fields, bare=bare, valued=valued)
    return each(listed, lambda child: _mount(child, shaping))


def _mount(item: Item, shaping: Shaping) -> Item:
    if not is_map(item):
        return item
    fields = {"kind" if key == "type" else key: child for key, child in item.map.items()}
    source = fields.get("source")
    if source is not None and "kind" not in fields:
        bind = source.text.startswith(("/", "./", "../", "~")) or source.text in (".", "..")
        fields["kind"] = made(source, "bind" if bind else "volume")
    is_bind = "kind" in fields and fields["kind"].text == "bind"
    return shape_map(item.like(fields), {"source": path if is_bind else text, "target": text}, shaping)


def _tmpfs(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item:
        return child.like({"target": child.as_text()})

    listed = rows(item, "target", models.Tmpfs.model_fields, bare=bare, valued=lambda c: {"size": c})
    shapes: dict[str, Shape] = {"mode": text, "target": text}
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _disks(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item:
        return child.like({"name": child.as_text()})

    listed = rows(item, "name", models_vm.Disk.model_fields, bare=bare, valued=lambda c: {"size": c})
    shapes: dict[str, Shape] = dict.fromkeys(
        ("name", "format", "bus", "cache", "io", "serial", "mount"), text
    ) | {"source": path, "image": _image}
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _secrets(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item:
        return child.like({"secret": child.as_text()})

    known = models.SecretUse.model_fields
    listed = rows(item, "secret", known, bare=bare, valued=lambda c: {"target": c.as_text()})
    shapes: dict[str, Shape] = dict.fromkeys(("secret", "target", "mode", "owner"), text)
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _provision(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item:
        return child.like({"run": child.as_text()}) if not isinstance(child.value, list) else child

    if is_map(item):
        item = item.like([item])  # one step, not a map of steps: their order matters
    listed = rows(item, "name", models.Step.model_fields, bare=bare, valued=lambda c: {"run": c.as_text()})
    shapes: dict[str, Shape] = {"name": text, "run": text}
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _startup(item: Item, shaping: Shaping) -> Item:
    """The script's text, or {source: FILE}: read now, so that a changed script is a changed profile."""
    if not is_map(item):
        return item.as_text()
    source = item.map.get("source")
    if source is None or len(item.map) != 1:
        shaping.problems.add(item, "must be a script's text or {source: FILE}")
        return made(item, "")
    file = Path(path(source, shaping).text)
    try:
        with file.open("rb") as stream:
            raw = stream.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise ValueError(f"has more than {LIMIT} bytes")
        return made(source, raw.decode())
    except OSError as error:
        shaping.problems.add(source, f"can't read {shown(str(file), 200)}: {error.strerror}")
    except ValueError as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        shaping.problems.add(source, f"{shown(str(file), 200)} {reason}")
    return made(item, "")


def _depends_on(item: Item, shaping: Shaping) -> Item:
    if item.value is None:
        return item
    found: Fields = {}
    if not is_map(item):
        for child in item.items if isinstance(item.value, list) else [item]:
            if isinstance(child.value, (dict, list)) or child.value is None:
                shaping.problems.add(child, f"must be a node's name, not {child.kind}")
            else:
                found[child.text] = made(child, "started")
        return item.like(found)
    for name, child in item.map.items():
        condition = child.map.get("condition", child) if is_map(child) and len(child.map) == 1 else child
        if condition.value is None:
            condition = made(child, "started")
        known = _CONDITIONS.get(condition.text)
        found[name] = made(condition, known) if known else condition
    return item.like(found)


def _ready(item: Item, shaping: Shaping) -> Item:
    if item.value is None or is_map(item):
        return shape_map(item, {"command": command, "http": text}, shaping)
    vague = isinstance(item.value, str) and item.value.strip().lower() in ("yes", "no", "on", "off", "")
    if vague or isinstance(item.value, (bool, float)):
        given = shown(item.text) if item.text.strip() else "empty text"
        shaping.problems.add(item, f"{given} doesn't say when it is ready", "a port, a command or a URL does")
        return made(item, None)
    if isinstance(item.value, list):
        return item.like({"command": texts(item, shaping)})
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        return item.like({"port": item})
    if item.text.startswith(("http://", "https://", "/")) and " " not in item.text:
        return item.like({"http": item.as_text()})
    return item.like({"command": command(item, shaping)})


def _capabilities(item: Item, shaping: Shaping) -> Item:
    if item.value is None or is_map(item):
        return shape_map(item, {"add": texts, "drop": texts}, shaping)
    return item.like({"add": texts(item, shaping)})


def _vm(item: Item, shaping: Shaping) -> Item:
    return shape_map(
        item, {"pin": texts, "disk_cache": text, "disk_io": text, "graphics": text, "firmware": text}, shaping
    )


_ROUTE = re.compile(r"(\S+)(?:\s+via\s+(\S+))?(?:\s+dev\s+(\S+))?(?:\s+metric\s+([0-9]{1,10}))?")


def _routes(item: Item, shaping: Shaping) -> Item:
    def bare(child: Item) -> Item | None:
        match = _ROUTE.fullmatch(child.text.strip())
        if not match or not (match[2] or match[3]):
            hint = "or '10.2.0.0/16 dev eth1', each with or without 'metric 10'"
            shaping.problems.add(child, "must be a route such as '10.2.0.0/16 via 10.1.0.1'", hint)
            return None
        fields = zip(("to", "via", "interface"), match.groups(), strict=False)
        metric = {"metric": made(child, int(match[4]))} if match[4] else {}
        return child.like({k: made(child, v) for k, v in fields if v} | metric)

    listed = rows(item, "to", models.Route.model_fields, bare=bare, valued=lambda c: {"via": c.as_text()})
    shapes: dict[str, Shape] = dict.fromkeys(("to", "via", "interface"), text)
    return each(listed, lambda child: shape_map(child, shapes, shaping))


def _image(item: Item, shaping: Shaping) -> Item:
    """A name, or a path, which starts at the profile's folder."""
    item = item.as_text()
    is_path = item.text in (".", "..") or item.text.startswith(("/", "./", "../", "~/"))
    return path(item, shaping) if is_path else item


_TEXTS = """
description inside arch kernel machine cpu hostname workdir user stop_signal gateway gateway6
tier devices hypervisor isolation
"""
_SHAPES: dict[str, Shape] = {
    **dict.fromkeys(_TEXTS.split(), text),
    "root": path,
    "image": _image,
    "aliases": texts,
    "networks": _networks,
    "routes": _routes,
    "ports": _ports,
    "sysctls": text_map,
    "env": text_map,
    "labels": text_map,
    "entrypoint": command,
    "command": command,
    "files": _files,
    "volumes": _volumes,
    "tmpfs": _tmpfs,
    "disks": _disks,
    "secrets": _secrets,
    "provision": _provision,
    "startup": _startup,
    "depends_on": _depends_on,
    "ready": _ready,
    "capabilities": _capabilities,
    "vm": _vm,
}
