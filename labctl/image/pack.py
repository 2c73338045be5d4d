"""A folder → a layer's tar, the same bytes for the same content.

Sorted by name, PAX format, whole seconds, no user names, no access times; times after `epoch` are set to
it (reproducible-builds.org, SOURCE_DATE_EPOCH).  Deletions as overlayfs keeps them become the whiteouts
of the image specification (layer.md).
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import IO

from labctl.image.unpack import OPAQUE, WHITEOUT, XATTR
from labctl.records import dataclass

_SKIPPED = ("trusted.overlay.", "user.overlay.", "security.selinux", "system.")

#: (path without a leading slash) → whether it goes in.  A folder that doesn't takes all in it along.
Wanted = Callable[[str], bool]


@dataclass
class Packing:
    """How a tree is packed.  `owner` replaces every owner; `epoch` is in seconds, None keeps all times."""

    epoch: int | None = None
    owner: tuple[int, int] | None = None
    wanted: Wanted | None = None
    prefix: str = ""
    root: bool = True  # whether the root folder itself is a member
    overlay: bool = True  # turn overlayfs' deletions into whiteouts
    numbers: dict[tuple[int, int], str] = field(default_factory=dict)  # inodes with several names


def pack(tree: Path, out: IO[bytes], packing: Packing | None = None) -> None:
    """Write the tree as one tar.  Raises OSError."""
    how = packing or Packing()
    how.numbers.clear()
    archive = tarfile.open(  # noqa: SIM115 - closed below; no with, so that a failure writes no end mark
        fileobj=out,
        mode="w|",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
        bufsize=1 << 20,
    )
    try:
        for path, full in _walk(tree, how):
            _add(archive, path, full, how)
        archive.close()
    except BaseException:
        abandon(archive)
        raise


def abandon(archive: tarfile.TarFile) -> None:
    """Write nothing more to a tar, also not when its stream is collected as garbage."""
    for part in (archive, archive.fileobj):
        part.closed = True  # type: ignore[union-attr]


def _walk(tree: Path, how: Packing) -> Iterator[tuple[str, str]]:
    """(path in the image, path on disk), parents first, names in byte order."""
    if how.root:
        yield "", str(tree)
    stack = [iter(_entries(str(tree), "", how))]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        path, full, folder = step
        yield path, full
        if folder:
            stack.append(iter(_entries(full, path, how)))


def _entries(folder: str, path: str, how: Packing) -> list[tuple[str, str, bool]]:
    with os.scandir(folder) as found:
        names = [
            (os.fsencode(entry.name), entry.path, entry.is_dir(follow_symlinks=False)) for entry in found
        ]
    made = []
    for raw, full, is_folder in sorted(names):
        inner = f"{path}/{os.fsdecode(raw)}" if path else os.fsdecode(raw)
        if how.wanted is None or how.wanted(inner):
            made.append((inner, full, is_folder))
    return made


def _add(archive: tarfile.TarFile, path: str, full: str, how: Packing) -> None:
    status = os.lstat(full)
    name = "/".join(part for part in (how.prefix, path) if part)
    if not name:
        name = "."
    if how.overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        parent, _, last = name.rpartition("/")
        archive.addfile(_marker(f"{parent}/{WHITEOUT}{last}".lstrip("/"), how))
        return
    info = _info(name, full, status, how)
    if info is None:
        return  # a socket
    if info.isreg() and info.size:
        with Path(full).open("rb") as file:
            archive.addfile(info, file)
    else:
        archive.addfile(info)
    if how.overlay and info.isdir() and is_opaque(full):
        archive.addfile(_marker(OPAQUE if name == "." else f"{name}/{OPAQUE}", how))


def _marker(name: str, how: Packing) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = 0o600
    info.mtime = how.epoch or 0
    return info


def _info(name: str, full: str, status: os.stat_result, how: Packing) -> tarfile.TarInfo | None:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = how.owner or (status.st_uid, status.st_gid)
    when = int(status.st_mtime)
    info.mtime = when if how.epoch is None else min(when, how.epoch)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in how.numbers:
            info.type, info.linkname = tarfile.LNKTYPE, how.numbers[key]
            return info
        if status.st_nlink > 1:
            how.numbers[key] = name
        info.size = status.st_size
    elif kind == stat.S_IFDIR:
        info.type = tarfile.DIRTYPE
    elif kind == stat.S_IFLNK:
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(full)  # noqa: PTH115 - keeps odd bytes
        info.mode = 0o777
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif kind == stat.S_IFIFO:
        info.type = tarfile.FIFOTYPE
    else:
        return None
    info.pax_headers = _attributes(full)
    return info


def _attributes(full: str) -> dict[str, str]:
    try:
        keys = os.listxattr(full, follow_symlinks=False)
    except OSError:
        return {}  # the file system has none
    found = {}
    for key in sorted(keys):
        if not key.startswith(_SKIPPED):
            value = os.getxattr(full, key, follow_symlinks=False)
            found[XATTR + key] = value.decode("utf-8", "surrogateescape")
    return found


def is_opaque(full: str) -> bool:
    """Whether a folder of an overlay layer hides what lower layers have in it.

    Root's mounts go by the trusted attribute, and copy the user one up like any other: it says nothing then.
    """
    key = "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque"
    try:
        # Kernels since 6.7 write "x" for a folder with escaped deletions, which hides nothing.
        return os.getxattr(full, key, follow_symlinks=False) == b"y"
    except OSError:
        return False
