"""Medians with intervals, ratios, and whether two sets of samples differ: NumPy and SciPy, no own formulas.

All intervals are 95 % percentile bootstrap intervals (scipy.stats.bootstrap) with a fixed seed, so that
the same samples give the same report.  A difference is called one only when the Mann-Whitney test says so
at ALPHA and the ratio's interval leaves out 1: two answers to one question, so that a lucky interval of few
samples does not count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import comb, isfinite

LEVEL = 0.95
ALPHA = 0.01
RESAMPLES = 2000
_SEED = 20150329  # any number; fixed, so that reports can be made again


@dataclass(frozen=True)
class Summary:
    """What is told of one set of samples.  `outliers` are places in the list, by Tukey's fences (1.5 IQR)."""

    count: int
    median: float
    low: float
    high: float
    minimum: float
    maximum: float
    p95: float
    p99: float
    spread: float  # interquartile range over median
    outliers: tuple[int, ...] = ()

    @property
    def precision(self) -> float:
        """Half of the interval's width, as a share of the median; infinite when it can't be told."""
        if self.count < 2:
            return float("inf")
        if self.high == self.low:
            return 0.0
        return abs((self.high - self.low) / 2 / self.median) if self.median else float("inf")


class Verdict(StrEnum):
    """How a place stands to the baseline."""

    HIGHER = "higher"
    LOWER = "lower"
    SAME = "no difference shown"
    FEW = "too few runs to tell"


@dataclass(frozen=True)
class Ratio:
    """One set over another: of medians, with its interval; the test, and how large the effect is.

    `effect` is Cliff's delta (the rank-biserial correlation): 1 when every sample of the first is above every
    one of the second, -1 the other way, 0 when they lie alike.
    """

    ratio: float
    low: float
    high: float
    p: float
    effect: float
    verdict: Verdict


def summary(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample."""
    import numpy as np

    values = np.asarray(samples, dtype=float)
    q1, median, q3, p95, p99 = (float(v) for v in np.percentile(values, [25, 50, 75, 95, 99]))
    low, high = _median_interval(values, median)
    reach = 1.5 * (q3 - q1)
    outliers = tuple(int(i) for i in np.flatnonzero((values < q1 - reach) | (values > q3 + reach)))
    return Summary(
        count=len(values),
        median=median,
        low=low,
        high=high,
        minimum=float(values.min()),
        maximum=float(values.max()),
        p95=p95,
        p99=p99,
        spread=abs((q3 - q1) / median) if median else 0.0,
        outliers=outliers if len(values) >= 4 else (),
    )


def _bootstrapped(data: tuple[object, ...], statistic: Callable[..., object]) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic; the same samples give the same one."""
    import numpy as np
    from scipy import stats

    found = stats.bootstrap(
        data,
        statistic,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _median_interval(values: object, median: float) -> tuple[float, float]:
    import numpy as np

    array = np.asarray(values, dtype=float)
    if len(array) < 2 or float(array.min()) == float(array.max()):
        return median, median
    return _bootstrapped((array,), np.median)


def compared(samples: Sequence[float], baseline: Sequence[float]) -> Ratio | None:
    """The samples over the baseline; None when the baseline's median is 0 or one of them is empty."""
    import numpy as np
    from scipy import stats

    if not len(samples) or not len(baseline):
        return None
    mine, theirs = np.asarray(samples, dtype=float), np.asarray(baseline, dtype=float)
    below = float(np.median(theirs))
    if below == 0:
        return None
    ratio = float(np.median(mine)) / below
    low, high = _ratio_interval(mine, theirs, ratio)
    found = stats.mannwhitneyu(mine, theirs, alternative="two-sided")
    p = float(found.pvalue) if isfinite(float(found.pvalue)) else 1.0
    effect = 2 * float(found.statistic) / (len(mine) * len(theirs)) - 1
    return Ratio(ratio, low, high, p, effect, _verdict(len(mine), len(theirs), ratio, (low, high), p))


def _ratio_interval(mine: object, theirs: object, ratio: float) -> tuple[float, float]:
    import numpy as np

    first, second = np.asarray(mine), np.asarray(theirs)
    if min(len(first), len(second)) < 2:
        return ratio, ratio
    if first.min() == first.max() and second.min() == second.max():
        return ratio, ratio

    def over(x: object, y: object, axis: int = -1) -> object:
        return np.median(x, axis=axis) / np.median(y, axis=axis)  # type: ignore[call-overload]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample whose median is 0
        low, high = _bootstrapped((first, second), over)
    return (low, high) if isfinite(low) and isfinite(high) else (ratio, ratio)


def _verdict(first: int, second: int, ratio: float, interval: tuple[float, float], p: float) -> Verdict:
    if 2 / comb(first + second, first) > ALPHA:
        return Verdict.FEW  # not even samples that don't overlap could reach ALPHA
    if p >= ALPHA or interval[0] <= 1 <= interval[1]:
        return Verdict.SAME
    return Verdict.HIGHER if ratio > 1 else Verdict.LOWER


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers (Fleming and Wallace 1986: the mean for ratios)."""
    from scipy import stats

    return float(stats.gmean(values))
