"""Figures as people read them."""

from __future__ import annotations

from labctl.bench.statistics import Ratio, Summary, Verdict


def number(value: float) -> str:
    """Three significant digits: 0.00123, 1.23, 12.3, 123, 1,230."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        digits = len(str(int(size))) - 3
        return f"{round(value, -digits):,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size >= 0.001:
        return f"{value:.{4 if size < 0.01 else 3}f}"
    return f"{value:.2e}"


def interval(summary: Summary) -> str:
    """The median with its interval: 1.23 [1.20, 1.27]."""
    if summary.low == summary.high:
        return number(summary.median)
    return f"{number(summary.median)} [{number(summary.low)}, {number(summary.high)}]"


def ratio(found: Ratio) -> str:
    """A ratio with its interval and what it means: 1.02 [0.99, 1.04]."""
    return f"{number(found.ratio)}× [{number(found.low)}, {number(found.high)}]"


def verdict(found: Ratio) -> str:
    """What is shown, in words."""
    if found.verdict in (Verdict.SAME, Verdict.FEW):
        return str(found.verdict)
    return f"{found.verdict} (p = {found.p:.2g}, effect {found.effect:+.2f})"


def span(seconds: float) -> str:
    """A time: 45 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
