"""An image as a disk that boots on its own, in any hypervisor with a PC's BIOS.

A DOS partition table; the first partition is the image's ext4 with kernel and initramfs in /boot/labctl, the
second holds labctl's configuration, as a config disk does.  GRUB starts the kernel.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import HostCannot, LabError, UsageError
from labctl.events import Emit, Note, Progress, silent
from labctl.image import grub, initramfs
from labctl.image.boot_files import run
from labctl.image.boot_keys import make_key
from labctl.image.bootconfig import BootConfig, config_disk
from labctl.image.disk import DEFAULT_BYTES, estimate, make_ext4
from labctl.image.kernels import kernel
from labctl.image.model import Image, ImageConfig
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.image.store import Store

_MIB = 1 << 20
_START = _MIB  # of the first partition; GRUB's core lies in the gap before it
_SPARE = 192 << 20  # kernel, initramfs, and room to start in
_SECONDS = 3600.0
KERNEL = "amd64"  # all drivers, since nobody knows where it will run


@dataclass(frozen=True)
class Wish:
    """How the machine is to be: `size` of its disk in bytes (0: 8 GiB), keys that open it by SSH."""

    hostname: str = "labctl"
    size: int = 0
    authorized_keys: tuple[str, ...] = ()


def bootable(
    store: Store, image: Image, cache: Path, out: Path, wish: Wish | None = None, emit: Emit = silent
) -> None:
    """Write the image as a raw disk to `out`, which must not exist.

    Raises HostCannot without mke2fs or GRUB, for a foreign architecture, LabError when the disk is full.
    """
    with store.scratch.folder("bootable") as work:
        write(cache, list(store.rootfs(image)), image.config, image.digest, out, work, wish or Wish(), emit)


def write(
    cache: Path,
    layers: Sequence[Path],
    config: ImageConfig,
    seed: str,
    out: Path,
    work: Path,
    wish: Wish,
    emit: Emit,
) -> None:
    """As `bootable`, from unpacked layers; `work` is an empty folder for what is made on the way."""
    boot = work / "boot-layer"
    (boot / "boot/labctl").mkdir(parents=True)
    for name, source in boot_files(cache, config.architecture, emit).items():
        shutil.copy(source, boot / "boot/labctl" / name)
    tops = [*layers, boot]
    least = estimate(tops) + _SPARE
    size = wish.size or max(DEFAULT_BYTES, least)
    if size < least:
        raise UsageError(f"a disk of {size // _MIB} MiB is too small; it needs {least // _MIB} MiB")
    emit(Progress("", "disk: file system", 1, 4))
    make_ext4(tops, work / "root.ext4", seed=seed, size=size // _MIB * _MIB)
    assemble(cache, work / "root.ext4", _config(config, wish), out, work, emit)


def from_disk(cache: Path, disk: Path, config: BootConfig, out: Path, work: Path, emit: Emit) -> None:
    """As `bootable`, from the disk that a machine of a lab wrote to (qcow2); the machine must not run."""
    root = work / "root.ext4"
    emit(Progress("", "disk: file system", 1, 4))
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(root)]
    run(argv, timeout=_SECONDS, what=f"read {disk}", package="qemu-utils")
    # The machine may have been cut off: replay the journal; 1 means that something was mended.
    run(["sh", "-c", 'e2fsck -fy "$0" || [ $? -le 1 ]', str(root)], timeout=_SECONDS, what=f"check {disk}")
    lines = ["mkdir /boot", "mkdir /boot/labctl"]
    for name, source in boot_files(cache, "amd64", emit).items():
        lines += [f"rm /boot/labctl/{name}", f"write {source} /boot/labctl/{name}"]
    script = work / "debugfs"
    script.write_text("\n".join(lines) + "\n")
    run(["debugfs", "-w", "-f", str(script), str(root)], timeout=_SECONDS, what="add a kernel to the disk")
    assemble(cache, root, replace(config, dhcp=True), out, work, emit)


def boot_files(cache: Path, architecture: str, emit: Emit) -> dict[str, Path]:
    """Kernel and initramfs by their names in /boot/labctl.  Raises HostCannot."""
    if architecture != "amd64":
        raise HostCannot(
            f"a disk that boots is made for amd64 only, and this image is for {architecture}",
            hint="export it as an oci-archive or rootfs",
        )
    files = kernel(cache, KERNEL, emit)
    initrd = initramfs.initramfs(cache, files, emit, portable=True)
    return {"vmlinuz": files.vmlinuz, "initrd.img": initrd}


def assemble(cache: Path, root: Path, config: BootConfig, out: Path, work: Path, emit: Emit) -> None:
    """The whole disk from the root file system, which has the files of /boot/labctl."""
    config_disk(work / "config", config)
    words = "console=ttyS0 console=tty0 quiet panic=30 net.ifnames=0"
    script = (
        f"set root=(hd0,msdos1)\nlinux /boot/labctl/vmlinuz {words}\ninitrd /boot/labctl/initrd.img\nboot\n"
    )
    head, core = grub.pieces(cache, script, work, emit)
    emit(Progress("", "disk: putting together", 3, 4))
    _assemble(out, head, core, root, work / "config")
    emit(Progress("", "disk: done", 4, 4))
    emit(Note("", "the disk boots by a PC's BIOS, and asks for addresses by DHCP"))


def _config(config: ImageConfig, wish: Wish) -> BootConfig:
    return BootConfig(
        hostname=wish.hostname,
        authorized_keys=wish.authorized_keys,
        host_key=make_key(wish.hostname).private,
        env=config.environment(),
        command=config.command,
        user=config.user,
        cwd=config.working_dir,
        stop_signal=config.stop_signal or "SIGTERM",
        dhcp=True,
    )


def _assemble(out: Path, head: bytes, core: bytes, root: Path, config: Path) -> None:
    if len(core) > _START - grub.SECTOR:
        raise LabError(f"the boot loader has {len(core)} bytes and does not fit before the first partition")
    try:
        first, second = root.stat().st_size, -(-config.stat().st_size // _MIB) * _MIB
        with out.open("xb") as disk:
            disk.truncate(_START + first + second)
            disk.write(_first_sector(head, first, second))
            disk.write(core)
            _copy(root, disk.fileno(), _START)
            _copy(config, disk.fileno(), _START + first)
            disk.flush()
            os.fsync(disk.fileno())
    except OSError as error:
        raise LabError(f"cannot write {out}: {error.strerror or error}") from error


def _first_sector(head: bytes, first: int, second: int) -> bytes:
    """boot.img with a partition table of two entries of type 0x83; addresses in sectors, CHS out of range."""
    table = b""
    start = _START
    for number, size in enumerate((first, second)):
        flag = 0x80 if number == 0 else 0
        table += struct.pack(
            "<B3sB3sII", flag, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start // 512, size // 512
        )
        start += size
    return head[:440] + b"labc\0\0" + table.ljust(64, b"\0") + b"\x55\xaa"


def _copy(source: Path, sink: int, at: int) -> None:
    """Copy a file to a place in another, holes left out (lseek(2), SEEK_DATA)."""
    with source.open("rb") as file:
        size, place = os.fstat(file.fileno()).st_size, 0
        while place < size:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole is left
            end = os.lseek(file.fileno(), place, os.SEEK_HOLE)
            while place < end:
                chunk = os.pread(file.fileno(), min(_MIB, end - place), place)
                view, to = memoryview(chunk), at + place
                while view:
                    done = os.pwrite(sink, view, to)
                    view, to = view[done:], to + done
                place += len(chunk)
