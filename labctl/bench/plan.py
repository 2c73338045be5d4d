"""How much is run: numbers, precision, budget; and the order."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labctl.bench.tasktypes import Task

FEWEST = 5  # below that no difference can be shown, see statistics.ALPHA
QUICK_MOST, MOST = 12, 40
QUICK_BUDGET, BUDGET = 240.0, 3600.0  # seconds


@dataclass(frozen=True)
class Plan:
    """`runs` fixes the number (0: as many as the precision asks for); `budget` in seconds; 0: no bound."""

    runs: int = 0
    precision: float = 0.05
    budget: float = BUDGET
    most: int = MOST
    baseline: str = "host"
    seed: int = 1

    @property
    def least(self) -> int:
        """Runs that are made in each place before the precision is asked for."""
        return self.runs or FEWEST

    @property
    def limit(self) -> int:
        """Runs after which no further one is made."""
        return self.runs or self.most

    def to_json(self) -> dict[str, Any]:
        """For the first line of a run."""
        return asdict(self)


def order(places: Sequence[str], key: str, turn: int, seed: int) -> list[str]:
    """The places in the order of this turn: shuffled anew each time, the same for the same seed."""
    shuffled = sorted(places)
    random.Random(f"{seed}:{key}:{turn}").shuffle(shuffled)
    return shuffled


def digest(tasks: Sequence[Task], places: Sequence[str], plan: Plan) -> str:
    """What must be equal for a run to be continued: the same work in the same places."""
    words = {"tasks": [task.to_json() for task in tasks], "places": sorted(places), "baseline": plan.baseline}
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]
