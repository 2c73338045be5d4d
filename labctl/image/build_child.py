"""COPY, ADD and WORKDIR of a build: works on the image through an overlay, in a mount namespace of its own.

Started as `python -I -S build_child.py JSON`.  Every path in the image, in the build's folder and in another
stage is resolved by the kernel inside its own root (`beneath`), so no link leads out.  Prints one JSON line:
{} when all went well, {"error": …} when the user's request can't be carried out.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from labctl.image.beneath import Beneath, clean
from labctl.image.ignore import Ignore, compiled
from labctl.image.model import BadImage
from labctl.image.runner_child import mount_layers
from labctl.linux import syscalls as sc
from labctl.runtime.errors import ContainerError
from labctl.runtime.users import look_up

_CHUNK = 1 << 20


def copied_attribute(name: str) -> bool:
    """Whether COPY takes an extended attribute along; overlayfs' own mean nothing elsewhere."""
    return name == "security.capability" or (
        name.startswith("user.") and not name.startswith("user.overlay.")
    )


class Refused(Exception):
    """What was asked for can't be done; the text is for the user."""


class Copier:
    """Copies into the tree `into`; `owner` None keeps the owners of the source.

    `foreign` is for files of the build's folder: whose owner changes without being asked lose set-uid and
    set-gid, as with Docker and buildah.
    """

    def __init__(
        self, into: Beneath, owner: tuple[int, int] | None, mode: int | None, *, foreign: bool = False
    ) -> None:
        self.into, self.owner, self.mode, self.foreign = into, owner, mode, foreign
        self.time: int | None = None  # of what comes, in seconds; None keeps that of the source
        self.links: dict[tuple[int, int], str] = {}

    def make_folder(self, path: str, owner: tuple[int, int] = (0, 0)) -> None:
        """The folder and what leads to it, as far as they are missing; made ones get the owner."""
        made = []
        at = path
        while at:
            try:
                os.close(self.into.open(at, os.O_PATH | os.O_DIRECTORY))
                break
            except FileNotFoundError:
                made.append(at)
                at = at.rpartition("/")[0]
            except NotADirectoryError:
                raise Refused(f"/{at} is no folder") from None
        if made:
            self.into.folder(path, make=True)
        for name in reversed(made):
            parent, _, last = name.rpartition("/")
            os.chown(last, *owner, dir_fd=self.into.folder(parent), follow_symlinks=False)

    def is_folder(self, path: str) -> bool:
        """Whether the path leads to a folder in the image."""
        try:
            os.close(self.into.open(path, os.O_PATH | os.O_DIRECTORY))
        except OSError:
            return False
        return True

    def tree(self, source: Beneath, path: str, target: str, left_out: Any) -> None:
        """The content of a folder into the folder `target`."""
        descriptor = source.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(os.listdir(descriptor))  # noqa: PTH208 - Path knows no descriptors
        finally:
            os.close(descriptor)
        for name in names:
            inner = f"{path}/{name}" if path else name
            if left_out(inner) and not left_out.takes_back:
                continue
            status = os.stat(name, dir_fd=source.folder(path), follow_symlinks=False)
            goal = f"{target}/{name}" if target else name
            if stat.S_ISDIR(status.st_mode):
                self._inner_folder(source, inner, goal, status, left_out)
            elif not left_out(inner):
                self.entry(source, inner, goal, status)

    def _inner_folder(
        self, source: Beneath, path: str, goal: str, status: os.stat_result, left_out: Any
    ) -> None:
        out = left_out(path)
        parent, _, name = goal.rpartition("/")
        if not out:
            self.make_folder(parent, self.owner or (0, 0))
            try:
                os.mkdir(name, 0o755, dir_fd=self.into.folder(parent))
            except FileExistsError:
                if not self.is_folder(goal):
                    raise Refused(f"/{goal} is in the image and no folder") from None
        # Of a folder that is left out comes only what a later rule takes back in, with what leads to it.
        self.tree(source, path, goal, left_out)
        if not out:
            read = source.open(path, os.O_RDONLY | os.O_DIRECTORY)
            write = self.into.open(goal, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._dress(read, write, status)
            finally:
                os.close(read)
                os.close(write)

    def _dress(self, read: int, write: int, status: os.stat_result) -> None:
        """Give a file or folder the owner, mode, attributes and time of the one it is a copy of."""
        os.fchown(write, *(self.owner or (status.st_uid, status.st_gid)))
        mode = stat.S_IMODE(status.st_mode)
        if self.foreign and stat.S_ISREG(status.st_mode):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        os.fchmod(write, mode if self.mode is None else self.mode)
        for key in os.listxattr(read):
            # After the owner: a new one takes a program's capabilities away.
            if copied_attribute(key):
                os.setxattr(write, key, os.getxattr(read, key))
        when = status.st_mtime_ns if self.time is None else self.time * 10**9
        os.utime(write, ns=(when, when))

    def entry(self, source: Beneath, path: str, goal: str, status: os.stat_result) -> None:
        """One file, link or device to exactly that path, replacing what is there (but no folder)."""
        parent, _, name = goal.rpartition("/")
        self.make_folder(parent, self.owner or (0, 0))
        into = self.into.folder(parent)
        try:
            there = os.stat(name, dir_fd=into, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                raise Refused(f"/{goal} is a folder in the image")
            os.unlink(name, dir_fd=into)
        except FileNotFoundError:
            pass
        owner = self.owner or (status.st_uid, status.st_gid)
        if stat.S_ISLNK(status.st_mode):
            before, _, last = path.rpartition("/")
            os.symlink(os.readlink(last, dir_fd=source.folder(before)), name, dir_fd=into)
        elif stat.S_ISREG(status.st_mode):
            self._file(source, path, into, goal, status)
            return
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, dir_fd=into)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=into)
        else:
            return  # a socket
        os.chown(name, *owner, dir_fd=into, follow_symlinks=False)
        os.utime(name, ns=(status.st_mtime_ns,) * 2, dir_fd=into, follow_symlinks=False)

    def _file(self, source: Beneath, path: str, into: int, goal: str, status: os.stat_result) -> None:
        name = goal.rpartition("/")[2]
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self.links:
            before, _, last = self.links[key].rpartition("/")
            held = os.dup(into)  # it lasts only to the next folder
            try:
                os.link(last, name, src_dir_fd=self.into.folder(before), dst_dir_fd=held)
            finally:
                os.close(held)
            return
        read = source.open(path, os.O_RDONLY)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        write = os.open(name, flags, 0o600, dir_fd=into)
        try:
            while chunk := os.read(read, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(write, view) :]
            self._dress(read, write, status)
        finally:
            os.close(read)
            os.close(write)
        if status.st_nlink > 1:
            self.links[key] = goal


def matches(source: Beneath, pattern: str, left_out: Any) -> list[str]:
    """The paths that a source of COPY means.  Raises Refused when there are none."""
    path = clean(pattern)
    if not any(char in path for char in "*?["):
        try:
            os.close(source.open(path, os.O_PATH | (0 if path else os.O_DIRECTORY)))
        except OSError:
            raise Refused(f"{pattern} is not there") from None
        if path and left_out(path) and not left_out.takes_back:
            raise Refused(f"{pattern} is left out by .dockerignore")
        return [path]
    found = [""]
    for part in path.split("/"):
        deeper = []
        for folder in found:
            deeper += _matching(source, folder, part, left_out)
        found = deeper
    if not found:
        raise Refused(f"nothing matches {pattern}")
    return found


def _matching(source: Beneath, folder: str, part: str, left_out: Any) -> list[str]:
    wanted = compiled(part)
    try:
        descriptor = source.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208 - Path knows no descriptors
    finally:
        os.close(descriptor)
    paths = [f"{folder}/{name}" if folder else name for name in names if wanted.fullmatch(name)]
    return [path for path in paths if not left_out(path)]


def copy(words: dict[str, Any], into: Beneath, source: Beneath) -> None:
    """Carry out one COPY or ADD."""
    left_out = Ignore(words["ignore"])
    keep = words["keep_owner"]
    copier = Copier(into, _owner(words["chown"], words["root"], keep), words["mode"], foreign=not keep)
    copier.time = words.get("time")
    target = clean(words["target"])
    sources = [path for pattern in words["sources"] for path in matches(source, pattern, left_out)]
    as_folder = words["target"].endswith("/") or words["as_folder"] or copier.is_folder(target)
    if len(sources) > 1 and not as_folder:
        raise Refused(f"several files go to {words['target']}, so it must end with a /")
    for path in sources:
        status = _status(source, path)
        if stat.S_ISDIR(status.st_mode):
            copier.links.clear()  # between two sources, names of one file are files of their own
            copier.make_folder(target, copier.owner or (0, 0))
            copier.tree(source, path, target, left_out)
        else:
            if as_folder:
                copier.make_folder(target, copier.owner or (0, 0))
            name = path.rpartition("/")[2]
            copier.entry(source, path, f"{target}/{name}".lstrip("/") if as_folder else target, status)


def extract(words: dict[str, Any], into: Beneath) -> None:
    """ADD of a tar: its members over the folder."""
    from pathlib import Path

    from labctl.image.streams import Reader, plain
    from labctl.image.unpack import unpack

    copier = Copier(into, None, None)
    copier.make_folder(clean(words["target"]))
    descriptor = into.open(clean(words["target"]), os.O_RDONLY | os.O_DIRECTORY)
    with open(words["archive"], "rb") as file, plain(file) as chunks:  # noqa: PTH123
        unpack(
            Reader(chunks),  # type: ignore[arg-type]
            Path(f"/proc/self/fd/{descriptor}"),
            keep_directory_links=True,
            whiteouts=False,
        )


def _status(source: Beneath, path: str) -> os.stat_result:
    """Of what the path leads to: a link that is named itself is followed, inside the root."""
    descriptor = source.open(path, os.O_PATH)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _owner(text: str, root: str, keep: bool) -> tuple[int, int] | None:
    if not text:
        return None if keep else (0, 0)
    _, colon, _ = text.partition(":")
    uid, gid, _, _ = look_up(text, f"{root}/etc")
    # The reference: a user without a group gets the group of the same number.
    return (uid, gid) if colon else (uid, uid)


def _user(user: str, root: str) -> tuple[int, int]:
    """Whom a WORKDIR belongs to: the USER, as long as there is one; only RUN asks for a user that exists."""
    try:
        return look_up(user or "0", f"{root}/etc")[:2]
    except ContainerError:
        return 0, 0


def main() -> int:
    """Do what argv[1] says."""
    words: dict[str, Any] = json.loads(sys.argv[1])
    sc.prctl(sc.PR_SET_PDEATHSIG, 9)
    os.umask(0o022)
    answer: dict[str, str] = {}
    try:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        if words["from_layers"]:
            mount_layers(words["from_layers"], words["from_root"])
        mount_layers(words["layers"], words["root"], words["upper"], words["work"])
        with Beneath(words["root"]) as into:
            if words["do"] == "folder":
                owner = _user(words["user"], words["root"])
                Copier(into, None, None).make_folder(clean(words["target"]), owner)
            elif words["do"] == "extract":
                extract(words, into)
            else:
                with Beneath(words["from_root"]) as source:
                    copy(words, into, source)
    except (Refused, BadImage, ContainerError) as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": f"{error.filename or ''} {error.strerror or error}".strip()}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
