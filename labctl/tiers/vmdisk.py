"""The files of a VM: its disk over the image's, its configuration disk, its SSH host key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from labctl.errors import LabError
from labctl.home import write_hint
from labctl.image.bootconfig import BootConfig
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence
from labctl.records import dataclass
from labctl.tiers.folders import remove_tree, write_key_pair
from labctl.tiers.seed import Seed, write_tar


@dataclass(frozen=True, kw_only=True)
class VmDisk:
    """A node's folder with its disk (a layer over the image's disk, never a copy) and config.img.

    The layer's `form`: qcow2, or cow, which User Mode Linux makes by itself when it starts.
    """

    kind: ClassVar[str] = "vmdisk"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    folder: str
    backing: str
    boot: BootConfig
    key_file: str  # the lab's private key; its public half goes in
    host_key_file: str  # the private key that the VM proves itself with; made here
    seed: Seed
    form: str = "qcow2"
    layers: tuple[str, ...] = ()  # the image's, where owners of files are looked up

    @property
    def disk(self) -> Path:
        """The disk that the VM writes to."""
        return Path(self.folder, f"disk.{self.form}")

    @property
    def config(self) -> Path:
        """The disk that tells the VM who it is."""
        return Path(self.folder, "config.img")

    def make(self) -> None:
        """Write what is missing; a disk that is there keeps what its VM wrote.  Raises LabError."""
        from labctl.image.bootconfig import config_disk
        from labctl.image.disk import node_disk

        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
            files = ""
            if self.seed:
                write_tar(self.seed, folder / "seed.tar", self.layers)
                files = str(folder / "seed.tar")
            host_key = Path(self.host_key_file)
            if not host_key.exists():
                write_key_pair(host_key, f"{self.name} of labctl {self.owner.lab}")
            public = Path(self.key_file).with_suffix(".pub").read_text().strip()
            boot = replace(self.boot, authorized_keys=(public,), host_key=host_key.read_text(), files=files)
            config_disk(self.config, boot)
            (folder / "seed.tar").unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"cannot write {folder}: {error.strerror}", hint=write_hint(folder, error)
            ) from error
        if self.form == "qcow2" and not self.disk.exists():
            node_disk(self.disk, Path(self.backing))

    def look(self) -> Look:
        """Whether its files are there, and the image's disk below them."""
        if not Path(self.folder).is_dir():
            return ABSENT
        if not Path(self.backing).exists():
            return Look(Presence.BROKEN, f"the image's disk {self.backing} is gone from the cache")
        whole = self.config.exists() and (self.form == "cow" or self.disk.exists())
        return PRESENT if whole else ABSENT

    def unmake(self) -> None:
        """Remove the node's folder."""
        remove_tree(Path(self.folder))
