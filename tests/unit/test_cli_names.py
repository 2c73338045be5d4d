"""Which nodes a person means."""

from __future__ import annotations

import pytest

from labctl.cli.names import Address, Names
from labctl.errors import UsageError

ONE = Names(
    {
        "shop": {
            "web-1": {"tier": "container", "labels": {"role": "web"}},
            "web-2": {"tier": "emulation", "labels": {"role": "web"}},
            "db": {"tier": "emulation"},
            "fast": {"tier": "hardware", "skipped": "no KVM"},
        }
    }
)
TWO = Names({**ONE.labs, "other": {"db": {}, "lone": {}}})


def test_a_node_alone_where_one_lab_is_up() -> None:
    assert ONE.node("db") == Address("shop", "db")
    assert ONE.node("shop/db") == Address("shop", "db")


def test_a_node_alone_where_only_one_lab_has_it() -> None:
    assert TWO.node("lone") == Address("other", "lone")


@pytest.mark.parametrize(
    ("names", "text", "message", "hint"),
    [
        (ONE, "bd", "lab shop has no node 'bd'", "did you mean 'db'?"),
        (ONE, "shpo/db", "no lab is called 'shpo'", "did you mean 'shop'?"),
        (TWO, "db", "several labs have a node 'db'", "say shop/db"),
        (TWO, "nope", "no lab has a node 'nope'", "labs: shop, other"),
        (Names({}), "db", "no lab is up", "labctl up hello"),
    ],
)
def test_a_wrong_name_says_the_right_one(names: Names, text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.node(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("pattern", "nodes"),
    [
        ("web-*", ["web-1", "web-2"]),
        ("shop", ["web-1", "web-2", "db"]),
        ("shop/", ["web-1", "web-2", "db"]),
        ("shop/web-?", ["web-1", "web-2"]),
        ("db,web-*", ["db", "web-1", "web-2"]),
        ("db,db", ["db"]),
        ("fast", ["fast"]),  # by name: the machine then says why it isn't there
    ],
)
def test_patterns(pattern: str, nodes: list[str]) -> None:
    assert [address.node for address in ONE.select(pattern)] == nodes


def test_filters() -> None:
    assert [a.node for a in ONE.select("shop", tier="emulation")] == ["web-2", "db"]
    assert [a.node for a in ONE.select("*", labels={"role": "web"})] == ["web-1", "web-2"]
    with pytest.raises(UsageError, match="no node fits"):
        ONE.select("shop", tier="para")


def test_a_pattern_needs_a_lab_where_several_are_up() -> None:
    with pytest.raises(UsageError, match="several labs are up: shop, other"):
        TWO.select("web-*")
