"""Whatever is thrown at the loader, it answers with a profile or with a ProfileError, and says where."""

from __future__ import annotations

import ipaddress

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.errors import ProfileError
from labctl.profile import Profile, load_text
from labctl.profile.models import Attachment, Check, Expect, Network, Node, Ready

SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = sorted(
    {
        "name",
        "nodes",
        "networks",
        "checks",
        "defaults",
        "groups",
        "volumes",
        "secrets",
        "extends",
        "address",
        "a",
        "b",
    }
    | {f for m in (Node, Network, Attachment, Check, Expect, Ready) for f in m.model_fields}
)
_WORDS = """
a b lan 10.1.0.0/24 10.1.0.5 fd00::5 80:80 started emulation container none 256MiB 30s 0.5 all ../x /x <x>
0644 true * https://x 1..2
"""
WORDS = st.sampled_from([*_WORDS.split(), "x" * 300, "a\nb"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=12)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | WORDS, inner, max_size=5)
    ),
    max_leaves=25,
)


def answer(text: str, *sets: str) -> Profile | None:
    """The profile, or None when it was refused properly."""
    try:
        profile = load_text(text, sets, file="f", environ={})
    except ProfileError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message.isprintable()
            assert problem.where is not None
            assert problem.where.file.startswith(("f", "-s "))
        return None
    assert Profile.from_json(profile.to_json()) == profile
    return profile


@SLOW
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    answer(text)


@SLOW
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#,\n\t <%@`?~0.", max_size=80))
def test_any_text_that_looks_like_yaml(text: str) -> None:
    answer(text)


@SLOW
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=6))
def test_any_tree_of_our_keys(tree: dict[str, object]) -> None:
    answer(yaml.safe_dump(tree))


@SLOW
@given(st.dictionaries(st.sampled_from(sorted(Node.model_fields)), TREES, max_size=4))
def test_any_node(fields: dict[str, object]) -> None:
    tree = {
        "name": "t",
        "networks": {"lan": "10.1.0.0/24", "b": None},
        "nodes": {"a": fields, "b": {"tier": "para"}},
    }
    answer(yaml.safe_dump(tree))
    answer(yaml.safe_dump(tree | {"nodes": ["a", "b"], "defaults": fields, "groups": {"g": fields}}))


@SLOW
@given(st.text(max_size=40), st.sampled_from(KEYS), TREES)
def test_any_override(text: str, key: str, value: object) -> None:
    base = "name: t\nnodes: {a: {}, b: {networks: [lan]}}\nchecks: [{node: a, command: x}]"
    answer(base, text)
    flow = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n")
    answer(base, f"nodes.a.{key}={flow}", f"{key}={flow}", f"checks[0].{key}={flow}")


@SLOW
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_depends_on_is_refused_exactly_when_it_goes_round(edges: list[tuple[int, int]]) -> None:
    nodes = {f"n{i}": {"depends_on": sorted({f"n{b}" for a, b in edges if a == i})} for i in range(6)}
    reach = {a: {b for x, b in edges if x == a} for a in range(6)}
    for _ in range(6):
        reach = {a: to.union(*(reach[b] for b in to)) for a, to in reach.items()}
    round_trip = any(a in to for a, to in reach.items())
    assert (answer(yaml.safe_dump({"name": "t", "nodes": nodes})) is None) is round_trip


@SLOW
@given(st.ip_addresses(v=4), st.integers(8, 30), st.integers(0, 2**32 - 1))
def test_an_address_is_taken_exactly_when_a_machine_can_have_it(
    network: ipaddress.IPv4Address, prefix: int, offset: int
) -> None:
    subnet = ipaddress.ip_network(f"{network}/{prefix}", strict=False)
    address = ipaddress.ip_address(offset)
    tree = {"name": "t", "networks": {"n": str(subnet)}, "nodes": {"a": {"networks": {"n": str(address)}}}}
    first = int(subnet.network_address) >> 24
    odd = subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or first == 0 or first >= 240
    ends = (subnet.network_address, subnet.broadcast_address)
    good = address in subnet and address not in ends and not odd and not address.is_multicast
    good = good and not address.is_loopback
    assert (answer(yaml.safe_dump(tree)) is not None) is good
    inside = subnet.network_address + 1 + offset % (subnet.num_addresses - 2)
    tree["nodes"] = {"a": {"networks": {"n": str(inside)}}}
    if not odd and not inside.is_multicast and not inside.is_loopback:
        assert answer(yaml.safe_dump(tree)) is not None
