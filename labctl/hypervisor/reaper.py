"""The small process that holds our private libvirtd: its mount namespace and its children.

Run by path as `python -I -S reaper.py STATE_FOLDER`; standard library only, imports nothing of labctl.
It reads one JSON line from standard input and does nothing before that line, so that its pid is on
disk before anything exists.  End of file instead of the line: whoever started us is dead; we leave.

The line: {"binds": [[source, target], …], "hide": [path, …], "argv": […], "env": {…}, "log": path}.

QEMU daemonises itself, so its processes would become children of PID 1, and libvirtd waits for a dead
QEMU by polling until PID 1 has reaped it (seconds with some inits).  As a subreaper (prctl(2),
PR_SET_CHILD_SUBREAPER) we reap at once.  When libvirtd is killed, the QEMUs stay our children; we
leave when the last child has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 1 << 19  # linux/mount.h
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, flags: int) -> None:
    result = _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)
    _check(result, f"mount {source} on {target}")


def separate(binds: list[list[str]], hide: list[str]) -> None:
    """Enter our own mount namespace and lay the daemon's folders over the distribution's.

    Slave propagation: a mount made on the host later (a disk, a share) is seen by QEMU, and nothing
    of ours is seen on the host.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _mount("none", "/", MS_REC | MS_SLAVE)
    for source, target in binds:
        _mount(source, target, MS_BIND)
    for path in hide:
        # Failing means that nothing is mounted there: then there is nothing to hide.
        _libc.umount2(path.encode(), MNT_DETACH)


def start(argv: list[str], env: dict[str, str]) -> int:
    """Fork and execute the daemon; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execve(argv[0], argv, env)
    finally:
        os._exit(127)


def main() -> int:
    """Wait for the line, start the daemon, reap until no child is left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return 0
    order = json.loads(line)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    for here, there in ((null, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.closerange(3, 256)
    os.chdir("/")
    separate(order["binds"], order["hide"])
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")
    start(order["argv"], order["env"])
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    sys.exit(main())
