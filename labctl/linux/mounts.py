"""Mounts as objects: detached trees that are made by one process and attached by another.

A container in a user namespace may neither read the host's folders nor idmap a mount, so its parent makes
every mount that needs rights (overlay, bind sources, idmaps) as a detached mount (open_tree(2), fsmount(2)),
hands the descriptor over, and the container attaches it with move_mount(2) in its own mount namespace.
Nothing of it is ever visible in the host's mount table.
"""

from __future__ import annotations

import os
import stat

from labctl.linux import syscalls as sc

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Sequence

# option: (mount(2) flags to set, to clear, mount attributes to set, to clear)
_FLAGS: dict[str, tuple[int, int, int, int]] = {
    "ro": (sc.MS_RDONLY, 0, sc.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, sc.MS_RDONLY, 0, sc.MOUNT_ATTR_RDONLY),
    "nosuid": (sc.MS_NOSUID, 0, sc.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, sc.MS_NOSUID, 0, sc.MOUNT_ATTR_NOSUID),
    "nodev": (sc.MS_NODEV, 0, sc.MOUNT_ATTR_NODEV, 0),
    "dev": (0, sc.MS_NODEV, 0, sc.MOUNT_ATTR_NODEV),
    "noexec": (sc.MS_NOEXEC, 0, sc.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, sc.MS_NOEXEC, 0, sc.MOUNT_ATTR_NOEXEC),
    "nosymfollow": (sc.MS_NOSYMFOLLOW, 0, sc.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, sc.MS_NOSYMFOLLOW, 0, sc.MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (sc.MS_NOATIME, 0, sc.MOUNT_ATTR_NOATIME, sc.MOUNT_ATTR_ATIME),
    "atime": (0, sc.MS_NOATIME, 0, sc.MOUNT_ATTR_ATIME),
    "relatime": (sc.MS_RELATIME, 0, 0, sc.MOUNT_ATTR_ATIME),
    "norelatime": (0, sc.MS_RELATIME, 0, 0),
    "strictatime": (sc.MS_STRICTATIME, 0, sc.MOUNT_ATTR_STRICTATIME, sc.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, sc.MS_STRICTATIME, 0, sc.MOUNT_ATTR_ATIME),
    "nodiratime": (sc.MS_NODIRATIME, 0, sc.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, sc.MS_NODIRATIME, 0, sc.MOUNT_ATTR_NODIRATIME),
    "sync": (sc.MS_SYNCHRONOUS, 0, 0, 0),
    "async": (0, sc.MS_SYNCHRONOUS, 0, 0),
    "dirsync": (sc.MS_DIRSYNC, 0, 0, 0),
    "lazytime": (sc.MS_LAZYTIME, 0, 0, 0),
    "nolazytime": (0, sc.MS_LAZYTIME, 0, 0),
    "mand": (sc.MS_MANDLOCK, 0, 0, 0),
    "nomand": (0, sc.MS_MANDLOCK, 0, 0),
    "silent": (sc.MS_SILENT, 0, 0, 0),
    "loud": (0, sc.MS_SILENT, 0, 0),
    "bind": (sc.MS_BIND, 0, 0, 0),
    "rbind": (sc.MS_BIND | sc.MS_REC, 0, 0, 0),
    "remount": (sc.MS_REMOUNT, 0, 0, 0),
    "defaults": (0, 0, 0, 0),
}
_SUPERBLOCK = {"sync": sc.MS_SYNCHRONOUS, "dirsync": sc.MS_DIRSYNC, "lazytime": sc.MS_LAZYTIME}
_RECURSIVE = {f"r{name}" for name, row in _FLAGS.items() if row[2] or row[3]}
_PROPAGATION = {
    "private": sc.MS_PRIVATE,
    "rprivate": sc.MS_PRIVATE | sc.MS_REC,
    "slave": sc.MS_SLAVE,
    "rslave": sc.MS_SLAVE | sc.MS_REC,
    "shared": sc.MS_SHARED,
    "rshared": sc.MS_SHARED | sc.MS_REC,
    "unbindable": sc.MS_UNBINDABLE,
    "runbindable": sc.MS_UNBINDABLE | sc.MS_REC,
}

_OTHERS = ("idmap", "ridmap", "tmpcopyup", "src-nofollow", "dest-nofollow", "copy-symlink")
OPTION_NAMES = sorted({*_FLAGS, *_RECURSIVE, *_PROPAGATION, *_OTHERS})
"""Every option that `Options` knows; all else is data for the file system."""


class Options:
    """The options of one OCI mount, sorted by what they mean."""

    __slots__ = (
        "attr_clear",
        "attr_set",
        "copy_link",
        "copy_up",
        "data",
        "dest_nofollow",
        "flags",
        "idmap",
        "propagation",
        "rec_clear",
        "rec_set",
        "src_nofollow",
        "worded",
    )

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.flags = self.attr_set = self.attr_clear = self.rec_set = self.rec_clear = 0
        self.propagation: list[int] = []
        self.data: list[str] = []
        self.idmap = ""
        self.copy_up = self.copy_link = self.src_nofollow = self.dest_nofollow = False
        self.worded = False  # whether anything was said of the mount's flags, be it to clear one
        for option in options:
            self._take(option)

    def _take(self, option: str) -> None:
        if option in _FLAGS:
            set_, clear, attr_set, attr_clear = _FLAGS[option]
            self.flags = self.flags & ~clear | set_
            self.worded |= bool((set_ | clear) & ~(sc.MS_BIND | sc.MS_REC | sc.MS_REMOUNT))
            self.attr_clear |= attr_clear | attr_set & sc.MOUNT_ATTR_ATIME
            self.attr_set = self.attr_set & ~attr_clear | attr_set
        elif option in _RECURSIVE:
            _, _, attr_set, attr_clear = _FLAGS[option[1:]]
            self.rec_clear |= attr_clear
            self.rec_set = self.rec_set & ~attr_clear | attr_set
        elif option in _PROPAGATION:
            self.propagation.append(_PROPAGATION[option])
        elif option in ("idmap", "ridmap"):
            self.idmap = option
        elif option == "tmpcopyup":
            self.copy_up = True
        elif option == "copy-symlink":
            self.copy_link = True
        elif option in ("src-nofollow", "dest-nofollow"):
            setattr(self, option.replace("-", "_"), True)
        else:
            self.data.append(option)

    @property
    def superblock(self) -> list[str]:
        """The options that belong to the file system itself, as fsconfig(2) takes them."""
        return [name for name, flag in _SUPERBLOCK.items() if self.flags & flag]

    @property
    def bind(self) -> bool:
        """Whether this is a bind mount."""
        return bool(self.flags & sc.MS_BIND)


def set_attributes(fd: int, set_: int, clear: int, *, recursive: bool = False) -> None:
    """Change the attributes of the mount `fd` (of everything below as well); nothing to change is fine."""
    if clear & sc.MOUNT_ATTR_ATIME or set_ & (sc.MOUNT_ATTR_NOATIME | sc.MOUNT_ATTR_STRICTATIME):
        clear |= sc.MOUNT_ATTR_ATIME  # the kernel wants the whole field when any of it changes
    clear &= ~set_ | sc.MOUNT_ATTR_ATIME
    if set_ or clear:
        flags = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0)
        sc.mount_setattr(fd, "", flags, set_=set_, clear=clear)


_ATIMES = sc.MS_NOATIME | sc.MS_RELATIME | sc.MS_STRICTATIME | sc.MS_NODIRATIME
# mount(2) flag: (mount attribute, flag of statvfs(3)); the kernel locks all but the last in a user namespace.
_BOUND = {
    sc.MS_RDONLY: (sc.MOUNT_ATTR_RDONLY, os.ST_RDONLY),
    sc.MS_NOSUID: (sc.MOUNT_ATTR_NOSUID, os.ST_NOSUID),
    sc.MS_NODEV: (sc.MOUNT_ATTR_NODEV, os.ST_NODEV),
    sc.MS_NOEXEC: (sc.MOUNT_ATTR_NOEXEC, os.ST_NOEXEC),
    sc.MS_NOSYMFOLLOW: (sc.MOUNT_ATTR_NOSYMFOLLOW, 0),
}


def set_bound(fd: int, options: Options, *, locked: bool) -> None:
    """Give a bind mount its flags, as mount(2)'s MS_REMOUNT | MS_BIND does and so runc and crun.

    Without any word on them it keeps those of its source; with one they are what was said and no others.
    `locked`: what the source has must stay, as for a mount in a user namespace; raises SyscallError (EPERM)
    when it was asked to go (mount_namespaces(7), "Restrictions on mount namespaces").
    """
    if not options.worded:
        return
    has = os.fstatvfs(fd).f_flag if locked else 0
    set_ = clear = 0
    for flag, (attribute, known) in _BOUND.items():
        if options.flags & flag or has & known:
            if options.attr_clear & attribute and not options.flags & flag:
                raise sc.SyscallError(1, "mount", "bind: the source's own flags can't be cleared")
            set_ |= attribute
        else:
            clear |= attribute
    if options.flags & _ATIMES:
        field = sc.MOUNT_ATTR_ATIME | sc.MOUNT_ATTR_NODIRATIME
        wanted = options.attr_set & field
        if locked and wanted != _atime_of(has):
            raise sc.SyscallError(1, "mount", "bind: the source's access times can't be changed")
        set_ |= wanted
        clear |= field & ~wanted | sc.MOUNT_ATTR_ATIME
    set_attributes(fd, set_, clear)


def _atime_of(flags: int) -> int:
    """The mount attributes for statvfs(3)'s words on access times."""
    folders = sc.MOUNT_ATTR_NODIRATIME if flags & os.ST_NODIRATIME else 0
    if flags & os.ST_NOATIME:
        return folders | sc.MOUNT_ATTR_NOATIME
    return folders | (0 if flags & os.ST_RELATIME else sc.MOUNT_ATTR_STRICTATIME)


def tree(path: str, *, recursive: bool = False, dirfd: int = sc.AT_FDCWD, follow: bool = True) -> int:
    """A detached copy of the mount tree at `path` (a folder or a file): what a bind mount is made of."""
    flags = sc.OPEN_TREE_CLONE | (sc.AT_RECURSIVE if recursive else 0)
    flags |= 0 if follow else sc.AT_SYMLINK_NOFOLLOW
    return sc.open_tree(dirfd, path, flags | (0 if path else sc.AT_EMPTY_PATH))


def idmap(fd: int, userns: int, *, recursive: bool = False) -> None:
    """Map the owners in a detached tree by a user namespace; needs CAP_SYS_ADMIN where it was mounted."""
    flags = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if recursive else 0)
    sc.mount_setattr(fd, "", flags, set_=sc.MOUNT_ATTR_IDMAP, userns=userns)


def filesystem(fstype: str, options: Sequence[str] = (), attributes: int = 0, source: str = "") -> int:
    """A new, detached mount of a file system; `options` are "key" or "key=value"."""
    context = sc.fsopen(fstype)
    try:
        if source:
            sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", source)
        for option in options:
            key, equals, value = option.partition("=")
            if equals:
                sc.fsconfig(context, sc.FSCONFIG_SET_STRING, key, value, f"{fstype} {option}")
            else:
                sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, key, None, f"{fstype} {option}")
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE, about=f"{fstype} {' '.join(options)}")
        return sc.fsmount(context, attributes, fstype)
    finally:
        os.close(context)


class OverlayMaker:
    """Makes overlay mounts inside a mount namespace of its own, so that the host never sees a lower.

    Before Linux 6.15 a lower must be attached in the mount namespace of whoever mounts the overlay, so the
    idmapped copies are attached below `scratch` (any folder) in a private namespace, which ends with
    `close`; the overlays hold their lowers themselves.  Use with `with`; only in a single-threaded process.
    """

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self._count = 0
        self._home = -1
        self._cwd = -1

    def __enter__(self) -> OverlayMaker:
        self._cwd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            sc.unshare(sc.CLONE_NEWNS)
            sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
            sc.mount("labctl", self.scratch, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0700,size=16m")
            os.chdir(self.scratch)
        except OSError:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Go back to the first mount namespace; the scratch one ends here."""
        if self._home >= 0:
            sc.setns(self._home, sc.CLONE_NEWNS, "the first mount namespace")
            os.close(self._home)
            self._home = -1
        if self._cwd >= 0:
            os.fchdir(self._cwd)
            os.close(self._cwd)
            self._cwd = -1

    def make(
        self,
        lowers: Sequence[str],
        upper: str,
        work: str,
        *,
        userns: int = -1,
        owner: tuple[int, int] = (0, 0),
        options: Sequence[str] = (),
    ) -> int:
        """A detached overlay.  `lowers` bottom first; `userns` idmaps them; `owner` owns an upper made.

        With an empty `upper` it lies in memory and is small: for a root that is made read-only once the
        mount points, which an image may lack, are there.

        Raises SyscallError, also for a missing folder.
        """
        if not upper:
            upper, work = self._in_memory(lowers, owner)
        names = []
        for lower in reversed(lowers):  # overlayfs wants the topmost first
            fd = tree(lower)
            try:
                if userns >= 0:
                    idmap(fd, userns)
                name = str(self._count)
                self._count += 1
                os.mkdir(name)
                sc.move_mount(fd, sc.AT_FDCWD, name, lower)
            finally:
                os.close(fd)
            names.append(name)
        settings = ["lowerdir=" + ":".join(names), *options]
        held = []
        try:
            # fsconfig takes at most 255 bytes a value: folders go in by descriptor.
            for key, path in (("upperdir", upper), ("workdir", work)):
                held.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                settings.append(f"{key}=/proc/self/fd/{held[-1]}")
            return filesystem("overlay", settings, source="labctl")
        finally:
            for fd in held:
                os.close(fd)

    def _in_memory(self, lowers: Sequence[str], owner: tuple[int, int]) -> tuple[str, str]:
        self._count += 1
        upper, work = f"{self.scratch}/u{self._count}", f"{self.scratch}/w{self._count}"
        prepare_upper(upper, work, lowers, owner)
        return upper, work


def prepare_upper(upper: str, work: str, lowers: Sequence[str], owner: tuple[int, int]) -> None:
    """Make the folders of an overlay's top when they are missing: like the image's root, owned by `owner`."""
    os.makedirs(work, exist_ok=True)
    try:
        os.makedirs(upper)
    except FileExistsError:
        if os.listdir(upper) or os.stat(upper).st_uid == owner[0]:
            return
    mode = stat.S_IMODE(os.stat(lowers[-1]).st_mode) if lowers else 0o755
    os.chown(upper, *owner)
    os.chmod(upper, mode)


def open_in_root(root: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """Open `path` inside the folder `root`: no link, "..", or absolute path leads out of it."""
    return sc.openat2(root, path.lstrip("/") or ".", flags, mode=mode, resolve=sc.RESOLVE_IN_ROOT)


def make_in_root(root: int, path: str, *, folder: bool, links: int = 40, follow: bool = True) -> int:
    """An O_PATH descriptor of `path` inside `root`; it and its parents are made when missing.

    A link that leads nowhere is followed inside `root` too, at most `links` times (ELOOP then); without
    `follow` a link at the very end is what is opened.
    """
    try:
        return open_in_root(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    except FileNotFoundError:
        pass
    above, name = os.path.split(os.path.normpath("/" + path))
    parent = make_in_root(root, above, folder=True, links=links)
    try:
        if folder:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=parent))
    except FileExistsError:
        if not links:
            raise sc.SyscallError(40, "follow", path) from None  # ELOOP
        target = os.path.join(above, os.readlink(name, dir_fd=parent))
        return make_in_root(root, target, folder=folder, links=links - 1)
    finally:
        os.close(parent)
    return open_in_root(root, path)


def enter_root(root: int) -> None:
    """Make the attached mount `root` this process's "/" and let go of the old one (pivot_root(2), NOTES)."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    sc.pivot_root(".", ".")
    os.fchdir(old)  # else the next line would cut the new root off from what it is to share
    sc.mount(None, ".", None, sc.MS_SLAVE | sc.MS_REC)
    sc.umount(".", sc.MNT_DETACH)
    os.chdir("/")
    os.close(old)
