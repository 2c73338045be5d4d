"""The root of a chroot node: an overlay of its image in the host's own table of mounts, as in 1982."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from labctl.errors import LabError
from labctl.home import write_hint
from labctl.linux import mounts
from labctl.linux import syscalls as sc
from labctl.linux.mounts import Options
from labctl.linux.proc import unescape
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, Signs
from labctl.records import dataclass
from labctl.runtime.rootfs import DEVICES, LINKS
from labctl.tiers.folders import remove_tree
from labctl.tiers.seed import Seed, extract, seed_of

if TYPE_CHECKING:
    from labctl.tiers.context import NodeFacts

# What a program expects below any root; nothing of it hides anything of the host.
_MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
)
_UNMOUNT_TRIES = 100  # each takes one mount away; a process inside may have made some


def root_of(facts: NodeFacts) -> str:
    """The folder that is the node's root."""
    return f"{_folder(facts)}/root"


def _folder(facts: NodeFacts) -> str:
    return str(facts.lab.folder / "roots" / facts.node.name)


def tree_of(facts: NodeFacts, more: list[dict[str, Any]]) -> ChrootTree:
    """The root of a node; `more` are its volumes and tmpfs as OCI mounts."""
    node, lab = facts.node, facts.lab
    return ChrootTree(
        owner=lab.owner,
        name=node.name,
        node=node.name,
        needs=("folder:lab", *(f"volume:{m.source}" for m in node.volumes if m.kind == "volume")),
        folder=_folder(facts),
        layers=facts.image.layers,
        seed=seed_of(node, lab.profile),
        files={"/etc/hosts": facts.hosts},
        mounts=json.dumps([*_MOUNTS, *more], sort_keys=True),
    )


@dataclass(frozen=True, kw_only=True)
class ChrootTree:
    """A folder with an overlay mounted on `root` in it, and further mounts below that.

    They are in the host's table of mounts, since a chroot has no other; all are private, so that no other
    mount namespace gets them.
    """

    kind: ClassVar[str] = "root"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    folder: str
    layers: tuple[str, ...]
    seed: Seed
    files: dict[str, str]
    mounts: str  # JSON: OCI mounts, in order

    @property
    def root(self) -> str:
        """Where the overlay is mounted."""
        return f"{self.folder}/root"

    def make(self) -> None:
        """Mount it all; what a killed run left is mounted anew, what was written stays.  Raises LabError."""
        if self.look().presence is Presence.PRESENT:
            return
        self._unmount()
        try:
            for part in ("root", "upper", "work", *(("seed",) if self.seed else ())):
                Path(self.folder, part).mkdir(parents=True, exist_ok=True)
            if self.seed and not any(Path(self.folder, "seed").iterdir()):
                extract(self.seed, Path(self.folder, "seed"), self.layers)
            self._mount_overlay()
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for path, text in self.files.items():
                    _write(root, path, text)
                for row in json.loads(self.mounts):
                    _mount(root, row)
                _devices(root)
            finally:
                os.close(root)
        except OSError as error:
            self._unmount()
            what = error.strerror or str(error)
            raise LabError(
                f"the root of {self.name}: {error.filename or self.root}: {what}",
                hint=write_hint(Path(self.folder), error),
            ) from error

    def _mount_overlay(self) -> None:
        lowers = [*self.layers, *([f"{self.folder}/seed"] if self.seed else [])]
        mounts.prepare_upper(f"{self.folder}/upper", f"{self.folder}/work", lowers, (0, 0))
        with ExitStack() as held:

            def name(path: str) -> str:
                # By descriptor: a path may have a colon or comma in it, and mount(2) takes one page.
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, fd)
                return f"/proc/self/fd/{fd}"

            data = f"lowerdir={':'.join(name(path) for path in reversed(lowers))}"
            data += f",upperdir={name(f'{self.folder}/upper')},workdir={name(f'{self.folder}/work')}"
            sc.mount("labctl", self.root, "overlay", 0, data)
        sc.mount(None, self.root, None, sc.MS_PRIVATE)

    def look(self) -> Look:
        """How much of it is mounted."""
        there, wanted = len(list(mounted_below(self.root))), 1 + len(json.loads(self.mounts))
        if not there:
            return ABSENT
        return PRESENT if there >= wanted else Look(Presence.BROKEN, f"{there} of {wanted} mounts are there")

    def signs(self) -> Signs:
        """What is mounted on its root and on the first folders in it."""
        return Signs(places=(self.root, f"{self.root}/proc", f"{self.root}/dev"))

    def unmake(self) -> None:
        """Unmount all, also what was mounted in it since, and remove the folder.  Raises LabError."""
        self._unmount()
        remove_tree(Path(self.folder))

    def _unmount(self) -> None:
        try:
            unmount_below(self.folder)
        except OSError as error:
            raise LabError(f"the root of {self.name} can't be unmounted: {error}") from error


def mounted_below(path: str) -> Iterator[str]:
    """The mounts on a folder and below it, in the order of their making (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = unescape(line.split(" ", 5)[4])
        if (point + "/").startswith(path.rstrip("/") + "/"):
            yield point


def unmount_below(path: str) -> None:
    """Unmount all on a folder and below it, the last first.  Raises OSError."""
    for _ in range(_UNMOUNT_TRIES):
        there = list(mounted_below(path))
        if not there:
            return
        sc.umount(there[-1], sc.MNT_DETACH)
    raise OSError(16, f"{path}: mounts keep coming")


def _write(root: int, path: str, text: str) -> None:
    os.close(mounts.make_in_root(root, os.path.dirname(path), folder=True))  # noqa: PTH120
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = mounts.open_in_root(root, path, flags, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _mount(root: int, row: dict[str, Any]) -> None:
    """One OCI mount at its place below `root`; no link in the image leads it elsewhere."""
    options = Options(row["options"])
    if row["type"] == "bind":
        fd = mounts.tree(row["source"], recursive=True)
        # Before it is attached: an unmount of a shared copy would unmount the host's own.
        sc.mount_setattr(fd, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, propagation=sc.MS_PRIVATE)
        mounts.set_attributes(fd, options.attr_set, options.attr_clear)
    else:
        fd = mounts.filesystem(row["type"], options.data, options.attr_set, row["type"])
    try:
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        place = mounts.make_in_root(root, row["destination"], folder=folder)
        try:
            sc.move_mount(fd, place, "", row["destination"])
        finally:
            os.close(place)
    finally:
        os.close(fd)


def _devices(root: int) -> None:
    """The usual nodes and links in /dev."""
    dev = mounts.open_in_root(root, "/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, major, minor, mode in DEVICES:
            os.mknod(name, stat.S_IFCHR | mode, os.makedev(major, minor), dir_fd=dev)
            os.chmod(name, mode, dir_fd=dev)
        for name, link in (*LINKS, ("ptmx", "pts/ptmx")):
            os.symlink(link, name, dir_fd=dev)
        os.mkdir("shm", 0o1777, dir_fd=dev)
        os.chmod("shm", 0o1777, dir_fd=dev)
    finally:
        os.close(dev)
