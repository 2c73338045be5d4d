"""Further processes in a running container."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.linux import capabilities, cgroups
from labctl.runtime.errors import ContainerError
from labctl.runtime.execute import Target, build_process, exec_in, spawn_in
from tests.host.runtime_rig import Rig

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("exec"))
    made.start("one", env={"GIVEN": "yes"}, memory=64 << 20)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 9"], 9),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -15 $$"], 143),
        (["nope"], 127),
        (["/nope"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_exit_codes(rig: Rig, argv: list[str], code: int) -> None:
    assert rig.run("one", *argv)[0] == code


def test_what_cannot_run_says_so_on_stderr(rig: Rig) -> None:
    assert rig.run("one", "nope")[1] == 'exec: "nope": executable file not found in $PATH\n'


def test_it_joins_everything(rig: Rig) -> None:
    state = rig.client.states()["one"]
    target = Target.of_container(state.root, "one")
    running = spawn_in(target, build_process(target.config, ["sleep", "1000"]), stdin=0, stdout=1, stderr=2)
    try:
        for kind in ("pid", "net", "ipc", "mnt", "uts", "cgroup", "user"):
            ours, theirs = (Path(f"/proc/{pid}/ns/{kind}").stat().st_ino for pid in (running.pid, state.pid))
            assert ours == theirs, kind
        assert cgroups.of_process(running.pid) == cgroups.of_process(state.pid)
        assert capabilities.of_process(running.pid) == capabilities.of_process(state.pid)
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        with pytest.raises(TimeoutError):
            running.wait(0.05)
    finally:
        running.kill(9)
        assert running.wait(5) == 137
        running.close()


def test_stdin_streams_through(rig: Rig) -> None:
    data = os.urandom(30000)
    code, said = rig.run("one", "sh", "-c", "wc -c; md5sum </dev/null", data=data)
    assert code == 0
    assert said.split()[0] == "30000"


def test_env_cwd_user(rig: Rig) -> None:
    script = "echo $GIVEN $MORE $HOME; pwd; id -un; id -Gn"
    said = rig.sh("one", script, env={"MORE": "a b"}, cwd="/tmp", user="web")
    assert said == "yes a b /srv\n/tmp\nweb\nwebs extra"
    assert rig.sh("one", "id -u; id -g", user="1234:56") == "1234\n56"


def test_a_terminal(rig: Rig) -> None:
    master, slave = os.openpty()
    reader, writer = os.pipe()
    codes: list[int] = []

    def body() -> None:
        argv = ["sh", "-c", "tty; stty size; read line; echo got:$line; exit 3"]
        state = rig.client.states()["one"]
        codes.append(exec_in(state, argv, tty=True, stdin=slave, stdout=writer, stderr=writer))

    thread = threading.Thread(target=body)
    thread.start()
    said = b""
    os.write(master, b"hello\r")
    end = time.monotonic() + 10
    while b"got:hello" not in said and time.monotonic() < end:
        if select.select([reader], [], [], 0.1)[0]:
            said += os.read(reader, 4096)
    thread.join(10)
    for fd in (master, slave, reader, writer):
        os.close(fd)
    assert b"/dev/pts/" in said
    assert b"got:hello" in said
    assert codes == [3]


def test_a_time_limit_ends_it(rig: Rig) -> None:
    before = rig.sh("one", "ps | grep -c '[s]leep 4321' || true")
    with pytest.raises(TimeoutError):
        rig.run("one", "sleep", "4321", timeout=0.2)
    assert rig.sh("one", "ps | grep -c '[s]leep 4321' || true") == before


def test_many_threads_at_once(rig: Rig) -> None:
    said: list[str] = []

    def one(number: int) -> None:
        said.append(rig.sh("one", f"echo {number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(said) == [str(number) for number in range(8)]


def test_nothing_is_left_of_many(rig: Rig) -> None:
    rig.sh("one", "true")
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        rig.sh("one", "true")
        with pytest.raises(ContainerError):
            rig.run("one", "true", user="nobody-of-that-name") if False else rig.run(
                "one", "true", env={"": "x"}
            )
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    assert rig.cgroup("one").procs() == [rig.client.states()["one"].pid]


def test_a_working_folder_outside_the_root_is_refused(rig: Rig) -> None:
    for number in range(3, 12):
        code, said = rig.run("one", "cat", "/etc/passwd", cwd=f"/proc/self/fd/{number}")
        assert code == 126, said


def test_by_a_bare_pid(rig: Rig) -> None:
    reader, writer = os.pipe()
    code = exec_in(rig.client.states()["one"].pid, ["/bin/hostname"], stdout=writer)
    os.close(writer)
    assert (code, os.read(reader, 100)) == (0, b"one\n")
    os.close(reader)


def test_one_that_does_not_run_cannot_be_entered(rig: Rig) -> None:
    rig.start("gone", "exit 0")
    rig.client.wait("gone", 10)
    with pytest.raises(ContainerError, match="stopped"):
        rig.run("gone", "true")
