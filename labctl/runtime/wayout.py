"""Whether a container's root can be left by chroot(2): tried by a process with the container's own rights.

The trick is as old as the call, and chroot(2) itself tells it: a process that changes its root once more, to
a folder further down, still stands outside of the new root, and nothing stops it from going up from there.
Where / is the top of a mount namespace there is nothing above (pivot_root(2)).  Nothing is written, and the
process ends at once.
"""

from __future__ import annotations

import os

from labctl.runtime.errors import ContainerError
from labctl.runtime.execute import Target, build_process, spawn_in
from labctl.runtime.process import Finisher

_DEEPEST = 256  # folders that a root may lie below the first one
_SECONDS = 10.0
_OUT, _IN, _REFUSED = 0, 3, 4  # exit codes


class _Climber(Finisher):
    """A process of the container that climbs in place of becoming a program."""

    def prepare(self) -> None:
        """Only stand in the root."""
        os.chdir("/")

    def become(self) -> None:
        """Try it with the container's filter loaded.  Never returns."""
        if self.program and not self.loaded:
            self._load()
        os._exit(_climbed())


def _climbed() -> int:
    home = os.stat(".")
    below = next((name for name in ("proc", "etc", "dev", "tmp", "usr") if os.path.isdir(name)), "")
    try:
        os.chroot(below)
        for _ in range(_DEEPEST):
            os.chdir("..")
    except OSError:
        return _REFUSED
    here = os.stat(".")
    return _IN if (here.st_dev, here.st_ino) == (home.st_dev, home.st_ino) else _OUT


def leaves_root(root: str, id_: str) -> bool:
    """Whether a process of root in the container `id_` of the store `root` gets out.

    Raises ContainerError when it can't be tried (it doesn't run, or may not change its root), OSError.
    """
    target = Target.of_container(root, id_)
    process = build_process(target.config, ["true"], cwd="/", user="0:0")
    process["user"] = {"uid": 0, "gid": 0}
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        climber = _Climber(process, target.config, b"")
        running = spawn_in(target, process, stdin=null, stdout=null, stderr=null, tied=True, finisher=climber)
    finally:
        os.close(null)
    try:
        code = running.wait(_SECONDS)
    except TimeoutError:
        running.end(9)
        raise ContainerError(f"no answer within {_SECONDS:g} s") from None
    finally:
        running.close()
    if code not in (_OUT, _IN):
        raise ContainerError("its processes may not change their root")
    return code == _OUT
