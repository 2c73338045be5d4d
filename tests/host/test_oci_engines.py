"""Engines of other make with `labrun` as their runtime: podman, buildah, containerd."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.engine_rig import IMAGE, Engines, image_archive

pytestmark = [pytest.mark.needs("root", "cgroup", "overlay", "netns", "podman"), pytest.mark.long]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    folder = Path(tempfile.mkdtemp(prefix="labe", dir="/tmp"))
    rig = Engines(folder)
    rig.podman("load", "-i", str(image_archive(folder)))
    yield rig
    rig.close()
    shutil.rmtree(folder)


def test_podman_run_and_exit_codes(engines: Engines) -> None:
    assert engines.podman("run", "--rm", IMAGE, "echo", "hello") == "hello"
    engines.podman("run", "--rm", IMAGE, "sh", "-c", "exit 7", code=7)
    engines.podman("run", "--rm", IMAGE, "nope", code=127)
    engines.podman("run", "--rm", IMAGE, "/etc", code=126)
    assert engines.podman("run", "--rm", "-i", IMAGE, "cat", data="typed") == "typed"
    assert "uid=33" in engines.podman("run", "--rm", "-u", "33:34", IMAGE, "id")
    seen = engines.podman("run", "--rm", "-it", IMAGE, "tty", data="")
    assert "/dev/pts/0" in seen


def test_podman_limits_rights_and_mounts(engines: Engines) -> None:
    limits = ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert engines.podman("run", "--rm", *limits, IMAGE, "sh", "-c", script) == str(64 << 20)
    rights = ("--cap-drop", "all", "--cap-add", "net_raw", "--security-opt", "no-new-privileges")
    seen = engines.podman(
        "run", "--rm", *rights, IMAGE, "grep", "-E", "CapEff|NoNew|Seccomp:", "/proc/self/status"
    )
    assert [line.split()[1] for line in seen.splitlines()] == [f"{1 << 13:016x}", "1", "2"]
    data = engines.folder / "data"
    data.mkdir()
    (data / "f").write_text("of the host\n")
    script = "cat /d/f; touch /d/x 2>&- || echo ro; touch /t/x && echo rw; touch /y 2>&- || echo root"
    mounts = ("-v", f"{data}:/d:ro", "--tmpfs", "/t:size=1m", "--read-only")
    seen = engines.podman("run", "--rm", *mounts, IMAGE, "sh", "-c", script)
    assert seen.splitlines() == ["of the host", "ro", "rw", "root"]
    engines.podman("volume", "create", "v1")
    engines.podman("run", "--rm", "-v", "v1:/v", IMAGE, "sh", "-c", "echo kept >/v/f")
    assert engines.podman("run", "--rm", "-v", "v1:/v", IMAGE, "cat", "/v/f") == "kept"
    ids = ("--uidmap", "0:300000:65536", "--gidmap", "0:300000:65536")
    seen = engines.podman("run", "--rm", *ids, IMAGE, "sh", "-c", "cat /proc/self/uid_map; id -u")
    assert seen.split() == ["0", "300000", "65536", "0"]


def test_podman_through_the_life_of_a_container(engines: Engines) -> None:
    script = "mkdir /w; echo page >/w/index.html; echo up; exec httpd -f -p 80 -h /w"
    engines.podman("run", "-d", "--name", "web", "-p", "127.0.0.1:8181:80", IMAGE, "sh", "-c", script)
    end = time.monotonic() + 20
    while (done := engines.run("busybox", "wget", "-qO-", "http://127.0.0.1:8181/")).returncode:
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)
    assert done.stdout == "page\n"
    assert engines.podman("ps", "--format", "{{.Names}}", "--filter", "status=running") == "web"
    assert engines.podman("logs", "web") == "up"
    assert engines.podman("logs", "-t", "web").endswith(" up")
    assert engines.podman("exec", "web", "cat", "/w/index.html") == "page"
    engines.podman("exec", "web", "sh", "-c", "exit 9", code=9)
    assert "/dev/pts/" in engines.podman("exec", "-it", "web", "tty", data="")
    who = ("-u", "33", "-w", "/srv", "-e", "X=1")
    seen = engines.podman("exec", *who, "web", "sh", "-c", "id -u; pwd; echo $X")
    assert seen.split() == ["33", "/srv", "1"]
    assert "httpd" in engines.podman("top", "web")
    (row,) = json.loads(engines.podman("stats", "--no-stream", "--format", "json", "web"))
    assert (row["name"], int(row["pids"]) >= 1) == ("web", True)
    engines.podman("pause", "web")
    assert engines.podman("inspect", "web", "--format", "{{.State.Status}}") == "paused"
    engines.podman("unpause", "web")
    engines.podman("restart", "--time", "0", "web")
    assert engines.podman("inspect", "web", "--format", "{{.State.Running}} {{.OCIRuntime}}") == "true labrun"
    engines.podman("stop", "--time", "0", "web")
    assert engines.podman("inspect", "web", "--format", "{{.State.Status}}") == "exited"
    engines.podman("rm", "-f", "web")
    engines.podman("run", "-d", "--name", "w", IMAGE, "sh", "-c", "exit 3")
    assert engines.podman("wait", "w") == "3"
    engines.podman("rm", "w")
    assert engines.podman("ps", "-aq") == ""


def test_podman_health_checks_and_pods(engines: Engines) -> None:
    health = ("--health-interval", "disable", "--health-cmd")
    engines.podman("run", "-d", "--name", "good", *health, "true", IMAGE, "sleep", "1000")
    engines.podman("run", "-d", "--name", "bad", *health, "false", IMAGE, "sleep", "1000")
    engines.podman("healthcheck", "run", "good")
    engines.podman("healthcheck", "run", "bad", code=1)
    engines.podman("rm", "-f", "--time", "0", "good", "bad")
    engines.podman("pod", "create", "--name", "p", "-p", "127.0.0.1:8182:80")
    engines.podman("run", "-d", "--pod", "p", "--name", "p1", IMAGE, "sleep", "1000")
    script = "hostname; ip -4 -o addr show eth0 | wc -l"
    assert engines.podman("run", "--rm", "--pod", "p", IMAGE, "sh", "-c", script).split() == ["p", "1"]
    shared = engines.podman("run", "--rm", "--pod", "p", "--pid", "container:p1", IMAGE, "ps")
    assert "sleep 1000" in shared
    engines.podman("pod", "rm", "-f", "--time", "0", "p")


@pytest.mark.needs("buildah")
def test_podman_builds_with_it(engines: Engines) -> None:
    text = f'FROM {IMAGE}\nRUN echo built >/b && id -u\nCMD ["cat", "/b"]\n'
    engines.podman("build", "-q", "-t", "localhost/built", "-", data=text)
    assert engines.podman("run", "--rm", "localhost/built") == "built"
    place = ["--root", f"{engines.folder}/root", "--runroot", f"{engines.folder}/run"]
    name = engines.run("buildah", *place, "from", "--pull-never", IMAGE)
    assert name.returncode == 0, name.stderr
    box = name.stdout.strip()
    run = [
        "buildah",
        *place,
        "run",
        "--isolation",
        "oci",
        "--runtime",
        str(engines.labrun),
        box,
        "echo",
        "in it",
    ]
    done = engines.run(*run)
    assert (done.returncode, done.stdout.strip()) == (0, "in it"), done.stderr
    engines.run("buildah", *place, "rm", box)


@pytest.mark.needs("containerd")
def test_containerd_with_it(engines: Engines) -> None:
    engines.start_containerd()
    engines.ctr("images", "import", str(engines.folder / "image.tar"))
    ours = ("--runc-binary", str(engines.labrun))
    group = ("--cgroup", f"/{engines.mark}/c")
    assert engines.ctr("run", "--rm", *ours, *group, IMAGE, "a1", "echo", "hello") == "hello"
    engines.ctr("run", "--rm", *ours, *group, IMAGE, "a2", "sh", "-c", "exit 5", code=5)
    engines.ctr("run", "--rm", *ours, *group, IMAGE, "a2", "nope", code=1)
    engines.ctr("run", "-d", *ours, *group, "--memory-limit", str(64 << 20), IMAGE, "a3", "sleep", "1000")
    assert engines.ctr("task", "exec", "--exec-id", "e1", "a3", "echo", "in it") == "in it"
    engines.ctr("task", "exec", "--exec-id", "e2", "a3", "sh", "-c", "exit 9", code=9)
    engines.ctr("task", "pause", "a3")
    assert "PAUSED" in engines.ctr("task", "ls")
    engines.ctr("task", "resume", "a3")
    assert "memory" in engines.ctr("task", "metrics", "a3")
    pid = engines.ctr("task", "ls").splitlines()[1].split()[1]
    assert pid in engines.ctr("task", "ps", "a3")
    engines.ctr("task", "kill", "-s", "KILL", "a3")
    end = time.monotonic() + 20
    while "STOPPED" not in engines.ctr("task", "ls"):
        assert time.monotonic() < end
        time.sleep(0.05)
    engines.run(*engines.ctr_argv("task", "rm", "a3"))
    engines.ctr("containers", "rm", "a3")
    tty = engines.enter(
        "script",
        "-qec",
        " ".join(engines.ctr_argv("run", "--rm", "-t", *ours, IMAGE, "a4", "tty")),
        "/dev/null",
    )
    done = subprocess.run(tty, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert "/dev/pts/0" in done.stdout
