"""The kernel's own calls: one thin wrapper each, and one error path.

Every wrapper raises `SyscallError`, an OSError that carries errno and names the call and the object it was
about ("move_mount /proc: Operation not permitted").  Nothing here decides anything.

Only struct, os and the C half of ctypes are imported: they cost 2 ms in a cold process where `socket`,
`signal` or `typing` would cost 5 to 12 ms each.  Sources: the man-pages project, sections 2 and 7, and
include/uapi/linux/{mount,sched,capability,seccomp}.h for what has no page.
"""

from __future__ import annotations

import os
import struct

from labctl.linux import cdata as ctypes

# Called without the interpreter lock; errno is kept per thread by ctypes.
_libc = ctypes.CDLL(None, use_errno=True)
# Called with the lock held: a clone must not return in the child to a lock that nobody will release.
_locked = ctypes.PyDLL(None, use_errno=True)

MACHINE = os.uname().machine
TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
"""ioctl_tty(2): the `termios` module costs half a millisecond."""

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000

CLONE_VM = 0x100
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x80
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_DETACH = 2
PROC_SUPER_MAGIC = 0x9FA0

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

# The few calls without a libc function and with a number of their own per architecture.
_GENERIC = {"seccomp": 277, "clone": 220, "keyctl": 219, "bpf": 280, "sched_setattr": 274, "ioprio_set": 30}
_OLD_NUMBERS = {
    "x86_64": {
        "seccomp": 317,
        "clone": 56,
        "keyctl": 250,
        "bpf": 321,
        "sched_setattr": 314,
        "ioprio_set": 251,
    },
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}
# Since Linux 5.1 a new call has one number on every architecture.
_NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    **_OLD_NUMBERS.get(MACHINE, {}),
}

StrPath = str  # every path is text here; bytes that are no UTF-8 travel as surrogates (os.fsencode)


class SyscallError(OSError):
    """A system call failed: `call` is its name, `about` the object, `errno` the reason.

    As with OSError itself, ENOENT makes an instance that is a FileNotFoundError as well, and so on.
    """

    def __new__(cls, number: int, call: str, about: str) -> SyscallError:
        return super().__new__(_KINDS.get(number, cls), number, os.strerror(number))

    def __init__(self, number: int, call: str, about: str) -> None:
        super().__init__(number, os.strerror(number))
        self.call = call
        self.about = about

    def __str__(self) -> str:
        what = f"{self.call} {self.about}" if self.about else self.call
        return f"{what}: {self.strerror}"


class _MissingError(SyscallError, FileNotFoundError):
    """ENOENT."""


class _ThereError(SyscallError, FileExistsError):
    """EEXIST."""


class _RightsError(SyscallError, PermissionError):
    """EPERM and EACCES."""


class _NoProcessError(SyscallError, ProcessLookupError):
    """ESRCH."""


class _NoFolderError(SyscallError, NotADirectoryError):
    """ENOTDIR."""


_KINDS: dict[int, type[SyscallError]] = {
    1: _RightsError,
    2: _MissingError,
    3: _NoProcessError,
    13: _RightsError,
    17: _ThereError,
    20: _NoFolderError,
}


def _fail(call: str, about: str) -> SyscallError:
    return SyscallError(ctypes.get_errno(), call, about)


def _raw(name: str, about: str, *args: object) -> int:
    """Call by number; raises SyscallError."""
    try:
        number = _NUMBERS[name]
    except KeyError:
        raise SyscallError(38, name, f"{about} (no number known for {MACHINE})") from None
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise _fail(name, about)
    return result


def _name(path: StrPath | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


_libc.syscall.restype = ctypes.c_long
_locked.syscall.restype = ctypes.c_long
_u64 = ctypes.c_uint64


def clone(flags: int, *, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent.

    `cgroup` is a descriptor of a cgroup v2 folder to be born in.  Falls back to clone(2) where a filter
    answers ENOSYS to clone3(2) and no cgroup was asked for.  The caller must have one thread only.
    """
    pidfd = ctypes.c_int(-1)
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    # A child with CLONE_PARENT tells its end by the signal that its parent was made with.
    end_signal = 0 if flags & CLONE_PARENT else 17
    words = [flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, end_signal, 0, 0, 0, 0, 0, max(cgroup, 0)]
    args = struct.pack("11Q", *words)
    number = ctypes.c_long(_NUMBERS["clone3"])
    pid: int = _locked.syscall(number, args, ctypes.c_size_t(len(args)))
    if pid < 0 and ctypes.get_errno() == 38 and cgroup < 0 and "clone" in _NUMBERS:
        old = ctypes.c_long(_NUMBERS["clone"])
        word = ctypes.c_ulong(flags | CLONE_PIDFD | 17)
        # x86-64 and the generic ABI agree on the first three arguments: flags, stack, parent_tid.
        pid = _locked.syscall(old, word, None, ctypes.byref(pidfd), None, None)
    if pid < 0:
        raise _fail("clone", f"flags {flags:#x}")
    if pid == 0:
        return 0, -1
    os.set_inheritable(pidfd.value, False)
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise _fail("unshare", f"flags {flags:#x}")


def setns(fd: int, kind: int, about: str = "") -> None:
    """setns(2): enter the namespaces `kind` of a namespace file or of a pidfd."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)) < 0:
        raise _fail("setns", about)


def mount(
    source: StrPath | None, target: StrPath, fstype: StrPath | None, flags: int, data: str = ""
) -> None:
    """mount(2)."""
    word = ctypes.c_ulong(flags)
    if _libc.mount(_name(source), _name(target), _name(fstype), word, _name(data or None)) < 0:
        raise _fail("mount", f"{fstype or source or ''} on {target}".strip())


def umount(target: StrPath, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(_name(target), ctypes.c_int(flags)) < 0:
        raise _fail("umount", target)


def pivot_root(new: StrPath, old: StrPath) -> None:
    """pivot_root(2)."""
    if _libc.pivot_root(_name(new), _name(old)) < 0:
        raise _fail("pivot_root", new)


def open_tree(dirfd: int, path: StrPath, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy."""
    return _raw("open_tree", path, ctypes.c_int(dirfd), _name(path), ctypes.c_uint(flags | OPEN_TREE_CLOEXEC))


def move_mount(fd: int, dirfd: int, path: StrPath, about: str = "") -> None:
    """move_mount(2): attach the mount `fd` at `path` ("" = the file `dirfd` itself)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    args = (ctypes.c_int(fd), b"", ctypes.c_int(dirfd), _name(path), ctypes.c_uint(flags))
    _raw("move_mount", about or path, *args)


def mount_setattr(
    dirfd: int,
    path: StrPath,
    flags: int,
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns: int = 0,
) -> None:
    """mount_setattr(2); `userns` is the descriptor of the user namespace for MOUNT_ATTR_IDMAP."""
    attr = struct.pack("4Q", set_, clear, propagation, userns)
    args = (ctypes.c_int(dirfd), _name(path), ctypes.c_uint(flags), attr, ctypes.c_size_t(len(attr)))
    _raw("mount_setattr", path or f"descriptor {dirfd}", *args)


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system that is being configured."""
    return _raw("fsopen", fstype, _name(fstype), ctypes.c_uint(FSOPEN_CLOEXEC))


def fsconfig(
    fd: int, command: int, key: str | None = None, value: str | None = None, about: str = ""
) -> None:
    """fsconfig(2), for flags, strings and the create command."""
    args = (ctypes.c_int(fd), ctypes.c_uint(command), _name(key), _name(value), ctypes.c_int(0))
    _raw("fsconfig", about or key or "", *args)


def fsmount(fd: int, attributes: int = 0, about: str = "") -> int:
    """fsmount(2): a detached mount of the file system configured in `fd`."""
    args = (ctypes.c_int(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))
    return _raw("fsmount", about, *args)


def openat2(dirfd: int, path: StrPath, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2)."""
    how = struct.pack("3Q", flags | os.O_CLOEXEC, mode, resolve)
    return _raw("openat2", path, ctypes.c_int(dirfd), _name(path), how, ctypes.c_size_t(len(how)))


def close_range(first: int, last: int = 0xFFFFFFFF, *, cloexec: bool = False) -> None:
    """close_range(2): close (or mark close-on-exec) every descriptor from `first` to `last`."""
    flags = 4 if cloexec else 0
    _raw("close_range", f"{first}-", ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(flags))


def pidfd_open(pid: int) -> int:
    """pidfd_open(2)."""
    return _raw("pidfd_open", f"pid {pid}", ctypes.c_int(pid), ctypes.c_uint(0))


def pidfd_send_signal(fd: int, signal: int) -> None:
    """pidfd_send_signal(2)."""
    args = (ctypes.c_int(fd), ctypes.c_int(signal), None, ctypes.c_uint(0))
    _raw("pidfd_send_signal", f"signal {signal}", *args)


def pidfd_getfd(fd: int, target: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor."""
    args = (ctypes.c_int(fd), ctypes.c_int(target), ctypes.c_uint(0))
    return _raw("pidfd_getfd", f"descriptor {target}", *args)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with number arguments."""
    words = [ctypes.c_ulong(arg) for arg in (arg2, arg3, arg4, arg5)]
    result: int = _libc.prctl(ctypes.c_int(option), *words)
    if result < 0:
        raise _fail("prctl", f"option {option}")
    return result


def sethostname(name: str) -> None:
    """sethostname(2)."""
    text = os.fsencode(name)
    if _libc.sethostname(text, ctypes.c_size_t(len(text))) < 0:
        raise _fail("sethostname", name)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    text = os.fsencode(name)
    if _libc.setdomainname(text, ctypes.c_size_t(len(text))) < 0:
        raise _fail("setdomainname", name)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), version 3, for this thread; each set is a bit mask."""
    header = struct.pack("Ii", 0x20080522, 0)
    words = []
    for shift in (0, 32):
        words += [(mask >> shift) & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    if _libc.capset(header, struct.pack("6I", *words)) < 0:
        raise _fail("capset", f"permitted {permitted:#x}")


def seccomp_load(program: bytes, flags: int = 0) -> int:
    """seccomp(2) SECCOMP_SET_MODE_FILTER with `program`, an array of struct sock_filter.

    With SECCOMP_FILTER_FLAG_NEW_LISTENER the descriptor of the listener, else 0.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    args = (ctypes.c_uint(SECCOMP_SET_MODE_FILTER), ctypes.c_uint(flags), fprog)
    return _raw("seccomp", f"filter of {len(program) // 8} instructions", *args)


def sched_setattr(attributes: bytes, about: str = "") -> None:
    """sched_setattr(2) for this process, with a struct sched_attr."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _raw("sched_setattr", about, ctypes.c_int(0), buffer, ctypes.c_uint(0))


def ioprio_set(value: int, about: str = "") -> None:
    """ioprio_set(2) for this process (IOPRIO_WHO_PROCESS)."""
    _raw("ioprio_set", about, ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int(value))


def personality(value: int) -> None:
    """personality(2)."""
    if _libc.personality(ctypes.c_ulong(value)) < 0:
        raise _fail("personality", f"{value:#x}")


def bpf(command: int, attributes: bytes, about: str = "") -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _raw("bpf", about, ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))


def join_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a new keyring, so that the caller's is not inherited."""
    _raw("keyctl", "session keyring", ctypes.c_int(1), None)


def filesystem_type(path: StrPath) -> int:
    """The magic number of the file system that `path` is on: f_type of statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(_name(path), buffer) < 0:
        raise _fail("statfs", path)
    (kind,) = struct.unpack_from("l", buffer.raw)
    return int(kind)


def address(data: ctypes.Array[ctypes.c_char]) -> int:
    """Where `data` lies in memory, for the calls that take pointers inside a struct."""
    return ctypes.addressof(data)
