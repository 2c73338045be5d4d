"""A layer's tar → a folder, safely: what overlayfs takes as a lower layer.

The tar comes from strangers.  Names with ".." are refused; links inside are resolved by the kernel as if
the folder were "/" (`beneath`), so no member lands outside, whatever links to whatever.  Whiteouts
(image-spec, layer.md) become what overlayfs understands: a character device 0/0, and an "opaque"
attribute on a folder.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from contextlib import suppress
from dataclasses import field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any

from labctl.errors import LabError
from labctl.image.beneath import Beneath, clean
from labctl.image.model import BadImage
from labctl.records import dataclass

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
XATTR = "SCHILY.xattr."
#: Attributes that steer overlayfs itself: a layer that brings its own could point anywhere.
_FORBIDDEN = ("trusted.overlay.", "user.overlay.")
_MAX_HEADER = 1 << 20
_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


@dataclass(frozen=True)
class Limits:
    """What one layer may cost: members and bytes written (a sparse file counts with its data)."""

    entries: int = 4_000_000
    size: int = 1 << 40


@dataclass
class _Work:
    beneath: Beneath
    keep_links: bool
    whiteouts: bool = True
    root: bool = field(default_factory=lambda: os.geteuid() == 0)
    times: list[tuple[str, int]] = field(default_factory=list)
    entries: int = 0
    size: int = 0


def unpack(
    stream: IO[bytes],
    dest: Path,
    *,
    limits: Limits | None = None,
    keep_directory_links: bool = False,
    whiteouts: bool = True,
) -> None:
    """Write the members of an uncompressed tar into the existing folder `dest`.

    With `keep_directory_links`, a folder member whose name is a link to a folder goes through the link (as
    dpkg does it), instead of replacing it.  Without `whiteouts`, names that start with .wh. are files
    like any other.  Raises BadImage for a tar that is damaged or hostile, LabError
    when the disk is full.  Without root, owners and devices are left out.
    """
    bounds = limits or Limits()
    try:
        with Beneath(dest) as beneath:
            work = _Work(beneath, keep_directory_links, whiteouts)
            archive = tarfile.open(  # noqa: SIM115 - a stream of ours; closing it is the caller's
                fileobj=stream,
                mode="r|",
                bufsize=_CHUNK,
                encoding="utf-8",
                errors="surrogateescape",
                tarinfo=_Info,
            )
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header of a large layer
                work.entries += 1
                if work.entries > bounds.entries:
                    raise BadImage(
                        f"a layer has more than {bounds.entries} members",
                        hint="if that is right, raise LABCTL_MAX_ENTRIES",
                    )
                work.size += member.size if member.isreg() else 0
                if work.size > bounds.size:
                    raise BadImage(f"a layer unpacks to more than {bounds.size} bytes")
                _member(work, archive, member)
            _set_times(work)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise BadImage(f"a layer is damaged: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LabError(f"the disk is full: cannot unpack a layer in {dest.parent}") from error
        raise BadImage(f"a layer cannot be unpacked: {error}") from error


class _Info(tarfile.TarInfo):
    """Refuses headers that would be read into memory at any size a stranger writes."""

    def _proc_pax(self, tarfile: Any) -> Any:
        self._bounded()
        return super()._proc_pax(tarfile)  # type: ignore[misc]

    def _proc_gnulong(self, tarfile: Any) -> Any:
        self._bounded()
        return super()._proc_gnulong(tarfile)  # type: ignore[misc]

    def _bounded(self) -> None:
        if self.size > _MAX_HEADER:
            raise BadImage(f"a layer has a header of {self.size} bytes; {_MAX_HEADER} are allowed")


def _member(work: _Work, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = clean(member.name)
    parent_path, _, name = path.rpartition("/")
    if work.whiteouts and name.startswith(WHITEOUT):
        _whiteout(work, parent_path, name)
        return
    if not path:
        if member.isdir():
            _dress(work, work.beneath.fd, ".", member, folder=True)
            work.times.append(("", _mtime(member)))
        return
    parent = work.beneath.folder(parent_path, make=True)
    if member.isdir():
        if _make_folder(work, parent, name, path):
            _dress(work, parent, name, member, folder=True)
            work.times.append((path, _mtime(member)))
    elif member.islnk():
        _make_hard_link(work, parent_path, name, member)
    elif member.issym():
        _again(work, parent, name, lambda: os.symlink(member.linkname, name, dir_fd=parent))
        _dress(work, parent, name, member)
    elif member.ischr() or member.isblk() or member.isfifo():
        if _make_node(work, parent, name, member):
            _dress(work, parent, name, member)
    else:
        _make_file(work, parent, name, archive, member)


def _make_folder(work: _Work, parent: int, name: str, path: str) -> bool:
    """Whether the folder is now there to be dressed (not when the way leads through a kept link)."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(there.st_mode):
            return True
        if work.keep_links and stat.S_ISLNK(there.st_mode):
            try:
                work.beneath.folder(path)
            except OSError:
                pass
            else:
                return False
        os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)
    return True


def _make_file(
    work: _Work, parent: int, name: str, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = _again(work, parent, name, lambda: os.open(name, flags, 0o600, dir_fd=parent))
    try:
        source = archive.fileobj
        assert source is not None
        source.seek(member.offset_data)
        holes: Any = getattr(member, "sparse", None)  # typeshed knows no better
        if holes is not None:
            for offset, size in holes:
                os.lseek(descriptor, offset, os.SEEK_SET)
                _pour(source, descriptor, size, member.name)
            os.ftruncate(descriptor, member.size)
        else:
            _pour(source, descriptor, member.size, member.name)
        if work.root:
            os.fchown(descriptor, *_owner(member))
        os.fchmod(descriptor, member.mode & 0o7777)
        for key, value in _xattrs(member):
            _set_xattr(descriptor, key, value)
        when = _mtime(member)
        os.utime(descriptor, ns=(when, when))
    finally:
        os.close(descriptor)


def _pour(source: Any, descriptor: int, size: int, name: str) -> None:
    while size > 0:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise BadImage(f"a layer ends in the middle of {name}")
        size -= len(chunk)
        if chunk == _ZEROS[: len(chunk)]:
            # A hole: gigabytes of zeros are a few packed bytes, and should not cost more on the disk.
            os.ftruncate(descriptor, os.lseek(descriptor, len(chunk), os.SEEK_CUR))
            continue
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]


def _make_hard_link(work: _Work, parent_path: str, name: str, member: tarfile.TarInfo) -> None:
    target = clean(member.linkname)
    if not target:
        raise BadImage(f"{member.name} is a hard link to the root")
    source_path, _, source_name = target.rpartition("/")
    if target == f"{parent_path}/{name}".lstrip("/"):
        return  # a link to itself: what is there stays
    try:
        source = os.dup(work.beneath.folder(source_path))
    except OSError:
        raise BadImage(f"{member.name} is a hard link to {target}, which this layer does not have") from None
    try:
        parent = work.beneath.folder(parent_path, make=True)

        def link() -> None:
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

        _again(work, parent, name, link)
    except FileNotFoundError:
        raise BadImage(f"{member.name} is a hard link to {target}, which this layer does not have") from None
    except PermissionError:
        raise BadImage(f"{member.name} is a hard link to {target}, which cannot be linked to") from None
    finally:
        os.close(source)


def _make_node(work: _Work, parent: int, name: str, member: tarfile.TarInfo) -> bool:
    if member.isfifo():
        _again(work, parent, name, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
        return True
    if not work.root:
        return False  # the kernel would refuse, and a container gets its own /dev anyway
    kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
    device = os.makedev(member.devmajor, member.devminor)
    if kind == stat.S_IFCHR and device == 0:
        raise BadImage(f"{member.name} is a device 0/0, which overlayfs would take for a deletion")
    _again(work, parent, name, lambda: os.mknod(name, kind | 0o600, device, dir_fd=parent))
    return True


def _whiteout(work: _Work, parent_path: str, name: str) -> None:
    if name == OPAQUE:
        parent = work.beneath.folder(parent_path, make=True)
        make_opaque(f"/proc/self/fd/{parent}", root=work.root)
        return
    if name.startswith(".wh..wh."):
        return  # what AUFS kept for itself
    hidden = name[len(WHITEOUT) :]
    if hidden in ("", ".", ".."):
        raise BadImage(f"{name} is no usable deletion")
    parent = work.beneath.folder(parent_path, make=True)
    # A deletion is about the layers below; what this layer itself brings under the name stays.
    with suppress(FileExistsError):
        os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)


def make_opaque(path: str, *, root: bool) -> None:
    """Say that the folder hides what lower layers have in it; both spellings, for both mount modes."""
    if root:
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    try:
        os.setxattr(path, "user.overlay.opaque", b"y")
    except OSError as error:
        if not root or error.errno != errno.ENOTSUP:  # tmpfs has user attributes since Linux 6.6
            raise


def _again(work: _Work, parent: int, name: str, make: Any) -> Any:
    """Do it; when the name is taken by an earlier member, remove that one and do it again."""
    try:
        return make()
    except FileExistsError:
        work.beneath.clear(parent, name)
        return make()


def _dress(work: _Work, parent: int, name: str, member: tarfile.TarInfo, *, folder: bool = False) -> None:
    """Owner, mode, attributes and (but for folders) time of what is no regular file."""
    if work.root:
        os.chown(name, *_owner(member), dir_fd=parent, follow_symlinks=False)
    place = f"/proc/self/fd/{parent}/{name}"
    if not member.issym():
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)
    for key, value in _xattrs(member):
        _set_xattr(place, key, value, follow=False)
    if not folder:
        when = _mtime(member)
        os.utime(name, ns=(when, when), dir_fd=parent, follow_symlinks=False)


def _set_times(work: _Work) -> None:
    """Folders last and innermost first, since each member written changed its folder's time."""
    for path, when in reversed(work.times):
        try:
            parent_path, _, name = path.rpartition("/")
            parent = work.beneath.folder(parent_path)
            os.utime(name or ".", ns=(when, when), dir_fd=parent, follow_symlinks=False)
        except (OSError, BadImage):
            continue  # a later member replaced it


def _xattrs(member: tarfile.TarInfo) -> list[tuple[str, bytes]]:
    found = []
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            name = key[len(XATTR) :]
            if not name.startswith(_FORBIDDEN):
                found.append((name, value.encode("utf-8", "surrogateescape")))
    return found


def _set_xattr(place: int | str, key: str, value: bytes, *, follow: bool = True) -> None:
    try:
        if isinstance(place, int):
            os.setxattr(place, key, value)
        else:
            os.setxattr(place, key, value, follow_symlinks=follow)
    except OSError as error:
        # The file system has none of the kind, or only root may: an image is usable without them.
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def _owner(member: tarfile.TarInfo) -> tuple[int, int]:
    if not (0 <= member.uid < 2**32 - 1 and 0 <= member.gid < 2**32 - 1):
        raise BadImage(f"{member.name} belongs to the impossible user {member.uid}:{member.gid}")
    return member.uid, member.gid


def _mtime(member: tarfile.TarInfo) -> int:
    """Nanoseconds; tarfile's float would lose the last digits of what a PAX header says."""
    text = member.pax_headers.get("mtime")
    if text:
        try:
            when = int(Decimal(text) * 10**9)
        except (InvalidOperation, ValueError, OverflowError):
            raise BadImage(f"{member.name} has an impossible time") from None
    else:
        when = int(member.mtime) * 10**9
    if not -(2**62) < when < 2**62:
        raise BadImage(f"{member.name} has an impossible time")
    return when
