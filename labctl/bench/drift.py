"""Whether the host itself stayed the same: one fixed piece of work, again and again between the tasks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDS = 60_000  # of PBKDF2: some 30 ms, all of it in OpenSSL
LIMIT = 0.05  # of the median: more than that between the first and the last third is called drift
SHAKY = 0.15  # interquartile range over median: above it the machine was not quiet


def probe() -> float:
    """Seconds for the fixed work: the best of three, so that one interrupt is not taken for the machine."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"labctl", b"bench", ROUNDS)
        best = min(best, time.perf_counter() - began)
    return best


@dataclass(frozen=True)
class Drift:
    """How the probes went: their number, the change from the first to the last third, their spread."""

    count: int
    change: float
    spread: float

    @property
    def drifted(self) -> bool:
        """Whether the machine was another one at the end than at the start."""
        return abs(self.change) > LIMIT

    @property
    def shaky(self) -> bool:
        """Whether it was not quiet meanwhile."""
        return self.spread > SHAKY

    @property
    def sentence(self) -> str:
        """What a reader should know."""
        if self.count < 3:
            return "Whether the machine drifted can't be told: the run was too short."
        way = "slower" if self.change > 0 else "faster"
        longer = "longer" if self.change > 0 else "less"
        told = f"fixed piece of work took {abs(self.change):.1%} {longer} at the end than at the start"
        if self.drifted:
            return f"The machine drifted: it was {way} at the end. A {told} ({self.count} probes)."
        noise = f"; it was not quiet meanwhile: the middle half of the probes spreads over {self.spread:.0%}"
        return f"No drift shown: a {told} ({self.count} probes{noise if self.shaky else ''})."


def judged(probes: Sequence[float]) -> Drift:
    """The verdict on the probes in their order."""
    import numpy as np

    if len(probes) < 3:
        return Drift(len(probes), 0.0, 0.0)
    third = max(1, len(probes) // 3)
    first, last = float(np.median(probes[:third])), float(np.median(probes[-third:]))
    q1, median, q3 = (float(v) for v in np.percentile(probes, [25, 50, 75]))
    return Drift(len(probes), last / first - 1, (q3 - q1) / median)
