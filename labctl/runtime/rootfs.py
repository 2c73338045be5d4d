"""Inside the new namespaces: every mount of the container, its devices, what is masked and read-only."""

from __future__ import annotations

import fcntl
import os
import stat

from labctl.linux import mounts
from labctl.linux import syscalls as sc
from labctl.linux.mounts import Options
from labctl.runtime.errors import ContainerError
from labctl.runtime.sources import is_bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Config = dict[str, Any]

DEVICES = (
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("tty", 5, 0, 0o666),
)
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_MODES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class RootBuilder:
    """Builds the mount tree below the detached mount `root` and makes it "/".

    `binds` are the descriptors of the bind mounts in order, `sysfs` one made by the parent or -1, `cgroups`
    the container's folder in each hierarchy (v1 controller, "" for v2), `userns` whether this process is in
    a user namespace of its own (then device nodes are bound, not made); `nodes` are those that its parent
    made of `linux.devices`; `late` are the bind mounts whose source depends on earlier ones: `get` makes
    them, by their index, when it is told where the root is attached.
    """

    def __init__(
        self,
        config: Config,
        root: int,
        binds: list[int],
        sysfs: int,
        cgroups: dict[str, str],
        *,
        userns: bool,
        nodes: list[int] | None = None,
        late: set[int] | frozenset[int] = frozenset(),
        get: Callable[[int, str], int] | None = None,
    ) -> None:
        self.config = config
        self.linux: Config = config.get("linux") or {}
        self.detached = root
        self.root = root
        self.binds = binds
        self.sysfs = sysfs
        self.cgroups = cgroups
        self.userns = userns
        self.nodes = nodes or []
        self.late = late
        self.get = get
        self.late_read_only: list[int] = []

    def build(self, bundle: str) -> None:
        """All mounts, devices and links; the old root is still "/" afterwards.

        The root is attached where the bundle has it, since hooks look for it there; where a user namespace
        may not go there, or an overlay has no such place, on a folder that any system has.
        """
        rootfs = self.linux.get("rootfsPropagation") or "rprivate"
        flags = Options([rootfs]).propagation or [sc.MS_PRIVATE | sc.MS_REC]
        # A shared root would send our mounts to the host: first cut, then as asked for the new root alone.
        hold = sc.MS_SLAVE if flags[0] & (sc.MS_SLAVE | sc.MS_SHARED) else sc.MS_PRIVATE
        sc.mount(None, "/", None, hold | sc.MS_REC)
        own = os.path.realpath(os.path.join(bundle, (self.config.get("root") or {}).get("path") or ""))
        place = next(path for path in (own, "/mnt", "/tmp", "/") if os.path.isdir(path))
        sc.move_mount(self.detached, sc.AT_FDCWD, place, "root file system")
        os.fchdir(self.detached)
        self.root = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        binds = iter(self.binds)
        for index, mount in enumerate(self.config.get("mounts") or ()):
            try:
                bind = -1
                if is_bind(mount):
                    later = self.get if index in self.late else None
                    bind = next(binds) if later is None else later(index, place)
                self._mount(mount, bind)
            except OSError as error:
                what = f"mount {mount.get('type') or mount.get('source')} to {mount['destination']}"
                raise ContainerError(f"{what}: {error}") from error
        self._devices()

    def _mount(self, mount: Config, bind: int) -> None:
        options = Options(mount.get("options") or ())
        target = os.path.normpath("/" + mount["destination"].lstrip("/"))
        kind = mount.get("type") or "none"
        if options.flags & sc.MS_REMOUNT:
            fd = mounts.open_in_root(self.root, target)
            mounts.set_attributes(fd, options.attr_set, options.attr_clear)
            os.close(fd)
        elif bind >= 0:
            self._bind(bind, target, options)
        elif kind == "cgroup" or kind == "cgroup2":
            self._cgroup(target, options)
        elif kind == "sysfs" and self.sysfs >= 0:
            self._ordinary(target, kind)
            mounts.set_attributes(self.sysfs, options.attr_set, options.attr_clear)
            self._attach(self.sysfs, target, folder=True)
        else:
            data = list(options.data)
            if label := self.linux.get("mountLabel"):
                from labctl.runtime import lsm

                data += lsm.mount_options(kind, label)
            if kind == "mqueue" or kind == "proc":
                data = [word for word in data if "=" in word]
            data += options.superblock
            clear, wanted = options.rec_clear, options.attr_set | options.rec_set
            late = wanted & sc.MOUNT_ATTR_RDONLY if kind == "tmpfs" else 0
            if kind == "tmpfs":
                data += self._mode_below(target, data)
            fd = mounts.filesystem(kind, data, options.attr_set & ~late, mount.get("source") or kind)
            mounts.set_attributes(fd, options.rec_set & ~late, clear)  # it has nothing below it yet
            if kind in ("proc", "sysfs"):
                self._ordinary(target, kind)
            if kind == "binfmt_misc":
                self._register(fd)
            if options.copy_up:
                self._copy_up(fd, target)
            self._attach(fd, target, folder=True)
            if late:  # devices, links and further mounts have yet to go into it
                self.late_read_only.append(fd)
            else:
                os.close(fd)
        for word in options.propagation if bind < 0 else ():
            fd = mounts.open_in_root(self.root, target)
            flags = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if word & sc.MS_REC else 0)
            sc.mount_setattr(fd, "", flags, propagation=word & ~sc.MS_REC)
            os.close(fd)

    def _register(self, fd: int) -> None:
        """Tell a binfmt_misc of this user namespace's own its rule.  The interpreter is opened at once, so
        this comes before the host's files are out of sight."""
        rule = (self.config.get("annotations") or {}).get("org.labctl.binfmt")
        if rule and self.userns:
            register = os.open("register", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.write(register, rule.encode())
            finally:
                os.close(register)

    def _mode_below(self, target: str, data: list[str]) -> list[str]:
        """A tmpfs without a mode of its own takes that of the folder it hides, as in runc."""
        if any(word.startswith("mode=") for word in data):
            return []
        try:
            fd = mounts.open_in_root(self.root, target)
        except OSError:
            return []  # not there yet: the file system's default
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.close(fd)
        return [f"mode={mode:o}"]

    def _ordinary(self, target: str, kind: str) -> None:
        """A link in the image must not put /proc or /sys elsewhere: what is masked goes by their place."""
        flags = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS
        try:
            os.close(sc.openat2(self.root, target.lstrip("/"), os.O_PATH, resolve=flags))
        except FileNotFoundError:
            return
        except OSError as error:
            raise ContainerError(f"{kind} must be mounted on ordinary directory, not on a link") from error

    def _bind(self, fd: int, target: str, options: Options) -> None:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if options.copy_link and kind == stat.S_IFLNK:
            self._link(target, os.readlink("", dir_fd=fd))
        else:
            self._attach(fd, target, folder=kind == stat.S_IFDIR, follow=not options.dest_nofollow)

    def _link(self, target: str, leads: str) -> None:
        """The same link once more, in the place of a mount of what it leads to."""
        above, name = os.path.split(target)
        folder = mounts.make_in_root(self.root, above, folder=True)
        try:
            os.symlink(leads, name, dir_fd=folder)
        except FileExistsError:
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISLNK(there.st_mode) or os.readlink(name, dir_fd=folder) != leads:
                raise
        finally:
            os.close(folder)

    def _attach(self, fd: int, target: str, *, folder: bool, follow: bool = True) -> None:
        if target == "/":
            sc.move_mount(fd, self.root, "", target)
            # From now on it is the root: what goes into it must not go below it.
            self.detached = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.fchdir(fd)
            self.root = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return
        place = mounts.make_in_root(self.root, target, folder=folder, follow=follow)
        try:
            sc.move_mount(fd, place, "", target)
        finally:
            os.close(place)

    def _copy_up(self, tmpfs: int, target: str) -> None:
        """tmpcopyup: what the image has at `target` goes into the new tmpfs."""
        try:
            source = mounts.open_in_root(self.root, target, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        _copy_tree(source, os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tmpfs))

    def _cgroup(self, target: str, options: Options) -> None:
        """The container's own groups: on v2 the one folder, else a tmpfs with a folder for each hierarchy.

        Binds of the folders, not mounts of their own: a v1 mount waits for the kernel's cgroup mutex, up to
        100 ms when twenty containers start at once.  Hierarchies that the container isn't in stay out.
        """
        if set(self.cgroups) == {""}:
            self._bind_group(self.cgroups[""], target, options)
            return
        base = mounts.filesystem("tmpfs", ("mode=755", "size=16k"), 0, "tmpfs")
        self._attach(base, target, folder=True)
        for name, folder in self.cgroups.items():
            self._bind_group(folder, f"{target}/{name or 'unified'}", options)
        mounts.set_attributes(base, options.attr_set & sc.MOUNT_ATTR_RDONLY, 0)
        os.close(base)

    def _bind_group(self, folder: str, target: str, options: Options) -> None:
        fd = mounts.tree(folder)
        mounts.set_attributes(fd, options.attr_set, options.attr_clear)
        self._attach(fd, target, folder=True)
        os.close(fd)

    def _devices(self) -> None:
        """The usual nodes and links in /dev, unless /dev is a folder of the host, and `linux.devices`."""
        mounted = [row for row in self.config.get("mounts") or () if row["destination"].rstrip("/") == "/dev"]
        own = list(self.linux.get("devices") or ())
        if mounted and is_bind(mounted[-1]):
            return
        taken = {os.path.normpath(row["path"]) for row in own}
        dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = mounts.make_in_root(self.root, "/dev", folder=True)
        os.close(folder)
        # Another file creation mask would take bits from the nodes' modes.
        before = os.umask(0)
        for name, major, minor, mode in DEVICES:
            if f"/dev/{name}" not in taken:
                row = {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor, "fileMode": mode}
                self._device(row, dev)
        nodes = iter(self.nodes)
        for row in own:
            made = next(nodes, -1) if row["type"] != "p" else -1
            self._device({**row, "path": os.path.normpath(row["path"])}, dev, made)
        os.umask(before)
        os.close(dev)
        folder = mounts.open_in_root(self.root, "/dev", os.O_RDONLY | os.O_DIRECTORY)
        for name, link in (*LINKS, ("ptmx", "pts/ptmx")):
            try:
                os.symlink(link, name, dir_fd=folder)
            except FileExistsError:
                if name == "ptmx":  # an image's own node would reach the host's devpts
                    os.unlink(name, dir_fd=folder)
                    os.symlink(link, name, dir_fd=folder)
        os.close(folder)

    def _device(self, row: Config, dev: int, made: int = -1) -> None:
        path = row["path"]
        if self.userns and row["type"] != "p":
            source = mounts.tree(path) if made < 0 else made
            self._attach(source, path, folder=False)
            os.close(source)
            return
        folder = mounts.make_in_root(self.root, os.path.dirname(path), folder=True)
        name = os.path.basename(path)
        try:
            mode = (row.get("fileMode") or 0o666) & 0o7777 | _MODES[row["type"]]
            device = os.makedev(row.get("major") or 0, row.get("minor") or 0)
            try:
                os.mknod(name, mode, device, dir_fd=folder)
            except FileExistsError:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_rdev != device:
                    raise ContainerError(f"device {path}: another file is there already") from None
            if row.get("uid") or row.get("gid"):
                os.chown(name, row.get("uid") or 0, row.get("gid") or 0, dir_fd=folder)
        finally:
            os.close(folder)

    def enter(self, *, pivot: bool = True) -> None:
        """Make it "/"; without pivot_root(2) where the host's root is a ramdisk, which can't be left."""
        if pivot:
            mounts.enter_root(self.detached)
        else:
            os.fchdir(self.detached)
            sc.mount(".", "/", None, sc.MS_MOVE)
            os.chroot(".")
            os.chdir("/")
        if (word := self.linux.get("rootfsPropagation") or "").lstrip("r") in (
            "shared",
            "slave",
            "unbindable",
        ):
            sc.mount(None, "/", None, Options([word]).propagation[0])

    def protect(self) -> None:
        """Read-only paths, masked paths and the read-only root; after the sysctls were written."""
        for path in self.linux.get("readonlyPaths") or ():
            try:
                fd = mounts.tree(path, recursive=True)
            except FileNotFoundError:
                continue
            mounts.set_attributes(fd, sc.MOUNT_ATTR_RDONLY, 0, recursive=True)
            sc.move_mount(fd, sc.AT_FDCWD, path)
            os.close(fd)
        empty = -1
        for path in self.linux.get("maskedPaths") or ():
            try:
                folder = stat.S_ISDIR(os.stat(path).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not folder:
                fd = mounts.tree("/dev/null")
            else:
                if empty < 0:  # one file system serves every masked folder
                    empty = mounts.filesystem("tmpfs", ("size=0",), sc.MOUNT_ATTR_RDONLY, "tmpfs")
                    fd = empty
                else:
                    fd = mounts.tree("", dirfd=empty)
            sc.move_mount(fd, sc.AT_FDCWD, path)
            if fd != empty:
                os.close(fd)
        if empty >= 0:
            os.close(empty)
        for fd in self.late_read_only:
            mounts.set_attributes(fd, sc.MOUNT_ATTR_RDONLY, 0)
            os.close(fd)
        if (self.config.get("root") or {}).get("readonly"):
            self._make_cwd()
            fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts.set_attributes(fd, sc.MOUNT_ATTR_RDONLY, 0)
            os.close(fd)

    def _make_cwd(self) -> None:
        """A working folder that is missing is made, as long as it can be; what is wrong is said at chdir."""
        cwd = (self.config.get("process") or {}).get("cwd") or "/"
        try:
            os.makedirs(cwd, exist_ok=True)
        except OSError:
            return


def _copy_tree(source: int, target: int) -> None:
    """Copy folders, files and links with modes and owners; both descriptors are closed."""
    try:
        for entry in os.listdir(source):
            info = os.stat(entry, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(entry, 0o700, dir_fd=target)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                _copy_tree(os.open(entry, flags, dir_fd=source), os.open(entry, flags, dir_fd=target))
            elif stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(entry, dir_fd=source), entry, dir_fd=target)
            elif stat.S_ISREG(info.st_mode):
                _copy_file(entry, source, target)
            else:
                continue
            os.chown(entry, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            if not stat.S_ISLNK(info.st_mode):
                os.chmod(entry, stat.S_IMODE(info.st_mode), dir_fd=target)
    finally:
        os.close(source)
        os.close(target)


def _copy_file(name: str, source: int, target: int) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    try:
        while part := os.read(reader, 1 << 20):
            view = memoryview(part)
            while view:
                view = view[os.write(writer, view) :]
    finally:
        os.close(reader)
        os.close(writer)
