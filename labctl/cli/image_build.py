"""`image build`: which of its words are recipes and which are folders, and what is asked of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from labctl.errors import UsageError
from labctl.events import Emit
from labctl.records import dataclass


@dataclass(frozen=True)
class Wanted:
    """The options of the command line."""

    tags: tuple[str, ...] = ()
    file: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    secrets: tuple[str, ...] = ()
    platform: str = ""
    network: str = "host"
    no_cache: bool = False
    rebuild: bool = False

    @property
    def needs_folder(self) -> str:
        """The first option given that only a Containerfile knows, or ""."""
        given = {
            "--tag": self.tags, "--file": self.file, "--build-arg": self.build_args, "--target": self.target,
            "--secret": self.secrets, "--no-cache": self.no_cache,
        }  # fmt: skip
        return next((name for name, value in given.items() if value), "")


def build_all(store: Any, words: list[str], wanted: Wanted, emit: Emit) -> list[Any]:
    """Build each; raises UsageError before anything is built when the words can't be carried out."""
    if wanted.network not in ("host", "none", "default"):
        raise UsageError(f"--network {wanted.network}: host or none is expected")
    kinds = [_kind(word, wanted) for word in words]
    if wanted.tags and len(words) > 1:
        raise UsageError("--tag names one image, but several are to be built")
    arch = _arch(wanted.platform)
    images = []
    for word, kind in zip(words, kinds, strict=True):
        if kind == "folder":
            images.append(_folder(store, word, wanted, arch, emit))
        else:
            images.append(store.ensure(word, emit, arch=arch, rebuild=wanted.rebuild))
    return images


def _kind(word: str, wanted: Wanted) -> str:
    from labctl.image import recipe, refs
    from labctl.image.obtain import recipe_for

    path = Path(word).expanduser()
    meant = refs.is_path(word) or word.endswith("/") or "/" in word or bool(wanted.file)
    if recipe_for(word) is not None and not wanted.file:
        if wanted.needs_folder:
            raise UsageError(f"{word} is a recipe, which knows no {wanted.needs_folder}")
        return "recipe"
    if path.exists() and (meant or path.is_dir()):
        return "folder"
    if meant:
        raise UsageError(f"there is no {word}", hint="name a folder with a Containerfile, or a recipe")
    from difflib import get_close_matches

    near = get_close_matches(word, recipe.names(), 1, 0.5)
    raise UsageError(
        f"{word} is neither a recipe nor a folder here",
        hint=f"did you mean {near[0]}?" if near else f"recipes: {', '.join(recipe.names())}",
    )


def _arch(platform: str) -> str:
    """The architecture of OS/ARCH[/VARIANT] or ARCH; raises UsageError."""
    from labctl.image.model import oci_arch

    system, slash, arch = platform.partition("/")
    if slash and system != "linux":
        raise UsageError(f"--platform {platform}: labctl builds for linux only")
    return oci_arch(arch.partition("/")[0] if slash else system)


def _folder(store: Any, word: str, wanted: Wanted, arch: str, emit: Emit) -> Any:
    from labctl.image.build import build

    path = Path(word).expanduser()
    folder, file = (path.parent, str(path)) if path.is_file() else (path, wanted.file)
    if file == "-":
        with store.scratch.file("containerfile") as (fresh, _):
            fresh.write_bytes(sys.stdin.buffer.read())
            return build(store, _options(str(folder), str(fresh), wanted, arch), emit)
    if file and not Path(file).expanduser().exists() and (folder / file).is_file():
        file = str(folder / file)  # as podman has it: here, else in the folder
    return build(store, _options(str(folder), file, wanted, arch), emit)


def _options(folder: str, file: str, wanted: Wanted, arch: str) -> Any:
    from labctl.image.build import BuildOptions

    return BuildOptions(
        folder,
        file,
        tags=wanted.tags,
        build_args=wanted.build_args,
        target=wanted.target,
        no_cache=wanted.no_cache,
        platform=arch,
        network=wanted.network != "none",
        secrets=secrets(wanted.secrets),
    )


def secrets(words: tuple[str, ...]) -> dict[str, bytes]:
    """--secret id=ID[,src=FILE|,env=NAME] → what each holds.  Raises UsageError."""
    import os

    found: dict[str, bytes] = {}
    for word in words:
        fields = dict(part.partition("=")[::2] for part in word.split(","))
        name = fields.get("id", "")
        if not name or set(fields) - {"id", "src", "source", "env", "type"}:
            raise UsageError(f"--secret {word}: id=ID,src=FILE or id=ID,env=NAME is expected")
        variable = fields.get("env", "")
        source = fields.get("src") or fields.get("source") or ""
        if not source and (variable or name in os.environ):
            if (variable or name) not in os.environ:
                raise UsageError(f"--secret {word}: the variable {variable} is not set")
            found[name] = os.environ[variable or name].encode()
            continue
        try:
            found[name] = Path(source or name).expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f"--secret {word}: cannot read it: {error.strerror}") from error
    return found
