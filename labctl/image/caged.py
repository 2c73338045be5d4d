"""Run a program that reads what strangers made: it may write into one folder, and open no device.

Started as `python -I -S caged.py FOLDER PROGRAM ARGUMENTS…`.  In a mount namespace of its own everything
but the folder is read-only, recursively, and no device file can be opened (mount_setattr(2)).  The
program keeps its rights over the folder: owners and modes can be set there.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from labctl.linux import syscalls as sc


def main() -> None:
    """Close the cage and become the program; exit code 125 with a word on stderr when that fails."""
    folder, *argv = sys.argv[1:]
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, 9)
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount(folder, folder, None, sc.MS_BIND)
        closed = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOSUID
        sc.mount_setattr(sc.AT_FDCWD, "/", sc.AT_RECURSIVE, set_=closed)
        sc.mount_setattr(sc.AT_FDCWD, folder, 0, clear=sc.MOUNT_ATTR_RDONLY)
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]} apart from the host: {error}\n")
        sys.exit(125)


if __name__ == "__main__":
    main()
