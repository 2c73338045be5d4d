"""The keeper and its client: batches, limits, exit codes, logs, and deaths at any moment."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.linux import pidfds, proc
from labctl.runtime import spec
from labctl.runtime.client import ContainerState, KeeperClient, find_marked
from labctl.runtime.errors import ContainerError
from tests.host.runtime_rig import Rig

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def tells_exits_of_orphans() -> bool:
    """PIDFD_INFO_EXIT came with Linux 6.15."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 15)


def test_a_batch_starts_runs_and_goes_without_a_trace(rig: Rig) -> None:
    items = [rig.bundle(f"n{number}", "exec sleep 1000", memory=32 << 20, pids=20) for number in range(20)]
    assert set(rig.client.launch(items).values()) == {""}
    states = rig.client.states()
    assert len(states) == 20
    assert {one.status for one in states.values()} == {"running"}
    assert len({one.pid for one in states.values()}) == 20
    found = [one for one in find_marked(rig.instance) if one.lab == "lab"]
    assert sorted(one.node for one in found) == sorted(states)
    assert set(rig.client.delete(states).values()) == {""}
    assert rig.leftovers() == []
    rig.client.close()
    assert rig.client.keeper_pid() == 0


def test_one_that_runs_is_left_alone_and_one_that_ended_starts_again(rig: Rig) -> None:
    first = rig.start("one", "echo up >>/root/starts; sleep 1000 & wait")
    assert rig.client.launch([rig.bundle("one", "exec sleep 1000")]) == {"one": ""}
    assert rig.client.states()["one"].pid == first.pid
    end = time.monotonic() + 20
    while rig.run("one", "cat", "/root/starts")[1] != "up\n":
        assert time.monotonic() < end
        time.sleep(0.02)
    rig.client.kill("one", 9)
    assert rig.client.wait("one", 10) == 137
    assert rig.client.states()["one"].status == "stopped"
    rig.start("one", "exec sleep 1000")
    assert rig.sh("one", "cat /root/starts") == "up", "the writable layer is the same"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 77", 77), ("kill -9 $$; sleep 1", 0)])
def test_exit_codes_of_the_first_process(rig: Rig, script: str, code: int) -> None:
    # Pid 1 can't kill itself from inside its namespace: the last script ends by itself.
    rig.start("one", script)
    assert rig.client.wait("one", 10) == code
    state = rig.client.states()["one"]
    assert (state.status, state.exit_code, state.pid) == ("stopped", code, 0)
    assert state.finished is not None


def test_too_much_memory_is_an_oom_kill_inside_the_limit(rig: Rig) -> None:
    rig.start("one", "head -c 200m /dev/zero | tail >/dev/null; exec sleep 1000", memory=24 << 20)
    end = time.monotonic() + 20
    while not (rig.client.stats(["one"])["one"].oom_kills or 0):
        assert time.monotonic() < end, rig.client.stats(["one"])
        time.sleep(0.05)
    figures = rig.client.stats(["one"])["one"]
    assert figures.memory_limit_bytes == 24 << 20
    assert figures.memory_peak_bytes is not None
    assert figures.memory_peak_bytes <= 24 << 20
    rig.client.kill("one", 9)
    assert rig.client.wait("one", 10) == 137
    seen = rig.folder / "run/ended.jsonl"
    while not seen.exists() or '"ended"' not in seen.read_text():  # just after the exit code
        assert time.monotonic() < end + 20
        time.sleep(0.01)
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [(row["node"], row["event"]) for row in rows] == [("one", "oom"), ("one", "ended")]
    assert rows[0]["count"] >= 1 and rows[1]["exit_code"] == 137


def test_no_more_processes_than_allowed(rig: Rig) -> None:
    rig.start("one", pids=5)
    code, said = rig.run("one", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.5 & done; wait")
    assert code != 0
    assert "fork" in said
    assert (rig.client.stats(["one"])["one"].pids or 0) <= 5


def test_half_a_cpu_is_half_a_cpu(rig: Rig) -> None:
    rig.start("one", "while :; do :; done", cpus=0.2)
    time.sleep(0.2)
    first, begun = rig.client.stats(["one"])["one"].cpu_ns, time.monotonic()
    time.sleep(1.0)
    second, passed = rig.client.stats(["one"])["one"].cpu_ns, time.monotonic() - begun
    assert first is not None
    assert second is not None
    assert (second - first) / 1e9 / passed < 0.3


def test_limits_change_in_place(rig: Rig) -> None:
    rig.start("one", memory=32 << 20)
    for size in (64 << 20, 16 << 20):
        rig.client.update("one", spec.resources(memory=size, pids=30))
        assert rig.client.stats(["one"])["one"].memory_limit_bytes == size


def test_pause_and_resume(rig: Rig) -> None:
    rig.start("one", "while :; do echo x; sleep 0.01; done")
    rig.wait_for_output("one", "x")
    assert rig.client.pause(["one"]) == {"one": ""}
    assert rig.client.states()["one"].status == "paused"
    said = rig.output("one")
    time.sleep(0.2)
    assert rig.output("one") == said
    assert rig.client.pause(["one"]) == {"one": "container not running"}
    with pytest.raises(ContainerError, match="paused"):
        rig.run("one", "true")
    assert rig.client.resume(["one"]) == {"one": ""}
    rig.wait_for_output("one", said + "x")


def test_a_paused_one_can_be_removed(rig: Rig) -> None:
    rig.start("one")
    rig.client.pause(["one"])
    assert rig.client.delete(["one"]) == {"one": ""}


def test_stop_lets_a_program_end_in_its_own_way(rig: Rig) -> None:
    rig.start("polite", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    rig.start(
        "usr", "trap 'echo bye; exit 6' USR1; echo up; while :; do sleep 0.05; done", stop_signal="SIGUSR1"
    )
    for name in ("polite", "usr"):
        rig.wait_for_output(name, "up")
    assert rig.client.stop(["polite", "usr"], timeout=10.0) == {"polite": "", "usr": ""}
    assert rig.client.wait("polite", 5) == 5
    assert rig.client.wait("usr", 5) == 6
    assert rig.output("polite") == "up\nbye\n"


def test_stop_wastes_no_time_on_who_has_no_handler_and_insists_with_who_ignores(rig: Rig) -> None:
    rig.start("deaf")
    assert rig.client.stop(["deaf"], timeout=3600.0) == {"deaf": ""}
    rig.start("stubborn", "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done")
    rig.wait_for_output("stubborn", "up")
    assert rig.client.stop(["stubborn"], timeout=0.5) == {"stubborn": ""}
    assert rig.client.wait("stubborn", 5) == 137


def test_a_dead_keeper_costs_nothing(rig: Rig) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 42"
    state = rig.start("one", script)
    rig.wait_for_output("one", "line 20")
    keeper = rig.client.keeper_pid()
    os.kill(keeper, 9)
    end = time.monotonic() + 5
    while proc.alive(keeper):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert rig.client.states()["one"].status == "running", "its end is not the containers' end"
    assert rig.client.keeper_pid() == 0, "looking starts none"
    assert rig.sh("one", "echo in") == "in", "and neither does exec"
    # The next launch starts a new keeper, which adopts what runs.
    rig.start("two")
    assert rig.client.keeper_pid() not in (0, keeper)
    assert rig.client.states()["one"].pid == state.pid
    if tells_exits_of_orphans():
        assert rig.client.wait("one", 30) == 42
    else:
        with pytest.raises(ContainerError, match="not known"):
            rig.client.wait("one", 30)
    assert rig.output("one") == "".join(f"line {number}\n" for number in range(300))


@pytest.mark.parametrize("milliseconds", [0, 3, 6, 10, 14, 18, 25, 35])
def test_a_keeper_killed_during_a_launch_leaves_nothing_that_delete_misses(
    rig: Rig, milliseconds: int
) -> None:
    rig.start("first")
    keeper = pidfds.open_pid(rig.client.keeper_pid())
    items = [rig.bundle(f"n{number}", "exec sleep 1000") for number in range(4)]
    timer = threading.Timer(milliseconds / 1000, lambda: pidfds.send(keeper, 9))
    timer.start()
    errors = rig.client.launch(items)  # a keeper that dies is replaced once
    timer.join()
    os.close(keeper)
    assert set(errors.values()) == {""}
    states = rig.client.states()
    assert {name for name, one in states.items() if one.status == "running"} == {
        "first",
        "n0",
        "n1",
        "n2",
        "n3",
    }
    assert set(rig.client.delete(states).values()) == {""}
    assert rig.leftovers() == []


def test_delete_works_with_a_dead_keeper_and_starts_none(rig: Rig) -> None:
    rig.start("one")
    os.kill(rig.client.keeper_pid(), 9)
    assert rig.client.delete(["one", "never-there"]) == {"one": "", "never-there": ""}
    assert rig.leftovers() == []
    assert rig.client.keeper_pid() == 0


def test_intent_alone_is_cleaned(rig: Rig) -> None:
    rig.start("one")
    document = rig.client.store.read("one")
    # As if the keeper had died after it wrote the intent and made the cgroup, before any process.
    document.update(id="ghost", status="creating", pid=0, start_ticks=0, cgroup=rig.cgroup("ghost").path)
    rig.client.store.create("ghost", document, "{}")
    rig.cgroup("ghost").create()
    empty = Path(rig.client.root) / "empty"
    empty.mkdir()
    assert rig.client.states()["ghost"].status == "stopped"
    assert rig.client.delete(["ghost", "empty"]) == {"ghost": "", "empty": ""}
    assert not rig.cgroup("ghost").exists()
    assert not empty.exists()


def test_find_marked_removes_what_has_no_state(rig: Rig) -> None:
    rig.start("one")
    document = rig.client.store.read("one")
    rig.client.store.remove("one")
    assert rig.client.states() == {}
    (found,) = find_marked(rig.instance)
    assert found.node == "one"
    assert document["pid"] in found.pids
    found.remove()
    assert find_marked(rig.instance) == []


def test_two_clients_at_once_share_one_keeper(rig: Rig) -> None:
    pids: list[int] = []
    failures: list[str] = []

    def start(number: int) -> None:
        client = KeeperClient(Path(rig.client.root))
        failures.extend(client.launch([rig.bundle(f"n{number}", "exec sleep 1000")]).values())
        pids.append(client.keeper_pid())

    threads = [threading.Thread(target=start, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == [""] * 4
    assert len(set(pids)) == 1


def test_output_of_a_burst_is_complete(rig: Rig) -> None:
    rig.start("one", "seq 1 20000; exit 0")
    assert rig.client.wait("one", 20) == 0
    assert rig.output("one") == "".join(f"{number}\n" for number in range(1, 20001))


def test_cost_stays_flat(rig: Rig) -> None:
    def each(count: int) -> float:
        items = [rig.bundle(f"c{count}-{number}", "exec sleep 1000") for number in range(count)]
        begun = time.perf_counter()
        assert set(rig.client.launch(items).values()) == {""}
        passed = time.perf_counter() - begun
        rig.client.delete([item.id for item in items])
        return passed / count

    each(2)  # the keeper is up
    few = min(each(10) for _ in range(3))
    many = each(60)
    assert many < few * 2.5, (few, many)


def test_a_state_of_another_boot_is_stopped(rig: Rig) -> None:
    state: ContainerState = rig.start("one")
    document = rig.client.store.read("one")
    rig.client.store.write("one", {**document, "boot_id": "another"})
    assert rig.client.states()["one"].status == "stopped"
    rig.client.store.write("one", document)
    assert rig.client.states()["one"].pid == state.pid
