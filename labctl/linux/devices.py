"""Which device nodes a control group may use: the v1 devices controller, or a BPF program on v2.

Sources: Documentation/admin-guide/cgroup-v1/devices.rst; bpf.h (BPF_PROG_TYPE_CGROUP_DEVICE:
the program gets {u32 access_type; u32 major; u32 minor} and returns 1 to allow).
"""

from __future__ import annotations

from labctl.linux import bpf
from labctl.linux.cgroups import Cgroup, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Rule = tuple[bool, str, int, int, str]  # allow, a|b|c, major, minor (-1 = any), some of "rwm"

DEFAULT = (
    (True, "c", -1, -1, "m"),
    (True, "b", -1, -1, "m"),
    (True, "c", 1, 3, "rwm"),  # null
    (True, "c", 1, 5, "rwm"),  # zero
    (True, "c", 1, 7, "rwm"),  # full
    (True, "c", 1, 8, "rwm"),  # random
    (True, "c", 1, 9, "rwm"),  # urandom
    (True, "c", 5, 0, "rwm"),  # tty
    (True, "c", 5, 1, "rwm"),  # console
    (True, "c", 5, 2, "rwm"),  # ptmx
    (True, "c", 136, -1, "rwm"),  # pts
)
"""What every container may use, whatever its configuration says (runtime spec, "Default Devices")."""

_ACCESS = {"m": 1, "r": 2, "w": 4}
_TYPE = {"b": 1, "c": 2}
_CGROUP_DEVICE_TYPE, _CGROUP_DEVICE_ATTACH = 15, 6


def rules_of(rows: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """The rules of `linux.resources.devices`, then the defaults; the last that matches decides."""
    found: list[Rule] = []
    for row in rows:
        numbers = [-1 if row.get(key) is None else int(row[key]) for key in ("major", "minor")]
        found.append(
            (bool(row["allow"]), row.get("type") or "a", numbers[0], numbers[1], row.get("access") or "rwm")
        )
    return [*found, *DEFAULT]


def apply(cgroup: Cgroup, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rules into force.  Raises SyscallError."""
    rules = rules_of(rows)
    if "devices" in cgroup.v1:
        for allow, kind, major, minor, access in rules:
            numbers = ":".join("*" if number < 0 else str(number) for number in (major, minor))
            text = "a" if kind == "a" else f"{kind} {numbers} {access}"
            write(f"{cgroup.v1['devices']}/devices.{'allow' if allow else 'deny'}", text)
    elif cgroup.v2:
        about = f"device rules of {cgroup.v2}"
        bpf.attach(cgroup.v2, _CGROUP_DEVICE_TYPE, _CGROUP_DEVICE_ATTACH, program(rules), about)


def program(rules: Sequence[Rule]) -> bytes:
    """eBPF that looks at the rules from the last to the first; no match = deny."""
    code = [
        bpf.insn(0x61, 2, 1, 0, 0),  # r2 = access_type: type in the low half, access in the high
        bpf.insn(0xBC, 3, 2, 0, 0),  # r3 = r2 (32 bits)
        bpf.insn(0x54, 2, 0, 0, 0xFFFF),
        bpf.insn(0x74, 3, 0, 0, 16),
        bpf.insn(0x61, 4, 1, 4, 0),  # r4 = major
        bpf.insn(0x61, 5, 1, 8, 0),  # r5 = minor
    ]
    for allow, kind, major, minor, access in reversed(rules):
        tests: list[tuple[int, int, int]] = []  # (code, register, constant): jump away unless it holds
        mask = sum(_ACCESS[letter] for letter in access)
        if kind in _TYPE:
            tests.append((0x55, 2, _TYPE[kind]))
        if major >= 0:
            tests.append((0x55, 4, major))
        if minor >= 0:
            tests.append((0x55, 5, minor))
        partly = mask != 7
        length = len(tests) + (3 if partly else 0) + 2
        body: list[bytes] = []
        for test, register, constant in tests:
            body.append(bpf.insn(test, register, 0, length - len(body) - 1, constant))
        if partly:  # any access beyond the rule's: no match
            body.append(bpf.insn(0xBC, 1, 3, 0, 0))
            body.append(bpf.insn(0x54, 1, 0, 0, mask))
            body.append(bpf.insn(0x5D, 1, 3, length - len(body) - 1, 0))
        body.append(bpf.insn(0xB4, 0, 0, 0, 1 if allow else 0))
        body.append(bpf.insn(0x95, 0, 0, 0, 0))
        code += body
        if not tests and not partly:
            return b"".join(code)  # it always matches: the kernel refuses code that nothing leads to
    code += [bpf.insn(0xB4, 0, 0, 0, 0), bpf.insn(0x95, 0, 0, 0, 0)]
    return b"".join(code)
