"""labctl's own libvirtd: started once, joined, lost, hung, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labctl.errors import HostCannot, TimedOut
from labctl.home import Home
from labctl.hypervisor import connection, private
from labctl.hypervisor.connection import Lost, close_all, connect, reach, release
from labctl.hypervisor.daemon import LibvirtDaemon
from labctl.looks import Owner, Presence

pytestmark = [pytest.mark.needs("root", "libvirt"), pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _ended(home: Home) -> Iterator[None]:
    yield
    close_all()
    assert release(home)


def daemon_pid(home: Home) -> int:
    return int((private.base(home) / "run" / "libvirtd.pid").read_text())


def test_started_and_ended_without_a_trace(home: Home, host_inventory: Callable[[], list[str]]) -> None:
    home.instance()
    before = host_inventory()
    existed = Path("/run/libvirt").exists()
    link = connect("private", home)
    assert link.private and link.uri == private.uri(home)
    assert link.call("host name", lambda conn: conn.getHostname())
    assert connect("private", home) is link
    assert len(private.members(home)) == 2
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(private.base(home)) not in mounts, "nothing of it is mounted on the host"
    assert release(home)
    assert release(home), "twice is fine"
    assert not private.members(home) and not private.base(home).exists()
    assert Path("/run/libvirt").exists() == existed
    assert host_inventory() == before


def test_only_the_qemu_driver_is_loaded(home: Home) -> None:
    connect("private", home)
    maps = Path(f"/proc/{daemon_pid(home)}/maps").read_text()
    assert "libvirt_driver_qemu.so" in maps
    assert "libvirt_driver_network.so" not in maps and "libvirt_driver_nwfilter.so" not in maps


STARTER = """
import sys
from labctl.home import Home
from labctl.hypervisor.connection import connect
link = connect("private", Home.find())
print(link.call("pid", lambda conn: conn.getHostname()), flush=True)
sys.stdin.read()
"""


def test_two_processes_at_once_get_one_daemon(home: Home) -> None:
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for starter in starters:
        assert starter.stdout and starter.stdout.readline().strip()
    assert len(private.members(home)) == 2, "one reaper, one libvirtd"
    assert not release(home), "others use it"
    assert private.answers(home)
    for starter in starters:
        starter.communicate(timeout=20)
    assert release(home)
    assert not private.members(home)


def test_a_killed_daemon_is_replaced(home: Home) -> None:
    link = connect("private", home)
    os.kill(daemon_pid(home), signal.SIGKILL)
    with pytest.raises(Lost):
        link.call("domains", lambda conn: conn.listAllDomains())
    again = connect("private", home)
    assert again is not link
    assert again.call("domains", lambda conn: conn.listAllDomains()) == []


def test_a_daemon_without_its_reaper_is_ended_too(home: Home) -> None:
    connect("private", home)
    record = private.read_record(home)
    assert record and private.start_time(record.pid) == record.start and record.boot == private.boot_id()
    os.kill(record.pid, signal.SIGKILL)
    assert connect("private", home).call("name", lambda conn: conn.getHostname())
    assert release(home)
    assert not private.members(home)


def test_a_hung_daemon_is_an_error_in_bounded_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OPEN_SECONDS", 1.0)
    link = connect("private", home)
    pid = daemon_pid(home)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match=r"did not answer within 0\.5 s"):
        link.call("virtual machine x", lambda conn: conn.listAllDomains(), seconds=0.5)
    assert time.monotonic() - begun < 2
    # A new connection gets no answer either, is told what to do, and is not waited for a second time.
    for seconds in (3.0, 0.5):
        begun = time.monotonic()
        with pytest.raises(HostCannot) as caught:
            connect("private", home)
        assert f"kill -9 {pid}," in caught.value.hint
        assert time.monotonic() - begun < seconds
    monkeypatch.setattr(connection, "_hung", {})
    os.kill(pid, signal.SIGCONT)
    assert connect("private", home).call("domains", lambda conn: conn.listAllDomains()) == []


def test_a_hung_daemon_can_still_be_ended(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "STOP_SECONDS", 0.5)
    connect("private", home)
    close_all()
    os.kill(daemon_pid(home), signal.SIGSTOP)
    assert release(home)
    assert not private.members(home)


def test_nothing_starts_when_the_starter_dies_before_the_word(home: Home, tmp_path: Path) -> None:
    reaper = Path(private.__file__).with_name("reaper.py")
    child = subprocess.run([sys.executable, "-I", "-S", str(reaper), str(tmp_path)], input=b"", timeout=20)
    assert child.returncode == 0
    child = subprocess.run(
        [sys.executable, "-I", "-S", str(reaper), str(tmp_path)], input=b'{"binds": [', timeout=20
    )
    assert child.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_a_damaged_record_does_no_harm(home: Home, text: str) -> None:
    existed = Path("/run/libvirt").exists()
    connect("private", home)
    (private.base(home) / "daemon.json").write_text(text)
    assert connect("private", home).call("name", lambda conn: conn.getHostname())
    assert release(home)
    assert not private.members(home) and not private.base(home).exists()
    if not existed:
        Path("/run/libvirt").rmdir()  # empty; that it was ours, only the record knew


def test_after_a_reboot_the_status_files_are_dropped(home: Home) -> None:
    connect("private", home)
    record = json.loads((private.base(home) / "daemon.json").read_text())
    close_all()
    private.end_processes(private.members(home), 2)
    stale = private.base(home) / "run" / "qemu" / "old.xml"
    stale.write_text("<domstatus/>")
    (private.base(home) / "daemon.json").write_text(json.dumps(record | {"boot": "an earlier boot"}))
    connect("private", home)
    assert not stale.exists()
    assert release(home)


def test_a_home_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90) / ("y" * 60)
    home = Home(deep / "state", deep / "cache")
    link = connect("private", home)
    try:
        assert link.call("name", lambda conn: conn.getHostname())
    finally:
        assert release(home)
    assert not private.members(home)


def test_strange_characters_in_the_home(tmp_path: Path) -> None:
    odd = tmp_path / "a b&c?d=e%20#ü"
    home = Home(odd / "state", odd / "cache")
    link = connect("private", home)
    try:
        assert link.call("name", lambda conn: conn.getHostname())
    finally:
        assert release(home)


def test_as_a_resource(home: Home) -> None:
    item = LibvirtDaemon(
        owner=Owner("feedc0de", "12345678"), home_state=str(home.state), home_cache=str(home.cache)
    )
    assert item.look().presence is Presence.ABSENT
    item.make()
    item.make()
    assert item.look().there
    os.kill(daemon_pid(home), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while item.look().there and time.monotonic() < deadline:
        time.sleep(0.01)
    assert item.look().presence in (Presence.STOPPED, Presence.ABSENT)
    item.make()
    assert item.look().there
    item.unmake()
    item.unmake()
    assert item.look().presence is Presence.ABSENT


def test_many_threads_get_one_connection(home: Home) -> None:
    links: list[object] = []
    threads = [threading.Thread(target=lambda: links.append(connect("private", home))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(links) == 8 and len({id(link) for link in links}) == 1
    assert len(private.members(home)) == 2


def test_a_uri_that_leads_nowhere(home: Home) -> None:
    with pytest.raises(HostCannot, match="libvirt at qemu:///system"):
        reach("qemu:///system?socket=/nonexistent/socket", home)
    assert not private.members(home)
