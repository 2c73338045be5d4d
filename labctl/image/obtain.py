"""Where an image comes from when somebody names it: the store, a recipe, a registry; in that order.

Or a path: a folder with a Containerfile or a recipe is built, an archive is read, again when it changed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import LabError, UsageError
from labctl.events import Emit
from labctl.image import recipe, refs
from labctl.image.model import Image, host_arch, oci_arch

if TYPE_CHECKING:
    from labctl.image.recipe import Recipe
    from labctl.image.store import Store

#: Debian's releases that debian:NAME stands for; numbers as on the official image.
RELEASES = {
    "bookworm": "bookworm",
    "12": "bookworm",
    "trixie": "trixie",
    "13": "trixie",
    "forky": "forky",
    "sid": "sid",
    "unstable": "sid",
}


#: On an image read from a file: what the file was then.
READ_KEY = "org.labctl.read.key"
CONTAINERFILES = ("Containerfile", "Dockerfile")


def ensure(store: Store, ref: str, emit: Emit, *, arch: str = "", rebuild: bool = False) -> Image:
    """See Store.ensure."""
    wanted = oci_arch(arch) if arch else host_arch()
    made = recipe_for(ref)
    if made is None and refs.is_path(ref):
        return _from_path(store, ref, emit, wanted, rebuild)
    found = store.find(ref, wanted)
    if made is not None and (found is None or "org.labctl.recipe" in found.annotations):
        # Quick way: nothing changed since it was built.  A base below is looked at by `cook`.
        if (
            found
            and not rebuild
            and not made.base
            and found.annotations.get(recipe.KEY) == made.key(recipe.host_release(), wanted)
        ):
            return found
        from labctl.image.cook import cook

        return cook(store, made, refs.stored(ref).familiar, emit, arch=wanted, rebuild=rebuild)
    if found is not None:
        return found
    name = refs.parse(ref)
    if not name.host and (near := _nearest(store, ref)):
        raise unknown(store, ref, arch, near)
    from labctl.image.registry import pull

    try:
        return pull(store, ref, emit, arch=wanted)
    except UsageError:
        raise
    except LabError as error:
        if name.host:
            raise
        known = ", ".join(recipe.names())
        raise type(error)(
            f"image {ref} is neither here nor a recipe, and docker.io did not give it: {error.message}",
            hint=f"recipes: {known}; or pull it from a registry you reach: HOST/NAME:TAG",
        ) from error


def to_come(store: Store, ref: str, arch: str) -> str:
    """What `ensure` would have to do for an image that isn't in the store, in words.

    Raises UsageError for a path that is not there and for a name close to a known one, which is a slip.
    """
    if refs.is_path(ref):
        kind = _kind(_existing(ref))
        return f"image {ref} for {arch} is still to be {'read' if kind == 'archive' else 'built'}"
    if recipe_for(ref):
        return f"image {ref} for {arch} is still to be built"
    name = refs.parse(ref)
    if ref.startswith("sha256:") or (not name.host and (_nearest(store, ref) or store.find(ref))):
        raise unknown(store, ref, arch)
    return f"image {ref} for {arch} is still to be pulled from {name.registry}"


def _existing(ref: str) -> Path:
    path = Path(ref).expanduser()
    if not path.exists():
        raise UsageError(f"there is no {ref}", hint="an image is a name, or a folder or file that is there")
    return path


def _kind(path: Path) -> str:
    """What a path holds: "recipe", "build" (a Containerfile) or "archive" (anything else)."""
    if path.name == "recipe.yaml" or (path / "recipe.yaml").is_file():
        return "recipe"
    if path.is_dir():
        built = any((path / name).is_file() for name in CONTAINERFILES)
        return "build" if built else "archive"
    named = any(
        path.name.startswith(name) or path.name.endswith(f".{name.lower()}") for name in CONTAINERFILES
    )
    return "build" if named else "archive"


def _from_path(store: Store, ref: str, emit: Emit, arch: str, rebuild: bool) -> Image:
    path = _existing(ref)
    name = refs.of_path(path).familiar
    if _kind(path) == "build":
        from labctl.image.build import BuildOptions, build

        folder, file = (path, "") if path.is_dir() else (path.parent, str(path))
        options = BuildOptions(str(folder), file, tags=(name,), platform=arch, no_cache=rebuild)
        return build(store, options, emit)
    from labctl.image.archive import load

    status = path.stat()
    words = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if path.is_dir():
        words += _newest(path)
    key = hashlib.sha256(repr(words).encode()).hexdigest()
    found = store.find(ref, arch)
    if found is not None and found.annotations.get(READ_KEY) == key and not rebuild:
        return found
    images = load(store, path, emit, ref=name, arch=arch, marks={READ_KEY: key})
    fitting = [image for image in images if image.architecture == arch]
    if not fitting:
        there = ", ".join(sorted({image.architecture for image in images}))
        raise UsageError(f"{ref} has no image for {arch}", hint=f"there are: {there}")
    return fitting[0]


def _newest(folder: Path) -> list[int]:
    """The latest change below a folder (ns), and how many entries it has."""
    latest = count = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            latest = max(latest, os.lstat(f"{place}/{name}").st_ctime_ns)
            count += 1
    return [latest, count]


def recipe_for(ref: str) -> Recipe | None:
    """The recipe that a name stands for, or None.  Raises UsageError for a malformed name or recipe."""
    if ref.startswith("sha256:"):
        return None
    if refs.is_path(ref):
        path = Path(ref).expanduser()
        file = path / "recipe.yaml" if path.is_dir() else path
        return recipe.load(file) if file.name == "recipe.yaml" and file.is_file() else None
    name = refs.parse(ref)
    if name.host or name.digest:
        return None
    if name.path == "debian":
        release = RELEASES.get(name.tag.removesuffix("-slim"))
        if name.tag in ("latest", "stable"):
            release = recipe.host_release()
        return recipe.debian(release) if release else None
    return recipe.find(name.path) if name.tag == "latest" else None


def _nearest(store: Store, ref: str) -> str:
    import difflib

    known = [image.ref for image in store.list()] + recipe.names()
    plain = {name.removesuffix(":latest"): name for name in known}
    near = difflib.get_close_matches(ref.removesuffix(":latest"), plain, n=1, cutoff=0.75)
    return near[0] if near else ""


def unknown(store: Store, ref: str, arch: str = "", near: str = "") -> UsageError:
    """The error for a name that stands for nothing, with the nearest one that does."""
    refs.parse(ref) if not ref.startswith("sha256:") else None
    if refs.is_path(ref):
        return UsageError(f"image {ref} is not built yet", hint=f"labctl image build {ref}")
    near = near or _nearest(store, ref)
    other = store.find(ref)
    if arch and other is not None:
        return UsageError(f"image {ref} is here for {other.architecture} only, not for {oci_arch(arch)}")
    known = sorted({image.ref.removesuffix(":latest") for image in store.list()} | set(recipe.names()))
    hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
    return UsageError(f"there is no image {ref}", hint=hint)
