"""Containers of other engines in a lab: beside ours on one network, used alike, gone without a trace."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.errors import TimedOut
from labctl.home import Home
from labctl.lab import api
from labctl.lab.model import Options
from tests.e2e.forked import Forked
from tests.e2e.labs import CONTAINERS, Lab, touched, use_shared_cache
from tests.e2e.test_kill import Crash

Since = Callable[[], list[str]]
OTHERS = ("runc", "crun")
ALL = (*OTHERS, "podman")
pytestmark = pytest.mark.needs(*CONTAINERS, *OTHERS)

PROFILE = """
name: side
defaults: {image: micro, memory: 64MiB, pids: 50, command: "echo said; echo oops >&2; exec sleep 1000"}
volumes: {keep: {}}
nodes:
  own: {}
  runc: {engine: runc, user: "33:34", volumes: [{source: keep, target: /keep}]}
  crun: {engine: crun, cpus: 0.5, files: [{path: /etc/hello, content: hi}], tmpfs: [/t]}
"""
PODMAN = """\
  podman: {engine: podman, user: "33:34", volumes: [{source: keep, target: /keep}], tmpfs: [/t]}
"""
LIMITS = """
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null
cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null || true
"""


def test_engines_side_by_side(home: Home, tmp_path: Path, host_inventory: Since) -> None:
    lab = Lab(home, tmp_path, "side", PROFILE)
    up = lab.up()
    for node in up["nodes"]:
        assert node["state"] == "ready"
        engine = "" if node["name"] == "own" else f"{node['name']} "
        assert node["runs_on"].startswith(f"{engine}") and node["runs_on"].endswith("this host")
    assert touched(lab.up()) == {}
    for name in ("own", *OTHERS):
        is_used_alike(home, tmp_path, name, {"own", *OTHERS} - {name})
    assert api.machine("side", "runc", Options(home)).run(["id"]).text.startswith("uid=33(www-data) gid=34")
    assert lab.sh("crun", "cat /etc/hello; echo; grep -c ' /t tmpfs' /proc/mounts").split() == ["hi", "1"]
    lab.down()
    assert host_inventory() == []


def is_used_alike(home: Home, tmp_path: Path, name: str, others: set[str]) -> None:
    """Commands, names, limits, logs and files of a node, whatever runs it."""
    machine = api.machine("side", name, Options(home))
    assert machine.run(["hostname"]).text == f"{name}\n"
    for other in others:
        done = machine.run(["ping", "-c", "1", "-W", "5", other], user="0")
        assert done.code == 0, f"{name} to {other}: {done.errors}"
    assert machine.run(["sh", "-c", "exit 37"]).code == 37
    assert (machine.run(["nope"]).code, machine.run(["/etc"]).code) == (127, 126)
    assert machine.run(["cat"], input=b"typed").text == "typed"
    script = "id -u; pwd; echo $A; grep CapEff /proc/self/status; echo bad >&2; exit 3"
    done = machine.run(["sh", "-c", script], env={"A": "b"}, cwd="/usr", user="nobody")
    rights = "CapEff:\t0000000000000000"
    assert done.text.splitlines() == ["65534", "/usr", "b", rights], done.errors
    assert (done.code, done.errors) == (3, "bad\n")
    with pytest.raises(TimedOut):
        machine.run(["sh", "-c", "exec sleep 987"], timeout=0.5)
    assert "sleep 987" not in machine.run(["ps"]).text, "what took too long is ended"
    assert machine.run(["sh", "-c", LIMITS], user="0").text.split() == [str(64 << 20), "50"]
    assert {chunk.stream: chunk.data for chunk in machine.logs()} == {
        "stdout": b"said\n",
        "stderr": b"oops\n",
    }
    (tmp_path / "f").write_text("copied")
    machine.copy_in(str(tmp_path / "f"), "/root/f")
    packed = io.BytesIO()
    machine.copy_out("/root/f", "-", stream=packed)
    with tarfile.open(fileobj=io.BytesIO(packed.getvalue())) as tar:
        assert tar.extractfile("f").read() == b"copied"  # type: ignore[union-attr]


@pytest.mark.needs("podman")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_engines_as_a_person_uses_them(home: Home, tmp_path: Path, host_inventory: Since) -> None:
    """Terminals, pauses, stops, changes and a look at all, by the command line."""
    lab = Lab(home, tmp_path, "side", PROFILE + PODMAN)
    lab.up()
    is_used_alike(home, tmp_path, "podman", {"own", *OTHERS})
    mine = lab.sh("podman", "id -u; echo $HOME; grep -c ' /t tmpfs' /proc/mounts; echo kept > /keep/x")
    assert mine.split() == ["33", "/var/www", "1"]
    assert lab.sh("runc", "cat /keep/x") == "kept"
    lab.sh("crun", "echo copied > /root/f")
    for name in ALL:
        typed = f"{sys.executable} -m labctl.cli exec -t side/{name} -- sh -c 'tty; sleep 0.3; exit 5'"
        done = subprocess.run(
            ["script", "-qec", typed, "/dev/null"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
            env=lab.environment(),
        )
        assert (done.returncode, b"/dev/pts/0" in done.stdout) == (5, True), done
    every = [f"side/{name}" for name in ALL]
    lab.good("pause", *every)
    assert lab.states() == {"own": "ready", **dict.fromkeys(ALL, "paused")}
    lab.good("resume", *every)
    used = {row["node"]: row for row in json.loads(lab.good("stats", "side", "--json"))["nodes"]}
    for name in ALL:
        assert used[name]["state"] == "running" and 0 < used[name]["memory_bytes"] < 64 << 20
        assert used[name]["memory_limit_bytes"] == 64 << 20 and used[name]["net_sent_bytes"] > 0
        first = json.loads(lab.good("top", f"side/{name}", "--json"))["processes"][0]
        assert (first["pid"], first["command"]) == (1, "sleep 1000")
    lab.good("stop", *every)
    assert "does not run" in lab.run("attach", "side/crun").stderr
    stopped = lab.status()
    assert {stopped[name]["state"] for name in ALL} == {"stopped"}
    assert stopped["runc"]["reason"] == "ended; runc keeps no exit code"
    assert stopped["podman"]["reason"] == "ended with 137"
    lab.good("start", *every)
    assert lab.sh("podman", "cat /root/f") == "copied"
    began = lab.starts(*OTHERS)
    lab.write(lab.file.read_text().replace("pids: 50", "pids: 60"))
    changed = set(touched(lab.up()))
    assert {"container:own", *(f"engine:{name}" for name in ALL)} <= changed
    assert lab.starts(*OTHERS) == began, "a limit is changed in place"
    for name in ("runc", "podman"):
        assert lab.sh(name, LIMITS).split() == [str(64 << 20), "60"]
    assert lab.sh("crun", "cat /root/f") == "copied"
    told = json.loads(lab.good("compare", "side", "--json"))
    rows = {row["key"]: row["values"] for row in told["rows"]}
    assert all(rows["ns-user"][name] == "same as host" for name in ALL)
    assert rows["ns-user"]["own"] == "its own"
    # Killed from outside: seen, and made anew by the next up.
    os.kill(api.machine("side", "crun", Options(lab.home)).pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert lab.states()["crun"] == "stopped"
    assert set(touched(lab.up())) == {"engine:crun", "reach:crun", "ready:crun"}
    lab.down()
    assert host_inventory() == []


def test_an_engine_that_is_not_there_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labctl.engines import calls
    from labctl.errors import HostCannot
    from labctl.profile import load_text

    monkeypatch.setattr(calls, "_PATH", str(tmp_path))
    profile = load_text("name: t\nnodes: {a: {image: micro, engine: crun}}")
    with pytest.raises(HostCannot) as told:
        api.up(profile, Options(home))
    assert "crun is not installed" in told.value.message and "apt-get install crun" in told.value.hint
    assert api.labs(Options(home)) == []


KILLED = """
name: crash
defaults: {image: micro, command: exec sleep 1000}
nodes:
  a: {engine: runc}
  b: {engine: crun}
  c: {engine: podman}
"""


# The steps of one node stand for all: what differs is the engine, so both are there at every kill.
POINTS = [
    ("up", "make:before:engine:a"),
    ("up", "make:after:engine:b"),
    ("up", "made:engine:a"),
    ("up", "make:after:engine:c"),
    ("down", "unmake:before:engine:a"),
    ("down", "unmake:before:engine:c"),
    ("down", "unmake:after:engine:b"),
]


@pytest.mark.needs("podman")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_engines_survive_no_kill(home: Home, tmp_path: Path, host_inventory: Since) -> None:
    use_shared_cache(home)
    profile = tmp_path / "crash.yaml"
    profile.write_text(KILLED)
    with Forked() as labctl:
        crash = Crash(home, profile, labctl)
        for verb, point in POINTS:
            if verb == "down":
                crash.good("up")
            assert crash.run(verb, f"kill@{point}").returncode == -9, point
            crash.gone()
            assert host_inventory() == [], f"killed {verb} at point {point}"


@pytest.mark.needs("podman")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_up_that_is_killed_while_its_engine_works(
    home: Home, tmp_path: Path, host_inventory: Since
) -> None:
    """At any instant, not only at labctl's own points: the engine dies with it or is found."""
    use_shared_cache(home)
    profile = tmp_path / "crash.yaml"
    profile.write_text(KILLED)
    argv = [sys.executable, "-m", "labctl.cli", "up", str(profile)]
    with Forked() as labctl:
        crash = Crash(home, profile, labctl)
        for wait in (0.0, 0.03, 0.1):
            with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as up:
                ends = time.monotonic() + 60
                while not list(home.state.glob("labs/*/nodes/a/labctl.json")) and up.poll() is None:
                    assert time.monotonic() < ends
                    time.sleep(0.002)
                time.sleep(wait)
                up.kill()
            crash.gone()
            assert host_inventory() == [], f"killed {wait} s after the bundle was there"
