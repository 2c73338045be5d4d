"""The disks that a lab's machines boot from: made of their images before anything else is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import LabError
from labctl.lab.facts import arch_of, is_vm
from labctl.lab.model import Options
from labctl.profile.models import Profile
from labctl.tiers.context import Choice, ImageFacts
from labctl.tiers.disks import disk_key

if TYPE_CHECKING:
    from labctl.image.model import Image
    from labctl.image.store import Store


def disks(
    profile: Profile,
    chosen: Mapping[str, Choice],
    images: Mapping[tuple[str, str], ImageFacts],
    options: Options,
    standing: Mapping[str, str],
) -> dict[str, str]:
    """The cached disk of each VM's image, in the size that the node asks for; made where missing.

    `standing` are those below disks that are there: while the image is the same they stay, whatever size the
    node asks for now.

    A container inside a VM has one too: the VM mounts it, instead of having the image sent to it.  That of a
    further disk's image goes by `disk_key`.
    """
    wanted = [
        node
        for node in profile.nodes.values()
        if is_vm(node, chosen) or (node.inside and not chosen[node.name].skipped)
    ]
    if not wanted:
        return {}
    from labctl.image import clouddisk
    from labctl.image.disk import DEFAULT_BYTES, disk, is_of
    from labctl.image.store import Store

    store = Store(options.home.cache / "images")
    found: dict[str, str] = {}
    for node in wanted:
        ref, arch = node.image, arch_of(node, profile)
        if node.cloud:
            found[node.name] = clouddisk.ensure(options.home.cache, ref, arch).path
        else:
            size = node.disk or DEFAULT_BYTES
            image, before = _held(store, images[ref, arch]), standing.get(node.name, "")
            kept = before and is_of(Path(before), image.digest)
            found[node.name] = before if kept else str(disk(store, image, options.home.cache, size))
        for more in node.disks:
            if more.image:
                whole = _held(store, images[more.image, arch])
                file = disk(store, whole, options.home.cache, more.size or DEFAULT_BYTES)
                found[disk_key(node.name, more.name)] = str(file)
    return found


def _held(store: Store, image: ImageFacts) -> Image:
    """The image that was found before, whatever was done to its name since.  Raises LabError."""
    there = store.held(image.digest)
    if there is None:
        raise LabError(f"image {image.ref} is gone from the store", hint="labctl up again gets it anew")
    return there
