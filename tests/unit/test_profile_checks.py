"""Whether a check holds, and what is said when it doesn't."""

from __future__ import annotations

import pytest

from labctl.profile import judge, load_text


@pytest.mark.parametrize(
    ("expect", "exit_code", "output", "reason"),
    [
        ("0", 0, "", ""),
        ("0", 1, "", "exit code 1, expected 0"),
        ("7", 7, "", ""),
        ("hello", 0, "say hello!", ""),
        ("hello", 0, "bye", "'hello' is not in the output, which is 'bye'"),
        ("hello", 2, "bye", "exit code 2, expected 0; 'hello' is not in the output, which is 'bye'"),
        ("{exit: any, output: x}", 9, "x", ""),
        ("{equals: box}", 0, "box\n", ""),
        ("{equals: box}", 0, "boxes\n", "the output is 'boxes', expected 'box'"),
        ("{matches: '^b$'}", 0, "a\nb\nc", ""),
        ("{matches: '^x$'}", 0, "a", "nothing in the output matches '^x$': 'a'"),
        ("{range: 1..5}", 0, "about 3 of them", ""),
        ("{range: 1..5}", 0, "-3", "-3 is not in 1..5"),
        ("{range: ..0.5}", 0, "0.75", "0.75 is not in ..0.5"),
        ("{range: 5..}", 0, "5", ""),
        ("{range: 1..5}", 0, "none", "there is no number in 'none'"),
        ("{matches: 'load: ([0-9.]+)', range: 0..2}", 0, "7 users, load: 1.5", ""),
        ("{matches: 'load: ([0-9.]+)', range: 0..2}", 0, "7 users, load: 2.5", "2.5 is not in 0..2"),
        ("{matches: '[0-9]+ kB', range: '100..'}", 0, "x 50 kB", "50 is not in 100.."),
        ("{matches: 'a(b)?', range: 0..1}", 0, "a", "there is no number in ''"),
        ("{matches: 'x', range: 0..1}", 0, "a", "nothing in the output matches 'x': 'a'"),
    ],
)
def test_verdicts(expect: str, exit_code: int, output: str, reason: str) -> None:
    text = f"name: t\nnodes: [a]\nchecks: [{{node: a, command: x, expect: {expect}}}, {{negate: yes, node: a, command: x, expect: {expect}}}]"  # noqa: E501
    plain, negated = load_text(text).checks
    assert judge(plain, exit_code, output).reason == reason
    assert judge(plain, exit_code, output).holds is (not reason)
    assert judge(negated, exit_code, output).holds is bool(reason)
