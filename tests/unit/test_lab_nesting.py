"""What is inside machines: the order of what is done to it, and what it is while its machine rests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from labctl.lab import nesting
from labctl.looks import ABSENT, PRESENT, Look, Presence
from labctl.resource.ledger import LabRow
from labctl.tiers.record import NodeRecord

LAB = LabRow("id", "lab", 0.0, "", "", "", "", "")


def node(name: str, inside: str = "", tier: str = "container") -> NodeRecord:
    return NodeRecord(name, tier, tier, "micro", "", "amd64", name, "", inside=inside)


BOX, VM = node("box"), node("vm", tier="emulation")
GUEST, INNER = node("guest", "vm", "hardware"), node("inner", "guest")
ALL = [INNER, GUEST, BOX, VM]


def test_machines_come_before_what_is_inside_and_rest_after_it() -> None:
    placed = [(LAB, record) for record in ALL]
    first = [[record.name for _, record in level] for level in nesting.machines_first(placed)]
    assert first == [["box", "vm"], ["guest"], ["inner"]]
    assert nesting.inside_first(placed) == nesting.machines_first(placed)[::-1]
    assert nesting.machines_first([(LAB, INNER)]) == [[(LAB, INNER)]]


@pytest.mark.parametrize(
    ("machine", "inside"),
    [
        (PRESENT, PRESENT),
        (Look(Presence.PRESENT, "paused"), Look(Presence.PRESENT, "paused, with its machine vm")),
        (Look(Presence.STOPPED, "shut off"), Look(Presence.STOPPED, "with its machine vm")),
        (ABSENT, PRESENT),
    ],
)
def test_a_machine_that_rests_is_not_asked_about_what_is_inside(machine: Look, inside: Look) -> None:
    asked: list[str] = []

    def ask(some: Sequence[NodeRecord]) -> dict[str, Look]:
        asked.extend(record.name for record in some)
        return {record.main_key: machine if record is VM else PRESENT for record in some}

    found = nesting.looks(ALL, ask)
    assert found[BOX.main_key] == PRESENT and found[GUEST.main_key] == inside
    assert ("guest" in asked) is (inside == PRESENT)
    assert set(found) == {record.main_key for record in ALL}
