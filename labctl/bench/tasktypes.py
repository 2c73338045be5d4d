"""A task: a benchmark as it is run, and the figures that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from labctl.bench.model import Benchmark, Better

if TYPE_CHECKING:
    from labctl.bench.places import Place
    from labctl.bench.site import Site


@dataclass(frozen=True)
class Figure:
    """One figure of a task."""

    name: str
    title: str
    unit: str
    better: Better


@dataclass(frozen=True)
class Task:
    """One benchmark as it is run.  `function` measures where no command does; it gives figure → number."""

    suite: str
    name: str
    title: str
    figures: tuple[Figure, ...]
    about: str = ""
    tool: str = ""
    warmup: int = 1
    limit: float = 60.0  # seconds
    seconds: float = 2.0
    needs: tuple[str, ...] = ()
    quick: bool = False
    early: bool = False  # measured before the other tasks have left their traces, and not again after them
    spec: Benchmark | None = None
    function: Callable[[Site, Place], dict[str, float]] | None = None
    origin: str = field(default="", compare=False)  # the file of a suite of one's own

    @property
    def key(self) -> str:
        """SUITE.NAME."""
        return f"{self.suite}.{self.name}"

    def to_json(self) -> dict[str, Any]:
        """What is kept of it with the samples."""
        spec = self.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True) if self.spec else {}
        return {
            "key": self.key,
            "suite": self.suite,
            "title": self.title,
            "about": self.about,
            "tool": self.tool,
            "seconds": self.seconds,
            "figures": [
                {"name": f.name, "title": f.title, "unit": f.unit, "better": str(f.better)}
                for f in self.figures
            ],
            "spec": spec,
        }
