"""The folders of a lab: the first thing made and the last one gone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from labctl.errors import Foreign, LabError
from labctl.home import write_hint
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, Signs
from labctl.records import dataclass


@dataclass(frozen=True, kw_only=True)
class LabFolder:
    """The lab's folder; everything of the lab that is a file lies under it.

    With `keys` it holds the SSH key pair that opens the lab's machines; containers need none.
    """

    kind: ClassVar[str] = "folder"
    owner: Owner
    name: str
    path: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    keys: bool = True

    @property
    def key_file(self) -> Path:
        """The private key that opens the lab's machines."""
        return Path(self.path, "ssh", "id_ed25519")

    def make(self) -> None:
        """Make the folder and the keys.  Raises Foreign when the folder is another lab's."""
        mark = Path(self.path, "owner")
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            if mark.exists() and mark.read_text() != self._mark():
                raise Foreign(f"{self.path} belongs to {mark.read_text()!r}")
            # Others may pass through (a QEMU under its own user must reach disks), but not list.
            os.chmod(self.path, 0o711)  # noqa: PTH101
            mark.write_text(self._mark())
            for part in ("ssh", "nodes", "net", "run", "volumes"):
                Path(self.path, part).mkdir(exist_ok=True, mode=0o700 if part == "ssh" else 0o711)
            if self.keys and not self.key_file.exists():
                write_key_pair(self.key_file, f"labctl {self.owner.lab}")
        except OSError as error:
            raise LabError(
                f"cannot write {self.path}: {error.strerror}", hint=write_hint(Path(self.path), error)
            ) from error

    def _mark(self) -> str:
        return self.owner.mark(self.kind, self.name)

    def look(self) -> Look:
        """Whether the folder and its key are there."""
        if not Path(self.path).is_dir():
            return ABSENT
        if self.keys and not self.key_file.exists():
            return Look(Presence.BROKEN, "the lab's SSH key is gone")
        return PRESENT

    def signs(self) -> Signs:
        """The folder, and the key."""
        return Signs(places=(self.path,), files=(str(self.key_file),) if self.keys else ())

    def change(self, old: LabFolder) -> bool:
        """Keys are added to a folder that is there."""
        if old.path != self.path:
            return False
        self.make()
        return True

    def unmake(self) -> None:
        """Remove the tree.  Raises LabError when something in it is still mounted or can't be removed."""
        remove_tree(Path(self.path))


@dataclass(frozen=True, kw_only=True)
class VolumeFolder:
    """A named volume: a folder that lives as long as the lab."""

    kind: ClassVar[str] = "volume"
    owner: Owner
    name: str
    path: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def make(self) -> None:
        """Make the folder, open to every user of the nodes as Docker's volumes are to root."""
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"cannot make volume {self.name} at {self.path}: {error.strerror}") from error

    def look(self) -> Look:
        """Whether it is there."""
        return PRESENT if Path(self.path).is_dir() else ABSENT

    def signs(self) -> Signs:
        """The folder."""
        return Signs(places=(self.path,))

    def unmake(self) -> None:
        """Remove it with all it holds."""
        remove_tree(Path(self.path))


def remove_tree(path: Path) -> None:
    """Remove a folder of ours; absence is fine.  Never crosses into a mount: a mounted thing in it
    is an error, since removing through a bind mount would delete what isn't ours.

    Raises LabError naming the first path that can't be removed.
    """
    for error in remove_trees([path]).values():
        raise error


def remove_trees(paths: Sequence[Path]) -> dict[Path, LabError]:
    """Remove many, with one look at what is mounted; what failed, and why."""
    mounts = [line.split(" ", 5)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    failures: dict[Path, LabError] = {}
    for path in paths:
        inside = f"{path}/"
        held = next((place for place in mounts if (place + "/").startswith(inside)), "")
        if held:
            failures[path] = LabError(f"{held} is still mounted", hint=f"umount {held}, then try again")
            continue
        try:
            _remove(str(path))
        except OSError as error:
            failures[path] = LabError(f"cannot remove {error.filename or path}: {error.strerror}")
    return failures


def _remove(path: str) -> None:
    """As shutil.rmtree, in a third of its time: nobody is left who could put a link in a folder's place."""
    try:
        with os.scandir(path) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108
    os.rmdir(path)  # noqa: PTH106


def write_key_pair(path: Path, comment: str) -> None:
    """Write an Ed25519 key pair in OpenSSH's format (PROTOCOL.key), the private half last and 0600."""
    from labctl.image.boot_keys import make_key

    pair = make_key(comment)
    path.with_suffix(".pub").write_text(pair.public.strip() + "\n")
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, pair.private.encode())
    finally:
        os.close(fd)
    fresh.replace(path)
