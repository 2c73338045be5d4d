"""Programs of other CPUs, carried out by an interpreter such as QEMU's user emulation.

What the kernel starts for which file is in binfmt_misc.  Its first instance is the whole host's, and never
written here.  Since Linux 6.7 a user namespace has one of its own, for the processes in it and below, which
lives as long as it is mounted (Documentation/admin-guide/binfmt-misc.rst).
"""

from __future__ import annotations

import os
import struct
import subprocess

HOST = "/proc/sys/fs/binfmt_misc"
FILESYSTEM = "binfmt_misc"
_TRIAL_SECONDS = 10.0

# (EI_CLASS, EI_DATA, e_machine): elf.h.  Names as uname(2) has them.
_ELF = {
    "x86_64": (2, 1, 62),
    "aarch64": (2, 1, 183),
    "riscv64": (2, 1, 243),
    "armhf": (1, 1, 40),
    "ppc64le": (2, 1, 21),
    "s390x": (2, 2, 22),
}
# How QEMU calls it, where it is called otherwise.
_QEMU = {"armhf": "arm"}


def program_names(arch: str) -> tuple[str, ...]:
    """What a statically linked qemu-user for an architecture may be called: before and since Debian 13."""
    name = _QEMU.get(arch, arch)
    return (f"qemu-{name}-static", f"qemu-{name}")


def header(arch: str) -> tuple[bytes, bytes]:
    """The first 20 bytes of an ELF program of that architecture, and which bits of them count.

    Not EI_OSABI and its version; programs (ET_EXEC) and position-independent ones (ET_DYN) alike.
    Raises KeyError for an architecture that isn't known.
    """
    kind, order, machine = _ELF[arch]
    ends = "<" if order == 1 else ">"
    magic = b"\x7fELF" + bytes((kind, order, 1)) + bytes(9) + struct.pack(f"{ends}HH", 2, machine)
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + struct.pack(f"{ends}HH", 0xFFFE, 0xFFFF)
    return magic, mask


def entry(arch: str, interpreter: str) -> str:
    """What is written to `register`: the interpreter is opened then and there (F), so that no root file
    system needs to have it; it gets the program's name as it was called (P) and its rights (C, with O)."""
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in part) for part in header(arch))
    return f":labctl-{arch}:M::{magic}:{mask}:{interpreter}:POCF"


def known_to_host(arch: str, folder: str = HOST) -> str:
    """The interpreter that this host starts for an architecture in any root file system; "" for none.

    Only an enabled entry with the flag F counts, whose interpreter needn't be in the container.
    """
    magic, _ = header(arch)
    try:
        names = [name for name in os.listdir(folder) if name not in ("register", "status")]
    except OSError:
        return ""
    for name in names:
        try:
            with open(os.path.join(folder, name)) as file:
                lines = file.read().splitlines()
        except OSError:
            continue  # taken away meanwhile
        words = dict(line.partition(" ")[::2] for line in lines)
        flags = words.get("flags:", "")
        if "enabled" in lines and "F" in flags and _matches(words, magic):
            return words.get("interpreter", "")
    return ""


def _matches(words: dict[str, str], magic: bytes) -> bool:
    try:
        wanted = bytes.fromhex(words.get("magic", ""))
        mask = bytes.fromhex(words["mask"]) if "mask" in words else b"\xff" * len(wanted)
    except ValueError:
        return False
    if not wanted or words.get("offset", "0") != "0" or len(wanted) != len(magic):
        return False
    return all(a & m == b & m for a, b, m in zip(magic, wanted, mask, strict=True))


def private_refusal() -> str:
    """Why a user namespace can't have an instance of its own on this host; "" when it can: it is tried."""
    if not os.path.isdir(HOST):
        return "the kernel has no binfmt_misc"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", FILESYSTEM, "none", HOST]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unshare can't be tried: {error}"
    return "" if done.returncode == 0 else "its kernel (before 6.7) has one binfmt_misc for the whole host"
