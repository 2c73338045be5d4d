"""The smallest guests there are: a few instructions that say a word on the serial port and switch off.

Each stands in place of the firmware (`qemu -bios`), so that nothing else runs and a trial takes a tenth of
a second.  Assembled by hand; the listing is beside the bytes.
"""

from __future__ import annotations

import struct

WORD = b"labctl-probe-ok"
# isa-debug-exit (QEMU, hw/misc/debugexit.c) turns a value into exit status (value << 1) | 1.
X86_EXIT_STATUS = (0x10 << 1) | 1
_ROM_SIZE = 65536


def x86_64() -> bytes:
    """A 64 KiB ROM that ends at 4 GiB, so that the reset vector (Intel SDM vol. 3, 10.1.4) is 16 bytes
    before its end.  Real mode, CS base 0xFFFF0000: offset 0 of the ROM is CS:0."""
    code = bytes.fromhex(
        "be 20 00"  # 00  mov si, 0x20      the word, relative to CS
        "2e ac"  # 03  cs lodsb
        "84 c0"  # 05  test al, al
        "74 06"  # 07  jz 0x0f
        "ba f8 03"  # 09  mov dx, 0x3f8     COM1
        "ee"  # 0c  out dx, al
        "eb f4"  # 0d  jmp 0x03
        "b0 10"  # 0f  mov al, 0x10
        "ba 01 05"  # 11  mov dx, 0x501     isa-debug-exit; nothing listens there in a libvirt domain
        "ee"  # 14  out dx, al
        "fa"  # 15  cli
        "f4"  # 16  hlt
        "eb fd"  # 17  jmp 0x16
    )
    rom = code.ljust(0x20, b"\x90") + WORD + b"\n\0"
    vector = bytes.fromhex("e9 0d 00")  # fff0  jmp near to 0 (0xfff3 + 0x0d, modulo 64 KiB)
    return rom.ljust(_ROM_SIZE - 16, b"\x90") + vector.ljust(16, b"\x90")


def aarch64() -> bytes:
    """For QEMU's `virt`: flash at 0, PL011 at 0x09000000, off by PSCI SYSTEM_OFF (Arm DEN 0022, 5.9)."""
    words = (
        0x10000141,  # 00  adr  x1, 40          the word
        0xD2A12002,  # 04  movz x2, #0x0900, lsl #16
        0x38401420,  # 08  ldrb w0, [x1], #1
        0x34000060,  # 12  cbz  w0, 24
        0x39000040,  # 16  strb w0, [x2]
        0x17FFFFFD,  # 20  b    8
        0x52800100,  # 24  movz w0, #0x0008
        0x72B08000,  # 28  movk w0, #0x8400, lsl #16
        0xD4000002,  # 32  hvc  #0
        0x14000000,  # 36  b    .
    )
    return struct.pack("<10I", *words) + WORD + b"\n\0"


def riscv64() -> bytes:
    """For QEMU's `virt`: DRAM at 0x80000000, 16550 at 0x10000000, off by the SiFive test device."""
    words = (
        0x00000517,  # 00  auipc a0, 0
        0x03450513,  # 04  addi  a0, a0, 52     the word
        0x100005B7,  # 08  lui   a1, 0x10000
        0x00054603,  # 12  lbu   a2, 0(a0)
        0x00060863,  # 16  beqz  a2, 32
        0x00C58023,  # 20  sb    a2, 0(a1)
        0x00150513,  # 24  addi  a0, a0, 1
        0xFF1FF06F,  # 28  j     12
        0x00100537,  # 32  lui   a0, 0x100
        0x000055B7,  # 36  lui   a1, 0x5
        0x55558593,  # 40  addi  a1, a1, 0x555   0x5555: pass
        0x00B52023,  # 44  sw    a1, 0(a0)
        0x0000006F,  # 48  j     .
    )
    return struct.pack("<13I", *words) + WORD + b"\n\0"


PAYLOADS = {"x86_64": x86_64, "aarch64": aarch64, "riscv64": riscv64}
