"""Namespaces: names, flags, files, and id maps (namespaces(7), user_namespaces(7))."""

from __future__ import annotations

import os

from labctl.linux import syscalls as sc

FLAGS = {
    "user": sc.CLONE_NEWUSER,
    "mount": sc.CLONE_NEWNS,
    "pid": sc.CLONE_NEWPID,
    "network": sc.CLONE_NEWNET,
    "ipc": sc.CLONE_NEWIPC,
    "uts": sc.CLONE_NEWUTS,
    "cgroup": sc.CLONE_NEWCGROUP,
    "time": sc.CLONE_NEWTIME,
}
"""The OCI spec's names, in the order in which they are entered: user first, since it gives the rights."""

FILES = {
    "user": "user",
    "mount": "mnt",
    "pid": "pid",
    "network": "net",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
    "time": "time",
}
"""The same names as files in /proc/PID/ns."""

ORDINARY = os.geteuid() != 0
"""Whether an ordinary user started us; still so where a namespace of ours makes that user root."""

IdMap = tuple[int, int, int]
"""(first id inside, first id outside, how many)."""


def identity(pid: int, name: str) -> str:
    """What /proc/PID/ns says, as "net:[4026531840]"; raises OSError when the process is gone."""
    return os.readlink(f"/proc/{pid}/ns/{FILES[name]}")


def nested() -> bool:
    """Whether this process lives in a user namespace of its own, where some rights are missing to root."""
    return read_map("/proc/self/uid_map") != [(0, 0, 0xFFFFFFFF)]


def write_maps(pid: int, uids: list[IdMap], gids: list[IdMap]) -> None:
    """Write uid_map and gid_map of a process that is alone in a new user namespace.  Raises OSError."""
    for kind, maps in (("uid_map", uids), ("gid_map", gids)):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in maps)
        fd = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def read_map(path: str) -> list[IdMap]:
    """Parse /proc/PID/uid_map or gid_map."""
    with open(path) as file:
        rows = [line.split() for line in file]
    return [(int(row[0]), int(row[1]), int(row[2])) for row in rows]


def to_host(maps: list[IdMap], inside: int) -> int:
    """The id outside for an id inside; with no map the same.  Raises ValueError when it is not mapped."""
    if not maps:
        return inside
    for first, outside, count in maps:
        if first <= inside < first + count:
            return outside + inside - first
    raise ValueError(f"id {inside} is not mapped in the user namespace")


def owner_outside(uids: list[IdMap], gids: list[IdMap]) -> tuple[int, int]:
    """uid and gid on the host of who a container with these maps is set up as."""
    return to_host(uids, first_inside(uids)), to_host(gids, first_inside(gids))


def first_inside(maps: list[IdMap]) -> int:
    """The id inside that a container is set up as: 0, or the first one where 0 is not mapped."""
    if not maps or any(first == 0 for first, _, _ in maps):
        return 0
    return maps[0][0]


def first_ids(pid: int | str) -> tuple[int, int]:
    """uid and gid, as seen there, that the user namespace of a process is set up as."""
    uids, gids = (read_map(f"/proc/{pid}/{name}") for name in ("uid_map", "gid_map"))
    return first_inside(uids), first_inside(gids)


def is_own(kind: str, path: str) -> bool:
    """Whether a namespace by path is the one that this process itself is in."""
    try:
        return os.path.samestat(os.stat(path), os.stat(f"/proc/self/ns/{FILES[kind]}"))
    except OSError:
        return False  # what is wrong with the path is said when it is entered


def become(uid: int, gid: int) -> None:
    """Take these ids, without further groups.  Raises OSError."""
    set_groups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def set_groups(groups: list[int]) -> None:
    """Take these further groups.  Raises OSError.

    An ordinary user who has mapped no other group may not even let go of its own (user_namespaces(7)).
    """
    try:
        os.setgroups(groups)
    except PermissionError:
        if groups or not ORDINARY:
            raise


def pin(path: str, kind: str, *, user: str = "", uids: list[IdMap] | None = None) -> None:
    """Make a namespace that outlives its maker: bound onto the file `path` (made when missing).

    `kind` is "network", "user", "ipc" or "uts".  `user` is the path of a pinned user namespace that shall
    own it: a container has rights over its network (port 80, raw sockets, `ip link`) only when its user
    namespace owns that.  `uids` maps a new user namespace (groups alike).  The caller must not mind a fork.
    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444)
    os.close(fd)
    owner = os.open(user, os.O_RDONLY | os.O_CLOEXEC) if user else -1
    ready, tell = os.pipe2(os.O_CLOEXEC)
    hold, release = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _pinned_child(kind, owner, tell, hold, release)
    os.close(tell)
    os.close(hold)
    try:
        answer = os.read(ready, 16)
        if answer != b"ok":
            number = int(answer or b"5")
            raise sc.SyscallError(number, "unshare", f"{kind} namespace for {path}")
        if kind == "user":
            write_maps(pid, uids or [(0, 0, 1)], uids or [(0, 0, 1)])
        sc.mount(f"/proc/{pid}/ns/{FILES[kind]}", path, None, sc.MS_BIND)
    finally:
        os.close(release)
        os.close(ready)
        if owner >= 0:
            os.close(owner)
        os.waitpid(pid, 0)


def _pinned_child(kind: str, owner: int, tell: int, hold: int, release: int) -> None:
    """Enter the owner, make the namespace, say so, and wait until it is bound.  Never returns."""
    status = 0
    try:
        os.close(release)
        if owner >= 0:
            sc.setns(owner, sc.CLONE_NEWUSER, "owner")
        sc.unshare(FLAGS[kind])
        os.write(tell, b"ok")
        os.read(hold, 1)
    except OSError as error:
        os.write(tell, str(error.errno or 5).encode())
        status = 1
    finally:
        os._exit(status)


def unpin(path: str) -> None:
    """Undo `pin`; a path that is absent or no mount is fine."""
    try:
        while True:
            sc.umount(path, sc.MNT_DETACH)
    except OSError as error:
        if error.errno not in (2, 22):  # ENOENT, EINVAL: nothing (more) is mounted there
            raise
    if os.path.lexists(path):
        os.unlink(path)
