"""A machine's disks: an image's tree as an ext4 file system, made once, and a thin qcow2 layer per node.

`mke2fs -d` needs no mount; layers are put together by a read-only overlay in a mount namespace of its own,
which ends with the process.  Same tree, same bytes: UUID, hash seed and times follow from the digest.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import LabError
from labctl.image.boot_files import fresh_file, locked, run, sweep
from labctl.image.bootconfig import ROOT_SERIAL

if TYPE_CHECKING:
    from labctl.image.model import Image
    from labctl.image.store import Store

_FORMAT = 2
_BLOCK = 4096
# How far a file system can grow: each 8 GiB more take a block of descriptors that is kept free for them, and
# a journal of 8 MiB takes no transaction on more than 512 blocks (jbd2: a quarter of it).
_GROWS_TO = 2 << 40
DEFAULT_BYTES = 8 << 30  # a machine's disk when nobody asks for another; sparse, so it costs what is in it
_SPARE = 32 << 20  # the journal, and room for a machine to start in
_MAKE_SECONDS = 600.0
_NAMESPACE = uuid.UUID("6f9d0c4e-3b0a-4d63-9a3e-6c1b1f6a7c11")


def disk(store: Store, image: Image, cache: Path, size: int = DEFAULT_BYTES) -> Path:
    """The image as a raw ext4 disk of `size` bytes in the cache, made on first use, never written afterwards.

    One per image and size: growing a file system in the machine would cost each boot 0.2 s under emulation.
    Raises LabError when `size` is too small for the image or the host's disk is full, HostCannot without
    mke2fs.
    """
    name = image.digest.replace(":", "-")
    final = cache / "boot" / "disks" / f"{name}.{size >> 20}M.{_FORMAT}.ext4"
    if final.exists():
        return final
    with locked(final.parent / f".{name}.lock"):
        if not final.exists():
            sweep(final)
            layers = store.rootfs(image)
            least = estimate(layers)
            if size < least:
                raise LabError(
                    f"a disk of {size >> 20} MiB is too small for the image, which needs {least >> 20} MiB",
                    hint=f"set disk: {least >> 20}MiB or more",
                )
            make_ext4(layers, final, seed=image.digest, size=size)
    return final


def is_of(path: Path, digest: str) -> bool:
    """Whether a file is what `disk`, of any version, made of the image with that digest, in any size."""
    return path.name.startswith(f"{digest.replace(':', '-')}.") and path.suffix == ".ext4" and path.exists()


def prune_disks(cache: Path, keep: Collection[str]) -> int:
    """Remove the cached disks of images whose digest ("sha256:…") is not in `keep`; the bytes freed.

    A disk below a node's layer must stay: `keep` names the images of all labs.
    """
    names = {digest.replace(":", "-") for digest in keep}
    freed = 0
    folder = cache / "boot" / "disks"
    for path in (*folder.glob("*.ext4"), *folder.glob("*.cloud.*")):
        if path.name.partition(".")[0] not in names:
            freed += path.stat().st_blocks * 512
            path.unlink(missing_ok=True)
    return freed


def make_ext4(layers: Sequence[Path], final: Path, *, seed: str, size: int) -> None:
    """Make an ext4 file system of those trees, the last one on top, with owners, modes, xattrs and devices.

    `size` in bytes, whole MiB.  Without root everything belongs to root in it: what a plain user unpacked
    is the user's, and the user is root in a namespace of its own.
    Raises LabError when it can't be made, HostCannot without mke2fs.
    """
    root = os.geteuid() == 0
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent)
    with beside as scratch, fresh_file(final) as work:
        tree, script = str(layers[0].absolute()), ""
        if len(layers) > 1:
            # Short relative names: overlayfs's options end at a page, and a path may hold a colon.
            for index, layer in enumerate(reversed(layers)):
                (Path(scratch) / str(index)).symlink_to(layer.absolute())
            tree = f"{scratch}/merged"
            Path(tree).mkdir()
            lower = ":".join(str(index) for index in range(len(layers)))
            options = f"ro,lowerdir={lower}{'' if root else ',userxattr'}"
            script = f"cd {shlex.quote(scratch)}; mount -t overlay -o {options} overlay merged; "
        script += shlex.join(_mke2fs(uuid.uuid5(_NAMESPACE, seed), tree, work, size))
        argv = ["unshare", "-m" if root else "-rm", "sh", "-euc", script]
        run(argv, timeout=_MAKE_SECONDS, what="make a disk of an image", package="e2fsprogs")


def _mke2fs(identity: uuid.UUID, tree: str, target: Path, size: int) -> list[str]:
    """The command: a small journal (a machine that is cut off must come up again), no reserved blocks."""
    extended = f"hash_seed={identity},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard"
    if size < _GROWS_TO:
        extended += f",resize={_GROWS_TO // _BLOCK}"
    # The label says for which size the file system was made; the guest grows it when the disk is larger.
    return [
        *("env", "E2FSPROGS_FAKE_TIME=1700000000", "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"),
        *(
            "-b",
            str(_BLOCK),
            "-I",
            "256",
            "-J",
            "size=8",
            "-L",
            f"{ROOT_SERIAL}-{size >> 20}",
            "-U",
            str(identity),
        ),
        *("-E", extended, "-d", tree, str(target), f"{size // 1024}k"),
    ]


def estimate(layers: Sequence[Path]) -> int:
    """The least bytes of a file system that holds those trees and lets a machine start, in whole MiB."""
    content = entries = 0
    for layer in layers:
        for folder, folders, files in os.walk(layer):
            entries += len(folders) + len(files)
            for name in files:
                info = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a hundred thousand files
                if stat.S_ISREG(info.st_mode):
                    content += -(-info.st_size // _BLOCK) * _BLOCK
    # A block per folder at most, and mke2fs makes one inode of 256 bytes for 16 KiB.
    size = content + entries * (_BLOCK + 512) + content // 16 + _SPARE
    return -(-size // (1 << 20)) << 20


def grow(path: Path, size: int) -> None:
    """Make a qcow2 file `size` bytes large; one that is as large already is left alone.

    The machine must be off.  Raises LabError, HostCannot without qemu-img.
    """
    from labctl.image.extradisk import header

    if header(path).size < size:
        argv = ["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(size)]
        run(argv, timeout=60, what=f"grow the disk {path}", package="qemu-utils")


def node_disk(path: Path, backing: Path, size: int = 0) -> None:
    """A node's own qcow2 layer over `backing` (see clouddisk.form_of), `size` bytes large (0: as large as the
    backing disk).

    Raises LabError when `size` is less than the backing disk, HostCannot without qemu-img.
    """
    from labctl.image.clouddisk import form_of, size_of

    form = form_of(str(backing))
    least = backing.stat().st_size if form == "raw" else size_of(backing)
    if size and size < least:
        raise LabError(f"a layer of {size >> 20} MiB would cut its backing disk of {least >> 20} MiB short")
    with fresh_file(path, 0o600) as work:
        argv = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            form,
            "-b",
            str(backing.absolute()),
            str(work),
        ]
        run([*argv, str(size or least)], timeout=60, what="make a node's disk", package="qemu-utils")
