"""What an edited profile does to a lab that stands: said at plan time, for each field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labctl.errors import UsageError
from labctl.looks import PRESENT, Look, Presence
from labctl.resource.changes import Action, Change, changes
from labctl.resource.codec import encode
from labctl.resource.graph import Graph
from labctl.resource.ledger import Row
from labctl.resource.protocol import Resource, key_of
from labctl.tiers import kinds
from labctl.tiers.vmdisk import VmDisk
from tests.unit.test_lab_planner import WITH_XEN, YES, planned, profile_of

kinds.register()

MACHINE = """
nodes:
  m:
    tier: emulation
    image: micro
    memory: 128MiB
    networks: [lan]
    disks: {data: {size: 16MiB, mount: /data}}
    provision: ["true"]
networks: {lan: {}, back: {}}
"""


# The plan's file names stand for no file, so that the size of a disk is what the profile says.
def graph_of(text: str) -> Graph:
    return planned(profile_of(text), host={**WITH_XEN, ("uml", ""): YES}).graph


def row_of(item: Resource, state: str = "made") -> Row:
    return Row("l", key_of(item), item.kind, item.name, item.node, encode(item), item.needs, item.after,
               state, "", 0, 0, "")  # fmt: skip


def edited(before: Graph, after: Graph, looks: dict[str, Look] | None = None) -> dict[str, Change]:
    """key → what is done when `before` stands and `after` is wanted."""
    there = {key_of(item): PRESENT for item in before} | (looks or {})
    return {c.key: c for c in changes(after, [row_of(item) for item in before], there)}


def actions(found: dict[str, Change]) -> dict[str, str]:
    return {key: str(change.action) for key, change in found.items() if change.action is not Action.KEEP}


@pytest.mark.parametrize(
    ("field", "wanted", "why"),
    [
        ("memory: 128MiB", "memory: 160MiB", "memory_bytes: 134217728 → 167772160; restart needed"),
        ("memory: 128MiB", "memory: 128MiB\n    cpus: 2", "vcpus: 1 → 2; restart needed"),
        ("memory: 128MiB", "memory: 128MiB\n    vm: {balloon: true}", "balloon: false → true"),
    ],
)
def test_a_machine_of_another_build_is_restarted_and_keeps_all_it_has(
    field: str, wanted: str, why: str
) -> None:
    found = edited(graph_of(MACHINE), graph_of(MACHINE.replace(field, wanted)))
    assert actions(found) == {"domain:m": "restart", "reach:m": "make", "ready:m": "make"}
    assert why in found["domain:m"].reason and "its disks are kept" in found["domain:m"].reason
    assert found["provision:m"].action is Action.KEEP, "what it did is on the disk that is kept"
    assert not any(change.loses for change in found.values())


def test_what_a_machine_is_told_as_it_boots_is_written_while_it_is_off() -> None:
    found = edited(graph_of(MACHINE), graph_of(MACHINE.replace("memory:", "env: {A: b}\n    memory:")))
    assert actions(found) == {
        "vmdisk:m": "change", "domain:m": "restart", "reach:m": "make", "ready:m": "make",
    }  # fmt: skip
    assert found["vmdisk:m"].way == "still" and "its disk is kept" in found["vmdisk:m"].reason
    assert found["domain:m"].reason == "vmdisk:m is changed"


RUNNING = Look(Presence.BROKEN, "defined differently", {"running": True})


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ("[lan]", "[lan, back]", "change"),
        ("{data: ", "{more: 8MiB, data: ", "restart"),  # the order of its disks is their order in it
        ("mount: /data}", "mount: /data}, more: {size: 8MiB, mount: /more}", "change"),
        ("mount: /data}", "mount: /data}, more: {size: 8MiB, bus: sata}", "restart"),
        ("[lan]", "[back, lan]", "restart"),
        ("[lan]", "[lan, back]\n    memory: 160MiB", "restart"),
        ("[lan]", "[lan, back]\n    env: {A: b}", "restart"),
    ],
)
def test_further_cards_and_disks_are_attached_live(before: str, after: str, how: str) -> None:
    text = MACHINE.replace("    memory: 128MiB\n", "")
    found = edited(graph_of(text), graph_of(text.replace(before, after)), {"domain:m": RUNNING})
    assert str(found["domain:m"].action) == how
    assert ("attached live" in found["domain:m"].reason) == (how == "change")
    off = Look(Presence.BROKEN, "defined differently", {"running": False})
    found = edited(graph_of(text), graph_of(text.replace(before, after)), {"domain:m": off})
    assert found["domain:m"].action is Action.RESTART, "one that is off is started as it is wanted now"


@pytest.mark.parametrize("more", ["machine: q35", "devices: emulated", "arch: aarch64"])
def test_a_bus_that_takes_nothing_as_it_runs_means_a_restart(more: str) -> None:
    text = MACHINE.replace("    memory", f"    {more}\n    memory")
    found = edited(graph_of(text), graph_of(text.replace("[lan]", "[lan, back]")), {"domain:m": RUNNING})
    assert found["domain:m"].action is Action.RESTART and "restart needed" in found["domain:m"].reason


def test_a_disk_grows_and_does_not_shrink() -> None:
    small = MACHINE.replace("memory:", "disk: 1GiB\n    memory:")
    large = small.replace("1GiB", "2GiB")
    found = edited(graph_of(small), graph_of(large))
    assert found["vmdisk:m"].reason.endswith("its disk is grown from 1024 to 2048 MiB, kept")
    assert found["domain:m"].action is Action.RESTART and found["disk:m.data"].action is Action.KEEP
    with pytest.raises(UsageError, match="m: its disk has 2048 MiB and can't be made smaller") as caught:
        edited(graph_of(large), graph_of(small))
    assert "nodes.m.disk" in caught.value.hint


def test_another_image_takes_the_disk_and_leaves_the_further_ones() -> None:
    before = graph_of(MACHINE)
    after = Graph([replace(i, backing="/other") if isinstance(i, VmDisk) else i for i in before])
    found = edited(before, after)
    assert found["vmdisk:m"].action is Action.REPLACE
    assert found["vmdisk:m"].loses == "what the machine wrote to its disk is lost"
    assert found["provision:m"].action is Action.REPLACE, "it runs again on the new disk"
    assert found["disk:m.data"].action is Action.KEEP


def test_a_further_disk_that_changes_says_what_is_lost() -> None:
    before = graph_of(MACHINE)
    found = edited(before, graph_of(MACHINE.replace("16MiB", "32MiB")))
    assert found["disk:m.data"].action is Action.REPLACE and found["disk:m.data"].loses
    found = edited(before, graph_of(MACHINE.replace("    disks: {data: {size: 16MiB, mount: /data}}\n", "")))
    assert found["disk:m.data"].action is Action.REMOVE and found["disk:m.data"].loses
    assert found["domain:m"].action is Action.RESTART and found["vmdisk:m"].action is Action.CHANGE


def test_a_machine_that_died_is_started_again_on_its_disk() -> None:
    graph = graph_of(MACHINE)
    found = edited(graph, graph, {"domain:m": Look(Presence.BROKEN, "its kernel panicked: no init")})
    assert actions(found) == {"domain:m": "restart", "reach:m": "make", "ready:m": "make"}


def test_a_user_mode_linux_keeps_its_disk_and_cannot_grow_it() -> None:
    uml = MACHINE.replace("tier: emulation", "tier: para\n    engine: uml").replace(
        "    disks: {data: {size: 16MiB, mount: /data}}\n", ""
    )
    with pytest.raises(UsageError, match="User Mode Linux's disk can't grow"):
        edited(graph_of(uml), graph_of(uml.replace("memory:", "disk: 16GiB\n    memory:")))
    found = edited(graph_of(uml), graph_of(uml.replace("128MiB", "160MiB")))
    assert actions(found) == {"uml:m": "restart", "reach:m": "make", "ready:m": "make"}


def test_a_container_that_is_made_anew_says_what_goes() -> None:
    text = "nodes: {c: {image: micro, volumes: ['keep:/keep'], env: {A: b}}}\nvolumes: {keep: {}}\n"
    found = edited(graph_of(text), graph_of(text.replace("A: b", "A: c")))
    assert found["container:c"].action is Action.REPLACE
    assert found["container:c"].loses == "its writable layer is made anew, volumes are kept"
    assert found["volume:keep"].action is Action.KEEP
    stopped = {"container:c": Look(Presence.STOPPED, "ended with 0")}
    found = edited(graph_of(text), graph_of(text.replace("env:", "memory: 64MiB, env:")), stopped)
    assert (found["container:c"].action, found["container:c"].way) == (Action.CHANGE, "live")


def test_a_further_network_reaches_a_container_as_it_runs() -> None:
    text = "nodes: {c: {image: micro, networks: [lan]}}\nnetworks: {lan: {}}\n"
    before, after = (
        graph_of(text),
        graph_of("nodes: {c: {image: micro, networks: [lan, x]}}\nnetworks: {lan: {}, x: {}}\n"),
    )
    card = next(item for item in after if item.kind == "net").interfaces[1].host_name  # type: ignore[attr-defined]
    found = edited(before, after, {"net:c": Look(Presence.BROKEN, f"link {card} is missing")})
    assert {k: a for k, a in actions(found).items() if k.endswith(":c")} == dict.fromkeys(
        ("net:c", "container:c", "reach:c", "ready:c"), "change"
    )
    assert found["net:c"].reason.endswith("attached live")
    found = edited(before, after, {"net:c": Look(Presence.BROKEN, "link other is down")})
    assert found["net:c"].action is Action.REPLACE and found["container:c"].loses
    assert edited(after, before)["net:c"].action is Action.REPLACE


def test_a_machine_inside_a_machine_keeps_its_disk_as_well() -> None:
    text = "nodes: {p: {tier: para, image: micro, memory: 64MiB, networks: [lan]}}\nnetworks: {lan: {}}\n"
    found = edited(graph_of(text), graph_of(text.replace("64MiB", "96MiB")))
    assert found["guest:p"].action is Action.RESTART and "vmdisk:p" not in actions(found)
    found = edited(graph_of(text), graph_of(text.replace("memory:", "env: {A: b}, memory:")))
    assert found["vmdisk:p"].action is Action.CHANGE
    assert [found[f"{kind}:p"].action for kind in ("plugs", "guest")] == [Action.RESTART] * 2
