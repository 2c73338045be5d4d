"""What checks expect, what they get, and the words that tell the difference."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from labctl.errors import LabError
from labctl.guest.machine import Completed
from labctl.lab.checks import judge, run_check, run_checks
from labctl.profile.models import Check, Expect


class Here:
    """This machine as a node."""

    def exec(self, argv: Sequence[str], **_more: Any) -> int:
        return self.run(argv).code

    def run(self, argv: Sequence[str], **_more: Any) -> Completed:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)


def check(*command: str, negate: bool = False, within: float = 0.0, **expect: Any) -> Check:
    return Check(
        node="here", command=command, negate=negate, within=within, interval=0.05, expect=Expect(**expect)
    )


@pytest.mark.parametrize(
    ("expect", "code", "out", "told"),
    [
        ({}, 0, "", ""),
        ({}, 3, "", "expected exit code 0, got 3"),
        ({"exit": 3}, 3, "", ""),
        ({"exit": None}, 77, "", ""),
        ({"output": "abc"}, 0, "xabcx\n", ""),
        ({"output": "abc"}, 0, "xyz\n", "expected 'abc' in the output, got 'xyz'"),
        ({"output": "abc"}, 0, "", "expected 'abc' in the output, got nothing"),
        ({"equals": "one"}, 0, "  one\n\n", ""),
        ({"equals": "one"}, 0, "one two\n", "expected the output 'one', got 'one two'"),
        ({"matches": "^b.$"}, 0, "a\nbc\n", ""),
        ({"matches": "^b.$"}, 0, "abc", "expected an output that matches '^b.$', got 'abc'"),
        ({"range": (1, 10)}, 0, "load 3.5 high", ""),
        ({"range": (1, 10)}, 0, "load 35", "expected a number from 1 to 10, got 35"),
        ({"range": (None, 10)}, 0, "-4", ""),
        ({"range": (5, None)}, 0, "4", "expected a number of at least 5, got 4"),
        ({"range": (5, None)}, 0, "none", "expected a number of at least 5, got none in 'none'"),
        ({"range": (5, 6), "matches": r"time=([\d.]+)"}, 0, "1 time=5.5 ms", ""),
        (
            {"range": (5, 6), "matches": r"time=([\d.]+)"},
            0,
            "1 time=7 ms",
            "expected a number from 5 to 6, got 7",
        ),
        (
            {"range": (5, 6), "matches": r"time=(\w+)"},
            0,
            "time=x",
            "expected a number from 5 to 6, got 'x', which is none",
        ),
        ({"range": (0, 1), "matches": "gone"}, 0, "x", "expected an output that matches 'gone', got 'x'"),
    ],
)
def test_expectations(expect: dict[str, Any], code: int, out: str, told: str) -> None:
    done = Completed(code, out.encode())
    assert judge(check("x", **expect), done) == told
    turned = judge(check("x", negate=True, **expect), done)
    assert bool(turned) == (told == "")


def test_the_last_words_of_a_failed_command_are_told() -> None:
    done = Completed(1, b"", b"line\nno such device\n")
    assert judge(check("x"), done) == "expected exit code 0, got 1 (no such device)"


def test_negated() -> None:
    told = judge(check("x", negate=True, exit=0, output="hi"), Completed(0, b"hi\n"))
    assert (
        told == "expected that this does not hold: exit code 0, 'hi' in the output; got exit code 0 and 'hi'"
    )


def test_long_output_is_cut() -> None:
    assert len(judge(check("x", output="a"), Completed(0, b"b" * 10_000))) < 300


def test_retries(tmp_path: Any) -> None:
    flag = tmp_path / "count"
    script = f"echo x >> {flag}; test $(wc -l < {flag}) -ge 3"
    result = run_check(check("sh", "-c", script, within=5), lambda _node: Here())
    assert (result.passed, result.tries) == (True, 3)
    result = run_check(check("false", within=0.2), lambda _node: Here())
    assert not result.passed and result.tries > 1 and "tried" in result.detail


def test_one_try_only() -> None:
    result = run_check(check("false"), lambda _node: Here())
    assert (result.passed, result.tries, result.code) == (False, 1, 1)


def test_many(tmp_path: Any) -> None:
    def machine_of(node: str) -> Here:
        if node == "gone":
            raise LabError("no answer")
        return Here()

    checks = [
        check("true"),
        Check(node="gone", command=("true",), hint="start it"),
        Check(node="left", command=("true",), name="left out"),
        check("false"),
    ]
    notes: list[Any] = []
    results = run_checks(checks, machine_of, emit=notes.append, skipped=["left"])
    assert [r.passed for r in results] == [True, False, False, False]
    assert results[1].detail == "the command could not be run: no answer" and results[1].hint == "start it"
    assert "skipped" in results[2].detail and results[2].name == "left out"
    assert len(notes) == 4


def test_a_container_that_has_ended_is_not_asked_again() -> None:
    class Ended(Here):
        def exec(self, *_words: object, **_more: object) -> NoReturn:
            raise LabError("cannot exec in a stopped container")

        run = exec  # type: ignore[assignment]

        def ended(self) -> str:
            return "its command ended with 3: no such file"

    began = time.monotonic()
    result = run_check(check("true", within=30), lambda _node: Ended())
    assert not result.passed and result.tries == 1 and time.monotonic() - began < 5
    assert result.detail == "here is stopped: its command ended with 3: no such file"
