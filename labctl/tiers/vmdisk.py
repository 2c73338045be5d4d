"""The files of a VM: its disk over the image's, its configuration disk, its SSH host key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from labctl.errors import LabError, UsageError
from labctl.home import write_hint
from labctl.image.bootconfig import BootConfig
from labctl.looks import ABSENT, PRESENT, Look, Outlook, Owner, Presence, Way
from labctl.records import dataclass
from labctl.tiers.folders import remove_tree, write_key_pair
from labctl.tiers.seed import Seed, write_tar

NVRAM = "nvram.fd"  # the file of labctl.hypervisor.firmware in a node's folder


@dataclass(frozen=True, kw_only=True)
class VmDisk:
    """A node's folder with its disk (a layer over the image's disk, never a copy) and config.img.

    The layer's `form`: qcow2, or cow, which User Mode Linux makes by itself when it starts.
    """

    kind: ClassVar[str] = "vmdisk"
    loses: ClassVar[str] = "what the machine wrote to its disk is lost"

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
    cloud: bool = False  # whether config.img is for cloud-init
    size: int = 0  # bytes, as the machine sees its disk; 0: as large as `backing`

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
        from labctl.image.disk import grow, node_disk

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
            if self.cloud:
                from labctl.image.nocloud import seed_disk

                seed_disk(self.config, boot)
            else:
                config_disk(self.config, boot)
            (folder / "seed.tar").unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"cannot write {folder}: {error.strerror}", hint=write_hint(folder, error)
            ) from error
        if self.form != "qcow2":
            return
        if not self.disk.exists():
            node_disk(self.disk, Path(self.backing), self.size)
        elif self.size:
            grow(self.disk, self.size)

    def outlook(self, old: VmDisk, look: Look | None) -> Outlook:
        """The disk is kept, and grown where more is asked for, unless the image below it is another.

        Raises UsageError for less than it has: what is there can't be cut off.
        """
        if (old.backing, old.folder, old.form) != (self.backing, self.folder, self.form):
            return Outlook(Way.ANEW, "its disk is made anew")
        if look is not None and look.presence is Presence.BROKEN:
            return Outlook(Way.ANEW, look.detail)
        before, now = old.bytes(), self.bytes()
        if now < before:
            raise UsageError(
                f"{self.name}: its disk has {before >> 20} MiB and can't be made smaller",
                hint=f"leave nodes.{self.name}.disk at {before >> 20}MiB, or take the node down first, which "
                "loses what it wrote",
            )
        if now > before and self.form != "qcow2":
            raise UsageError(
                f"{self.name}: a User Mode Linux's disk can't grow",
                hint="take the node down first, which loses what it wrote",
            )
        if now == before and self._only_adds(old):
            return Outlook(Way.LIVE)
        grown = f"grown from {before >> 20} to {now >> 20} MiB, " if now > before else ""
        return Outlook(Way.STILL, f"its disk is {grown}kept")

    def _only_adds(self, old: VmDisk) -> bool:
        """Whether all that differs are further cards, volumes and name servers, which a running machine can
        be told of (labctl.tiers.steps.Reach)."""
        boot, was = self.boot, old.boot
        # A cloud image's init reads at its next start what it is told.
        names = () if self.cloud else ("interfaces", "volumes", "dns")
        more = {name: getattr(was, name) for name in names}
        return (
            replace(self, size=0, boot=replace(boot, **more)) == replace(old, size=0)
            and boot.interfaces[: len(was.interfaces)] == was.interfaces
            and boot.volumes[: len(was.volumes)] == was.volumes
        )

    def bytes(self) -> int:
        """How large the machine sees its disk, in bytes; 0 when its backing file is not there."""
        if self.size:
            return self.size
        if self.cloud and Path(self.backing).exists():
            from labctl.image.clouddisk import size_of

            return size_of(Path(self.backing))
        try:
            return Path(self.backing).stat().st_size
        except OSError:
            return 0

    def change(self, old: VmDisk) -> bool:
        """Write what the machine is told, and grow its disk.  Raises LabError."""
        self.make()
        return True

    def look(self) -> Look:
        """Whether its files are there, and the image's disk below them."""
        if not Path(self.folder).is_dir():
            return ABSENT
        if not Path(self.backing).exists():
            return Look(Presence.BROKEN, f"the image's disk {self.backing} is gone from the cache")
        whole = self.config.exists() and (self.form == "cow" or self.disk.exists())
        return PRESENT if whole else ABSENT

    def unmake(self) -> None:
        """Remove the node's folder but for what others account for: further disks, the firmware's memory."""
        folder = Path(self.folder)
        further = [*folder.glob("disk-*"), *folder.glob(NVRAM)] if folder.is_dir() else []
        if not further:
            remove_tree(folder)
            return
        for path in folder.iterdir():
            if path in further:
                continue
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
