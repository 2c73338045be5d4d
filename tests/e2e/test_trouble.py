"""What goes wrong around a lab: no rights, a full disk, a port in use, a kill, a newer ledger, a dead daemon.

Every one gives one clear message and the right exit code, and loses nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.resource.codec import decode
from tests.e2e.labs import CONTAINERS, Lab, touched, until

pytestmark = pytest.mark.needs(*CONTAINERS)

Since = Callable[[], list[str]]
ROOT = Path(__file__).parents[2]
SLOW = """
name: lab
defaults: {image: micro}
nodes:
  quick: {}
  slow: {ready: {command: [test, -e, /tmp/go], timeout: 60s, interval: 100ms}}
"""


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    return Lab(home, tmp_path, "lab", SLOW)


def slow_is_waited_for(lab: Lab) -> bool:
    return "lab" in lab.labs() and lab.states() == {"quick": "ready", "slow": "running"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_up_that_is_ended_is_continued_or_removed(lab: Lab, number: int, host_inventory: Since) -> None:
    with lab.begin("up", str(lab.file)) as process:
        until(lambda: slow_is_waited_for(lab), "the up waits for slow")
        process.send_signal(number)
        began = time.monotonic()
        _out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, err
        assert "labctl up" in err and "labctl down lab" in err and "Traceback" not in err
    began_at = lab.starts("quick", "slow")
    lab.sh("slow", "touch /tmp/go")
    assert set(lab.up()["nodes"][0]) and lab.states() == {"quick": "ready", "slow": "ready"}
    assert lab.starts("quick", "slow") == began_at, "what stood is kept"
    lab.down()
    assert lab.labs() == [] and host_inventory() == []


def test_a_down_that_is_killed_is_done_by_the_next(lab: Lab, host_inventory: Since) -> None:
    lab.up("-s", "nodes.slow.ready={command: ['true']}")
    done = lab.run("down", "lab", LABCTL_FAULT="kill@forget:before")
    assert done.returncode == -signal.SIGKILL
    assert lab.labs() == ["lab"]
    lab.down()
    assert lab.labs() == [] and host_inventory() == []


def test_a_port_in_use_names_its_holder(lab: Lab, host_inventory: Since) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        told = lab.up_fails(1, "-s", f"nodes.quick.ports=['{port}:80']")
        assert f"port {port}" in told and f"(pid {os.getpid()})" in told
        assert lab.labs() == [] and host_inventory() == []


def test_a_subnet_in_use_names_its_holder(lab: Lab, host_inventory: Since) -> None:
    lab.write("name: lab\nnetworks: {n: {}}\nnodes: {a: {image: micro}}\n")
    lab.up()
    address = lab.status()["a"]["addresses"][0]
    subnet = address.rpartition(".")[0] + ".0/24"
    lab.write(lab.file.read_text().replace("{n: {}}", f"{{n: {{subnet: {subnet}}}}}"))
    told = lab.fails(1, "up", str(lab.file), "--name", "other")
    assert subnet in told and "taken by" in told
    assert lab.labs() == ["lab"]
    lab.down()
    assert host_inventory() == []


def test_no_rights(lab: Lab, host_inventory: Since, tmp_path: Path) -> None:
    """As a user who may do nothing here, in a home of root's and in one of their own."""
    tmp_path.chmod(0o755)
    folder = Path("/tmp") / f"labn{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, 65534, 65534)
        profile = folder / "lab.yaml"
        profile.write_text("name: lab\nnodes: {a: {image: micro}}\n")
        profile.chmod(0o644)
        secret = folder / "secret.yaml"
        secret.write_text("name: lab\nnodes: {a: {image: micro}}\n")
        secret.chmod(0o600)
        # The checkout may be in a home that is closed to others: they see it at a place of its own.
        checkout = folder / "checkout"
        checkout.mkdir()
        as_nobody = (
            f"mount --bind {ROOT} {checkout} && cd {checkout} && exec setpriv --reuid=65534 --regid=65534"
            f' --clear-groups --inh-caps=-all {checkout}/.venv/bin/python -m labctl.cli up "$1"'
        )
        for home, path, codes, word in (
            (str(lab.home.state.parent), profile, (1, 4), "root"),
            (str(folder / "home"), profile, (1, 4), "root"),
            (str(folder / "home"), secret, (2,), "Permission denied"),
        ):
            done = subprocess.run(
                ["unshare", "-m", "sh", "-c", as_nobody, "sh", str(path)],
                env={**os.environ, "LABCTL_HOME": home, "HOME": str(folder), "PYTHONPATH": str(checkout)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode in codes, done.stderr
            assert word in done.stderr and "Traceback" not in done.stderr, done.stderr
            assert done.stderr.count("labctl: error:") == 1
    finally:
        shutil.rmtree(folder)
    assert host_inventory() == []


def test_a_ledger_of_a_newer_version_is_left_alone(lab: Lab, host_inventory: Since) -> None:
    lab.up("-s", "nodes.slow.ready={command: ['true']}")
    with sqlite3.connect(lab.home.ledger) as ledger:
        known = ledger.execute("PRAGMA user_version").fetchone()[0]
        ledger.execute("PRAGMA user_version=999")
    for words in (
        ["up", str(lab.file)],
        ["down", "lab"],
        ["status", "lab"],
        ["ls"],
        ["exec", "lab/quick", "true"],
    ):
        told = lab.fails(1, *words)
        assert "newer labctl" in told and "999" in told and "upgrade labctl" in told, words
    with sqlite3.connect(lab.home.ledger) as ledger:
        ledger.execute(f"PRAGMA user_version={known}")
    ledger.close()
    assert lab.sh("quick", "hostname") == "quick"
    lab.down()
    assert host_inventory() == []


def test_a_ledger_that_is_no_ledger(lab: Lab, host_inventory: Since) -> None:
    lab.home.state.mkdir(parents=True, exist_ok=True)
    lab.home.ledger.write_bytes(b"this is no database, but a text of some length\n" * 30)
    told = lab.up_fails(1)
    assert "cannot open the ledger" in told and str(lab.home.ledger) in told
    lab.home.ledger.unlink()
    assert host_inventory() == []


def test_what_a_damaged_ledger_named_is_found_by_its_marks(lab: Lab, host_inventory: Since) -> None:
    lab.up("-s", "nodes.slow.ready={command: ['true']}")
    os.truncate(lab.home.ledger, lab.home.ledger.stat().st_size // 2)
    for words in (["ls"], ["up", str(lab.file)], ["down", "lab"], ["gc"]):
        told = lab.fails(1, *words)
        assert told.count("labctl: error:") == 1 and "labctl gc" in told, words
    damaged = lab.home.ledger.rename(f"{lab.home.ledger}.damaged")
    lab.good("gc")
    damaged.unlink()
    assert lab.labs() == [] and host_inventory() == []


READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec {1} -m labctl.cli {2}"


def test_a_home_that_is_read_only_and_a_ledger_that_was_emptied(lab: Lab, host_inventory: Since) -> None:
    lab.up("-s", "nodes.slow.ready={command: ['true']}")

    def read_only(words: str) -> subprocess.CompletedProcess[str]:
        script = READ_ONLY.format(lab.home.state, sys.executable, words)
        argv = ["unshare", "-m", "sh", "-c", script]
        return subprocess.run(
            argv, env=lab.environment(), capture_output=True, text=True, timeout=60, check=False
        )

    assert read_only("exec lab/quick hostname").stdout == "quick\n"
    assert "2 ready" in read_only("ls").stdout
    for words in ("down lab", "stop lab/quick"):
        done = read_only(words)
        assert done.returncode == 1 and "mount -o remount,rw" in done.stderr, done.stderr
        assert done.stderr.count("labctl: error:") == 1
    assert lab.states() == {"quick": "ready", "slow": "ready"}
    lab.home.ledger.write_bytes(b"")
    told = lab.run("down", "lab").stderr
    assert "the ledger does not name" in told and "labctl gc" in told
    lab.good("gc")
    assert lab.run("down", "--all").stderr == "" and host_inventory() == []


@contextmanager
def small_disk(lab: Lab, size: str) -> Iterator[None]:
    """A file system of that size under the lab's home; what is left on it is taken down before it goes."""
    path = lab.home.state
    path.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "labctl-test"]
    subprocess.run(["mount", *options, str(path)], timeout=10, check=True)
    try:
        yield
    finally:
        (path / "stuffing").unlink(missing_ok=True)
        lab.run("down", "--all")
        subprocess.run(["umount", "--lazy", str(path)], timeout=10, check=True)


def stuff(path: Path) -> None:
    """Take all room that the disk has left."""
    with path.open("ab", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_up(lab: Lab, host_inventory: Since, tmp_path: Path) -> None:
    with small_disk(lab, "3m"):
        (tmp_path / "large").write_bytes(os.urandom(4 << 20))
        lab.write(
            "name: lab\ndefaults: {image: micro}\nnodes:\n  a: {}\n  b: {files: {/large: {source: large}}}\n"
        )
        told = lab.up_fails(1)
        assert f"the disk of {lab.home.state} has" in told and "needs about 4." in told
        assert lab.labs() == []
        (tmp_path / "large").write_bytes(b"small")
        lab.up()
        assert lab.states() == {"a": "ready", "b": "ready"}
        # And full to the last byte: nothing can be written down, so nothing is made.
        stuffing = lab.home.state / "stuffing"
        stuff(stuffing)
        told = lab.fails(1, "up", str(lab.file), "--name", "other")
        assert f"the disk of {lab.home.state} has 0.0 MiB free" in told
        # What is there is seen, used and taken down all the same, room or no room.
        assert lab.states() == {"a": "ready", "b": "ready"} and lab.labs() == ["lab"]
        assert lab.sh("a", "hostname") == "a"
        stuff(stuffing)
        lab.down()
        assert lab.labs() == [] and stuffing.exists()
    assert host_inventory() == []


VM = "name: lab\nnodes: {vm: {tier: emulation, image: micro, memory: 128MiB}, box: {image: micro}}\n"


def libvirtd_of(home: Home) -> int:
    """The pid of the home's own libvirtd, 0 while there is none."""
    from labctl.hypervisor import private

    for pid in private.members(home):
        try:
            if Path(f"/proc/{pid}/exe").readlink().name == "libvirtd":
                return pid
        except OSError:
            continue
    return 0


def qemu_of(lab: Lab, node: str) -> int:
    """The pid of a machine's QEMU."""
    from labctl.hypervisor.domain import Domain
    from labctl.hypervisor.processes import pid_of

    told = json.loads(lab.good("inspect", f"{lab.name}/{node}", "--json"))["resources"]
    spec = next(resource["spec"] for resource in told if resource["key"] == f"domain:{node}")
    return pid_of(decode(Domain, json.dumps(spec)).uuid)


@pytest.mark.needs("libvirt", "tcg", "kernel")
def test_a_libvirtd_killed_in_the_middle(lab: Lab, host_inventory: Since) -> None:
    lab.write(VM)
    if Path("/run/libvirt/libvirt-sock").exists():
        # Where the system's own one is used it is not ours to kill.
        lab.write(VM.replace("tier: emulation, ", ""))
    with lab.begin("up", str(lab.file)) as process:
        if "emulation" in lab.file.read_text():
            until(lambda: libvirtd_of(lab.home) > 0, "libvirtd runs", 120)
            os.kill(libvirtd_of(lab.home), signal.SIGKILL)
        _out, err = process.communicate(timeout=240)
    # Where the daemon was only needed again later, nobody notices; else it is said once.
    assert process.returncode in (0, 1, 4) and "Traceback" not in err, err
    if process.returncode:
        assert err.count("labctl: error:") == 1 and "libvirt" in err
    lab.up()
    assert lab.states() == {"vm": "ready", "box": "ready"}
    # And while the lab is up: the machine goes on, and the next command has a daemon again.
    began = lab.sh("vm", "cut -d' ' -f1 /proc/uptime")
    if pid := libvirtd_of(lab.home):
        os.kill(pid, signal.SIGKILL)
    assert lab.states() == {"vm": "ready", "box": "ready"}
    assert float(lab.sh("vm", "cut -d' ' -f1 /proc/uptime")) >= float(began)
    assert touched(lab.up()) == {}
    lab.down()
    assert lab.labs() == [] and host_inventory() == []


@pytest.mark.needs("libvirt", "tcg", "kernel")
@pytest.mark.long
def test_a_machine_whose_qemu_is_killed(lab: Lab, host_inventory: Since) -> None:
    lab.write(VM)
    lab.up()

    def kill() -> None:
        os.kill(qemu_of(lab, "vm"), signal.SIGKILL)
        until(lambda: lab.states()["vm"] == "failed", "status says that it is gone")

    kill()
    assert "QEMU ended unexpectedly" in lab.status()["vm"]["reason"]
    assert "labctl start" in lab.status()["vm"]["remedy"]
    for words in (("exec", "lab/vm", "--", "true"), ("pause", "lab/vm"), ("resume", "lab/vm")):
        assert lab.fails(1, *words).count("labctl: error:") == 1, words
    lab.good("start", "lab/vm")
    assert lab.states() == {"vm": "ready", "box": "ready"}
    kill()
    assert "QEMU ended unexpectedly" in touched(lab.up())["domain:vm"]
    assert lab.sh("vm", "hostname") == "vm"
    kill()
    lab.down()
    assert lab.labs() == [] and host_inventory() == []
