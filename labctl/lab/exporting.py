"""A node of a lab as an image or a disk: what it is now, with all that was changed in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import HostCannot, LabError, UsageError
from labctl.events import Emit, silent
from labctl.lab.looking import lab_status, opened, record_named
from labctl.lab.model import Options
from labctl.resource import executor

if TYPE_CHECKING:
    from labctl.image.bootable import Wish
    from labctl.image.model import Image
    from labctl.image.store import Store
    from labctl.tiers.container import ContainerNode
    from labctl.tiers.engine import EngineContainer
    from labctl.tiers.vmdisk import VmDisk


def export_disk(lab: str, node: str, out: Path, wish: Wish, options: Options, emit: Emit = silent) -> None:
    """A node as a raw disk that boots.  Raises UsageError while it runs, HostCannot, LabError."""
    from labctl.image import bootable
    from labctl.image.store import Store

    store = Store(options.home.cache / "images")
    image, found = _stopped(lab, node, options, store)
    with store.scratch.folder("export") as work:
        if found.kind == "vmdisk":
            if wish.size:
                raise UsageError(f"the disk of {lab}/{node} has its size already", hint="leave --size out")
            boot = found.boot  # type: ignore[union-attr]
            config = replace(
                boot,
                hostname=wish.hostname,
                interfaces=(),
                routes=(),
                gateway4="",
                gateway6="",
                dns=(),
                search=(),
                hosts={},
                authorized_keys=wish.authorized_keys,
                host_key=Path(found.host_key_file).read_text(),  # type: ignore[union-attr]
            )
            bootable.from_disk(options.home.cache, found.disk, config, out, work, emit)  # type: ignore[union-attr]
            return
        upper = _upper(found, work)  # type: ignore[arg-type]
        layers = [*store.rootfs(image), *([upper] if upper else [])]
        bootable.write(options.home.cache, layers, image.config, image.digest, out, work, wish, emit)


def commit(lab: str, node: str, options: Options, emit: Emit = silent) -> Image:
    """A container's image with one more layer, of what was changed; it has no name.  As `docker commit`.

    Raises UsageError while it runs, and for a machine, whose disk is no layer.
    """
    from labctl.image.pack import Packing, pack
    from labctl.image.store import Store

    store = Store(options.home.cache / "images")
    image, found = _stopped(lab, node, options, store)
    if found.kind == "vmdisk":
        raise UsageError(
            f"{lab}/{node} is a machine, whose disk is no layer of an image",
            hint="export it as a disk (--format qcow2), and import that",
        )
    with store.adding(), store.scratch.folder("commit") as work:
        upper = _upper(found, work)  # type: ignore[arg-type]
        layers = list(image.layers)
        if upper and any(upper.iterdir()):
            tar = work / "layer.tar"
            with tar.open("wb") as out:
                pack(upper, out, Packing(root=False))
            with tar.open("rb") as file:
                layers.append(store.add_layer(iter(lambda: file.read(1 << 20), b"")))
        return store.add_image("", image.config, layers)


def _stopped(
    lab: str, node: str, options: Options, store: Store
) -> tuple[Image, ContainerNode | EngineContainer | VmDisk]:
    """The image of a node, and the resource that has its files; the node must stand still."""
    with opened(options) as ledger:
        row, record = record_named(ledger, lab, node)
        state = next(one.state for one in lab_status(ledger, row).nodes if one.name == node)
        rows = {one.key: one for one in ledger.resources(row.id)}
    if state not in ("stopped", "failed"):
        raise UsageError(
            f"{lab}/{node} is {state}: its files change while they are read",
            hint=f"labctl stop {lab}/{node}",
        )
    if record.is_cloud:
        raise UsageError(
            f"{lab}/{node} boots a cloud image, whose disk boots by itself",
            hint=f"qemu-img convert -O qcow2 {record.folder}/disk.qcow2 FILE",
        )
    for key in (f"vmdisk:{node}", f"container:{node}", f"engine:{node}"):
        if key in rows:
            image = store.held(record.digest)
            if image is None:
                raise LabError(f"the image of {lab}/{node} is gone from the store")
            return image, executor.load(rows[key])  # type: ignore[return-value]
    raise UsageError(f"{lab}/{node} runs inside a machine: export that")


def _upper(container: ContainerNode | EngineContainer, work: Path) -> Path | None:
    """What a container changed, with the owners that it sees, as overlayfs of root takes it."""
    config = json.loads(container.config)
    upper = Path(container.folder, "upper")
    if not upper.is_dir():
        return None
    if os.geteuid() != 0:
        raise HostCannot("reading a container's files needs root", hint="run it with sudo")
    copy = work / "upper"
    done = subprocess.run(
        ["cp", "-a", str(upper), str(copy)], capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        raise LabError(f"cannot copy what {container.name} changed: {done.stderr.strip()[-300:]}")
    maps = config.get("linux", {}).get("uidMappings") or []
    base = int(maps[0]["hostID"]) if maps else 0
    for folder, folders, files in os.walk(copy, topdown=False):
        for name in (*files, *folders):
            _settle(f"{folder}/{name}", base)
    _settle(str(copy), base)
    for name in ("dev", "proc", "sys"):  # mount points that the runtime made
        point = copy / name
        if point.is_dir() and not point.is_symlink() and not any(point.iterdir()):
            shutil.rmtree(point)
    return copy


def _settle(path: str, base: int) -> None:
    status = os.lstat(path)
    if base and status.st_uid >= base and status.st_gid >= base:
        mode = stat.S_IMODE(status.st_mode)
        os.chown(path, status.st_uid - base, status.st_gid - base, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, mode)  # noqa: PTH101 - chown took set-uid away
    if stat.S_ISDIR(status.st_mode):
        try:
            if os.getxattr(path, "user.overlay.opaque") == b"y":
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        except OSError:
            return
