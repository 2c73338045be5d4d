"""The process that holds the image's files for the host: `python -I -S host_holder.py JSON`.

It mounts in a namespace of its own, goes into the new root, says "ready" and waits for the end of its
standard input, which comes however labctl ends.  Then it kills what still runs in that root and removes what
was written.  Standard library and labctl.linux only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from labctl.linux import syscalls as sc

DATA = "/var/tmp/labctl-bench"


def main() -> int:
    """Mount what argv[1] describes, and hold it."""
    words = json.loads(sys.argv[1])
    folder = words["folder"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is labctl's affair; we end with it
    # Held as long as we live: who finds the folder without it may remove it.
    lock = os.open(f"{folder}/lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    parent = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    root = f"{folder}/root"
    layers = words["layers"]
    os.chdir(os.path.dirname(layers[0]))  # noqa: PTH120 - relative names keep within the page mount(2) takes
    options = "lowerdir=" + ":".join(os.path.relpath(layer) for layer in reversed(layers))
    options += f",upperdir={folder}/upper,workdir={folder}/work"
    sc.mount("overlay", root, "overlay", 0, options)
    for name in ("proc", "sys", "dev", "run", DATA.lstrip("/")):
        os.makedirs(f"{root}/{name}", exist_ok=True)  # noqa: PTH103
    for name in ("proc", "sys", "dev"):
        sc.mount(f"/{name}", f"{root}/{name}", None, sc.MS_BIND | sc.MS_REC)
    # Files to measure with lie on the host's own file system, not on the overlay.
    sc.mount(f"{folder}/data", f"{root}{DATA}", None, sc.MS_BIND)
    sc.mount("run", f"{root}/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755")
    os.chdir(root)
    sc.pivot_root(".", ".")
    sc.umount(".", sc.MNT_DETACH)
    os.chdir("/")
    os.write(1, b"ready\n")
    while os.read(0, 4096):
        pass
    end_all()
    shutil.rmtree(os.path.basename(folder), ignore_errors=True, dir_fd=parent)  # noqa: PTH119
    return 0


def end_all() -> None:
    """Kill every process that sees these mounts, but this one."""
    mine = os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    for _ in range(50):
        left = 0
        for name in os.listdir("/proc"):  # noqa: PTH208
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            with suppress(OSError):  # it has ended meanwhile
                if os.readlink(f"/proc/{name}/ns/mnt") == mine:  # noqa: PTH115
                    os.kill(int(name), signal.SIGKILL)
                    left += 1
        if not left:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(1)
