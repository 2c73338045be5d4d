"""What containers print: kept through slow readers, full segments, and deaths of who collects it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.linux import pidfds, proc
from labctl.runtime import collector, logbook, logread, spec
from labctl.runtime.logread import Wanted
from tests.host.runtime_rig import Rig

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def said(rig: Rig, name: str, streams: int = logbook.OUT) -> str:
    rig.client.flush()
    frames = logread.read(str(rig.folder / "nodes" / name), Wanted(streams))
    return b"".join(data for _, _, data in frames).decode()


def collecting(rig: Rig) -> int:
    """The collector's pid, 0 when there is none."""
    words = (proc.read(f"{rig.client.root}/{collector.LOCK}") or "").split()
    return int(words[0]) if words and proc.alive(int(words[0]), int(words[1])) else 0


def test_writing_to_dev_stderr_truncates_nothing(rig: Rig) -> None:
    rig.start("one", "echo first >&2; echo second >/dev/stderr; echo third >/dev/stderr; echo fourth >&2")
    rig.start("web", ["/bin/sh", "-c", "echo 1; echo 2 >/dev/stdout; echo 3 >/proc/self/fd/1"], user="web")
    assert rig.client.wait("one", 20) == 0 and rig.client.wait("web", 20) == 0
    assert said(rig, "one", logbook.ERR) == "first\nsecond\nthird\nfourth\n"
    assert said(rig, "web") == "1\n2\n3\n"


def test_one_process_collects_for_all_and_none_stays_for_each(rig: Rig) -> None:
    items = [rig.bundle(f"n{number}", "ulimit -n; exec sleep 1000") for number in range(5)]
    assert set(rig.client.launch(items).values()) == {""}
    keeper = rig.client.keeper_pid()
    children = (proc.read(f"/proc/{keeper}/task/{keeper}/children") or "").split()
    firsts = {str(one.pid) for one in rig.client.states().values()}
    assert set(children) - firsts == {str(collecting(rig))}
    usual = os.popen("ulimit -Sn").read()
    assert said(rig, "n0") == usual, "its own files are not the keeper's affair"


def test_a_slow_follower_gets_every_line_although_segments_go(rig: Rig) -> None:
    bounds = {spec.LOG_MAX_SIZE: str(64 << 10), spec.LOG_MAX_FILES: "2"}
    script = "i=0; while [ $i -lt 40 ]; do seq ${i}001 $((i + 1))000; i=$((i + 1)); sleep 0.04; done"
    rig.start("one", script, annotations=bounds)
    folder = rig.folder / "nodes/one"

    def ended() -> bool:
        if rig.client.states()["one"].status != "stopped":
            return False
        rig.client.flush()
        return True

    got = b""
    for _, _, data in logread.read(str(folder), Wanted(logbook.OUT), follow=True, ended=ended):
        got += data
        time.sleep(0.1)
    assert got.decode().split() == [str(number) for number in range(1, 40_001)]
    assert sum(path.stat().st_size for path in folder.glob("*.log")) <= 2 * (64 << 10)
    assert len(logbook.segments(str(folder))) == 2 and said(rig, "one").endswith("\n40000\n")


def test_the_collectors_death_costs_no_line(rig: Rig) -> None:
    rig.start("one", "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.005; done; exec sleep 1000")
    for _ in range(3):
        until(lambda: collecting(rig) > 0, "one collects")
        time.sleep(0.3)
        os.kill(collecting(rig), signal.SIGKILL)
    until(lambda: said(rig, "one").endswith("400\n"), "the last line")
    assert said(rig, "one").split() == [str(number) for number in range(1, 401)]
    assert rig.client.states()["one"].status == "running"


def test_both_die_and_the_container_goes_on(rig: Rig) -> None:
    rig.start("one", "echo before; while [ ! -e /root/go ]; do sleep 0.05; done; echo after; exec sleep 1000")
    until(lambda: said(rig, "one") == "before\n", "it began")
    for pid in (rig.client.keeper_pid(), collecting(rig)):
        fd = pidfds.open_pid(pid)
        os.kill(pid, signal.SIGKILL)
        pidfds.ended(fd, 5.0)
        os.close(fd)
    rig.sh("one", "touch /root/go")
    time.sleep(0.3)
    rig.client.flush(start=True)
    until(lambda: said(rig, "one") == "before\nafter\n", "what it said meanwhile")
    assert rig.client.states()["one"].status == "running"


def test_a_keeper_that_is_gone_leaves_no_collector_behind(rig: Rig) -> None:
    rig.start("one", "while :; do echo much; done")
    rig.start("two", "sleep 0.2; echo two; exec sleep 1000")
    os.kill(rig.client.keeper_pid(), signal.SIGKILL)
    until(lambda: rig.client.keeper_pid() == 0, "the keeper is gone")
    assert collecting(rig) > 0, "it goes on without its keeper"
    assert rig.client.delete(["one"]) == {"one": ""}
    rig.client.settle()
    until(lambda: said(rig, "two") == "two\n", "the other one is still heard")
    os.kill(rig.client.keeper_pid(), signal.SIGKILL)
    assert rig.client.delete(["two"]) == {"two": ""}
    rig.client.close()
    assert collecting(rig) == 0
