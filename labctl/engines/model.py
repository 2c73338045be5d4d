"""What a driver of a container engine does, and the words it shares with the rooms above."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from labctl.errors import LabError
from labctl.linux import pidfds
from labctl.linux.cgroups import Cgroup, Layout
from labctl.records import dataclass

SECONDS = 60.0  # one command of an engine; what runs in the container is not bounded by it
END_SECONDS = 10.0


@dataclass(frozen=True)
class Box:
    """What names one container to its engine.

    `root` is the folder of the engine's own state, `id` its name there; `folder` is the node's own: bundle,
    writable layer, logs.  `cgroup` is the path "/labctl/INSTANCE/LAB/NODE" that says whose it is.
    """

    id: str
    root: str
    folder: str
    cgroup: str

    @property
    def log(self) -> dict[str, Path]:
        """The files that hold what the container prints, by stream; podman has one of its own beside them."""
        return {name: Path(self.folder, "log", name) for name in ("stdout", "stderr", "podman")}


@dataclass(frozen=True)
class State:
    """What an engine says of a container: created, running, paused or stopped, and its first process."""

    status: str
    pid: int = 0  # as this host numbers it, 0 when it doesn't run
    exit_code: int | None = None  # of one that has ended, None where the engine keeps none


@dataclass(frozen=True)
class Command:
    """A command that runs in a container: what to execute on this host, and the files that go with it."""

    argv: tuple[str, ...]
    folder: Path  # of its own, removed afterwards: what it needs and says of itself

    @property
    def errors(self) -> Path:
        """Where the engine writes why the command could not be run."""
        return self.folder / "log"

    @property
    def pid_file(self) -> Path:
        """Where runc and crun write the process's number."""
        return self.folder / "pid"


class Engine(Protocol):
    """A driver.  All verbs are idempotent and bounded in time, and raise LabError with the engine's words."""

    @property
    def name(self) -> str:
        """As the profile writes it."""

    @property
    def log_format(self) -> str:
        """ "plain": a file a stream; "k8s": one file whose lines begin with time, stream and F or P."""

    def version(self) -> str:
        """Its own word for its version.  Raises HostCannot when it isn't installed."""

    def start(self, box: Box) -> None:
        """Make and start a container that isn't there, from labctl.json in its folder."""

    def state(self, box: Box) -> State | None:
        """What it says now; None when there is no such container."""

    def group(self, box: Box) -> str:
        """The path of the control group that the container's processes are in."""

    def signal(self, box: Box, number: int) -> None:
        """Send a signal to the first process."""

    def freeze(self, box: Box, on: bool) -> None:
        """Pause or resume; being so already is fine."""

    def update(self, box: Box, resources: Mapping[str, Any]) -> bool:
        """Change limits while it runs; False when the engine has no way to."""

    def command(
        self, box: Box, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, user: str, tty: bool
    ) -> Command:
        """What runs a command in it.  The caller removes the folder of it."""

    def running(self, box: Box, command: Command) -> int:
        """The process of a command that runs now, as this host numbers it; 0 when there is none."""

    def delete(self, box: Box) -> None:
        """End it and let the engine forget it; absence is fine."""


def end_group(name: str, path: str, *, keep: bool = False) -> None:
    """Kill all of a control group, wait until it has ended, reaped or not, and remove it unless `keep`.

    Raises LabError, naming the container, when something stays.
    """
    group = Cgroup(path, Layout.detect())
    if group.exists():
        if group.frozen():
            group.freeze(False)
        _end(group)
    if keep:
        return
    try:
        group.remove(END_SECONDS)
    except (OSError, TimeoutError) as error:
        raise LabError(f"{name}: {error}") from error


def forget_parents(path: str) -> None:
    """Remove the control groups above that are empty; not while other nodes of the lab are started."""
    Cgroup(path, Layout.detect()).remove_empty_parents()


def _end(group: Cgroup) -> None:
    fds = []
    for pid in group.procs():
        try:
            fds.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    try:
        group.kill()
        for fd in fds:
            pidfds.ended(fd, END_SECONDS)
    finally:
        for fd in fds:
            os.close(fd)
