"""Names and numbers of the kernel: capabilities, mount options, device rules, errors, id maps."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.linux import capabilities, devices, namespaces, pidfds, proc
from labctl.linux import syscalls as sc
from labctl.linux.mounts import Options


def test_capabilities_by_any_spelling() -> None:
    assert capabilities.mask(["cap_kill", "KILL", "CAP_KILL"]) == 1 << 5
    assert capabilities.names(capabilities.mask(capabilities.DEFAULT)) == sorted(
        capabilities.DEFAULT, key=capabilities.NAMES.index
    )
    assert f"{capabilities.mask(capabilities.DEFAULT):x}" == "a80425fb", "what Docker's containers show"
    with pytest.raises(ValueError, match="CAP_NOPE"):
        capabilities.mask(["CAP_NOPE"])


@given(bits=st.integers(0, (1 << len(capabilities.NAMES)) - 1))
def test_masks_and_names_are_one(bits: int) -> None:
    assert capabilities.mask(capabilities.names(bits)) == bits


def test_mount_options() -> None:
    options = Options(["rbind", "ro", "nosuid", "rprivate", "idmap", "size=5", "rro"])
    assert options.bind
    assert options.flags & sc.MS_REC
    assert options.attr_set == sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID
    assert options.rec_set == sc.MOUNT_ATTR_RDONLY
    assert options.propagation == [sc.MS_PRIVATE | sc.MS_REC]
    assert (options.idmap, options.data) == ("idmap", ["size=5"])
    assert Options(["ro", "rw"]).attr_set == 0
    assert not Options(["nosuid", "strictatime", "mode=755"]).attr_clear & sc.MOUNT_ATTR_NOSUID


def test_errors_name_call_and_object_and_are_of_the_right_kind() -> None:
    with pytest.raises(FileNotFoundError, match="open_tree /nope/x: No such file") as caught:
        sc.open_tree(sc.AT_FDCWD, "/nope/x", 0)
    assert isinstance(caught.value, sc.SyscallError)
    assert (caught.value.errno, caught.value.call, caught.value.about) == (2, "open_tree", "/nope/x")


def test_id_maps() -> None:
    maps = [(0, 1000, 10), (10, 5000, 5)]
    assert [namespaces.to_host(maps, inside) for inside in (0, 9, 12)] == [1000, 1009, 5002]
    assert namespaces.to_host([], 7) == 7
    with pytest.raises(ValueError, match="15"):
        namespaces.to_host(maps, 15)


def test_exit_codes() -> None:
    assert [pidfds.exit_code(status) for status in (0, 7 << 8, 9, 15)] == [0, 7, 137, 143]


def test_escapes_of_mountinfo() -> None:
    assert proc.unescape(r"/a\040b\134c") == "/a b\\c"


def device_allowed(program: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """Run the eBPF instructions that `devices.program` uses."""
    registers = [0] * 11
    context = {0: access << 16 | kind, 4: major, 8: minor}
    code = list(struct.iter_unpack("=BBhi", program))
    at = 0
    while True:
        op, both, offset, constant = code[at]
        dst, src = both & 15, both >> 4
        at += 1
        if op == 0x61:
            registers[dst] = context[offset]
        elif op == 0xBC:
            registers[dst] = registers[src]
        elif op == 0xB4:
            registers[dst] = constant
        elif op == 0x54:
            registers[dst] &= constant
        elif op == 0x74:
            registers[dst] >>= constant
        elif op == 0x55:
            at += offset if registers[dst] != constant else 0
        elif op == 0x5D:
            at += offset if registers[dst] != registers[src] else 0
        elif op == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(f"instruction {op:#x}")


kinds = st.sampled_from(["a", "b", "c"])
rules = st.tuples(
    st.booleans(),
    kinds,
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.sampled_from(["r", "w", "m", "rw", "rwm"]),
)


@given(
    given_rules=st.lists(rules, max_size=6),
    kind=st.sampled_from(["b", "c"]),
    access=st.integers(1, 7),
    major=st.integers(0, 3),
    minor=st.integers(0, 3),
)
def test_device_rules(
    given_rules: list[tuple[bool, str, int, int, str]], kind: str, access: int, major: int, minor: int
) -> None:
    expected = False
    for allow, rule_kind, rule_major, rule_minor, letters in given_rules:
        mask = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in letters)
        fits = rule_kind in ("a", kind) and rule_major in (-1, major) and rule_minor in (-1, minor)
        if fits and access & ~mask == 0:
            expected = allow
    number = {"b": 1, "c": 2}[kind]
    assert device_allowed(devices.program(given_rules), number, access, major, minor) is expected


@given(given_rules=st.lists(rules, max_size=6))
def test_every_instruction_of_a_device_program_is_reached(
    given_rules: list[tuple[bool, str, int, int, str]],
) -> None:
    """The kernel's verifier refuses a program with one that isn't: EINVAL at the start of every container."""
    code = list(struct.iter_unpack("=BBhi", devices.program(given_rules)))
    seen: set[int] = set()
    todo = [0]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        op, _, offset, _ = code[at]
        if op != 0x95:  # exit
            todo.append(at + 1)
        if op in (0x55, 0x5D):  # jump if not equal
            todo.append(at + 1 + offset)
    assert seen == set(range(len(code)))
