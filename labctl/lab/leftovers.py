"""Everything on the host that carries this home's mark, whoever remembers it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from labctl.errors import LabError
from labctl.home import Home
from labctl.looks import parse_mark
from labctl.network.marks import Found
from labctl.records import dataclass
from labctl.runtime import client as containers
from labctl.runtime.errors import ContainerError
from labctl.tiers.chroot import mounted_below, unmount_below
from labctl.tiers.folders import remove_tree
from labctl.tiers.registry_server import servers


class Marked(Protocol):
    """A marked object: what it is, whose, and how to remove it."""

    @property
    def kind(self) -> str:
        """link, table, domain …"""

    @property
    def name(self) -> str:
        """As the host calls it."""

    @property
    def lab(self) -> str:
        """The lab's id."""

    def remove(self) -> None:
        """Remove it; raises LabError."""


@dataclass(frozen=True)
class _Folder:
    home: Home
    lab: str
    kind: str = "folder"

    @property
    def name(self) -> str:
        return str(self.home.lab(self.lab))

    def remove(self) -> None:
        """End the keeper of its containers, which are gone by now, and remove it."""
        folder = self.home.lab(self.lab)
        if (folder / "run").is_dir():
            try:
                containers.KeeperClient(folder / "run").close()
            except (ContainerError, OSError) as error:
                raise LabError(f"the keeper of {folder} does not end: {error}") from error
        remove_tree(folder)


@dataclass(frozen=True)
class _Container:
    found: containers.Found
    kind: str = "container"

    @property
    def name(self) -> str:
        return self.found.cgroup

    @property
    def lab(self) -> str:
        return self.found.lab

    def remove(self) -> None:
        try:
            self.found.remove()
        except (ContainerError, OSError) as error:
            raise LabError(f"cannot remove the container of {self.name}: {error}") from error


@dataclass(frozen=True)
class _Root:
    """The root of a chroot node, mounted in the folder of its lab: a mount itself carries no mark."""

    lab: str
    folder: Path
    kind: str = "root"

    @property
    def name(self) -> str:
        return f"mounts below {self.folder}"

    def remove(self) -> None:
        try:
            unmount_below(str(self.folder))
        except OSError as error:
            raise LabError(f"cannot unmount what is below {self.folder}: {error}") from error


@dataclass(frozen=True)
class _Network:
    found: Found

    @property
    def kind(self) -> str:
        return self.found.kind

    @property
    def name(self) -> str:
        return self.found.what

    @property
    def lab(self) -> str:
        return self.found.owner.lab

    def remove(self) -> None:
        self.found.remove()


@dataclass(frozen=True)
class _Registry:
    pid: int
    mark: str
    lab: str
    kind: str = "registry"

    @property
    def name(self) -> str:
        return f"docker-registry, process {self.pid}"

    def remove(self) -> None:
        from labctl.tiers.registry_server import end_server

        end_server(self.pid, self.mark)


def find(home: Home, instance: str) -> Iterator[Marked]:
    """All marked objects, in an order in which they can be removed: users before what they use."""
    for found in containers.find_marked(instance):
        yield _Container(found)
    yield from _domains(home, instance)
    for pid, mark in list(servers()):
        parsed = parse_mark(mark)
        if parsed and parsed[0].instance == instance:
            yield _Registry(pid, mark, parsed[0].lab)
    from labctl.network.marks import find_marked

    for thing in find_marked(instance, str(home.state / "labs")):
        yield _Network(thing)
    labs = home.state / "labs"
    for folder in sorted(labs.iterdir()) if labs.is_dir() else ():
        if any(mounted_below(f"{folder}/roots")):
            yield _Root(folder.name, folder / "roots")
        yield _Folder(home, folder.name)


def _domains(home: Home, instance: str) -> Iterator[Marked]:
    from labctl.hypervisor import connection, private
    from labctl.hypervisor.found import find_marked

    # No daemon is started only to hear that it knows nothing.
    asked = bool(private.domains(home)) or any(Path(path).exists() for path in connection.SYSTEM_SOCKETS)
    yield from find_marked(instance, connection.connect(None, home) if asked else None)
