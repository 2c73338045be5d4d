"""What must hold between the parts of a profile: the mistakes that no single field shows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from urllib.parse import urlsplit

from labctl.profile import words
from labctl.profile.models import Node, Profile
from labctl.profile.plainly import Loc
from labctl.profile.shapes import SHELL
from labctl.profile.tree import Item, Problems
from labctl.profile.types import Tier
from labctl.profile.words import nearest, shown
from labctl.records import dataclass


@dataclass
class Rules:
    """The profile under the rules, and where to complain."""

    profile: Profile
    tree: Item
    problems: Problems
    broken: set[Loc]
    names: Mapping[str, list[str]]
    images: Collection[str] | None
    environ: Mapping[str, str]
    node_places: dict[str, str] = field(default_factory=dict)

    def say(self, loc: Loc, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note a problem at a location of the normalised profile."""
        item, depth = self.tree.find(loc)
        self.problems.add(item, message, hint, key=key or depth < len(loc))

    def at(self, loc: Loc) -> Item:
        """What was written for a location."""
        return self.tree.find(loc)[0]

    def is_broken(self, *loc: str | int) -> bool:
        """Whether that part has a mistake of its own, so that more about it would only confuse."""
        return any(cut == loc[: len(cut)] for cut in self.broken) or any(
            cut[: len(loc)] == loc for cut in self.broken
        )

    def unknown(self, loc: Loc, what: str, word: str, known: Iterable[str]) -> None:
        """Note a reference to nothing."""
        known = list(known)
        hint = nearest(word, known).removeprefix("; ")
        if not hint and known:
            hint = f"there are: {', '.join(known[:8])}{' …' if len(known) > 8 else ''}"
        self.say(loc, f"there is no {what} {shown(word)}", hint)


def check_rules(
    profile: Profile,
    tree: Item,
    problems: Problems,
    *,
    broken: set[Loc],
    names: Mapping[str, list[str]],
    images: Collection[str] | None,
    environ: Mapping[str, str],
) -> None:
    """Note everything that is wrong between the parts."""
    # They import this module's Rules.
    import labctl.profile.rules_engine as rules_engine
    import labctl.profile.rules_files as rules_files
    import labctl.profile.rules_isolation as rules_isolation
    import labctl.profile.rules_net as rules_net
    import labctl.profile.rules_order as rules_order
    import labctl.profile.rules_vm as rules_vm

    rules = Rules(profile, tree, problems, broken, names, images, environ)
    _names(rules)
    for key, node in profile.nodes.items():
        _tier(rules, key, node)
        _amounts(rules, key, node)
        _words(rules, key, node)
        rules_engine.check(rules, key, node)
        rules_vm.check(rules, key, node)
        rules_isolation.check(rules, key, node)
    rules_net.check(rules)
    rules_order.check(rules)
    rules_files.check(rules)


def _names(rules: Rules) -> None:
    profile = rules.profile
    if not profile.nodes and not rules.is_broken("nodes"):
        empty = "nodes" in rules.tree.map
        hint = "for example nodes: {box: {tier: container, image: base}}"
        rules.say(("nodes",) if empty else (), "the lab has no nodes", hint)
    for part in ("nodes", "networks", "volumes", "secrets"):
        for key in getattr(profile, part):
            try:
                words.name(key)
            except ValueError as error:
                rules.say((part, key), str(error), key=True)
            if part == "nodes" and key.lower() == "localhost":
                rules.say((part, key), "localhost is every node's name for itself", "another name", key=True)
    seen: dict[str, str] = {}
    for key in profile.nodes:
        other = seen.setdefault(key.lower(), key)
        if other != key:
            rules.say(("nodes", key), f"{key} and {other} are one name in DNS", key=True)
    for key, node in profile.nodes.items():
        given = [*node.aliases, *(alias for at in node.networks for alias in at.aliases)]
        for alias in given:
            owner = seen.get(alias.lower())
            if owner not in (None, key):
                rules.say(("nodes", key, "aliases"), f"the alias {alias} is the name of another node")


_VM_ONLY = ("kernel", "machine", "cpu", "devices", "disk", "disks", "hypervisor", "vm")
_CONTAINER_ONLY = ("capabilities", "isolation", "privileged", "pids", "logging")
_LEAST_LOG = 64 << 10  # bytes of a file of a log


def _tier(rules: Rules, key: str, node: Node) -> None:
    """Fields that the tier has no use for; in `defaults` they are fine, since other nodes may have it."""
    if rules.is_broken("nodes", key, "tier"):
        return
    container = node.tier is Tier.CONTAINER
    for name in _VM_ONLY if container else _CONTAINER_ONLY:
        item, depth = rules.tree.find(("nodes", key, name))
        if depth < 3 or not getattr(node, name) or item.path.startswith(("defaults", "groups")):
            continue
        here = "a container" if container else "a virtual machine"
        rules.say(("nodes", key, name), f"{here} has no {name}", f"{key} has tier: {node.tier}", key=True)


def _amounts(rules: Rules, key: str, node: Node) -> None:
    place = ("nodes", key)
    mib = 1024**2
    least, what = (6 * mib, "a container") if node.tier is Tier.CONTAINER else (48 * mib, "a virtual machine")
    if node.memory is not None and node.memory < least:
        given = rules.at((*place, "memory")).text
        rules.say(
            (*place, "memory"), f"{given} of memory is too little for {what}", f"at least {least // mib}MiB"
        )
    if node.memory is not None and node.memory > 64 * 1024**4:
        rules.say(
            (*place, "memory"), f"{rules.at((*place, 'memory')).text} of memory: no machine has that much"
        )
    if node.disk is not None and not 1 << 20 <= node.disk <= 64 * 1024**4:
        rules.say(
            (*place, "disk"), f"{rules.at((*place, 'disk')).text} is no size for a disk", "for example 4G"
        )
    if node.logging is not None and not _LEAST_LOG <= node.logging.max_size <= 1 << 40:
        given = rules.at((*place, "logging", "max_size")).text
        rules.say((*place, "logging", "max_size"), f"{given} is no size for a log", "between 64KiB and 1TiB")
    for index, mount in enumerate(node.tmpfs):
        if mount.size == 0:
            rules.say((*place, "tmpfs", index, "size"), "a size of 0 holds nothing")
    if node.cpus is not None and node.cpus > 512:
        rules.say((*place, "cpus"), f"{node.cpus:g} CPUs: no machine has that many")


_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,511}", re.ASCII)
# A name as in useradd(8), more freely, or a number below 2^32-1.
_WHO = r"(?:[A-Za-z_][A-Za-z0-9_.@-]{0,63}\$?|[0-9]{1,9}|[1-3][0-9]{9}|4[01][0-9]{8})"
_USER = re.compile(rf"{_WHO}(?::{_WHO})?", re.ASCII)
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_:@-]+)+", re.ASCII)


def _words(rules: Rules, key: str, node: Node) -> None:
    place = ("nodes", key)
    _image(rules, (*place, "image"), node.image)
    for index, disk in enumerate(node.disks):
        if disk.image and not rules.is_broken(*place, "disks", index):
            _image(rules, (*place, "disks", index, "image"), disk.image)
    for name in node.sysctls:
        if not _SYSCTL.fullmatch(name):
            rules.say(
                (*place, "sysctls", name),
                f"{shown(name)} is no sysctl",
                "such as net.ipv4.ip_forward",
                key=True,
            )
        elif not node.sysctls[name].isprintable():
            rules.say((*place, "sysctls", name), f"{shown(node.sysctls[name])} can't be a sysctl's value")
    if node.user and not _USER.fullmatch(node.user):
        hint = "a name or a number, or both of user:group"
        rules.say((*place, "user"), f"{shown(node.user)} names no user", hint)
    for name in node.env:
        if not name or "=" in name or not name.isprintable():
            rules.say((*place, "env", name), f"{shown(name)} can't be the name of a variable", key=True)
    for name in ("machine", "cpu", "kernel"):
        value = getattr(node, name)
        if value and (not value.isprintable() or re.search(r"[\s<>\"'&]", value) or len(value) > 256):
            rules.say((*place, name), f"{shown(value)} has characters in it that can't stand in {name}")
    if node.ready is not None and not rules.is_broken(*place, "ready"):
        _ready(rules, key, node)
    for part in ("command", "entrypoint"):
        if is_blank(getattr(node, part) or ()):
            rules.say((*place, part), "is empty", f"left out, it is the image's; {part}: [] takes that away")
    for index, step in enumerate(node.provision):
        if not step.run.strip():
            rules.say((*place, "provision", index), "the step does nothing")


def is_blank(command: Sequence[str]) -> bool:
    """Whether it is a command line with nothing in it, or names no program."""
    return bool(command) and not command[-1 if tuple(command[:-1]) == SHELL else 0].strip()


def _image(rules: Rules, loc: Loc, image: str) -> None:
    if image.startswith("/") and image.isprintable():
        return  # a file or folder, made absolute; it need not be there to validate a profile
    if "://" in image:
        hint = "labctl image fetch URL --import NAME makes an image of it"
        rules.say(loc, f"{shown(image)} is a URL, and no image's name", hint)
    elif not _IMAGE.fullmatch(image):
        hint = "for example base, registry.example.org/team/image:1.2, or a path: ./web"
        rules.say(loc, f"{shown(image)} is no image's name", hint)
    elif rules.images is not None and image not in rules.images:
        rules.unknown(loc, "image", image, rules.images)


def _is_url(text: str) -> bool:
    """Whether a node can be asked for it: http://HOST:PORT/PATH, or the end of that from : or / on."""
    whole = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:  # a port that is none, a bracket that is never closed
        return False
    plain = parts.scheme in ("http", "https") and not re.search(r"\s", text) and port != 0
    return plain and ("://" in text or text.startswith((":", "/")))


def _ready(rules: Rules, key: str, node: Node) -> None:
    place: Loc = ("nodes", key, "ready")
    ready = node.ready
    assert ready is not None
    ways = [w for w in ("port", "command", "http") if getattr(ready, w) not in (None, "", ())]
    if len(ways) != 1:
        given = f"not {' and '.join(ways)}" if ways else "none is given"
        rules.say(place, f"needs one of port, command or http; {given}")
    if is_blank(ready.command or ()):
        rules.say((*place, "command"), "must not be empty")
    if ready.timeout <= 0 or ready.interval <= 0:
        rules.say(place, "timeout and interval must be more than 0")
    if ready.http and not _is_url(ready.http):
        rules.say((*place, "http"), f"{shown(ready.http)} is no URL", "such as http://:8080/ or /health")
    if (ready.port or ready.http) and not node.networks and not rules.is_broken("nodes", key, "networks"):
        rules.say(place, f"{key} is on no network, so nothing can reach its port")
