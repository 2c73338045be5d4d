"""RUN --mount: what a step sees besides the image, and what does not go into the layer.

Types bind, cache, tmpfs and secret, as the Dockerfile reference has them.  A bind is read-only, or writable
with what was written thrown away; nothing that a step does reaches the build's folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.image.beneath import clean
from labctl.image.build_cache import content
from labctl.image.build_state import Stage
from labctl.image.containerfile import Instruction
from labctl.image.locks import locked
from labctl.image.model import BadImage, Layer
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.image.build import _Builder
    from labctl.image.build_files import Files

_KEYS = {
    "bind": {"target", "source", "from", "rw"},
    "cache": {"id", "target", "ro", "sharing", "from", "source", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
}
_OTHER_NAMES = {
    "dst": "target", "destination": "target", "src": "source", "readwrite": "rw", "readonly": "ro",
}  # fmt: skip


@dataclass(frozen=True)
class Mount:
    """One --mount.  `mark` is what of it decides the step's result."""

    kind: str
    fields: Mapping[str, str]
    target: str
    mark: Any
    layers: tuple[Layer, ...] = ()
    source: str = ""
    secret: bytes | None = field(default=None, repr=False)


class Mounts:
    """The mounts of a build's RUN steps."""

    def __init__(self, builder: _Builder, files: Files) -> None:
        self.builder, self.files = builder, files

    def of(self, stage: Stage, step: Instruction) -> list[Mount]:
        """What a step asks for; raises UsageError with the place."""
        if step.flags.get("security", "sandbox") != "sandbox":
            raise step.wrong("--security=insecure is not offered: a build has no rights over this host")
        words = step.flags.get("mount", "")
        return [self._mount(stage, step, stage.word(step, word)) for word in words.split("\n") if word]

    def _mount(self, stage: Stage, step: Instruction, text: str) -> Mount:
        fields = _fields(text)
        kind = fields.pop("type", "bind")
        if kind == "ssh":
            raise step.wrong("--mount=type=ssh is not offered", "hand a key over with --mount=type=secret")
        if kind not in _KEYS:
            raise step.wrong(f"--mount has no type {kind}", f"there are: {', '.join(_KEYS)}")
        if unknown := sorted(set(fields) - _KEYS[kind]):
            hint = f"known: {', '.join(sorted(_KEYS[kind]))}"
            raise step.wrong(f"--mount=type={kind} knows no {unknown[0]}", hint)
        for key, pattern in (("mode", "[0-7]{3,4}"), ("uid", "[0-9]+"), ("gid", "[0-9]+")):
            if key in fields and not re.fullmatch(pattern, fields[key]):
                raise step.wrong(f"--mount: {key}={fields[key]} is no number of the kind")
        if kind == "secret":
            return self._secret(step, fields)
        target = fields.get("target", "")
        if not target:
            raise step.wrong(f"--mount=type={kind} needs a target")
        full = os.path.normpath(os.path.join(stage.config.working_dir or "/", target))  # noqa: PTH118
        if kind == "tmpfs":
            if not re.fullmatch(r"[0-9]+[kKmMgG]?[bB]?", fields.get("size", "0")):
                raise step.wrong(f"--mount: {fields['size']} is no size", "as in 64m")
            return Mount(kind, fields, full, [kind, full])
        if kind == "cache":
            if fields.get("sharing", "shared") not in ("shared", "private", "locked"):
                raise step.wrong(f"--mount: sharing={fields['sharing']} is not shared, private or locked")
            return Mount(kind, fields, full, [kind, full])
        return self._bind(stage, step, fields, full)

    def _secret(self, step: Instruction, fields: dict[str, str]) -> Mount:
        name = fields.get("id") or fields.get("target", "").rpartition("/")[2]
        if not name:
            raise step.wrong("--mount=type=secret needs an id")
        held = self.builder.options.secrets.get(name)
        if held is None and fields.get("required", "false") in ("true", "1", ""):
            raise step.wrong(f"there is no secret {name}", f"give it with --secret id={name},src=FILE")
        target = fields.get("target", "" if "env" in fields else f"/run/secrets/{name}")
        # What a secret holds is no reason to do a step again.
        return Mount(
            "secret", fields, os.path.normpath(target) if target else "", ["secret", name], secret=held
        )

    def _bind(self, stage: Stage, step: Instruction, fields: dict[str, str], target: str) -> Mount:
        try:
            source = clean(fields.get("source", ""))
        except BadImage as error:
            raise step.wrong(error.message) from None
        if "from" in fields:
            layers, key = self.files.other(stage, step, fields["from"])
            return Mount("bind", fields, target, ["bind", key, source, target], tuple(layers), source)
        found = self.files.found(step, [source or "."])
        mark = ["bind", target, content(self.files.context, found, self.files.ignore)]
        return Mount("bind", fields, target, mark, (), str(self.files.context / source))

    # -- while the step runs ----------------------------------------------------------------------

    @contextmanager
    def ready(
        self, mounts: list[Mount], upper: Path
    ) -> Iterator[tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]]:
        """The mounts as the runner takes them, and variables for the step."""
        places: list[Mapping[str, Any]] = []
        added: list[str] = []
        with ExitStack() as held:
            for number, mount in enumerate(mounts):
                aside = upper.with_name(f"mount{number}-{upper.name}")
                if mount.kind == "secret":
                    self._give_secret(mount, aside, places, added)
                elif mount.kind == "tmpfs":
                    size = mount.fields.get("size", "").lower().removesuffix("b")
                    places.append({"tmpfs": size or "50%", "target": mount.target})
                elif mount.kind == "cache":
                    folder = held.enter_context(self._cache(mount, aside))
                    ro = _true(mount.fields, "ro")
                    places.append({"source": str(folder), "target": mount.target, "ro": ro})
                else:
                    places.append(self._give_bind(mount, aside))
            yield tuple(places), tuple(added)

    def _give_secret(
        self, mount: Mount, aside: Path, places: list[Mapping[str, Any]], added: list[str]
    ) -> None:
        if mount.secret is None:
            return
        if name := mount.fields.get("env"):
            added.append(f"{name}={mount.secret.decode(errors='surrogateescape')}")
        if mount.target:
            aside.touch(0o600)
            aside.write_bytes(mount.secret)
            os.chown(aside, int(mount.fields.get("uid", "0")), int(mount.fields.get("gid", "0")))
            aside.chmod(int(mount.fields.get("mode", "0400"), 8))
            places.append({"source": str(aside), "target": mount.target, "ro": True})

    @contextmanager
    def _cache(self, mount: Mount, aside: Path) -> Iterator[Path]:
        """The folder that lives on from build to build."""
        name = hashlib.sha256((mount.fields.get("id") or mount.target).encode()).hexdigest()[:24]
        root = self.builder.store.root
        folder = root / "caches" / name
        sharing = mount.fields.get("sharing", "shared")
        with ExitStack() as held:
            if sharing == "private":
                folder = aside  # nobody else's, and gone afterwards
            elif sharing == "locked":
                what = f"the cache {mount.fields.get('id') or mount.target}"
                held.enter_context(locked(root / "locks" / f"cache-{name}", timeout=3600, what=what))
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                os.chown(folder, int(mount.fields.get("uid", "0")), int(mount.fields.get("gid", "0")))
                folder.chmod(int(mount.fields.get("mode", "0755"), 8))
            yield folder

    def _give_bind(self, mount: Mount, aside: Path) -> Mapping[str, Any]:
        layers = [str(path) for path in self.builder.store.layers.stack(mount.layers)]
        place: dict[str, Any] = {"target": mount.target, "source": mount.source, "ro": True}
        if layers:
            place["layers"] = layers
        if _true(mount.fields, "rw"):
            for name in ("upper", "work"):
                (aside / name).mkdir(parents=True)
                place[name] = str(aside / name)
        (aside / "root").mkdir(parents=True)
        place["root"] = str(aside / "root")
        return place


def _fields(text: str) -> dict[str, str]:
    found = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        name = _OTHER_NAMES.get(key.lower(), key.lower())
        found[name] = value if equals else "true"
    return found


def _true(fields: Mapping[str, str], key: str) -> bool:
    return fields.get(key, "false").lower() in ("true", "1")
