"""The layers of an image as one folder, as overlayfs would show them: for making disks."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from labctl.errors import LabError
from labctl.image.pack import is_opaque


def merge(layers: Sequence[Path], dest: Path) -> None:
    """Make `dest` (which must not exist) the union of the layer folders, bottom first.

    Files are hard links where the file system allows it: the tree is to be read, never written to.
    Raises LabError when it can't be made.
    """
    try:
        dest.mkdir(parents=True)
        for layer in layers:
            _lay(str(layer), str(dest))
    except OSError as error:
        raise LabError(f"cannot put the layers together in {dest}: {error.strerror or error}") from error


def _lay(source: str, dest: str) -> None:
    """One folder of a layer over the same folder below; its own attributes come last, with its times."""
    if is_opaque(source):
        for entry in list(os.scandir(dest)):
            _remove(entry.path)
    with os.scandir(source) as found:
        entries = list(found)
    for entry in entries:
        target = os.path.join(dest, entry.name)  # noqa: PTH118 - names may be no UTF-8; speed counts
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            _make_folder(target)
            _lay(entry.path, target)
            continue
        _remove(target)
        if not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0):
            _copy(entry.path, target, status)
    _dress(source, dest, os.lstat(source))


def _make_folder(target: str) -> None:
    try:
        os.mkdir(target)  # noqa: PTH102
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(target).st_mode):
            os.unlink(target)  # noqa: PTH108
            os.mkdir(target)  # noqa: PTH102


def _remove(target: str) -> None:
    try:
        os.unlink(target)  # noqa: PTH108
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(target)


def _copy(source: str, target: str, status: os.stat_result) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
    if stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(target)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        os.mknod(target, status.st_mode, status.st_rdev)
    _dress(source, target, status)


def _dress(source: str, target: str, status: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))  # noqa: PTH101
    for key in os.listxattr(source, follow_symlinks=False):
        if not key.startswith(("trusted.overlay.", "user.overlay.")):
            os.setxattr(target, key, os.getxattr(source, key, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)
