"""eBPF programs on a v2 control group: put together by hand, loaded, attached, and freed with the group.

Sources: bpf(2); include/uapi/linux/bpf.h; Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import os
import struct

from labctl.linux import cdata as ctypes
from labctl.linux import syscalls as sc

_PROG_LOAD, _PROG_ATTACH = 5, 8
_ALLOW_MULTI = 2


def insn(code: int, dst: int, src: int, offset: int, constant: int) -> bytes:
    """One instruction; `constant` may be given as any 32 bits."""
    signed = (constant & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
    return struct.pack("=BBhi", code, src << 4 | dst, offset, signed)


def load(kind: int, hook: int, code: bytes, about: str) -> int:
    """A descriptor of the program, of type `kind`, for the place `hook`.  Raises SyscallError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    words = (kind, len(code) // 8, sc.address(buffer), sc.address(licence))
    # Then log_level, log_size, log_buf, kern_version, prog_flags, prog_name, prog_ifindex.
    attributes = struct.pack("=IIQQIIQII16sII", *words, 0, 0, 0, 0, 0, b"", 0, hook)
    return sc.bpf(_PROG_LOAD, attributes.ljust(72, b"\0"), about)


def attach(folder: str, kind: int, hook: int, code: bytes, about: str) -> None:
    """Load it and hang it on the group at `folder`, which frees it when it goes.  Raises SyscallError."""
    program = load(kind, hook, code, about)
    try:
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            words = struct.pack("IIII", target, program, hook, _ALLOW_MULTI)
            sc.bpf(_PROG_ATTACH, words.ljust(32, b"\0"), about)
        finally:
            os.close(target)
    finally:
        os.close(program)
