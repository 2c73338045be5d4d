"""File trees as tar streams, also inside a container's namespaces.

Standard library only, any Python from 3.9 on: this file's text also runs inside VMs, next to the runtime
(`labctl.guest.inside`).  On this machine it runs as a process of its own that enters the container's user
and mount namespaces and only then opens a path, so that every link resolves as the container sees it and
none can lead to the host (the race of CVE-2018-15664 has nothing to race for).  Before it enters, modules
can no longer be loaded from anywhere (CVE-2019-14271: `docker cp` loaded libraries of the container).
"""

# Descriptors and bare paths here: pathlib would look again at every step.
# ruff: noqa: PTH114, PTH121, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO

_STRIP = stat.S_ISUID | stat.S_ISGID


class Summary:
    """How many entries and bytes went over, and what could not."""

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0
        self.skipped: list[str] = []


def look(path: str) -> tuple[str, str]:
    """(kind, real path): kind is dir, file, absent, or link for one that leads nowhere.

    Links are followed; the real path of something absent has its folder resolved, if that is there.
    """
    real = os.path.realpath(path)
    try:
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ("link" if os.path.islink(path) else "absent"), real
    return ("dir" if stat.S_ISDIR(mode) else "file"), real


def pack(out: IO[bytes], directory: str, name: str, arcname: str) -> Summary:
    """Write the entry `name` of `directory`, with all below it, as a tar stream under `arcname`.

    With the arcname "." only what is in the folder is written, not the folder, so that the one it is
    unpacked in keeps its mode and owner.  Links stay links, owners are numbers.  Raises OSError.
    """
    _no_names()
    done = Summary()

    def note(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uname = info.gname = ""
        info.mtime = int(info.mtime)  # rounded up it would lie in the future for tars that know no fractions
        done.entries += 1
        done.size += info.size if info.isreg() else 0
        return info

    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, dereference=False) as tar:
        top = os.path.join(directory, name)
        if arcname == ".":
            for entry in sorted(os.listdir(top)):
                _add(tar, os.path.join(top, entry), entry, note, done)
        else:
            _add(tar, top, arcname, note, done)
    return done


def _add(
    tar: tarfile.TarFile,
    path: str,
    arcname: str,
    note: Callable[[tarfile.TarInfo], tarfile.TarInfo],
    done: Summary,
) -> None:
    try:
        info = tar.gettarinfo(path, arcname)
        if info is not None and info.isreg():
            _add_file(tar, path, info, note, done)
            return
    except FileNotFoundError:
        if "/" not in arcname:
            raise
        info = None  # it went away while the folder was read: a living machine's files do
    if info is None:  # a socket
        done.skipped.append(path)
        return
    tar.addfile(note(info))
    _forget(tar)
    if info.isdir():
        for entry in sorted(os.listdir(path)):
            _add(tar, os.path.join(path, entry), f"{arcname}/{entry}", note, done)


def _add_file(
    tar: tarfile.TarFile,
    path: str,
    info: tarfile.TarInfo,
    note: Callable[[tarfile.TarInfo], tarfile.TarInfo],
    done: Summary,
) -> None:
    # Whoever owns the folder may have put a pipe or a link there since: neither is waited for or followed.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            done.skipped.append(path)
            return
        info.size = status.st_size
        tar.addfile(note(info), file)


def folders_last(source: IO[bytes], out: IO[bytes]) -> None:
    """Write a tar stream once more with every folder repeated after all that lies in it.

    Busybox's tar sets a folder's time when it makes it, and the first file put there undoes that; met again
    at the end, the folder gets its mode and time anew.  GNU's format, since busybox passes over the extended
    headers of POSIX.  Raises OSError, or ValueError when the source is no tar archive.
    """
    _no_names()
    folders: list[tarfile.TarInfo] = []
    try:
        with (
            tarfile.open(fileobj=source, mode="r|*") as tar,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as again,
        ):
            for info in tar:
                content = tar.extractfile(info) if info.isreg() else None
                if content is not None:
                    info.type = tarfile.REGTYPE  # a sparse file is read whole
                info.mtime = int(info.mtime)
                again.addfile(info, content)
                _forget(again)
                if info.isdir():
                    folders.append(info)
                _forget(tar)
            for info in reversed(folders):
                again.addfile(info)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"not a whole tar archive: {error}") from error


class Unpacker:
    """Unpacks a tar stream below a folder.

    With `trusted` False (onto the host, from a node) no link is ever followed below the folder, devices are
    left out, and set-user-id bits fall: a node's file must not become a way to root.  With `trusted` True
    (into a node) a folder may be a link to one, as /lib is on many systems.
    """

    def __init__(self, directory: str, *, trusted: bool, owners: bool) -> None:
        self.trusted = trusted
        self.owners = owners
        self.done = Summary()
        self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders: list[tuple[list[str], tarfile.TarInfo]] = []

    def unpack(self, stream: IO[bytes], rename: tuple[str, str] | None = None) -> Summary:
        """Unpack all.  `rename` = (top, other): every name must begin with `top`, and gets `other` instead;
        with the top "." the other name is put before all; the other name "." means the folder itself.

        Raises OSError, or ValueError when the stream is no tar archive or leads outside of the folder.
        """
        _no_names()
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for info in tar:
                    self._one(tar, info, rename)
                    _forget(tar)
            for parts, info in reversed(self._folders):
                self._finish_folder(parts, info)
        except tarfile.TarError as error:
            raise ValueError(f"not a whole tar archive: {error}") from error
        finally:
            os.close(self._top)
        return self.done

    def _one(self, tar: tarfile.TarFile, info: tarfile.TarInfo, rename: tuple[str, str] | None) -> None:
        parts = _parts(info.name, rename)
        if not parts:
            return
        parent = self._enter(parts[:-1])
        try:
            self._make(tar, info, parts, parent, rename)
        finally:
            os.close(parent)
        self.done.entries += 1

    def _make(
        self,
        tar: tarfile.TarFile,
        info: tarfile.TarInfo,
        parts: list[str],
        parent: int,
        rename: tuple[str, str] | None,
    ) -> None:
        name = parts[-1]
        if info.isdir():
            self._folder(name, parent, info.name)
            self._folders.append((parts, info))
        elif info.issym():
            self._swap(name, parent, lambda new: os.symlink(info.linkname, new, dir_fd=parent), info)
        elif info.islnk():
            self._hard_link(info, name, parent, rename)
        elif info.isreg():
            self._file(tar, info, name, parent)
        elif info.isfifo():
            self._swap(name, parent, lambda new: os.mkfifo(new, 0o600, dir_fd=parent), info)
        elif info.ischr() or info.isblk():
            if not self.trusted:
                self.done.skipped.append(info.name)
                return
            kind = stat.S_IFCHR if info.ischr() else stat.S_IFBLK
            device = os.makedev(info.devmajor, info.devminor)
            self._swap(name, parent, lambda new: os.mknod(new, kind | 0o600, device, dir_fd=parent), info)
        else:
            self.done.skipped.append(info.name)

    def _enter(self, parts: list[str]) -> int:
        fd = os.dup(self._top)
        for part in parts:
            try:
                inner = self._open_folder(part, fd, "/".join(parts))
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _open_folder(self, part: str, parent: int, about: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if self.trusted else os.O_NOFOLLOW)
        try:
            return os.open(part, flags, dir_fd=parent)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=parent)
            return os.open(part, flags, dir_fd=parent)
        except OSError as error:
            raise ValueError(f"{about}: {part} is a link or a file there, not a folder") from error

    def _folder(self, name: str, parent: int, about: str) -> None:
        os.close(self._open_folder(name, parent, about))

    def _swap(self, name: str, parent: int, make: Callable[[str], None], info: tarfile.TarInfo) -> None:
        """Make under a name of our own, then rename: what was there is replaced at once or not at all."""
        fresh = ".labctl-" + secrets.token_hex(6)
        make(fresh)
        try:
            self._owner(fresh, parent, info)
            if not info.issym():
                os.chmod(fresh, self._mode(info), dir_fd=parent)
            self._times(fresh, parent, info)
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(fresh, dir_fd=parent)
            raise

    def _file(self, tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, parent: int) -> None:
        fresh = ".labctl-" + secrets.token_hex(6)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        source = tar.extractfile(info)
        assert source is not None  # a regular member always has one
        fd = os.open(fresh, flags, 0o600, dir_fd=parent)
        try:
            with open(fd, "wb") as target:
                _pour(source, target)
            self._owner(fresh, parent, info)
            os.chmod(fresh, self._mode(info), dir_fd=parent)
            self._times(fresh, parent, info)
            if not self._replace(fresh, name, parent):
                self._overwrite(fresh, name, parent)
        except BaseException:
            os.unlink(fresh, dir_fd=parent)
            raise
        self.done.size += info.size

    @staticmethod
    def _replace(fresh: str, name: str, parent: int) -> bool:
        try:
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != 16:  # EBUSY: a mount point, as /etc/hosts is in a container
                raise
            return False
        return True

    @staticmethod
    def _overwrite(fresh: str, name: str, parent: int) -> None:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        read = os.open(fresh, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        with open(read, "rb") as source, open(os.open(name, flags, dir_fd=parent), "wb") as target:
            _pour(source, target)
        os.unlink(fresh, dir_fd=parent)

    def _hard_link(
        self, info: tarfile.TarInfo, name: str, parent: int, rename: tuple[str, str] | None
    ) -> None:
        target = _parts(info.linkname, rename)
        if not target:
            raise ValueError(f"{info.name} is a link to nothing")
        folder = self._enter(target[:-1])
        try:
            fresh = ".labctl-" + secrets.token_hex(6)
            os.link(target[-1], fresh, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
            # rename(2) does nothing when both names are the same file already.
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=parent)
        finally:
            os.close(folder)

    def _finish_folder(self, parts: list[str], info: tarfile.TarInfo) -> None:
        fd = self._enter(parts)
        try:
            if self.owners:
                os.fchown(fd, info.uid, info.gid)
            os.fchmod(fd, self._mode(info))
            os.utime(fd, (info.mtime, info.mtime))
        finally:
            os.close(fd)

    def _mode(self, info: tarfile.TarInfo) -> int:
        mode = info.mode & 0o7777
        return mode if self.trusted else mode & ~_STRIP

    def _owner(self, name: str, parent: int, info: tarfile.TarInfo) -> None:
        if self.owners:
            os.chown(name, info.uid, info.gid, dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _times(name: str, parent: int, info: tarfile.TarInfo) -> None:
        os.utime(name, (info.mtime, info.mtime), dir_fd=parent, follow_symlinks=False)


def _parts(name: str, rename: tuple[str, str] | None) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{name!r} leads out of the archive")
    if rename is None:
        return parts
    top, other = rename
    count = 0 if top == "." else 1
    if count and parts[:1] != [top]:
        raise ValueError(f"{name!r} is not part of {top!r}, which was asked for")
    parts[:count] = [] if other == "." else [other]
    return parts


def _pour(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(1 << 20):
        target.write(chunk)


def _forget(tar: tarfile.TarFile) -> None:
    """A stream is never looked up again; the list of a big tree would fill the memory."""
    tar.members.clear()  # type: ignore[attr-defined,unused-ignore]


def _no_names() -> None:
    """Keep tarfile from asking the name service, whose libraries would come from the container."""
    for module in ("pwd", "grp"):
        setattr(tarfile, module, None)


def enter(pidfd: int) -> None:
    """Go into the user and mount namespaces of a process and become its root.  Raises OSError.

    A process in our own mount namespace has but a root of its own: that is taken.  Needs Linux 5.8
    (setns(2) with a pidfd).  From here on no module can be imported.
    """
    from labctl.linux import syscalls

    sys.path[:] = []
    sys.meta_path[:] = []
    root = _bare_root(pidfd)
    if root >= 0:
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
        return
    try:
        syscalls.setns(pidfd, syscalls.CLONE_NEWUSER, "user namespace")
        foreign = True
    except OSError as error:
        if error.errno != 22:  # EINVAL: it is the one we are in
            raise
        foreign = False
    syscalls.setns(pidfd, syscalls.CLONE_NEWNS, "mount namespace")
    os.chdir("/")
    if foreign:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _bare_root(pidfd: int) -> int:
    """A descriptor of the root of a process that shares our mount namespace, else -1.  Raises OSError.

    The pidfd is asked last: as long as it names a living process, its number was that one's.
    """
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
    if pid <= 0 or not os.path.samefile(f"/proc/{pid}/ns/mnt", "/proc/self/ns/mnt"):
        return -1
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        if f"Pid:\t{pid}\n" not in file.read():
            os.close(root)
            raise ProcessLookupError(3, f"process {pid} has ended")
    return root


def main(words: list[str]) -> int:
    """PID OPERATION ARGUMENTS: look PATH | pack FOLDER NAME | unpack FOLDER.

    A pid below 0 is the descriptor of a pidfd (-3: descriptor 3).  The answer is a line of JSON on
    standard output for look; 1 and a sentence when it fails.
    """
    os.umask(0)
    number, operation, rest = int(words[0]), words[1], words[2:]
    source, target = sys.stdin.buffer, sys.stdout.buffer
    try:
        if number > 0:
            number = -os.pidfd_open(number)
        enter(-number)
        if operation == "look":
            kind, real = look(rest[0])
            target.write(json.dumps([kind, real]).encode())
        elif operation == "pack":
            pack(target, rest[0], rest[1], rest[1])
        else:
            Unpacker(rest[0], trusted=True, owners=True).unpack(source)
        target.flush()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
