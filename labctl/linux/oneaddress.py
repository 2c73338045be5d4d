"""Keep a control group's sockets to one IPv4 address of a network that it shares with others.

What Linux-VServer did by a patch of the kernel (chbind: "any address" means the one it has, and loopback is
that one too), done by the kernel's hooks for control groups (v2, Linux 5.1):

- bind(2): any and loopback addresses become the own one, all others but it are refused with EPERM.
- connect(2), sendto(2): the source is the own address; loopback as a destination becomes the own one.
- What a socket sends or gets under another address all the same (by a bind that has no hook, such as the one
  that listen(2) does by itself) is dropped.
- IPv6 but for mapped IPv4 addresses is refused.

A raw or packet socket has no such hook, so the group's processes may not have CAP_NET_RAW or CAP_NET_ADMIN.
Sources: include/uapi/linux/bpf.h (struct bpf_sock_addr, struct __sk_buff); cgroup-v2.rst.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from labctl.linux import bpf
from labctl.linux.bpf import insn
from labctl.linux.cgroups import Layout

_SOCK_ADDR, _SKB = 18, 8  # BPF_PROG_TYPE_CGROUP_…
_INGRESS, _EGRESS, _BIND4, _BIND6, _CONNECT4, _CONNECT6, _SEND4, _SEND6 = 0, 1, 8, 9, 10, 11, 14, 15
_SKB_LOAD_BYTES, _BIND = 26, 64  # helpers
_IP4, _IP6, _SOURCE4 = 4, 8, 40  # offsets in struct bpf_sock_addr
_PROTOCOL, _SOCKET = 16, 168  # in struct __sk_buff
_SOURCE_OF_SOCKET = 24  # src_ip4 in struct bpf_sock
_LOOPBACK = 127  # the first byte of all of 127.0.0.0/8

# Opcodes: a 32-bit load and store, a byte's load, register and constant moves, conditional jumps on 32 bits.
_LOAD, _STORE, _LOAD_BYTE, _CONST, _COPY, _ADD = 0x61, 0x63, 0x71, 0xB7, 0xBF, 0x07
_STORE_CONST, _STORE_HALF = 0x62, 0x6A
_EQUAL, _UNEQUAL, _CALL, _EXIT = 0x16, 0x56, 0x85, 0x95
_LOAD_LONG, _NULL = 0x79, 0x15  # a pointer, and its comparison
_CONTEXT, _FRAME = 6, 10


def _word(data: bytes) -> int:
    """Four bytes as they lie in memory."""
    return int.from_bytes(data, sys.byteorder)


_MAPPED = _word(b"\0\0\xff\xff")
_ONE = _word(b"\0\0\0\1")
_ETHERTYPE_IP = _word(struct.pack("!H", 0x0800) + b"\0\0") if sys.byteorder == "little" else 0x0800


class _Code:
    """Instructions with named places to jump to."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int | str, int]] = []
        self.places: dict[str, int] = {}

    def add(self, code: int, dst: int = 0, src: int = 0, offset: int | str = 0, constant: int = 0) -> _Code:
        self.rows.append((code, dst, src, offset, constant))
        return self

    def at(self, place: str) -> _Code:
        self.places[place] = len(self.rows)
        return self

    def end(self, answer: int) -> _Code:
        """Return 1 to let it pass, 0 to refuse."""
        return self.add(_CONST, 0, constant=answer).add(_EXIT)

    def build(self) -> bytes:
        found = []
        for index, (code, dst, src, offset, constant) in enumerate(self.rows):
            jump = self.places[offset] - index - 1 if isinstance(offset, str) else offset
            found.append(insn(code, dst, src, jump, constant))
        return b"".join(found)


def programs(address: str) -> list[tuple[int, int, bytes]]:
    """(program type, hook, code) of all that keeps a group to `address`.  Raises OSError for no IPv4 one."""
    own = _word(socket.inet_aton(address))
    return [
        (_SOCK_ADDR, _BIND4, _bind4(own)),
        (_SOCK_ADDR, _CONNECT4, _connect4(own)),
        (_SOCK_ADDR, _SEND4, _send4(own)),
        (_SOCK_ADDR, _BIND6, _bind6(own)),
        (_SOCK_ADDR, _CONNECT6, _connect6(own)),
        (_SOCK_ADDR, _SEND6, _Code().end(0).build()),
        (_SKB, _INGRESS, _arriving(own)),
        (_SKB, _EGRESS, _leaving(own)),
    ]


def restrict(folder: str, address: str) -> None:
    """Put it into force for the v2 group at `folder`.  Raises SyscallError, OSError."""
    for kind, hook, code in programs(address):
        bpf.attach(folder, kind, hook, code, f"{folder} to the address {address}")


def lacking() -> str:
    """Why this kernel can't do it, "" when it can: found out by loading the programs."""
    if not Layout.detect().v2:
        return "no cgroup2 file system is mounted here"
    try:
        for kind, hook, code in programs("127.0.0.1"):
            os.close(bpf.load(kind, hook, code, "a program that keeps to one address"))
    except OSError as error:
        return f"this kernel takes no BPF program on a control group's sockets: {error}"
    return ""


def _own_to(code: _Code, offset: int, own: int) -> None:
    code.add(_CONST, 2, constant=own).add(_STORE, _CONTEXT, 2, offset)


def _bind4(own: int) -> bytes:
    code = _Code().add(_COPY, _CONTEXT, 1)
    code.add(_LOAD, 2, _CONTEXT, _IP4).add(_LOAD_BYTE, 3, _CONTEXT, _IP4)
    code.add(_EQUAL, 2, 0, "pass", own).add(_EQUAL, 2, 0, "own", 0).add(_EQUAL, 3, 0, "own", _LOOPBACK)
    code.end(0).at("own")
    _own_to(code, _IP4, own)
    return code.at("pass").end(1).build()


def _destination4(code: _Code, own: int) -> None:
    """0.0.0.0 and loopback as a destination are the own address."""
    code.add(_LOAD, 2, _CONTEXT, _IP4).add(_LOAD_BYTE, 3, _CONTEXT, _IP4)
    code.add(_EQUAL, 2, 0, "own", 0).add(_UNEQUAL, 3, 0, "source", _LOOPBACK).at("own")
    _own_to(code, _IP4, own)
    code.at("source")


def _bind_source(code: _Code, words: list[tuple[int, int]], size: int) -> None:
    """bind the socket to a sockaddr on the stack; one that is bound already stays so."""
    for offset in range(-size, 0, 4):
        code.add(_STORE_CONST, _FRAME, 0, offset, 0)
    for offset, value in words:
        if offset:
            code.add(_STORE_CONST, _FRAME, 0, offset - size, value)
        else:  # the family, in the host's order; the port after it stays 0
            code.add(_STORE_HALF, _FRAME, 0, -size, value)
    code.add(_COPY, 1, _CONTEXT).add(_COPY, 2, _FRAME).add(_ADD, 2, constant=-size)
    code.add(_CONST, 3, constant=size).add(_CALL, constant=_BIND)


def _connect4(own: int) -> bytes:
    code = _Code().add(_COPY, _CONTEXT, 1)
    _destination4(code, own)
    _bind_source(code, [(0, socket.AF_INET), (4, own)], 16)
    return code.end(1).build()


def _send4(own: int) -> bytes:
    code = _Code().add(_COPY, _CONTEXT, 1)
    _destination4(code, own)
    _own_to(code, _SOURCE4, own)
    return code.end(1).build()


def _look6(code: _Code) -> None:
    """To "mapped" with ::ffff:a.b.c.d, to "own" with :: and ::1, refused otherwise; r2 is the last word."""
    for index in (0, 1):
        code.add(_LOAD, 2, _CONTEXT, _IP6 + 4 * index).add(_UNEQUAL, 2, 0, "refuse", 0)
    code.add(_LOAD, 3, _CONTEXT, _IP6 + 8).add(_LOAD, 2, _CONTEXT, _IP6 + 12)
    code.add(_EQUAL, 3, 0, "mapped", _MAPPED).add(_UNEQUAL, 3, 0, "refuse", 0)
    code.add(_EQUAL, 2, 0, "own", 0).add(_EQUAL, 2, 0, "own", _ONE)
    code.at("refuse").end(0).at("mapped").add(_LOAD_BYTE, 4, _CONTEXT, _IP6 + 12)


def _own6(code: _Code, own: int) -> None:
    code.at("own").add(_CONST, 2, constant=_MAPPED).add(_STORE, _CONTEXT, 2, _IP6 + 8)
    _own_to(code, _IP6 + 12, own)


def _bind6(own: int) -> bytes:
    code = _Code().add(_COPY, _CONTEXT, 1)
    _look6(code)
    code.add(_EQUAL, 2, 0, "pass", own).add(_EQUAL, 2, 0, "own", 0).add(_UNEQUAL, 4, 0, "refuse", _LOOPBACK)
    _own6(code, own)
    return code.at("pass").end(1).build()


def _connect6(own: int) -> bytes:
    code = _Code().add(_COPY, _CONTEXT, 1)
    _look6(code)
    code.add(_EQUAL, 2, 0, "own", 0).add(_UNEQUAL, 4, 0, "source", _LOOPBACK)
    _own6(code, own)
    code.at("source")
    _bind_source(code, [(0, socket.AF_INET6), (16, _MAPPED), (20, own)], 28)
    return code.end(1).build()


def _arriving(own: int) -> bytes:
    """Only IPv4 packets to the own address, which is at 16 in their header."""
    code = _Code().add(_LOAD, 2, 1, _PROTOCOL).add(_UNEQUAL, 2, 0, "refuse", _ETHERTYPE_IP)
    code.add(_CONST, 2, constant=16).add(_COPY, 3, _FRAME).add(_ADD, 3, constant=-8)
    code.add(_CONST, 4, constant=4).add(_CALL, constant=_SKB_LOAD_BYTES).add(_UNEQUAL, 0, 0, "refuse", 0)
    code.add(_LOAD, 2, _FRAME, -8).add(_UNEQUAL, 2, 0, "refuse", own)
    return code.end(1).at("refuse").end(0).build()


def _leaving(own: int) -> bytes:
    """Only IPv4 packets of a socket that has the own address, or none: then sendto(2) gave it the own one.

    Not by the packet's header: the firewall may have put the host's address there (masquerade).
    """
    code = _Code().add(_LOAD, 2, 1, _PROTOCOL).add(_UNEQUAL, 2, 0, "refuse", _ETHERTYPE_IP)
    code.add(_LOAD_LONG, 2, 1, _SOCKET).add(_NULL, 2, 0, "refuse", 0)
    code.add(_LOAD, 2, 2, _SOURCE_OF_SOCKET).add(_EQUAL, 2, 0, "pass", 0).add(_UNEQUAL, 2, 0, "refuse", own)
    return code.at("pass").end(1).at("refuse").end(0).build()
