"""A comparison: the same observations of every node and of the bare host, side by side.

Which kernel a place has is told by the kernel's boot id, not by what the tier should give.  Namespaces are
compared by identity where there is one kernel, and never across kernels: there the numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from labctl.lab.model import SCHEMA_VERSION
from labctl.lab.observe import Observation
from labctl.records import dataclass

HOST = "this host"  # no node's name has a space in it


@dataclass(frozen=True)
class Column:
    """One place that was looked at, or the reason why it was not.

    `start_seconds` and `host_memory` (bytes) are None where they are not known or, as for a container inside
    a machine, can't be told apart.  Figures of an `emulated` place say nothing about real hardware.
    """

    name: str
    tier: str = ""  # as shown: "hardware → emulation" for a fallback
    state: str = ""
    runs_on: str = ""
    accelerator: str = ""
    inside: str = ""
    machine: bool = False  # a computer of its own, not a container
    emulated: bool = False
    reason: str = ""  # why it was not observed
    remedy: str = ""
    image: str = ""
    isolation: str = ""  # of a container
    leaves_root: bool | None = None  # whether root in it gets out of its / by chroot(2); None: not tried
    memory_given: int = 0  # bytes, 0: no limit
    cpus_given: float = 0.0  # 0: no limit
    start_seconds: float | None = None
    host_memory: int | None = None
    addresses: tuple[str, ...] = ()  # that labctl gave it
    seen: Observation | None = None

    @property
    def is_host(self) -> bool:
        """Whether it is the bare host."""
        return self.name == HOST

    @property
    def stands(self) -> bool:
        """Whether it is there at all, so that what is known from outside is true of it."""
        return self.state in ("starting", "running", "ready", "paused", "failed")


@dataclass(frozen=True)
class Row:
    """One thing that was looked at, in every column.

    `values` are for people; `raw` are the figures behind them (None: not known); `tones` say how a place
    stands to the host: "same", "own" (a namespace of its own) or "other" (another kernel).
    """

    key: str
    title: str
    meaning: str
    group: str
    values: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    tones: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The whole document.  `nodes` are the columns' names in their order, the host first."""

    lab: str
    nodes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    made: float = 0.0  # seconds since the epoch
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Cell:
    """One answer: in words, as a figure, and how it stands to the host."""

    text: str = ""
    raw: Any = None
    tone: str = ""


class Columns:
    """All columns, and how they stand to each other."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.by_name = {column.name: column for column in columns}

    def kernel_owner(self, column: Column) -> Column:
        """The column whose kernel runs in this one: itself, the host, or the machine it is inside."""
        if column.is_host:
            return column
        host = self.by_name.get(HOST, Column(HOST))
        machine = self.by_name.get(column.inside, Column(column.inside, machine=True))
        mine = column.seen.boot_id if column.seen else ""
        for other in (host, machine) if column.inside else (host,):
            if mine and other.seen and other.seen.boot_id == mine:
                return other
        if mine and host.seen and host.seen.boot_id:
            # Not the host's: that of the machine around it (which could not be asked), or its own.
            return machine if column.inside and not _known(machine) else column
        return column if column.machine else machine if column.inside else host

    def namespace(self, column: Column, kind: str) -> Cell:
        """Whether it shares this namespace with what its kernel runs on."""
        owner = self.kernel_owner(column)
        mine = column.seen.namespaces.get(kind, "") if column.seen else ""
        if column.is_host:
            return Cell("the host's", "host") if mine else Cell("this kernel has none", "none")
        if owner is column:
            return Cell("another kernel", "another kernel", "other")
        theirs = owner.seen.namespaces.get(kind, "") if owner.seen else ""
        where = "" if owner.is_host else f", inside {owner.name}'s kernel"
        if not mine:
            return Cell(f"its kernel has none{where}", "none")
        if not theirs:
            return Cell(f"not known{where}", None, "" if owner.is_host else "other")
        if mine == theirs:
            return Cell(f"same as {'host' if owner.is_host else owner.name}", "same", "same")
        return Cell(f"its own{where}", "own", "own")


def _known(column: Column) -> bool:
    return bool(column.seen and column.seen.boot_id)


def compared(lab: str, columns: Sequence[Column], made: float = 0.0) -> Comparison:
    """The document for these columns, the host's among them."""
    from labctl.lab.compare_rows import SPECS

    known = Columns(columns)
    rows = []
    for spec in SPECS:
        cells = {column.name: spec.cell(column, known) for column in columns}
        rows.append(
            Row(
                spec.key,
                spec.title,
                spec.meaning,
                spec.group,
                {name: cell.text for name, cell in cells.items()},
                {name: cell.raw for name, cell in cells.items()},
                {name: cell.tone for name, cell in cells.items() if cell.tone},
            )
        )
    return Comparison(lab, tuple(known.by_name), tuple(columns), tuple(rows), made)
