"""Figures read from what a benchmark printed.  What can't be read raises Unreadable, and is kept."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from typing import Any

from labctl.bench.faults import Unreadable
from labctl.bench.model import Benchmark, Metric


def figures(spec: Benchmark, output: str, wall: float) -> dict[str, float]:
    """Every figure of the benchmark; `wall` is the run's time from outside in seconds.  Raises Unreadable."""
    return {name: _figure(metric, name, output, wall) for name, metric in spec.metrics.items()}


def _figure(metric: Metric, name: str, output: str, wall: float) -> float:
    if metric.wall:
        return wall * metric.factor
    text = _matched(metric.regex, output, name) if metric.regex else _walked(metric.json_path, output, name)
    try:
        value = float(text) * metric.factor
    except (TypeError, ValueError):
        raise Unreadable(f"{name}: {str(text)[:60]!r} is no number") from None
    if not math.isfinite(value):
        raise Unreadable(f"{name}: {value} is no figure")
    return value


def _matched(expression: str, output: str, name: str) -> str:
    last = next(iter(deque(re.finditer(expression, output, re.MULTILINE), maxlen=1)), None)
    if last is None or last[1] is None:
        raise Unreadable(f"{name}: nothing in the output fits the regular expression {expression}")
    return last[1]


def _walked(path: str, output: str, name: str) -> Any:
    at = document(output, name)
    for step in path.split("."):
        if isinstance(at, dict) and step in at:
            at = at[step]
        elif isinstance(at, list) and step.lstrip("-").isdigit() and -len(at) <= int(step) < len(at):
            at = at[int(step)]
        else:
            said = _own_error(document(output, name))
            raise Unreadable(f"{name}: the JSON that was printed has no {path}: {said or f'no {step!r}'}")
    return at


def _own_error(found: Any) -> str:
    """What a tool says of itself when it failed and still printed JSON, as iperf3 does."""
    told = found.get("error") if isinstance(found, dict) else None
    return told[:200] if isinstance(told, str) else ""


def document(output: str, name: str) -> Any:
    """The last JSON object in the output: tools print warnings before it.  Raises Unreadable."""
    decoder = json.JSONDecoder()
    at, found = 0, None
    while (start := output.find("{", at)) >= 0:
        try:
            found, at = decoder.raw_decode(output, start)
        except ValueError:
            at = start + 1
    if found is None:
        raise Unreadable(f"{name}: no JSON object was printed")
    return found
