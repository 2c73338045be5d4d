"""Everything on the host that carries this home's mark, whoever remembers it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from labctl.errors import LabError
from labctl.home import Home
from labctl.tiers.folders import remove_tree


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
        remove_tree(self.home.lab(self.lab))


@dataclass(frozen=True)
class _Containers:
    home: Home
    lab: str
    instance: str
    kind: str = "containers"

    @property
    def name(self) -> str:
        return f"/labctl/{self.instance}/{self.lab}"

    def remove(self) -> None:
        from labctl.linux import cgroups

        try:
            cgroups.remove_tree(self.name)
        except OSError as error:
            raise LabError(f"cannot remove the cgroup {self.name}: {error}") from error


def find(home: Home, instance: str) -> Iterator[Marked]:
    """All marked objects, in an order in which they can be removed: users before what they use."""
    from labctl.linux import cgroups

    for lab in cgroups.children(f"/labctl/{instance}"):
        yield _Containers(home, lab, instance)
    yield from _domains(home, instance)
    from labctl.network import found

    yield from found.find_marked(instance)
    labs = home.state / "labs"
    for folder in sorted(labs.iterdir()) if labs.is_dir() else ():
        yield _Folder(home, folder.name)


def _domains(home: Home, instance: str) -> Iterator[Marked]:
    from labctl.hypervisor import connection, private
    from labctl.hypervisor.found import find_marked

    if not private.domains(home) and not any(map(_exists, connection.SYSTEM_SOCKETS)):
        return
    yield from find_marked(instance, connection.connect(None, home))


def _exists(path: str) -> bool:
    import os

    return os.path.exists(path)  # noqa: PTH110 - a plain string from another room
