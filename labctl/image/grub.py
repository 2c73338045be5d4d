"""GRUB's two pieces for a disk that boots by a PC's BIOS: boot.img for the first sector, core.img behind it.

They are taken from Debian's grub-pc-bin and grub-common: the host's where they are installed, else downloaded
and unpacked into the cache; nothing is installed.  Source: GRUB's manual, "BIOS installation".
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from labctl.errors import LabError
from labctl.events import Emit, Note
from labctl.image.boot_apt import AptRoot
from labctl.image.boot_files import fresh_dir, locked, run

SECTOR = 512
#: Modules that read an ext4 partition and start a kernel from it.
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "serial", "terminal", "echo", "test")
_PLATFORM = "i386-pc"


def pieces(cache: Path, script: str, work: Path, emit: Emit) -> tuple[bytes, bytes]:
    """boot.img, and a core.img that carries out `script`.  Raises HostCannot, LabError."""
    program, modules = _files(cache, emit)
    early = work / "grub.cfg"
    early.write_text(script)
    core = work / "core.img"
    argv = [
        *(program, "-O", _PLATFORM, "-d", str(modules), "-o", str(core), "-c", str(early)),
        *("-p", "(hd0,msdos1)/boot/grub", *_MODULES),
    ]
    run(argv, timeout=60, what="make a boot loader", package="grub-common")
    return (modules / "boot.img").read_bytes(), core.read_bytes()


def _files(cache: Path, emit: Emit) -> tuple[str, Path]:
    """grub-mkimage, and the folder with boot.img and the modules."""
    program, modules = shutil.which("grub-mkimage"), Path("/usr/lib/grub", _PLATFORM)
    if program and (modules / "boot.img").is_file():
        return program, modules
    folder = cache / "boot" / "grub"
    root = folder / "files"
    with locked(folder / ".lock"):
        if not (root / "usr/bin/grub-mkimage").is_file():
            emit(Note("", "downloading a boot loader (grub-pc-bin)"))
            apt = AptRoot.at(cache, "amd64")
            apt.update()
            with fresh_dir(root) as fresh, tempfile.TemporaryDirectory(dir=folder) as scratch:
                for deb in apt.download(["grub-pc-bin", "grub-common"], Path(scratch)):
                    run(["dpkg-deb", "-x", str(deb), str(fresh)], timeout=120, what="unpack a boot loader")
    found = root / "usr/lib/grub" / _PLATFORM
    if not (found / "boot.img").is_file():
        raise LabError(f"grub-pc-bin holds no {_PLATFORM}/boot.img")
    return str(root / "usr/bin/grub-mkimage"), found
