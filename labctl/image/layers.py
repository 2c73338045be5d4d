"""Unpacked layers: one folder each, named after the digest of its tar, whole or not there at all."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from labctl.errors import LabError, UsageError
from labctl.image.blobs import Blobs
from labctl.image.locks import locked
from labctl.image.model import BadImage, Layer
from labctl.image.pack import is_opaque
from labctl.image.scratch import Scratch, remove

_libc = ctypes.CDLL(None, use_errno=True)


class Layers:
    """The folder layers/ of the store."""

    def __init__(self, root: Path, blobs: Blobs, scratch: Scratch) -> None:
        self.root = root
        self.folder = root / "layers"
        self.blobs = blobs
        self.scratch = scratch

    def path(self, diff_id: str) -> Path:
        """Where the layer lies unpacked.  Short, since all of them must fit into one mount call's page."""
        return self.folder / diff_id[7:31]

    def unpacked(self, layer: Layer) -> Path:
        """The layer's folder, unpacked now if it isn't yet.  Raises BadImage, LabError."""
        path = self.path(layer.diff_id)
        if path.is_dir():
            return path
        with locked(self.root / "locks" / f"layer-{path.name}", what=f"layer {layer.diff_id}"):
            if path.is_dir():
                return path  # another process was first
            with self.scratch.folder("layer") as fresh:
                fresh.chmod(0o755)
                self._fill(layer, fresh)
                _sync(fresh)
                self.folder.mkdir(mode=0o700, exist_ok=True)
                fresh.rename(path)
        return path

    def stack(self, layers: Iterable[Layer]) -> tuple[Path, ...]:
        """The layers' folders for overlayfs, bottom first, each once.  Raises BadImage, LabError.

        overlayfs takes no folder twice (ELOOP).  Of a layer that comes again, the topmost hides the others.
        """
        paths = [self.unpacked(layer) for layer in layers]
        return tuple(reversed(dict.fromkeys(reversed(paths))))

    def adopt(self, layer: Layer, upper: Path) -> None:
        """Take the folder that the layer was packed from, instead of unpacking it again.

        `upper` is what overlayfs wrote; it is made to look as `unpack` would have left it.
        """
        path = self.path(layer.diff_id)
        with locked(self.root / "locks" / f"layer-{path.name}", what=f"layer {layer.diff_id}"):
            if path.is_dir():
                return
            upper.chmod(0o755)
            for folder, folders, files in os.walk(upper, topdown=False):
                for name in (*files, *folders):
                    _plain(f"{folder}/{name}")
            _plain(str(upper))
            _sync(upper)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            upper.rename(path)

    def _fill(self, layer: Layer, fresh: Path) -> None:
        from labctl.image.streams import Reader, plain
        from labctl.image.unpack import Limits, unpack

        with self.blobs.open(layer.digest) as file, plain(file) as chunks:
            reader = Reader(chunks, max_layer(), layer.diff_id)
            unpack(reader, fresh, limits=Limits(entries=max_entries()))  # type: ignore[arg-type]
            reader.drain()
        if reader.digest != layer.diff_id:
            raise BadImage(
                f"layer {layer.digest} unpacks to {reader.digest} instead of {layer.diff_id}",
                hint="remove the image and pull or build it again",
            )

    def check(self, layer: Layer) -> str:
        """Hash the layer's tar; returns what is wrong, or ""."""
        from labctl.image.streams import Reader, plain

        with self.blobs.open(layer.digest) as file, plain(file) as chunks:
            reader = Reader(chunks, max_layer(), layer.diff_id)
            reader.drain()
        same = reader.digest == layer.diff_id
        return "" if same else f"layer {layer.digest} unpacks to {reader.digest} instead of {layer.diff_id}"

    def keep_only(self, diff_ids: set[str]) -> int:
        """Remove all other unpacked layers; returns the bytes freed."""
        if not self.folder.is_dir():
            return 0
        names = {self.path(diff_id).name for diff_id in diff_ids}
        freed = 0
        for path in list(self.folder.iterdir()):
            if path.name not in names:
                freed += _size(path)
                # Renamed first, so that a removal which is cut short leaves no half layer under its name.
                grave = self.scratch.root / f"gone-{path.name}-{os.getpid()}"
                self.scratch.root.mkdir(exist_ok=True)
                path.rename(grave)
                remove(grave)
        return freed


def _plain(path: str) -> None:
    """Whole seconds, and of overlayfs' own attributes only that a folder is opaque, in both spellings."""
    from labctl.image.unpack import make_opaque

    status = os.lstat(path)
    opaque = False
    for key in os.listxattr(path, follow_symlinks=False):
        if key.startswith(("trusted.overlay.", "user.overlay.")):
            opaque = opaque or (stat.S_ISDIR(status.st_mode) and is_opaque(path))
            os.removexattr(path, key, follow_symlinks=False)
    if opaque:
        make_opaque(path, root=os.geteuid() == 0)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return  # a deletion: one inode may stand for all of them
    whole = status.st_mtime_ns // 10**9 * 10**9
    os.utime(path, ns=(whole, whole), follow_symlinks=False)


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _sync(path: Path) -> None:
    """syncfs(2): after a power cut a layer must not be there with empty files in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise LabError(f"cannot write {path} to the disk: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def max_layer() -> int:
    """The most bytes that one layer may unpack to (256 GiB); LABCTL_MAX_LAYER moves it."""
    return _limit("LABCTL_MAX_LAYER", 256 << 30)


def max_entries() -> int:
    """The most files that one layer may have (4 million); LABCTL_MAX_ENTRIES moves it."""
    return _limit("LABCTL_MAX_ENTRIES", 4_000_000)


def _limit(variable: str, usual: int) -> int:
    text = os.environ.get(variable, "") or str(usual)
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{variable} must be a number above 0, not {text[:40]}")
    return int(text)
