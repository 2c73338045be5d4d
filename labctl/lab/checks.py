"""The checks of a profile: run in their nodes, judged by what they expect, told in words."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from labctl.errors import LabError
from labctl.events import Emit, Note, silent
from labctl.guest.machine import Completed, Executes
from labctl.profile.models import Check, Expect
from labctl.records import dataclass
from labctl.workers import Pool

_SHOWN = 200  # characters of an output in a message
_AT_ONCE = 8
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class CheckResult:
    """How one check ended.  `detail` says what was expected and what came, "" when it holds."""

    name: str
    node: str
    passed: bool
    detail: str = ""
    hint: str = ""
    tries: int = 0
    seconds: float = 0.0
    code: int | None = None  # of the last try; None when the command could not be run
    output: str = ""  # its standard output, the first part
    skipped: bool = False  # not run, because its node is skipped on this host


def run_checks(
    checks: Sequence[Check],
    machine_of: Callable[[str], Executes],
    *,
    emit: Emit = silent,
    lab: str = "",
    skipped: Sequence[str] = (),
    cancel: threading.Event | None = None,
) -> list[CheckResult]:
    """Run all checks, those of different nodes side by side; the results are in the checks' order.

    `machine_of(node)` gives the machine of a node.  A check of a `skipped` node is not run and did not pass.
    """
    results: dict[int, CheckResult] = {}
    by_node: dict[str, list[int]] = {}
    for index, check in enumerate(checks):
        by_node.setdefault(check.node, []).append(index)

    def one_node(node: str) -> None:
        for index in by_node[node]:
            check = checks[index]
            if node in skipped:
                why = f"not run: node {node} is skipped on this host"
                results[index] = replace(_result(check, False, why, 0, 0.0), skipped=True)
            else:
                results[index] = run_check(check, machine_of, cancel=cancel)
            done = results[index]
            words = f"check {'holds' if done.passed else 'fails'}: {done.name}"
            emit(
                Note(
                    lab,
                    words if done.passed else f"{words}: {done.detail}",
                    "info" if done.passed else "warning",
                )
            )

    if by_node:
        with Pool(min(_AT_ONCE, len(by_node)), "check") as pool:
            list(pool.map(one_node, by_node))
    return [results[index] for index in range(len(checks))]


def run_check(
    check: Check, machine_of: Callable[[str], Executes], *, cancel: threading.Event | None = None
) -> CheckResult:
    """Run one check, again and again within its limit until it holds."""
    stop = cancel or threading.Event()
    started = time.monotonic()
    tries = 0
    while True:
        tries += 1
        done: Completed | None = None
        over = ""
        try:
            done = machine_of(check.node).run(check.command, timeout=check.timeout)
            detail = judge(check, done)
        except LabError as error:
            detail = f"the command could not be run: {error}"
            over = _over(check.node, machine_of)
        if over:
            return _result(
                check, False, f"{check.node} is stopped: {over}", tries, time.monotonic() - started
            )
        seconds = time.monotonic() - started
        if not detail:
            return _result(check, True, "", tries, seconds, done)
        if seconds + check.interval > check.within or stop.wait(check.interval):
            if tries > 1:
                detail += f" (tried {tries} times in {seconds:.1f} s)"
            return _result(check, False, detail, tries, seconds, done)


def _over(node: str, machine_of: Callable[[str], Executes]) -> str:
    """How a container's command ended, so that no further try will find it; "" where it goes on."""
    try:
        ended: Callable[[], str] | None = getattr(machine_of(node), "ended", None)
        return ended() if ended else ""
    except LabError:
        return ""  # it can't be asked


def judge(check: Check, done: Completed) -> str:
    """Why the check does not hold for this answer; "" when it does."""
    problems = problems_of(check.expect, done)
    if not check.negate:
        return "; ".join(problems)
    if problems:
        return ""
    got = f"exit code {done.code}{_output(done)}"
    return f"expected that this does not hold: {describe(check.expect)}; got {got}"


def problems_of(expect: Expect, done: Completed) -> list[str]:
    """What of the expectation does not hold, each as "expected …, got …"."""
    text = done.text
    problems = []
    if expect.exit is not None and done.code != expect.exit:
        problems.append(f"expected exit code {expect.exit}, got {done.code}{_said(done)}")
    if expect.output is not None and expect.output not in text:
        problems.append(f"expected {_quote(expect.output)} in the output, got {_quote(text)}")
    if expect.equals is not None and text.strip() != expect.equals.strip():
        problems.append(f"expected the output {_quote(expect.equals.strip())}, got {_quote(text.strip())}")
    if expect.matches is not None and not re.search(expect.matches, text, re.MULTILINE):
        problems.append(f"expected an output that matches {_quote(expect.matches)}, got {_quote(text)}")
    if expect.range is not None:
        problems += _range_problem(expect, text)
    return problems


def _range_problem(expect: Expect, text: str) -> list[str]:
    assert expect.range is not None
    low, high = expect.range
    wanted = f"expected a number {_between(low, high)}"
    pattern = re.compile(expect.matches, re.MULTILINE) if expect.matches is not None else _NUMBER
    match = pattern.search(text)
    if match is None:
        # A pattern that isn't there was told already.
        return [] if expect.matches is not None else [f"{wanted}, got none in {_quote(text)}"]
    found = match.group(1) if expect.matches is not None and pattern.groups else match.group(0)
    try:
        number = float(found)
    except (ValueError, TypeError):
        return [f"{wanted}, got {_quote(str(found))}, which is none"]
    if (low is not None and number < low) or (high is not None and number > high):
        return [f"{wanted}, got {number:g}"]
    return []


def describe(expect: Expect) -> str:
    """The expectation in words."""
    words = []
    if expect.exit is not None:
        words.append(f"exit code {expect.exit}")
    if expect.output is not None:
        words.append(f"{_quote(expect.output)} in the output")
    if expect.equals is not None:
        words.append(f"the output {_quote(expect.equals.strip())}")
    if expect.matches is not None:
        words.append(f"an output that matches {_quote(expect.matches)}")
    if expect.range is not None:
        words.append(f"a number {_between(*expect.range)}")
    return ", ".join(words) or "that the command ends"


def _between(low: float | None, high: float | None) -> str:
    if low is None:
        return f"of at most {high:g}" if high is not None else "of any size"
    return f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"


def _said(done: Completed) -> str:
    last = done.errors.strip().splitlines()[-1:]
    return f" ({last[0][:_SHOWN]})" if last else ""


def _output(done: Completed) -> str:
    return f" and {_quote(done.text)}" if done.text.strip() else ""


def _quote(text: str) -> str:
    short = text.strip("\n")
    return repr(short if len(short) <= _SHOWN else short[: _SHOWN - 1] + "…") if short else "nothing"


def _result(
    check: Check, passed: bool, detail: str, tries: int, seconds: float, done: Completed | None = None
) -> CheckResult:
    return CheckResult(
        name=check.name or f"{check.node}: {' '.join(check.command)[:80]}",
        node=check.node,
        passed=passed,
        detail=detail,
        hint="" if passed else check.hint,
        tries=tries,
        seconds=round(seconds, 3),
        code=done.code if done else None,
        output=done.text[:2000] if done else "",
    )
