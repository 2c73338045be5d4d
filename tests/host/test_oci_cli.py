"""The command line as runc's and crun's users know it: forms, formats, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from labctl.linux import proc
from labctl.linux.cgroups import Cgroup
from tests.host.oci_rig import Config, Oci
from tests.host.runtime_rig import LABRUN

pytestmark = [pytest.mark.needs("root", "cgroup"), pytest.mark.long]


@pytest.fixture
def running(oci: Oci) -> Oci:
    """One container `c` that sleeps."""
    oci.write("exec sleep 1000")
    oci.quiet("run", "-d", "--pid-file", str(oci.folder / "pid"), "c")
    return oci


def test_options_stand_before_or_behind_the_name(oci: Oci) -> None:
    oci.write("exec sleep 1000")
    oci.quiet(
        "--debug", "--systemd-cgroup=false", "create", "c", "--bundle", str(oci.bundle), "--no-pivot=false"
    )
    oci.ok("start", "c")
    assert json.loads(oci.ok("list", "--format=json"))[0]["status"] == "running"
    oci.ok("kill", "c", "9", "--all")
    oci.wait_for("stopped")
    oci.ok("delete", "c", "--force")
    assert oci("--nope", "list").returncode == 1
    assert oci("list", "--nope").returncode == 1
    assert "labrun create" in oci.ok("create", "--help")


def test_version_help_and_what_is_not_there(oci: Oci) -> None:
    assert "spec: 1.1.0" in oci.ok("--version")
    assert "checkpoint" in oci.ok("--help")
    for verb in ("checkpoint", "restore"):
        done = oci(verb, "c")
        assert (done.returncode, "not supported" in done.stderr) == (1, True)


def test_errors_as_text_and_as_json(oci: Oci) -> None:
    assert oci("state", "x").stderr.startswith('time="')
    log = oci.folder / "log"
    oci.write("true", lambda config: config["process"].update(capabilities={"bounding": ["CAP_X"]}))
    oci.ok("--log", str(log), "--log-format", "json", "run", "c")
    oci("--log", str(log), "--log-format=json", "state", "x")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["level"] for row in rows] == ["warning", "error"]
    assert all(set(row) == {"level", "msg", "time"} for row in rows)
    assert "log-format" in oci("--log-format", "xml", "state", "x").stderr


def test_lists_and_processes(running: Oci) -> None:
    pid = int((running.folder / "pid").read_text())
    (row,) = json.loads(running.ok("list", "-f", "json"))
    assert (row["id"], row["pid"], row["status"], row["bundle"]) == ("c", pid, "running", str(running.bundle))
    table = running.ok("list").splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert table[1].split()[:3] == ["c", str(pid), "running"]
    assert running.ok("list", "--quiet") == "c\n"
    assert json.loads(running.ok("ps", "-f", "json", "c")) == [pid]
    assert str(pid) in running.ok("ps", "c", "-e", "-o", "pid,comm")
    assert "invalid format" in running("list", "-f", "yaml").stderr
    running.ok("delete", "-f", "c")
    assert json.loads(running.ok("list", "-f", "json")) is None


def test_exec_in_all_its_forms(running: Oci) -> None:
    shell = ["c", "/bin/sh", "-c"]
    assert running("exec", *shell, "exit 7").returncode == 7
    assert running("exec", *shell, "kill -9 $$").returncode == 137
    assert running("exec", "c").returncode == 255
    assert running("exec", "nope", "true").returncode == 255
    said = running.ok("exec", "-e", "A=1", "--env", "B=2", "--cwd", "/srv", *shell, "echo $A $B; pwd")
    assert said.split() == ["1", "2", "/srv"]
    seen = running.ok("exec", "--user", "33:34", "-g", "44", "-g", "45", *shell, "id -u; id -g; id -G")
    assert seen.splitlines() == ["33", "34", "34 44 45"]
    caps = running.ok("exec", "--cap", "CAP_NET_ADMIN", *shell, "grep CapEff /proc/self/status")
    assert int(caps.split()[1], 16) & 1 << 12
    assert "1" in running.ok("exec", "--no-new-privs", *shell, "grep NoNewPrivs /proc/self/status")
    assert running("exec", "-g", "x", *shell, "true").returncode == 255


def test_exec_by_a_process_file(running: Oci) -> None:
    path = running.folder / "process.json"
    process = {
        "args": ["/bin/sh", "-c", "id -u; pwd; echo $X"],
        "cwd": "/tmp",
        "env": ["X=y", "PATH=/bin"],
        "user": {"uid": 9, "gid": 9},
        "capabilities": {},
    }
    path.write_text(json.dumps(process))
    for option in ("-p", "--process"):
        assert running.ok("exec", option, str(path), "c").split() == ["9", "/tmp", "y"]
    for wrong in ("{", "[]", '{"args": []}', '{"args": ["x"], "cwd": "x"}'):
        path.write_text(wrong)
        done = running("exec", "-p", str(path), "c")
        assert (done.returncode, "process file" in done.stderr) == (255, True)


def test_a_detached_exec_with_its_pid_file(running: Oci) -> None:
    path = running.folder / "exec.pid"
    running.quiet("exec", "-d", "--pid-file", str(path), "c", "sleep", "1000")
    pid = int(path.read_text())
    assert proc.alive(pid)
    assert sorted(json.loads(running.ok("ps", "-f", "json", "c"))) == sorted([pid, running.state()["pid"]])
    done = running("exec", "-d", "-t", "c", "true")
    assert (done.returncode, "console socket" in done.stderr) == (255, True)


def test_exec_while_paused(running: Oci) -> None:
    running.ok("pause", "c")
    assert running.state()["status"] == "paused"
    done = running("exec", "c", "true")
    assert (done.returncode, "paused" in done.stderr) == (255, True)
    with running.popen("exec", "--ignore-paused", "c", "echo", "late", stdout=-1, stdin=-3) as waiting:
        assert waiting.poll() is None
        running.ok("resume", "c")
        assert waiting.communicate(timeout=20)[0] == "late\n"
    assert "not paused" in running("resume", "c").stderr


def test_exec_in_a_group_below(running: Oci) -> None:
    controllers = [name for name in running.layout.v1 if "=" not in name]
    Cgroup(f"{running.group().path}/inner", running.layout, controllers).create()
    seen = running.ok("exec", "--cgroup", "inner", "c", "cat", "/proc/self/cgroup")
    assert "/inner" in seen
    for bad in ("..", "nope"):
        assert running("exec", "--cgroup", bad, "c", "true").returncode == 255


def test_descriptors_are_passed_on_only_when_asked(oci: Oci) -> None:
    oci.write("echo through >&3")
    out = oci.folder / "out"
    command = ["sh", "-c", f'exec "$@" 3>{out}', "sh", *LABRUN, "--root", str(oci.root), "run"]

    def run(*options: str) -> int:
        done = subprocess.run([*command, *options, "c"], cwd=oci.bundle, capture_output=True, timeout=30)
        return done.returncode

    assert run("--preserve-fds", "1") == 0
    assert out.read_text() == "through\n"
    assert run() != 0
    assert out.read_text() == ""
    assert "preserved-fd" in oci("run", "--preserve-fds", "50", "c").stderr


def test_the_starting_configuration(oci: Oci) -> None:
    """Both forms of `spec` run as they are."""
    config = oci.bundle / "config.json"
    oci.ok("spec")
    assert "exists" in oci("spec").stderr
    for extra in ((), ("--rootless",)):
        config.unlink()
        oci.ok("spec", "--bundle", str(oci.bundle), *extra)
        document: Config = json.loads(config.read_text())
        assert document["process"]["args"] == ["sh"]
        document["process"].update(terminal=False, args=["/bin/echo", "hello"])
        config.write_text(json.dumps(document))
        assert oci.ok("run", "c") == "hello\n"


def test_features_tell_what_there_is(oci: Oci) -> None:
    """features.md and features-linux.md: every key, and each claim that can be tried."""
    found = json.loads(oci.ok("features"))
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", "1.1.0")
    kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    assert found["hooks"] == kinds
    assert {"rro", "idmap", "ridmap", "tmpcopyup", "rshared", "nosymfollow"} <= set(found["mountOptions"])
    linux = found["linux"]
    assert set(linux["namespaces"]) == {"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"}
    assert "CAP_SYS_ADMIN" in linux["capabilities"]
    assert {"v1", "v2", "systemd", "systemdUser", "rdma"} == set(linux["cgroup"])
    assert "SCMP_ACT_NOTIFY" in linux["seccomp"]["actions"]
    assert "SCMP_CMP_MASKED_EQ" in linux["seccomp"]["operators"]
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])
    assert linux["intelRdt"] == {"enabled": False}
    assert linux["mountExtensions"] == {"idmap": {"enabled": True}}


def test_figures_and_events(running: Oci) -> None:
    row = json.loads(running.ok("events", "c", "--stats"))
    assert (row["type"], row["id"]) == ("stats", "c")
    assert row["data"]["pids"]["current"] >= 1
    assert row["data"]["memory"]["usage"]["usage"] >= 0
    assert row["data"]["memory"]["raw"]
    assert row["data"]["cpu"]["usage"]["total"] > 0
    assert row["data"]["cpu"]["throttling"]["periods"] == 0
    assert "greater than 0" in running("events", "--interval", "0s", "c").stderr


def test_a_state_folder_that_is_damaged_can_still_be_removed(oci: Oci) -> None:
    for text in ("", "{", "[]", '{"pid": "x", "cgroup": 3, "annotations": []}'):
        oci.write("exec sleep 1000")
        oci.quiet("run", "-d", "c")
        os.kill(oci.state()["pid"], 9)
        (oci.root / "c/state.json").write_text(text)
        (oci.root / "c/config.json").write_text(text)
        assert oci.state()["status"] == "stopped"
        assert oci.ok("list", "-q") == "c\n"
        oci.ok("delete", "--force", "c")
        oci.group().remove()
