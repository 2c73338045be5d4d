"""Where an image comes from when somebody names it: the store, a recipe, a registry; in that order."""

from __future__ import annotations

import difflib
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


def ensure(store: Store, ref: str, emit: Emit, *, arch: str = "", rebuild: bool = False) -> Image:
    """See Store.ensure."""
    wanted = oci_arch(arch) if arch else host_arch()
    made = recipe_for(ref)
    found = store.find(ref, wanted)
    if made is not None and (found is None or "org.labctl.recipe" in found.annotations):
        from labctl.image.cook import KEY, cook
        from labctl.image.packages import host_release

        # Quick way: nothing changed since it was built.  A base below is looked at by `cook`.
        if (
            found
            and not rebuild
            and not made.base
            and found.annotations.get(KEY) == made.key(host_release(), wanted)
        ):
            return found
        return cook(store, made, refs.parse(ref).familiar, emit, arch=wanted, rebuild=rebuild)
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


def recipe_for(ref: str) -> Recipe | None:
    """The recipe that a name stands for, or None.  Raises UsageError for a malformed name or recipe."""
    if ref.startswith("sha256:"):
        return None
    name = refs.parse(ref)
    if name.host or name.digest:
        return None
    if name.path == "debian":
        release = RELEASES.get(name.tag.removesuffix("-slim"))
        if name.tag in ("latest", "stable"):
            from labctl.image.packages import host_release

            release = host_release()
        return recipe.debian(release) if release else None
    return recipe.find(name.path) if name.tag == "latest" else None


def _nearest(store: Store, ref: str) -> str:
    known = [image.ref for image in store.list()] + recipe.names()
    plain = {name.removesuffix(":latest"): name for name in known}
    near = difflib.get_close_matches(ref.removesuffix(":latest"), plain, n=1, cutoff=0.75)
    return near[0] if near else ""


def unknown(store: Store, ref: str, arch: str = "", near: str = "") -> UsageError:
    """The error for a name that stands for nothing, with the nearest one that does."""
    refs.parse(ref) if not ref.startswith("sha256:") else None
    near = near or _nearest(store, ref)
    other = store.find(ref)
    if arch and other is not None:
        return UsageError(f"image {ref} is here for {other.architecture} only, not for {oci_arch(arch)}")
    known = sorted({image.ref.removesuffix(":latest") for image in store.list()} | set(recipe.names()))
    hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
    return UsageError(f"there is no image {ref}", hint=hint)
