"""Virtual machines under a real libvirt: made, seen, stopped, lost and gone.

Their guest is a ROM of a few instructions, so that a test takes a second and needs no kernel.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.errors import Busy, Foreign, LabError
from labctl.home import Home
from labctl.hypervisor import console, payload, power, private, processes
from labctl.hypervisor.connection import Libvirt, close_all, connect, release
from labctl.hypervisor.domain import Domain, DomainDisk
from labctl.hypervisor.figures import figures
from labctl.hypervisor.found import find_marked
from labctl.hypervisor.xml import domain_xml
from labctl.looks import Owner, Presence

pytestmark = [pytest.mark.needs("root", "libvirt", "tcg"), pytest.mark.timeout(600)]
INSTANCE, LAB = "feedc0de", "12345678"


def wait_for(what: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QEMU's capabilities as libvirt probed them: the same for every test, and probing takes seconds."""
    return tmp_path_factory.mktemp("capabilities")


@pytest.fixture
def link(home: Home, shared: Path) -> Iterator[Libvirt]:
    home.cache.mkdir(parents=True)
    (home.cache / "libvirtd").symlink_to(shared)
    yield connect("private", home)
    close_all()
    private.end_processes({pid for pid, mark in processes.marked().items() if INSTANCE in mark}, 2)
    private.end_processes(private.members(home), 2)
    for name in ("etc", "run"):  # what a failed test left defined
        shutil.rmtree(private.base(home) / name / "qemu", ignore_errors=True)
    assert release(home)


@pytest.fixture
def machine(link: Libvirt, home: Home, tmp_path: Path) -> Domain:
    (tmp_path / "guest.rom").write_bytes(payload.x86_64())
    (tmp_path / "disk.raw").write_bytes(bytes(65536))
    return Domain(
        owner=Owner(INSTANCE, LAB),
        name="web",
        uri=link.uri,
        home_state=str(home.state),
        home_cache=str(home.cache),
        domain=f"t-web-{os.getpid()}",
        title="A <title> & \"more\" 'of' it ]]> 日本",
        memory_bytes=32 << 20,
        firmware=str(tmp_path / "guest.rom"),
        disks=(DomainDisk(path=str(tmp_path / "disk.raw"), serial="labroot"),),
        console_log=str(tmp_path / "console.log"),
    )


def test_made_seen_and_gone(machine: Domain, home: Home) -> None:
    assert machine.look().presence is Presence.ABSENT
    machine.make()
    assert machine.look().there
    pid = processes.pid_of(machine.uuid)
    assert pid and private.start_time(pid)
    wait_for(lambda: payload.WORD in console.log_tail(machine))
    machine.make()
    assert processes.pid_of(machine.uuid) == pid, "made twice, started once"
    assert Domain.look_many([machine])["web"].there
    machine.unmake()
    assert not private.start_time(pid)
    assert machine.look().presence is Presence.ABSENT
    machine.unmake()
    assert release(home)
    assert not home.state.joinpath("libvirtd").exists()


def test_libvirts_own_schema_accepts_the_xml(machine: Domain, link: Libvirt) -> None:
    flag = 1  # VIR_DOMAIN_DEFINE_VALIDATE
    found = link.call("schema", lambda conn: conn.defineXMLFlags(domain_xml(machine), flag))
    assert machine.title in link.call("title", lambda _: found.metadata(1, None))
    machine.unmake()


def test_someone_elses_domain_of_the_same_name_stays(machine: Domain) -> None:
    other = dataclasses.replace(machine, owner=Owner("0ther000", LAB), firmware=machine.firmware)
    other.make()
    assert machine.look().presence is Presence.FOREIGN
    with pytest.raises(Foreign, match="lab 12345678"):
        machine.make()
    machine.unmake()
    assert other.look().there
    other.unmake()


def test_a_domain_described_differently_is_replaced(machine: Domain) -> None:
    machine.make()
    bigger = dataclasses.replace(machine, memory_bytes=48 << 20)
    assert bigger.look().presence is Presence.BROKEN
    bigger.make()
    assert power.stats(bigger).memory_bytes == 48 << 20
    bigger.unmake()


def test_a_killed_qemu_is_broken_and_made_again(machine: Domain) -> None:
    machine.make()
    os.kill(processes.pid_of(machine.uuid), signal.SIGKILL)
    wait_for(lambda: machine.look().presence is Presence.BROKEN)
    assert power.state(machine) == "crashed"
    machine.make()
    assert machine.look().there
    machine.unmake()


def test_stop_start_pause_resume(machine: Domain) -> None:
    machine.make()
    power.pause(machine)
    power.pause(machine)
    assert power.state(machine) == "paused"
    assert machine.look().detail == "paused"
    power.resume(machine)
    assert power.state(machine) == "running"
    assert not power.stop(machine, 0.3).graceful  # this guest knows no power button
    assert machine.look().presence is Presence.STOPPED
    assert power.stop(machine, 1).graceful
    assert not processes.pid_of(machine.uuid)
    power.start(machine)
    power.start(machine)
    assert power.state(machine) == "running"
    ended = power.stop(machine, 10, lambda: os.kill(processes.pid_of(machine.uuid), signal.SIGTERM))
    assert ended.graceful
    machine.make()
    assert machine.look().there
    machine.unmake()
    assert power.state(machine) == "absent"


def test_what_it_costs(machine: Domain) -> None:
    machine.make()
    found = power.stats(machine)
    assert found.usage.pid == power.qemu_pid(machine)
    assert 0 < found.usage.pss_bytes <= found.usage.rss_bytes
    assert found.vcpus == 1 and found.memory_bytes == 32 << 20 and found.usage.threads > 1
    used = figures(machine)
    assert used.state == "running" and used.memory_limit_bytes == 32 << 20
    assert used.cpu_ns and used.cpu_ns >= found.cpu_ns
    assert used.memory_bytes and used.memory_bytes >= found.usage.rss_bytes // 2
    assert used.net_received_bytes == 0 and used.block_read_bytes is not None
    power.stop(machine, 0)
    assert figures(machine).state == "stopped"
    machine.unmake()
    assert figures(machine).state == "absent"


ECHO = bytes.fromhex(
    "ba fd 03 ec a8 01 74 f8"  # 00  wait until COM1 has received a byte
    "ba f8 03 ec fe c0 ee eb ef"  # 08  read it, add one, send it; again
)


@pytest.fixture
def echo(machine: Domain, tmp_path: Path) -> Domain:
    (tmp_path / "guest.rom").write_bytes(
        ECHO.ljust(65520, b"\x90") + bytes.fromhex("e90d00").ljust(16, b"\x90")
    )
    machine.make()
    return machine


def test_console_carries_both_ways_until_the_escape(echo: Domain) -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(console.attach(echo, in_read, out_write)))
    thread.start()
    os.write(in_write, b"HAL")
    got = b""
    while len(got) < 3:
        got += os.read(out_read, 16)
    assert got == b"IBM"
    with pytest.raises(Busy, match="someone else"):
        console.attach(echo, in_read, out_write)
    os.write(in_write, b"\x1d")
    thread.join(10)
    assert ends == ["escape"]
    os.close(in_write)
    assert console.attach(echo, in_read, out_write) == "input"
    echo.unmake()
    with pytest.raises(LabError):
        console.attach(echo, in_read, out_write)


def test_console_ends_with_the_machine(echo: Domain) -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(console.attach(echo, in_read, out_write)))
    thread.start()
    os.write(in_write, b"A")
    assert os.read(out_read, 1) == b"B"
    echo.unmake()
    thread.join(10)
    assert ends == ["machine"]
    for fd in (in_read, in_write, out_read, out_write):
        os.close(fd)


def test_machines_outlive_their_libvirtd(machine: Domain, home: Home) -> None:
    machine.make()
    pid = processes.pid_of(machine.uuid)
    daemon = int((private.base(home) / "run" / "libvirtd.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    assert machine.look().there, "a new libvirtd finds it"
    assert processes.pid_of(machine.uuid) == pid
    assert not release(home), "not ended while a machine is there"
    machine.unmake()
    assert release(home)
    assert not private.members(home)


def test_machines_of_a_lost_libvirtd_are_found_and_removed(
    machine: Domain, home: Home, link: Libvirt
) -> None:
    machine.make()
    pid = processes.pid_of(machine.uuid)
    [found] = find_marked(INSTANCE, link)
    assert (found.kind, found.name, found.lab) == ("domain", "web", LAB)
    assert find_marked("another0", link) == []
    daemon = int((private.base(home) / "run" / "libvirtd.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    [found] = find_marked(INSTANCE, None)
    assert (found.kind, found.name, found.lab) == ("qemu", "web", LAB)
    found.remove()
    assert not private.start_time(pid)
    found.remove()
    [found] = find_marked(INSTANCE, connect("private", home))
    assert found.kind == "domain"
    found.remove()
    assert find_marked(INSTANCE, connect("private", home)) == []
    found.remove()


def test_an_arm_machine_switches_itself_off(machine: Domain, tmp_path: Path) -> None:
    (tmp_path / "arm.rom").write_bytes(payload.aarch64())
    arm = dataclasses.replace(machine, arch="aarch64", firmware=str(tmp_path / "arm.rom"), disks=())
    arm.make()
    wait_for(lambda: payload.WORD in console.log_tail(arm))
    wait_for(lambda: arm.look().presence is Presence.STOPPED)
    arm.unmake()
    assert arm.look().presence is Presence.ABSENT


@pytest.mark.parametrize("broken", ["missing disk", "missing bridge", "no such cpu"])
def test_a_refusal_names_the_machine_and_leaves_nothing(machine: Domain, broken: str, tmp_path: Path) -> None:
    from labctl.hypervisor.domain import DomainNic

    bad = {
        "missing disk": dataclasses.replace(machine, disks=(DomainDisk(path=str(tmp_path / "nothing")),)),
        "missing bridge": dataclasses.replace(
            machine, nics=(DomainNic(bridge="lbnothing0", ifname="ltnothing0", mac="52:54:00:00:00:01"),)
        ),
        "no such cpu": dataclasses.replace(machine, cpu="abacus"),
    }[broken]
    with pytest.raises(LabError, match="virtual machine web"):
        bad.make()
    bad.unmake()
    assert bad.look().presence is Presence.ABSENT
