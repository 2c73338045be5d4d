"""The quick answer to an `up` that has nothing to do: asked before, made, and untouched since.

An `up` that ends well leaves a note of the lab: the command line and all that it read on the way to the plan
(inputs.py), with what identifies the content of each; and what the looks at every object of the lab went by
(looks.Signs).  While all of that is as it was, the whole way would read the same, plan the same, find every
object as it is, and answer the same.  The ledger takes the note away with the first change of the lab's rows.
Any doubt means None, and the whole way.

Loads little: this is what the quick answer costs.
"""

from __future__ import annotations

import fcntl
import os
import sys

from labctl.home import Home
from labctl.linux import proc
from labctl.runtime import jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

FORMAT = 1
FOLDER = "again"  # below the home's state, a file LAB-KEY for each lab
# What a shell changes from command to command and nothing reads.
RESTLESS = {"_", "SHLVL", "OLDPWD", "PWD"}

asked: list[str] = []
"""The command line of this process, where it is one that can be answered quickly."""


def standing(words: Sequence[str]) -> dict[str, Any] | None:
    """What the last `up` of these words answered, when it stands; None when that isn't certain."""
    try:
        return _standing(list(words))
    except Exception:  # noqa: BLE001 - whatever is wrong, the whole way finds it and says it
        return None


def _standing(words: list[str]) -> dict[str, Any] | None:
    state = str(Home.find().state)
    folder, tail = f"{state}/{FOLDER}", f"-{key(words)}"
    for name in os.listdir(folder):
        if not name.endswith(tail):
            continue
        path = f"{folder}/{name}"
        with open(path, encoding="utf-8") as file:
            note = jsonio.loads(file.read())
        if note["caller"] != caller(words) or not _unchanged(note["inputs"]):
            continue
        # Nobody may be at work on the lab while we look, and the note must have outlived whoever was.
        lock = os.open(f"{state}/locks/{note['lab']}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and gather(note["signs"]) == note["facts"]:
                answer: dict[str, Any] = note["answer"]
                return answer
        finally:
            os.close(lock)
    return None


def key(words: Iterable[str]) -> str:
    """A short name for a command line in a folder; the note holds both in full."""
    import zlib

    return f"{zlib.crc32(jsonio.dumps([os.getcwd(), list(words)]).encode()):08x}"


def caller(words: list[str]) -> list[Any]:
    """Who asks for what, from where, with which environment, on which boot of which kernel."""
    import hashlib

    env = sorted((name, value) for name, value in os.environ.items() if name not in RESTLESS)
    digest = hashlib.sha256(
        "\0".join(f"{name}={value}" for name, value in env).encode("utf-8", "surrogateescape")
    )
    spaces = [_identity(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid", "user", "cgroup")]
    size = os.sysconf("SC_PHYS_PAGES")
    return [
        *(FORMAT, words, os.getcwd(), digest.hexdigest(), os.geteuid(), os.getegid(), proc.boot_id()),
        *(spaces, size, sys.version, sys.executable),
    ]


# -- what was read


def _unchanged(inputs: Iterable[list[Any]]) -> bool:
    return all(fingerprint(path, how) == found for path, how, found in inputs)


def fingerprint(path: str, how: str) -> Any:
    """What identifies what is at a path: with `how` "s" by stat(2), "l" by lstat(2), "d" a folder's list,
    "v" the text that the kernel gives."""
    if how == "v":
        text = proc.read(path)
        return _cgroup_lines(text) if text and path.endswith("/mountinfo") else text
    try:
        info = _stat(path, follow_symlinks=how != "l")
    except OSError as error:
        return error.errno
    found = [info.st_mode, info.st_uid, info.st_gid, info.st_dev, info.st_ino]
    # The times of a folder say only that something in it came or went, those of /proc nothing at all.
    if (info.st_mode & 0o170000 != 0o040000 or how == "d") and not path.startswith(
        ("/proc/", "/sys/", "/dev/")
    ):
        found += [info.st_size, info.st_mtime_ns, info.st_ctime_ns]
    return found


_stat = os.stat  # inputs.py puts another in its place for a while


def _cgroup_lines(mountinfo: str) -> str:
    """Of all mounts only those of control groups decide anything."""
    return "\n".join(line.split(" ", 2)[2] for line in mountinfo.splitlines() if " - cgroup" in line)


# -- what is there


def gather(signs: Mapping[str, Any]) -> dict[str, Any]:
    """What the host says now about each of these signs (looks.Signs, merged)."""
    running = [_start(command) for command in signs["commands"]]
    files = [fingerprint(path, "s") for path in signs["files"]]
    places = [_identity(path) for path in signs["places"]]
    starts = [proc.start_ticks(pid) if proc.alive(pid) else None for pid in signs["processes"]]
    values = [proc.read(path) for path in signs["values"]]
    links, addresses = _links(signs["links"], signs["addresses"])
    found = {"files": files, "places": places, "processes": starts, "values": values}
    firewall = _firewall(signs["firewall"]) if signs["firewall"] else []
    said = [_said(pid, out) for pid, out in running]
    return {**found, "links": links, "addresses": addresses, "commands": said, "firewall": firewall}


def _firewall(tables: Sequence[str]) -> list[Any]:
    """Rules and comments of these tables; where iptables has tables of nftables' kind, whose rules count
    packets and so never look the same, the number that every change of any rule moves on."""
    from labctl.linux import netfilter

    there = netfilter.tables()
    foreign = {("ip", "filter"), ("ip6", "filter")} & there
    rules = [[rule.table, rule.chain, rule.comment] for rule in netfilter.rules() if rule.table in tables]
    return [rules, netfilter.generation() if foreign else 0]


def _start(command: Sequence[str]) -> tuple[int, int]:
    """Start a program: (pid, what it prints).  Several run at once, and while other things are looked at."""
    out, end = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, end, 1),
        ]
        return os.posix_spawn(command[0], list(command), os.environ, file_actions=actions), out
    finally:
        os.close(end)


def _said(pid: int, out: int) -> list[Any]:
    """[exit status, what it printed].  Raises TimeoutError when it takes longer than 10 s."""
    import select

    parts = []
    try:
        poll = select.poll()
        poll.register(out, select.POLLIN)
        while True:
            if not poll.poll(10_000):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                raise TimeoutError("a program doesn't end")
            part = os.read(out, 65536)
            if not part:
                break
            parts.append(part)
    finally:
        os.close(out)
    return [os.waitpid(pid, 0)[1], b"".join(parts).decode(errors="surrogateescape")]


def _identity(path: str) -> Any:
    try:
        info = _stat(path)
    except OSError as error:
        return error.errno
    return [info.st_mode, info.st_uid, info.st_gid, info.st_dev, info.st_ino]


def _links(names: Sequence[str], addressed: Sequence[str]) -> tuple[list[Any], list[Any]]:
    if not names:
        return [], []
    from labctl.linux import netlink

    with netlink.Netlink() as kernel:
        found = netlink.by_name(kernel.links())
        addresses = kernel.addresses() if addressed else []
    told: list[Any] = []
    for name in names:
        link = found.get(name)
        told.append(
            link and [link.index, link.up, link.mtu, link.mac, link.master, link.alias, link.kind, link.group]
        )
    have: list[Any] = []
    for name in addressed:
        index = found[name].index if name in found else 0
        have.append(sorted([a.address, a.scope] for a in addresses if a.index == index))
    return told, have
