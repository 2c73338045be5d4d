"""What a driver of a container engine does, and the words it shares with the rooms above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from labctl.records import dataclass

SECONDS = 60.0  # one command of an engine; what runs in the container is not bounded by it


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
        """The files that hold what the container prints, by stream."""
        return {name: Path(self.folder, "log", name) for name in ("stdout", "stderr")}


@dataclass(frozen=True)
class State:
    """What an engine says of a container: created, running, paused or stopped, and its first process."""

    status: str
    pid: int = 0  # as this host numbers it, 0 when it doesn't run


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
        """Where the engine writes the process's number."""
        return self.folder / "pid"


class Engine(Protocol):
    """A driver.  All verbs are idempotent and bounded in time, and raise LabError with the engine's words."""

    @property
    def name(self) -> str:
        """As the profile writes it."""

    def version(self) -> str:
        """Its own word for its version.  Raises HostCannot when it isn't installed."""

    def start(self, box: Box) -> None:
        """Make and start a container that isn't there, from labctl.json in its folder."""

    def state(self, box: Box) -> State | None:
        """What it says now; None when there is no such container."""

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

    def delete(self, box: Box) -> None:
        """End it and let the engine forget it; absence is fine."""
