"""Seccomp filters: the OCI spec's `linux.seccomp` compiled to BPF by ourselves, and the default filter.

Why not libseccomp: it is no part of a minimal guest, and the filter must be the same on the host and inside
any VM; what is needed of it is one binary search per architecture.  A filter that can't be compiled or
loaded is an error, never left out.  The x32 ABI gets the default action.  Sources: seccomp(2),
Documentation/userspace-api/seccomp_filter.rst, the OCI runtime spec's config-linux.md.
"""

from __future__ import annotations

import struct

from labctl.linux import syscall_numbers
from labctl.linux import syscalls as sc

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Insn = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
    Spec = Mapping[str, Any]

_LD, _AND, _JA, _RET = 0x20, 0x54, 0x05, 0x06
_JEQ, _JGT, _JGE = 0x15, 0x25, 0x35
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = (
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
)
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": sc.SECCOMP_FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": sc.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": sc.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": sc.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}
_PASS, _FAIL = -1, -2  # jump targets inside one condition


def action(name: str, errno: int | None) -> int:
    """The kernel's return value of an OCI action.  Raises ValueError for one that isn't supported."""
    if name not in ACTIONS:
        raise ValueError(f"seccomp action {name!r} is not supported")
    value = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= (1 if errno is None else errno) & 0xFFFF  # the spec's default is EPERM
    elif errno:
        raise ValueError(f"seccomp action {name} takes no errno, but {errno} is given")
    return value


def _branch(code: int, constant: int, then: list[Insn], otherwise: list[Insn]) -> list[Insn]:
    """if (A op constant) then … else …, where both ends return."""
    if len(then) <= 255:
        return [(code, 0, len(then), constant), *then, *otherwise]
    return [(code, 1, 0, constant), (_JA, 0, 0, len(then)), *then, *otherwise]


def _condition(arg: Spec) -> list[Insn]:
    """Test one argument; jumps to _PASS or _FAIL, resolved by `_rule`."""
    index, name = int(arg["index"]), arg["op"]
    if not 0 <= index <= 5:
        raise ValueError(f"seccomp: bad argument index {index}")
    value, two = int(arg["value"]) & (1 << 64) - 1, int(arg.get("valueTwo", 0)) & (1 << 64) - 1
    low, high = _ARGS + 8 * index, _ARGS + 8 * index + 4
    vlow, vhigh = value & 0xFFFFFFFF, value >> 32
    load_high, load_low = (_LD, 0, 0, high), (_LD, 0, 0, low)
    if name == "SCMP_CMP_EQ":
        return [load_high, (_JEQ, 0, _FAIL, vhigh), load_low, (_JEQ, _PASS, _FAIL, vlow)]
    if name == "SCMP_CMP_NE":
        return [load_high, (_JEQ, 0, _PASS, vhigh), load_low, (_JEQ, _FAIL, _PASS, vlow)]
    if name == "SCMP_CMP_MASKED_EQ":
        first = [load_high, (_AND, 0, 0, vhigh), (_JEQ, 0, _FAIL, two >> 32)]
        return [*first, load_low, (_AND, 0, 0, vlow), (_JEQ, _PASS, _FAIL, two & 0xFFFFFFFF)]
    if name not in OPERATORS:
        raise ValueError(f"seccomp: unknown operator {name!r}")
    above, below = (_PASS, _FAIL) if name in ("SCMP_CMP_GT", "SCMP_CMP_GE") else (_FAIL, _PASS)
    last = _JGT if name in ("SCMP_CMP_GT", "SCMP_CMP_LE") else _JGE
    return [
        load_high,
        (_JGT, above, 0, vhigh),
        (_JEQ, 0, below, vhigh),
        load_low,
        (last, above, below, vlow),
    ]


def _rule(args: Sequence[Spec], value: int, otherwise: list[Insn]) -> list[Insn]:
    """if all the arguments match: return `value`; else go on with `otherwise`."""
    blocks = [_condition(arg) for arg in args]
    total = sum(len(block) for block in blocks) + 1
    code: list[Insn] = []
    for block in blocks:
        end = len(code) + len(block)
        for op, yes, no, constant in block:
            here = len(code) + 1
            targets = {_PASS: end - here, _FAIL: total - here}
            code.append((op, targets.get(yes, yes), targets.get(no, no), constant))
    return [*code, (_RET, 0, 0, value), *otherwise]


def _search(runs: list[tuple[int, list[Insn]]]) -> list[Insn]:
    """A binary search: each run is (first number, what to do from there on)."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    return _branch(_JGE, runs[middle][0], _search(runs[middle:]), _search(runs[:middle]))


def _section(architecture: str, rules: Sequence[tuple[str, Sequence[Spec], int]], default: int) -> list[Insn]:
    """The code for one architecture."""
    numbers = syscall_numbers.numbers(architecture)
    plain: dict[int, int] = {}
    chains: dict[int, list[tuple[Sequence[Spec], int]]] = {}
    for name, args, value in rules:
        number = numbers.get(name)
        if number is None:
            continue  # a call of another architecture
        if args:
            chains.setdefault(number, []).append((args, value))
        else:
            plain.setdefault(number, value)
    other: list[Insn] = [(_RET, 0, 0, default)]
    runs: list[tuple[int, list[Insn]]] = [(0, other)]
    for number in sorted({*plain, *chains}):
        code: list[Insn] = [(_RET, 0, 0, plain.get(number, default))]
        for args, value in reversed(chains.get(number, [])):
            code = _rule(args, value, code)
        runs.append((number, code))
        runs.append((number + 1, other))
    merged: list[tuple[int, list[Insn]]] = []
    for start, code in runs:
        if merged and merged[-1][0] == start:
            merged.pop()
        if not merged or merged[-1][1] != code:
            merged.append((start, code))
    return [(_LD, 0, 0, _NR), *_search(merged)]


def _rules(profile: Spec, default: int) -> list[tuple[str, Sequence[Spec], int]]:
    found: list[tuple[str, Sequence[Spec], int]] = []
    for row in profile.get("syscalls") or ():
        value = action(row["action"], row.get("errnoRet"))
        if value == default:
            continue
        args = row.get("args") or ()
        indexes = [arg["index"] for arg in args]
        # As in runc: conditions on the same argument can't all hold, so each is a rule of its own.
        groups = [[arg] for arg in args] if len(set(indexes)) < len(indexes) else [args]
        found += [(name, group, value) for name in row["names"] for group in groups]
    return found


def compile_filter(profile: Spec, machine: str = sc.MACHINE) -> bytes:
    """An array of struct sock_filter from the OCI spec's `linux.seccomp`.

    Raises ValueError for what can't be expressed, also for an architecture without a table.
    """
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    if machine not in syscall_numbers.NATIVE:
        raise ValueError(f"seccomp: no table of system calls for {machine}")
    native = syscall_numbers.NATIVE[machine]
    listed = profile.get("architectures") or native
    wanted = [native[0], *(name for name in native[1:] if name in listed)]
    rules = _rules(profile, default)
    code: list[Insn] = [(_RET, 0, 0, ACTIONS["SCMP_ACT_KILL_PROCESS"])]  # any other architecture
    for name in reversed(wanted):
        code = _branch(_JEQ, syscall_numbers.AUDIT_ARCH[name], _section(name, rules, default), code)
    code = [(_LD, 0, 0, _ARCH), *code]
    if len(code) > 4096:
        raise ValueError(f"seccomp: {len(code)} instructions, the kernel takes 4096")
    return b"".join(struct.pack("HBBI", *insn) for insn in code)


def notifies(profile: Spec) -> bool:
    """Whether any rule asks an agent in user space (SCMP_ACT_NOTIFY)."""
    rows = profile.get("syscalls") or ()
    return "SCMP_ACT_NOTIFY" in (profile.get("defaultAction"), *(row.get("action") for row in rows))


def flag_bits(flags: Iterable[str]) -> int:
    """The kernel's flags.  Raises ValueError for one that isn't known."""
    bits = 0
    for name in flags:
        if name not in FLAGS:
            raise ValueError(f"seccomp flag {name!r} is not supported")
        bits |= FLAGS[name]
    return bits


def load(program: bytes, flags: Iterable[str] = (), *, listener: bool = False) -> int:
    """Load a compiled filter into this process.  Needs no_new_privs or CAP_SYS_ADMIN.

    With `listener` the descriptor on which an agent gets the calls that ask for one.
    """
    bits = flag_bits(flags)
    if listener:
        bits |= sc.SECCOMP_FILTER_FLAG_NEW_LISTENER
        if bits & sc.SECCOMP_FILTER_FLAG_TSYNC:
            bits |= sc.SECCOMP_FILTER_FLAG_TSYNC_ESRCH  # else the kernel takes only one of the two
    return sc.seccomp_load(program, bits)


# What the usual default filter of container engines refuses, by the capability that lifts it.
_BY_CAPABILITY = {
    "CAP_SYS_ADMIN": "bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr "
    "move_mount open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname "
    "sethostname setns syslog umount umount2 unshare lsm_set_self_attr",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
}
_NEVER = (
    "_sysctl add_key afs_syscall bdflush create_module get_kernel_syms getpmsg io_uring_enter "
    "io_uring_register io_uring_setup kexec_file_load kexec_load keyctl migrate_pages move_pages nfsservctl "
    "putpmsg query_module request_key security swapoff swapon sysfs tuxcall uselib userfaultfd ustat "
    "vm86 vm86old vserver"
)
_NS_FLAGS = 0x7E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def default_profile(capabilities: Iterable[str] = (), machine: str = sc.MACHINE) -> dict[str, Any]:
    """The default filter as an OCI `linux.seccomp`, in the style of Docker's default list.

    Allowed is every call in our tables but those that engines usually refuse; what a capability lifts is
    allowed when it is in `capabilities`.  A call newer than the tables gets ENOSYS, so that libraries fall
    back, and so does clone3, whose flags a filter can't read.
    """
    held = {name.upper() for name in capabilities}
    lifted = {name for cap in held for name in _BY_CAPABILITY.get(cap, "").split()}
    refused = set(_NEVER.split())
    for names in _BY_CAPABILITY.values():
        refused |= set(names.split()) - lifted
    native = syscall_numbers.NATIVE.get(machine, ())
    known = {name for architecture in native for name in syscall_numbers.numbers(architecture)}
    special = {"personality", "socket"} | (set() if "CAP_SYS_ADMIN" in held else {"clone", "clone3"})
    allow = "SCMP_ACT_ALLOW"
    rows: list[dict[str, Any]] = [
        {"names": sorted(known - refused - special), "action": allow},
        {"names": sorted(known & refused), "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["socket"], "action": allow, "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},  # AF_VSOCK reaches the hypervisor
    ]
    for value in _PERSONALITIES:
        test = {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}
        rows.append({"names": ["personality"], "action": allow, "args": [test]})
    rows.append({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1})
    if "CAP_SYS_ADMIN" not in held:
        test = {"index": 0, "value": _NS_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rows.append({"names": ["clone"], "action": allow, "args": [test]})
        rows.append({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": list(native),
        "syscalls": rows,
    }
