"""labrun's command line, in cold processes, as podman's or containerd's authors expect of an OCI runtime."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import proc
from labctl.runtime import runtime_zip
from tests.host.runtime_rig import LABRUN, Rig, labrun

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


class Bundle:
    """One bundle with a plain root file system, and labrun on a root folder of its own."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.root = folder / "root"

    def write(self, script: str | list[str], **settings: Any) -> None:
        launch = self.rig.bundle(
            "oci",
            script,
            lowers=[],
            upper="",
            work="",
            rootfs=str(self.rig.image),
            stdout="",
            stderr="",
            **settings,
        )
        (self.folder / "config.json").write_text((Path(launch.bundle) / "config.json").read_text())

    def __call__(self, *argv: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return labrun("--root", str(self.root), *argv, cwd=self.folder, **settings)

    def state(self, name: str = "c") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", name).stdout)
        return found


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    rig = Rig(tmp_path / "rig")
    folder = tmp_path / "bundle"
    folder.mkdir()
    made = Bundle(rig, folder)
    yield made
    for name in made("list", "-q").stdout.split():
        made("delete", "--force", name)
    rig.close()


# The rig's own image belongs to the host's root, so these run without a user namespace, as podman's do.
PLAIN: dict[str, Any] = {"id_base": 0}


def test_the_life_of_a_container(bundle: Bundle) -> None:
    bundle.write("echo ran >/tmp/ran; exec sleep 1000", **PLAIN)
    assert (
        bundle("create", "--pid-file", "pid", "c", stdout=subprocess.DEVNULL, capture_output=False).returncode
        == 0
    )
    state = bundle.state()
    assert state["status"] == "created"
    assert state["pid"] == int((bundle.folder / "pid").read_text())
    assert not (bundle.rig.image / "tmp/ran").exists()
    assert "container with id exists" in bundle("create", "c").stderr
    assert bundle("start", "c").returncode == 0
    assert bundle.state()["status"] == "running"
    assert "cannot start an already running container" in bundle("start", "c").stderr
    refused = bundle("delete", "c")
    assert refused.returncode == 1
    assert "cannot delete container c that is not stopped: running" in refused.stderr
    assert bundle("pause", "c").returncode == 0
    assert bundle.state()["status"] == "paused"
    assert bundle("resume", "c").returncode == 0
    assert json.loads(bundle("list", "--format", "json").stdout)[0]["id"] == "c"
    assert str(state["pid"]) in bundle("ps", "c").stdout
    assert json.loads(bundle("ps", "--format", "json", "c").stdout) == [state["pid"]]
    assert bundle("kill", "c", "KILL").returncode == 0
    end = time.monotonic() + 5
    while bundle.state()["status"] != "stopped":
        assert time.monotonic() < end
    assert bundle("delete", "c").returncode == 0
    gone = bundle("state", "c")
    assert (gone.returncode, "container does not exist" in gone.stderr) == (1, True)
    assert bundle("delete", "c").returncode == 1
    assert bundle("delete", "--force", "c").returncode == 0
    assert (bundle.rig.image / "tmp/ran").read_text() == "ran\n"


def test_run_gives_output_input_and_the_exit_code(bundle: Bundle) -> None:
    bundle.write("read word; echo got $word; echo err >&2; exit 9", **PLAIN)
    done = bundle("run", "c", input="hello\n", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (9, "got hello\n", "err\n")
    assert bundle("list", "-q").stdout == ""


def test_run_forwards_signals(bundle: Bundle) -> None:
    bundle.write("trap 'exit 33' TERM; echo up; while :; do sleep 0.05; done", **PLAIN)
    command = [*LABRUN, "--root", str(bundle.root), "run", "c"]
    with subprocess.Popen(command, cwd=bundle.folder, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 33


def test_a_detached_one_outlives_labrun(bundle: Bundle) -> None:
    bundle.write("exec sleep 1000", **PLAIN)
    with (bundle.folder / "out").open("w") as out:
        done = bundle("run", "-d", "c", capture_output=False, stdout=out, stderr=out)
    assert done.returncode == 0
    assert proc.alive(bundle.state()["pid"])
    assert bundle("exec", "c", "sh", "-c", "exit 7").returncode == 7
    assert bundle(
        "exec", "-e", "A=b", "--cwd", "/tmp", "-u", "33:34", "c", "sh", "-c", "echo $A $PWD; id -u"
    ).stdout == ("b /tmp\n33\n")
    failed = bundle("exec", "c", "nope")
    assert failed.returncode == 255
    assert 'exec: "nope": executable file not found in $PATH' in failed.stderr.replace('\\"', '"')
    assert bundle("update", "--memory", "32m", "--pids-limit", "20", "c").returncode == 0
    figures = json.loads(bundle("events", "--stats", "c").stdout)
    assert figures["data"]["memory"]["usage"]["limit"] == 32 << 20


def test_errors_in_json_go_to_the_log_and_in_words_to_stderr(bundle: Bundle) -> None:
    log = bundle.folder / "log"
    done = bundle("--log", str(log), "--log-format", "json", "state", "nope")
    assert done.returncode == 1
    assert done.stderr == "container does not exist\n"
    entry = json.loads(log.read_text())
    assert (entry["level"], entry["msg"]) == ("error", "container does not exist")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["foo"], 3, "No help topic for 'foo'"),
        (["state"], 1, '"state" requires exactly 1 argument(s)'),
        (["state", "a/b"], 1, "invalid container ID format"),
        (["state", "--nope", "x"], 1, "flag provided but not defined: -nope"),
        (["kill", "x", "NOPE"], 1, "unknown signal"),
        (["run", "--bundle", "/nope", "x"], 1, "JSON specification file /nope/config.json not found"),
    ],
)
def test_what_is_wrong_is_said(bundle: Bundle, words: list[str], code: int, said: str) -> None:
    done = bundle(*words)
    assert (done.returncode, said in done.stderr.replace('\\"', '"')) == (code, True), done.stderr


def test_hooks_run_in_order_and_a_failing_one_ends_it(bundle: Bundle) -> None:
    log = bundle.folder / "hooks"

    def hook(kind: str, script: str = "") -> dict[str, Any]:
        text = script or f"cat >>{log}; echo ' {kind}' >>{log}"
        return {"path": "/bin/sh", "args": ["sh", "-c", text], "timeout": 2}

    hooks = {
        kind: [hook(kind)]
        for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    }
    bundle.write("true", **PLAIN, change=lambda config: config.update(hooks=hooks))
    assert bundle("run", "c").returncode == 0
    lines = log.read_text().splitlines()
    assert [line.split()[-1] for line in lines] == list(hooks)
    assert json.loads(lines[0].rsplit(" ", 1)[0])["id"] == "c"
    bad = {"createRuntime": [hook("x", "echo broken >&2; exit 3")]}
    bundle.write("true", **PLAIN, change=lambda config: config.update(hooks=bad))
    done = bundle("run", "c")
    assert (done.returncode, "broken" in done.stderr, bundle("list", "-q").stdout) == (1, True, "")
    slow = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]}
    bundle.write("true", **PLAIN, change=lambda config: config.update(hooks=slow))
    assert "timeout of 1 s" in bundle("run", "c").stderr


def test_the_console_socket_gets_the_terminal(bundle: Bundle) -> None:
    bundle.write("tty; exec sleep 1000", terminal=True, **PLAIN)
    assert "console socket" in bundle("create", "c").stderr
    path = bundle.folder / "console"
    masters: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path)[:100] if len(str(path)) < 100 else "")
        listener.listen(1)

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
                masters.append(array.array("i", ancillary[0][2])[0])

        thread = threading.Thread(target=accept)
        thread.start()
        assert bundle("create", "--console-socket", str(path), "c").returncode == 0
        thread.join(5)
    assert bundle("start", "c").returncode == 0
    assert b"/dev/pts/0" in os.read(masters[0], 100)
    os.close(masters[0])


def test_descriptors_are_passed_on_only_when_asked(bundle: Bundle) -> None:
    reader, writer = os.pipe()
    bundle.write(["/bin/sh", "-c", "echo through >&3"], **PLAIN)

    def third() -> None:  # in the child alone: the 3 of a worker leads to the pytest that gives it work
        os.dup2(writer, 3, inheritable=True)

    done = bundle("run", "--preserve-fds", "1", "c", pass_fds=[3], preexec_fn=third)
    assert done.returncode == 0, done.stderr
    assert os.read(reader, 20) == b"through\n"
    assert bundle("run", "c", pass_fds=[3], preexec_fn=third).returncode != 0
    os.close(reader)
    os.close(writer)


def test_spec_and_features(bundle: Bundle) -> None:
    assert bundle("spec").returncode == 0
    config = json.loads((bundle.folder / "config.json").read_text())
    assert config["process"]["args"] == ["sh"]
    assert "Remove it first" in bundle("spec").stderr
    features = json.loads(bundle("features").stdout)
    assert "idmap" in features["mountOptions"]
    assert features["linux"]["seccomp"]["enabled"]


def test_the_zip_runs_by_itself_with_no_packages(bundle: Bundle) -> None:
    archive = runtime_zip(bundle.folder / "labrun.pyz")
    before = archive.read_bytes()
    assert runtime_zip(archive).read_bytes() == before
    bundle.write("echo from the zip; exit 6", **PLAIN)
    command = [sys.executable, "-I", "-S", str(archive), "--root", str(bundle.root), "run", "c"]
    env = {"PATH": os.environ["PATH"], "LABRUN_UNPACK": str(bundle.folder)}
    for _ in range(2):  # the second start finds the unpacked code
        done = subprocess.run(
            command, cwd=bundle.folder, env=env, capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stdout) == (6, "from the zip\n"), done.stderr
    request = json.dumps({"items": [["n", bundle.rig.bundle("n", "exit 5").bundle]]})
    keep = [*command[:4], "--root", str(bundle.rig.client.root), "keep"]
    done = subprocess.run(
        [*keep, "launch"], input=request, env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert json.loads(done.stdout) == {"n": ""}, done.stderr
    request = json.dumps({"id": "n", "timeout": 10})
    done = subprocess.run(
        [*keep, "wait"], input=request, env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert json.loads(done.stdout) == {"exit_code": 5}, done.stderr
