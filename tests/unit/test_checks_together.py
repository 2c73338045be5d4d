"""Which checks of a profile are run on a host that can't run every node."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from labctl.errors import UsageError
from labctl.events import Event, Note
from labctl.guest.machine import Completed
from labctl.home import Home
from labctl.lab import together
from labctl.lab.model import Options
from labctl.profile.models import Check


class Here:
    """This machine as a node."""

    def run(self, argv: Sequence[str], **_more: Any) -> Completed:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)


def asked(*checks: Check, skipped: dict[str, str]) -> tuple[list[Any], list[str], list[Event]]:
    """The results, the nodes that were asked, and what was told."""
    nodes: list[str] = []
    told: list[Event] = []

    def machine_of(node: str) -> Any:
        nodes.append(node)
        return Here()

    return together.checked(checks, skipped, machine_of, told.append, "shop"), nodes, told


def test_what_a_skipped_node_is_needed_for_is_left_out_and_the_order_stays() -> None:
    results, nodes, told = asked(
        Check(node="hard", command=("true",), name="on it"),
        Check(node="box", command=("true",), name="first"),
        Check(node="box", needs=("emu", "hard"), command=("true",), name="about it"),
        Check(node="box", command=("false",), name="second"),
        skipped={"hard": "no KVM"},
    )
    assert [(r.name, r.passed, r.skipped) for r in results] == [
        ("on it", False, True),
        ("first", True, False),
        ("about it", False, True),
        ("second", False, False),
    ]
    assert nodes == ["box", "box"]
    assert results[2].detail == "not run: node hard is skipped on this host: no KVM"
    levels = [event.level for event in told if isinstance(event, Note)]
    assert sorted(levels) == ["info", "info", "info", "warning"]


def test_a_check_without_a_name_is_called_by_its_command() -> None:
    results, _, _ = asked(Check(node="hard", command=("ping", "x")), skipped={"hard": "no KVM"})
    assert results[0].name == "hard: ping x"


def test_all_or_nothing() -> None:
    every = [Check(node="a", command=("true",)), Check(node="b", command=("true",))]
    assert all(r.skipped for r in asked(*every, skipped={"a": "x", "b": "y"})[0])
    assert all(r.passed for r in asked(*every, skipped={})[0])
    assert asked(skipped={})[0] == []


def test_a_lab_that_is_not_there(home: Home) -> None:
    with pytest.raises(UsageError, match="no lab 'shop'"):
        together.checks("shop", Options(home))
    with pytest.raises(UsageError, match="no lab 'shop'"):
        together.compare("shop", Options(home))
