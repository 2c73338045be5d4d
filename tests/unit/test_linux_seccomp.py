"""Filters are compiled right: a small interpreter of BPF runs them against the rules themselves."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.linux import seccomp, syscall_numbers

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86_64 = syscall_numbers.AUDIT_ARCH["SCMP_ARCH_X86_64"]
NUMBERS = syscall_numbers.numbers("SCMP_ARCH_X86_64")


def run(program: bytes, number: int, args: list[int] | None = None, arch: int = X86_64) -> int:
    """What the kernel would answer (Documentation/networking/filter.rst)."""
    data = struct.pack("iIQ6Q", number, arch, 0, *((args or []) + [0] * 6)[:6])
    code = list(struct.iter_unpack("HBBI", program))
    register, at = 0, 0
    for _ in range(5000):
        op, yes, no, constant = code[at]
        at += 1
        if op == 0x20:
            (register,) = struct.unpack_from("I", data, constant)
        elif op == 0x54:
            register &= constant
        elif op == 0x05:
            at += constant
        elif op == 0x06:
            return int(constant)
        else:
            holds = {0x15: register == constant, 0x25: register > constant, 0x35: register >= constant}[op]
            at += yes if holds else no
    raise AssertionError("the program does not end")


def test_the_default_filter() -> None:
    program = seccomp.compile_filter(seccomp.default_profile(machine="x86_64"), "x86_64")
    for name in ("read", "openat", "execve", "futex", "clock_nanosleep", "getrandom", "socketpair", "ptrace"):
        assert run(program, NUMBERS[name]) == ALLOW, name
    for name in (
        "mount",
        "unshare",
        "setns",
        "keyctl",
        "bpf",
        "reboot",
        "init_module",
        "pivot_root",
        "io_uring_setup",
    ):
        assert run(program, NUMBERS[name]) == EPERM, name
    assert run(program, NUMBERS["clone3"]) == ENOSYS
    assert run(program, 9999) == ENOSYS
    assert run(program, NUMBERS["read"] | 0x40000000) == ENOSYS, "x32"
    assert run(program, NUMBERS["clone"], [0x11]) == ALLOW
    assert run(program, NUMBERS["clone"], [0x10000011]) == EPERM
    assert run(program, NUMBERS["socket"], [1]) == ALLOW
    assert run(program, NUMBERS["socket"], [40]) == EPERM
    assert run(program, NUMBERS["personality"], [0xFFFFFFFF]) == ALLOW
    assert run(program, NUMBERS["personality"], [0x40000]) == EPERM
    assert run(program, 3, arch=syscall_numbers.AUDIT_ARCH["SCMP_ARCH_X86"]) == ALLOW
    assert run(program, 3, arch=0x12345) == KILL


def test_a_capability_lifts_what_it_is_for() -> None:
    lifted = seccomp.compile_filter(
        seccomp.default_profile(["CAP_SYS_ADMIN", "CAP_SYS_TIME"], "x86_64"), "x86_64"
    )
    for name in ("mount", "unshare", "clone3", "settimeofday"):
        assert run(lifted, NUMBERS[name]) == ALLOW, name
    assert run(lifted, NUMBERS["init_module"]) == EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_every_architecture_compiles(machine: str) -> None:
    program = seccomp.compile_filter(seccomp.default_profile(machine=machine), machine)
    native = syscall_numbers.NATIVE[machine][0]
    table, arch = syscall_numbers.numbers(native), syscall_numbers.AUDIT_ARCH[native]
    assert run(program, table["openat"], arch=arch) == ALLOW
    assert run(program, table["mount"], arch=arch) == EPERM


HOLDS = {
    "SCMP_CMP_EQ": lambda arg, value, _: arg == value,
    "SCMP_CMP_NE": lambda arg, value, _: arg != value,
    "SCMP_CMP_LT": lambda arg, value, _: arg < value,
    "SCMP_CMP_LE": lambda arg, value, _: arg <= value,
    "SCMP_CMP_GT": lambda arg, value, _: arg > value,
    "SCMP_CMP_GE": lambda arg, value, _: arg >= value,
    "SCMP_CMP_MASKED_EQ": lambda arg, value, two: arg & value == two,
}
words = st.sampled_from([0, 1, 2, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
tests = st.fixed_dictionaries(
    {"index": st.integers(0, 5), "value": words, "valueTwo": words, "op": st.sampled_from(sorted(HOLDS))}
)


@given(
    rules=st.lists(st.lists(tests, min_size=1, max_size=3, unique_by=lambda t: t["index"]), max_size=4),
    args=st.lists(words, min_size=6, max_size=6),
)
def test_conditions(rules: list[list[dict[str, Any]]], args: list[int]) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": rule} for rule in rules],
    }
    expected = any(
        all(HOLDS[test["op"]](args[test["index"]], test["value"], test["valueTwo"]) for test in rule)
        for rule in rules
    )
    program = seccomp.compile_filter(profile, "x86_64")
    assert run(program, NUMBERS["read"], args) == (ALLOW if expected else EPERM)
    assert run(program, NUMBERS["write"], args) == EPERM


@given(names=st.sets(st.sampled_from(sorted(NUMBERS))))
def test_the_search_finds_exactly_what_is_allowed(names: set[str]) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": sorted(names), "action": "SCMP_ACT_ALLOW"}],
    }
    program = seccomp.compile_filter(profile, "x86_64")
    for name, number in NUMBERS.items():
        assert run(program, number) == (ALLOW if name in names else KILL)


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_NOPE"},
        {"defaultAction": "SCMP_ACT_NOPE"},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": "x"}]}
            ],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {
                    "names": ["read"],
                    "action": "SCMP_ACT_ERRNO",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
    ],
)
def test_what_cannot_be_expressed_is_refused(profile: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="seccomp"):
        seccomp.compile_filter(profile, "x86_64")


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="mips"):
        seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW"}, "mips")
