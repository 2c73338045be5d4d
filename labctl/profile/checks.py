"""Whether a check holds: the pure part, given what its command answered."""

from __future__ import annotations

import re

from labctl.profile.models import Check, Expect
from labctl.records import dataclass

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class Verdict:
    """Whether a check holds, and the sentence that says why it doesn't."""

    holds: bool
    reason: str = ""


def judge(check: Check, exit_code: int, stdout: str) -> Verdict:
    """Whether what a command answered is what the check expects; `negate` turns it round.

    A command that could not be run at all (no such node, a timeout) is no answer: don't ask.
    """
    missed = _misses(check.expect, exit_code, stdout)
    if check.negate:
        return (
            Verdict(True) if missed else Verdict(False, f"expected not to hold, and it does: {_said(stdout)}")
        )
    return Verdict(False, "; ".join(missed)) if missed else Verdict(True)


def _misses(expect: Expect, exit_code: int, stdout: str) -> list[str]:
    missed: list[str] = []
    if expect.exit is not None and exit_code != expect.exit:
        missed.append(f"exit code {exit_code}, expected {expect.exit}")
    if expect.output is not None and expect.output not in stdout:
        missed.append(f"{_said(expect.output)} is not in the output, which is {_said(stdout)}")
    if expect.equals is not None and expect.equals.strip() != stdout.strip():
        missed.append(f"the output is {_said(stdout)}, expected {_said(expect.equals)}")
    found = re.search(expect.matches, stdout, re.MULTILINE) if expect.matches is not None else None
    if expect.matches is not None and not found:
        missed.append(f"nothing in the output matches {_said(expect.matches)}: {_said(stdout)}")
    if expect.range is not None and not (expect.matches is not None and not found):
        missed += _range(expect.range, found, stdout)
    return missed


def _range(ends: tuple[float | None, float | None], found: re.Match[str] | None, stdout: str) -> list[str]:
    text = (found[1] if found.re.groups else found[0]) if found else stdout
    number = _NUMBER.search(text or "")
    if not number:
        return [f"there is no number in {_said(text or '')}"]
    low, high = ends
    value = float(number[0])
    if (low is not None and value < low) or (high is not None and value > high):
        least, most = ("" if low is None else f"{low:g}"), ("" if high is None else f"{high:g}")
        return [f"{value:g} is not in {least}..{most}"]
    return []


def _said(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 200 else text[:199] + "…")
