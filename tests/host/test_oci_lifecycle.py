"""Conformance with runtime.md and the hooks of config.md; the section stands first in each docstring."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from labctl.linux import proc
from tests.host.oci_rig import Config, Oci, hook

pytestmark = pytest.mark.needs("root", "cgroup")
CREATE_HOOKS = ("prestart", "createRuntime", "createContainer")


def test_state_has_what_it_must_have(oci: Oci) -> None:
    """runtime.md, State."""
    oci.write("exec sleep 1000", lambda config: config.update(annotations={"org.test.key": "a value"}))
    oci.quiet("create", "c")
    state = oci.state()
    assert state["ociVersion"] == "1.1.0"
    assert (state["id"], state["status"], state["bundle"]) == ("c", "created", str(oci.bundle))
    assert state["annotations"] == {"org.test.key": "a value"}
    assert proc.alive(state["pid"])
    assert oci.ok("start", "c") == ""
    assert oci.state()["status"] == "running"
    oci.ok("kill", "c", "KILL")
    oci.wait_for("stopped")
    assert oci.state()["pid"] == 0


@pytest.mark.parametrize("words", [["state"], ["create"], ["start"], ["kill"], ["delete"]])
def test_every_operation_wants_an_id(oci: Oci, words: list[str]) -> None:
    """runtime.md, Query State, Create, Start, Kill, Delete: an error without the id."""
    done = oci(*words)
    assert (done.returncode, "requires" in done.stderr) == (1, True)


@pytest.mark.parametrize("words", [["state", "no"], ["start", "no"], ["kill", "no", "9"], ["delete", "no"]])
def test_one_that_does_not_exist_is_an_error(oci: Oci, words: list[str]) -> None:
    """runtime.md, Query State, Start, Kill, Delete: an error for one that does not exist."""
    done = oci(*words)
    assert (done.returncode, "does not exist" in done.stderr) == (1, True)


def test_ids_are_unique_and_well_formed(oci: Oci) -> None:
    """runtime.md, Create: an id in use or not valid is an error, and no container is made."""
    oci.write("exec sleep 1000")
    oci.quiet("create", "c")
    pid = oci.state()["pid"]
    assert "container with id exists" in oci("create", "c").stderr
    assert oci.state()["pid"] == pid
    for bad in ("a/b", "..", "", "a b", "ä"):
        assert oci("create", bad).returncode == 1
    assert oci.ok("list", "-q") == "c\n"


def test_the_program_does_not_run_before_start_nor_by_a_later_config(oci: Oci) -> None:
    """runtime.md, Lifecycle 2 to 8: create runs no program; a later change of config.json is not seen."""
    oci.write("echo first >/tmp/who; exec sleep 1000")
    oci.quiet("create", "c")
    assert not (oci.rootfs / "tmp/who").exists()
    oci.write("echo second >/tmp/who")
    oci.ok("start", "c")
    oci.wait_for("running")
    end = oci.ok("exec", "c", "/bin/sh", "-c", "while [ ! -s /tmp/who ]; do :; done; cat /tmp/who")
    assert end == "first\n"


def test_start_is_for_created_ones_only(oci: Oci) -> None:
    """runtime.md, Start: an error for any state but created, without effect."""
    oci.write("exec sleep 1000")
    oci.quiet("create", "c")
    oci.ok("start", "c")
    pid = oci.state()["pid"]
    assert oci("start", "c").returncode == 1
    assert (oci.state()["status"], oci.state()["pid"]) == ("running", pid)
    oci.ok("kill", "c", "KILL")
    oci.wait_for("stopped")
    assert "has stopped" in oci("start", "c").stderr


def test_start_without_a_process_is_an_error(oci: Oci) -> None:
    """config.md, Process, and runtime.md, Start: process is required when start is called."""
    oci.write("true", lambda config: config.pop("process"))
    oci.quiet("create", "c")
    assert oci.state()["status"] == "created"
    done = oci("start", "c")
    assert (done.returncode, "has no process" in done.stderr) == (1, True)


def test_kill_sends_the_signal_and_needs_a_process(oci: Oci) -> None:
    """runtime.md, Kill: the signal arrives; neither created nor running is an error."""
    oci.write("trap 'echo usr1 >/tmp/got; exit 7' USR1; echo up >/tmp/up; while :; do sleep 0.02; done")
    oci.quiet("create", "c")
    oci.ok("start", "c")
    oci.ok("exec", "c", "/bin/sh", "-c", "while [ ! -s /tmp/up ]; do :; done")
    oci.ok("kill", "c", "SIGUSR1")
    oci.wait_for("stopped")
    assert (oci.rootfs / "tmp/got").read_text() == "usr1\n"
    for words in (("kill", "c", "9"), ("kill", "c")):
        done = oci(*words)
        assert (done.returncode, "not running" in done.stderr) == (1, True)
    oci.ok("kill", "--all", "c", "9")


def test_a_created_one_can_be_killed(oci: Oci) -> None:
    """runtime.md, Kill: a created container takes signals as well."""
    oci.write("true")
    oci.quiet("create", "c")
    oci.ok("kill", "c", "KILL")
    oci.wait_for("stopped")
    oci.ok("delete", "c")


def test_delete_wants_it_stopped_and_leaves_nothing_of_it(oci: Oci) -> None:
    """runtime.md, Delete: an error unless stopped; what create made goes, and the id may be used anew."""
    oci.write("exec sleep 1000")
    for _ in range(2):
        oci.quiet("create", "c")
        oci.ok("start", "c")
        refused = oci("delete", "c")
        assert (refused.returncode, "is not stopped: running" in refused.stderr) == (1, True)
        assert oci.state()["status"] == "running"
        oci.ok("pause", "c")
        assert "is not stopped: paused" in oci("delete", "c").stderr
        oci.ok("resume", "c")
        oci.ok("kill", "c", "KILL")
        oci.wait_for("stopped")
        oci.ok("delete", "c")
        assert not oci.group().exists()
        assert not (oci.root / "c").exists()
    assert (oci.rootfs / "bin/busybox").exists()


def test_an_error_leaves_all_as_it_was(oci: Oci) -> None:
    """runtime.md, Errors: as if the operation had never been tried."""
    said = oci.refusal(lambda config: config["mounts"].append(
        {"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}
    ))  # fmt: skip
    assert "/no/such" in said
    said = oci.refusal(lambda config: config["process"].update(args=["/no/such"]))
    assert "/no/such" in said


def test_hooks_run_in_their_order_with_the_state(oci: Oci) -> None:
    """runtime.md, Lifecycle, and config.md, POSIX-platform Hooks: order, the state on stdin, every phase."""
    log = oci.folder / "hooks"
    outside = f"cat >>{log}; echo >>{log}"

    def change(config: Config) -> None:
        config["annotations"] = {"a": "b"}
        config["hooks"] = {
            kind: [hook(f"echo {kind} >>{log}; {outside}")]
            for kind in (*CREATE_HOOKS, "poststart", "poststop")
        }
        config["hooks"]["startContainer"] = [hook("cat >/tmp/state")]

    oci.write("cat /tmp/state >/tmp/seen; exec sleep 1000", change)
    oci.quiet("create", "c")
    pid = oci.state()["pid"]
    lines = log.read_text().split("\n")
    assert lines[0:6:2] == list(CREATE_HOOKS)
    for line in lines[1:6:2]:
        state = json.loads(line)
        assert (state["id"], state["status"], state["bundle"]) == ("c", "creating", str(oci.bundle))
        assert state["annotations"] == {"a": "b"}
    assert json.loads(lines[1])["pid"] == pid
    assert json.loads(lines[5])["pid"] == 1  # createContainer runs in the container's namespaces
    oci.ok("start", "c")
    inside = json.loads((oci.rootfs / "tmp/state").read_text())
    assert (inside["status"], inside["pid"], inside["annotations"]) == ("created", 1, {"a": "b"})
    lines = log.read_text().split("\n")
    assert lines[6] == "poststart"
    assert json.loads(lines[7])["status"] == "running"
    oci.ok("delete", "--force", "c")
    lines = log.read_text().split("\n")
    assert lines[8] == "poststop"
    assert json.loads(lines[9])["status"] == "stopped"


def test_hooks_run_where_they_belong(oci: Oci) -> None:
    """config.md, createRuntime, createContainer and startContainer Hooks: their namespaces and their root."""
    log = oci.folder / "where"
    names = ("mnt", "uts", "pid")
    say = (
        f"for n in {' '.join(names)}; do readlink /proc/self/ns/$n; done >>{log}; ls -d {oci.rootfs} >>{log}"
    )

    def change(config: Config) -> None:
        config["hooks"] = {
            "createRuntime": [hook(say)],
            "createContainer": [
                hook(f"mount -t tmpfs tmpfs {oci.rootfs}/srv; echo made >{oci.rootfs}/srv/f; {say}")
            ],
            "startContainer": [hook("cat /srv/f >/tmp/start; hostname >>/tmp/start")],
        }

    oci.run("cat /srv/f", change)
    runtime, container = log.read_text().split(f"{oci.rootfs}\n")[:2]
    assert runtime.split() == [str(Path(f"/proc/self/ns/{name}").readlink()) for name in names]
    assert not set(container.split()) & set(runtime.split())
    assert (oci.rootfs / "tmp/start").read_text() == "made\nlabrun\n"


@pytest.mark.parametrize("kind", CREATE_HOOKS)
def test_a_hook_of_create_that_fails_ends_it(oci: Oci, kind: str) -> None:
    """runtime.md, Lifecycle 3 to 5: an error, the container stopped, and on with the poststop hooks."""
    log = oci.folder / "log"
    hooks = {kind: [hook("true"), hook("echo why >&2; exit 3")], "poststop": [hook(f"echo poststop >>{log}")]}
    said = oci.refusal(lambda config: config.update(hooks=hooks))
    assert f"error running {kind} hook #1:" in said
    assert "why" in said
    assert log.read_text() == "poststop\n"


def test_a_start_container_hook_that_fails_stops_it(oci: Oci) -> None:
    """runtime.md, Lifecycle 7."""
    hooks = {"startContainer": [hook("exit 4")]}
    oci.write("echo ran >/tmp/ran", lambda config: config.update(hooks=hooks))
    done = oci("run", "c")
    assert (done.returncode, "error running startContainer hook #0:" in done.stderr) == (1, True), done.stderr
    assert not (oci.rootfs / "tmp/ran").exists()
    oci.quiet("create", "c")
    done = oci("start", "c")
    assert (done.returncode, "error running startContainer hook #0:" in done.stderr) == (1, True), done.stderr
    oci.wait_for("stopped")
    assert not (oci.rootfs / "tmp/ran").exists()


@pytest.mark.parametrize("kind", ["poststart", "poststop"])
def test_a_late_hook_that_fails_is_a_warning(oci: Oci, kind: str) -> None:
    """runtime.md, Lifecycle 9 and 13: a warning, the remaining hooks are run, life goes on."""
    log = oci.folder / "log"
    hooks = {kind: [hook("exit 3"), hook(f"echo second >>{log}")]}
    oci.write("echo out", lambda config: config.update(hooks=hooks))
    done = oci("run", "c")
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert "level=warning" in done.stderr
    assert f"error running {kind} hook #0" in done.stderr
    assert log.read_text() == "second\n"
    assert oci.ok("list", "-q") == ""


def test_a_hook_has_its_time_its_arguments_and_its_environment(oci: Oci) -> None:
    """config.md, POSIX-platform Hooks: path, args, env, timeout."""
    log = oci.folder / "log"
    row = {
        "path": "/bin/sh",
        "args": ["other", "-c", f"echo $0 $A $HOME. >>{log}"],
        "env": ["A=b"],
        "timeout": 5,
    }
    oci.run("true", lambda config: config.update(hooks={"prestart": [row]}))
    assert log.read_text() == "other b .\n"
    slow = {"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}
    assert "timeout of 1 s" in oci.refusal(lambda config: config.update(hooks={"createRuntime": [slow]}))
    for wrong, said in (
        ({"path": "sh"}, "absolute path"),
        ({"path": "/bin/sh", "timeout": 0}, "greater than"),
    ):
        assert said in oci.refusal(lambda config, row=wrong: config.update(hooks={"poststop": [row]}))


def test_a_container_that_dies_is_stopped(oci: Oci) -> None:
    """runtime.md, Kill: stopped however its process came to its end."""
    oci.write("exit 3")
    oci.quiet("create", "c")
    oci.ok("start", "c")
    oci.wait_for("stopped")
    oci.ok("delete", "c")
    oci.write("exec sleep 1000")
    oci.quiet("run", "-d", "c")
    os.kill(oci.state()["pid"], signal.SIGKILL)
    oci.wait_for("stopped")
    assert "cannot exec in a stopped container" in oci("exec", "c", "true").stderr
    assert "not running" in oci("pause", "c").stderr


def test_two_creates_at_once_make_one(oci: Oci) -> None:
    """runtime.md, Create: unique, also when two come at the same time."""
    oci.write("exec sleep 1000")
    null = subprocess.DEVNULL
    racers = [oci.popen("create", "c", stdin=null, stdout=null, stderr=null) for _ in range(3)]
    assert sorted(racer.wait(30) for racer in racers) == [0, 1, 1]
    assert oci.state()["status"] == "created"
