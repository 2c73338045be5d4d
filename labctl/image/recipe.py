"""What a recipe says: images/NAME/recipe.yaml, and a folder files/ beside it that is laid over the image.

A recipe makes an image from Debian packages, without any registry.  See images/*/recipe.yaml for
examples of the three methods: `unpack`, `debootstrap` and `install`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from labctl.data import data
from labctl.errors import HostCannot, UsageError, Where
from labctl.image.beneath import clean
from labctl.image.model import BadImage, ImageConfig
from labctl.records import dataclass

METHODS = ("unpack", "debootstrap", "install")
#: Raise it when the way recipes are carried out changes what comes out.
VERSION = 1
#: The annotation that says which recipe, at which state, an image was made from.
KEY = "org.labctl.recipe.key"


@dataclass(frozen=True)
class RecipeFile:
    """A file that the recipe itself holds; owner root."""

    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Recipe:
    """One recipe.  Paths are relative to the image's root."""

    name: str
    path: Path | None
    method: str
    packages: tuple[str, ...]
    description: str = ""
    base: str = ""  # for `install`: the image below
    variant: str = "apt"  # for `debootstrap`: mmdebstrap's --variant
    release: str = ""  # Debian's code name; empty = the host's
    layout: Mapping[str, str] = field(default_factory=dict)
    # Single files of further packages, which may conflict with the others: package → path in it → here.
    aside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    applets: tuple[str, ...] = ()  # busyboxes; links to what they are stand beside the first
    exclude: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    directories: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, RecipeFile] = field(default_factory=dict)
    run: tuple[str, ...] = ()  # for `install`: shell commands in the image, once all files are there
    config: ImageConfig = field(default_factory=ImageConfig)

    def key(self, release: str, arch: str, base: str = "") -> str:
        """A digest of all that decides what comes out, but for the versions of the packages."""
        words: dict[str, Any] = {
            "version": VERSION,
            "release": self.release or release,
            "arch": arch,
            "base": base,
            "recipe": repr(self._content()),
        }
        overlay = self.overlay
        if overlay is not None:
            words["files"] = {
                str(path.relative_to(overlay)): [path.lstat().st_mode, _content(path)]
                for path in sorted(overlay.rglob("*"))
            }
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:32]

    def _content(self) -> tuple[Any, ...]:
        # Only where they are, else the digests of recipes without them would change.
        run = (self.run,) if self.run else ()
        aside = (sorted((name, sorted(files.items())) for name, files in self.aside.items()),)
        return (
            *run,
            *(aside if self.aside else ()),
            self.method,
            self.packages,
            self.base,
            self.variant,
            sorted(self.layout.items()),
            self.applets if len(self.applets) > 1 else "".join(self.applets),
            self.exclude,
            self.remove,
            sorted(self.directories.items()),
            sorted((name, file.text, file.mode) for name, file in self.files.items()),
            json.dumps(self.config.to_json(), sort_keys=True),
        )

    @property
    def overlay(self) -> Path | None:
        """The folder whose content is laid over the image, or None."""
        folder = self.path.parent / "files" if self.path else None
        return folder if folder and folder.is_dir() else None


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def names() -> list[str]:
    """The recipes that there are."""
    folder = data("images")
    return sorted(path.parent.name for path in folder.glob("*/recipe.yaml")) if folder.is_dir() else []


def find(name: str) -> Recipe | None:
    """The recipe of that name, or None.  Raises UsageError when it is malformed."""
    path = data("images", name, "recipe.yaml")
    return load(path) if "/" not in name and path.is_file() else None


def debian(release: str) -> Recipe:
    """The recipe for debian:RELEASE: Debian's required packages and apt, as the official image has it."""
    return Recipe(
        name=f"debian:{release}",
        path=None,
        method="debootstrap",
        packages=("ca-certificates",),
        description=f"Debian {release} (required packages and apt)",
        variant="minbase",
        release=release,
        exclude=tuple(f"/usr/share/{name}/*" for name in ("doc", "man", "info", "locale", "lintian", "bug")),
        config=ImageConfig(
            cmd=("bash",), env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
        ),
    )


_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "description": str,
    "method": str,
    "from": str,
    "variant": str,
    "release": str,
    "packages": list,
    "layout": dict,
    "aside": dict,
    "applets": (str, list),
    "exclude": list,
    "remove": list,
    "directories": dict,
    "files": dict,
    "run": list,
    "config": dict,
}
_CONFIG_KEYS = {
    "entrypoint": list,
    "cmd": list,
    "env": dict,
    "working_dir": str,
    "user": str,
    "expose": list,
    "volumes": list,
    "stop_signal": str,
    "labels": dict,
}


def host_release(os_release: Path = Path("/etc/os-release")) -> str:
    """The code name of this host's Debian release; raises HostCannot on anything that isn't Debian-like."""
    try:
        fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    except OSError as error:
        raise HostCannot(f"cannot read {os_release}: {error.strerror}") from error
    release = fields.get("VERSION_CODENAME", "").strip('"')
    if not release:
        raise HostCannot(
            "this host is no Debian release, so labctl can't build images from packages",
            hint="pull an image, or use a host with Debian 12 or 13",
        )
    return release


def load(path: Path) -> Recipe:
    """Read a recipe; raises UsageError that names the file and the field."""
    import yaml

    try:
        # libyaml's parser where it is there: a tenth of the time.
        document = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"unusable recipe: {error}", where=Where(str(path))) from error
    fields = _checked(path, document, _KEYS, "")
    method = fields.get("method", "install" if fields.get("from") else "debootstrap")
    if method not in METHODS:
        raise _wrong(path, "method", f"must be one of {', '.join(METHODS)}")
    if (method == "install") != bool(fields.get("from")):
        raise _wrong(path, "from", "belongs to the method install, and must be there for it")
    if fields.get("aside") and method != "unpack":
        raise _wrong(path, "aside", "belongs to the method unpack")
    if fields.get("run") and method != "install":
        raise _wrong(path, "run", "belongs to the method install: the other two run nothing in the image")
    config = _checked(path, fields.get("config", {}), _CONFIG_KEYS, "config.")
    return Recipe(
        name=path.parent.name,
        path=path,
        method=method,
        packages=_texts(fields.get("packages")),
        description=fields.get("description", ""),
        base=fields.get("from", ""),
        variant=fields.get("variant", "apt"),
        release=fields.get("release", ""),
        layout={_inside(path, key): str(value) for key, value in fields.get("layout", {}).items()},
        aside={
            str(package): {
                _inside(path, file): _inside(path, to)
                for file, to in _checked(path, files, dict.fromkeys(files, str), f"aside.{package}.").items()
            }
            for package, files in _checked(
                path, fields.get("aside", {}), dict.fromkeys(fields.get("aside", {}), dict), "aside."
            ).items()
        },
        applets=tuple(_inside(path, text) for text in _texts(fields.get("applets"))),
        exclude=_texts(fields.get("exclude")),
        remove=tuple(_inside(path, text) for text in _texts(fields.get("remove"))),
        directories={
            _inside(path, key): _mode(path, key, value)
            for key, value in fields.get("directories", {}).items()
        },
        files={_inside(path, key): _file(path, key, value) for key, value in fields.get("files", {}).items()},
        run=_texts(fields.get("run")),
        config=ImageConfig(
            entrypoint=_texts(config.get("entrypoint")),
            cmd=_texts(config.get("cmd")),
            env=tuple(f"{key}={value}" for key, value in config.get("env", {}).items()),
            working_dir=config.get("working_dir", ""),
            user=config.get("user", ""),
            exposed_ports=_texts(config.get("expose")),
            volumes=_texts(config.get("volumes")),
            stop_signal=config.get("stop_signal", ""),
            labels={str(key): str(value) for key, value in config.get("labels", {}).items()},
        ),
    )


def _checked(
    path: Path, document: Any, keys: Mapping[str, type | tuple[type, ...]], prefix: str
) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise _wrong(path, prefix.rstrip("."), "must be a map")
    for key, value in document.items():
        if key not in keys:
            raise _wrong(path, f"{prefix}{key}", f"is unknown; there are {', '.join(keys)}")
        if not isinstance(value, keys[key]):
            raise _wrong(path, f"{prefix}{key}", f"must be a {_WORDS[keys[key]]}")
    return dict(document)


_WORDS: Mapping[type | tuple[type, ...], str] = {
    str: "text",
    list: "list",
    dict: "map",
    (str, list): "text or a list",
}


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value or ())


def _inside(path: Path, name: Any) -> str:
    try:
        return clean(str(name))
    except BadImage as error:
        raise _wrong(path, str(name), error.message) from None


def _mode(path: Path, key: str, value: Any) -> int:
    """Modes are written as people write them: 755 and 1777 mean octal."""
    try:
        return int(str(value), 8)
    except ValueError:
        raise _wrong(path, str(key), "has a mode that is no octal number") from None


def _file(path: Path, key: str, value: Any) -> RecipeFile:
    if isinstance(value, str):
        return RecipeFile(value)
    fields = _checked(path, value, {"text": str, "mode": int}, f"files.{key}.")
    return RecipeFile(fields.get("text", ""), _mode(path, key, fields.get("mode", 644)))


def _wrong(path: Path, name: str, what: str) -> UsageError:
    return UsageError(what, where=Where(str(path), field=name))
