"""A program of 100 bytes that mixes its input into the kernel's random numbers and makes it draw anew.

A machine that goes on from a snapshot has the generator of the machine that the snapshot was taken of, and so
have its siblings: without this they would all draw the same keys.  What is written to /dev/urandom is only
mixed in; ioctl RNDRESEEDCRNG (random(4)) makes the next number come from it.  A shell can't call that.
"""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56

# read(0, buffer, 512); open("/dev/urandom", O_RDWR); write; ioctl(RNDRESEEDCRNG); exit(errno)
_X86_64 = bytes.fromhex(
    "31 ff"  # 00  xor edi, edi
    "48 8d b4 24 00 fe ff ff"  # 02  lea rsi, [rsp-512]
    "49 89 f4"  # 0a  mov r12, rsi
    "ba 00 02 00 00"  # 0d  mov edx, 512
    "31 c0"  # 12  xor eax, eax           SYS_read
    "0f 05"  # 14  syscall
    "41 89 c5"  # 16  mov r13d, eax
    "48 8d 3d 32 00 00 00"  # 19  lea rdi, [rip+0x32]    the path below
    "be 02 00 00 00"  # 20  mov esi, 2           O_RDWR
    "b8 02 00 00 00"  # 25  mov eax, 2           SYS_open
    "0f 05"  # 2a  syscall
    "89 c7"  # 2c  mov edi, eax
    "4c 89 e6"  # 2e  mov rsi, r12
    "44 89 ea"  # 31  mov edx, r13d
    "b8 01 00 00 00"  # 34  mov eax, 1           SYS_write
    "0f 05"  # 39  syscall
    "be 07 52 00 00"  # 3b  mov esi, 0x5207      RNDRESEEDCRNG
    "b8 10 00 00 00"  # 40  mov eax, 16          SYS_ioctl
    "0f 05"  # 45  syscall
    "f7 d8"  # 47  neg eax
    "89 c7"  # 49  mov edi, eax
    "b8 3c 00 00 00"  # 4b  mov eax, 60          SYS_exit
    "0f 05"  # 50  syscall
)
_PATH = b"/dev/urandom\0"


def reseed_program(arch: str) -> bytes:
    """The ELF file for an architecture (the kernel's word for it); empty where there is none."""
    if arch != "x86_64":
        return b""
    code = _X86_64 + _PATH
    size = _HEADERS + len(code)
    # elf(5): ELF64, little endian, ET_EXEC, EM_X86_64; one PT_LOAD of all of it, readable and executable
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code
