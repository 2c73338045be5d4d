"""Rules about files, volumes and secrets.  They look at the host's files, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labctl.profile.models import Node
from labctl.profile.plainly import Loc
from labctl.profile.rules import Rules
from labctl.profile.types import Engine, MountKind, Tier
from labctl.profile.words import shown


def check(rules: Rules) -> None:
    """Note files that aren't there, secrets without a value, and two things at one place."""
    for name, secret in rules.profile.secrets.items():
        place: Loc = ("secrets", name)
        if bool(secret.file) == bool(secret.env):
            rules.say(place, "a secret needs a file or env, one of the two")
        elif secret.file:
            _must_be(rules, (*place, "file"), secret.file, Path.is_file, "file")
        elif secret.env not in rules.environ:
            rules.say(
                (*place, "env"), f"the variable {shown(secret.env)} is not set", "export it before labctl"
            )
    for key, node in rules.profile.nodes.items():
        _node(rules, key, node)


def _node(rules: Rules, key: str, node: Node) -> None:
    place: Loc = ("nodes", key)
    if node.root:
        _must_be(rules, (*place, "root"), node.root, Path.is_dir, "folder")
    taken: dict[str, str] = {}
    for index, file in enumerate(node.files):
        loc: Loc = (*place, "files", index)
        if rules.is_broken(*loc):
            continue
        if (file.content is None) == (not file.source):
            rules.say(loc, f"{file.path} needs content or source, one of the two")
        elif file.source:
            _must_be(rules, (*loc, "source"), file.source, _is_copied, "file")
        if file.path == "/":
            rules.say(loc, "a file can't take the place of /", "root: lays a folder over it")
        elif file.path.startswith(("/proc/", "/sys/")):
            hint = "sysctls sets the kernel's settings"
            rules.say(loc, f"{file.path} is the kernel's: no file can be put there", hint)
        elif taken.setdefault(file.path, "a file") and [f.path for f in node.files[:index]].count(file.path):
            rules.say(loc, f"{file.path} is written twice")
    mounted: set[str] = set()
    for part, targets in (
        ("volumes", [m.target for m in node.volumes]),
        ("tmpfs", [t.target for t in node.tmpfs]),
        ("disks", [d.mount for d in node.disks]),
    ):
        for index, target in enumerate(targets):
            if not target:
                continue
            if target in mounted:
                rules.say((*place, part, index), f"something is mounted on {target} already")
            elif target == "/":
                rules.say((*place, part, index), "nothing can be mounted on /", "root: lays a folder over it")
            elif target.startswith("/proc/") or target in ("/proc", "/sys", "/dev"):
                rules.say((*place, part, index), f"{target} is the kernel's: nothing can be mounted there")
            mounted.add(target)
    if node.volumes and (why := _no_way(node)) and not rules.is_broken(*place, "tier"):
        message = f"{why}, as {key} is, has no way to a folder of this host"
        rules.say((*place, "volumes"), message, "use files or root", key=True)
    for index, mount in enumerate(node.volumes):
        loc = (*place, "volumes", index, "source")
        if mount.kind is MountKind.BIND and node.tier is not Tier.CONTAINER:
            kind = "folder, and a VM shares folders only (`files` puts a copy of a single file into it)"
            _must_be(rules, loc, mount.source, Path.is_dir, kind)
        elif mount.kind is MountKind.BIND:
            _must_be(rules, loc, mount.source, Path.exists, "file or folder")
        elif mount.source not in rules.profile.volumes:
            rules.unknown(loc, "volume", mount.source, rules.profile.volumes)
    for index, disk in enumerate(node.disks):
        if disk.source and not rules.is_broken(*place, "disks", index):
            _must_be(rules, (*place, "disks", index, "source"), disk.source, Path.is_file, "file")
    for index, use in enumerate(node.secrets):
        if use.secret not in rules.profile.secrets and not rules.is_broken("secrets"):
            rules.unknown((*place, "secrets", index, "secret"), "secret", use.secret, rules.profile.secrets)


def _is_copied(path: Path) -> bool:
    """Whether it has an end and can be copied: no device, pipe or socket."""
    return path.is_file() or path.is_dir()


def _no_way(node: Node) -> str:
    """What kind of node it is, where no folder of this host can be mounted; "" elsewhere."""
    if node.tier is Tier.CONTAINER:
        return "a container inside a machine" if node.inside else ""
    if node.tier is Tier.PARA and node.engine is Engine.UML:
        return "User Mode Linux"
    return "a machine inside another" if node.inside or node.tier is Tier.PARA else ""


def _must_be(rules: Rules, loc: Loc, path: str, test: Callable[[Path], bool], what: str) -> None:
    try:
        found = test(Path(path))
    except (OSError, ValueError) as error:  # no rights on the way, a name too long
        reason = error.strerror if isinstance(error, OSError) else str(error)
        rules.say(loc, f"can't look at {shown(path, 200)}: {reason}")
        return
    if not found:
        there = Path(path).exists()
        rules.say(
            loc, f"{shown(path, 200)} is no {what}" if there else f"there is no {what} {shown(path, 200)}"
        )
