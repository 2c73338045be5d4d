"""The labs' DNS server: real dnsmasq, asked over real bridges."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.linux import netns
from labctl.looks import Presence
from labctl.network import dns, listeners
from labctl.network.dns import Dns
from labctl.network.model import Listen
from tests.e2e.labs import until
from tests.host.network_rig import Rig, own_host, rig, serving

pytestmark = [pytest.mark.needs("root", "netns", "nft", "dnsmasq"), pytest.mark.usefixtures("own_host")]
assert own_host

A, PTR, AAAA = 1, 12, 28


def lookup(
    path: str | None, server: str, name: str, kind: int = A, tcp: bool = False
) -> tuple[int, list[str]]:
    """(response code, answers) of one DNS query (RFC 1035) sent from a namespace."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    style = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with netns.run_in(path, lambda: socket.socket(family, style)) as client:
        client.settimeout(2)
        client.connect((server, 53))
        client.send((struct.pack(">H", len(query)) if tcp else b"") + query)
        reply = client.recv(4096)
    if tcp:
        reply = reply[2:]
    _, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", reply)
    at, found = len(query), []
    for _ in range(count):
        while reply[at] and reply[at] < 0xC0:
            at += 1 + reply[at]
        at += 2 if reply[at] >= 0xC0 else 1
        _, _, _, size = struct.unpack_from(">HHIH", reply, at)
        raw = reply[at + 10 : at + 10 + size]
        at += 10 + size
        if kind in (A, AAAA):
            found.append(socket.inet_ntop(socket.AF_INET if kind == A else socket.AF_INET6, raw))
        else:
            found.append(raw.decode("latin-1"))
    return flags & 15, found


@pytest.fixture(params=["open", "closed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may pass through to, and one that only root may."""
    if request.param == "closed":
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="labctl-dns-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def lab_with_dns(tmp_path: Path, number: int = 1) -> tuple[Rig, Dns]:
    lab = rig(tmp_path, number)
    server = Dns(
        owner=lab.bridge.owner,
        name="lab",
        directory=str(tmp_path / f"lab{number}" / "dns"),
        listen=(Listen(f"lb{number}", f"10.77.{number}.1"), Listen(f"lb{number}", f"fd77:{number}::1")),
        hosts={
            "web": f"10.77.{number}.11,fd77:{number}::11",
            "data_base": f"10.77.{number}.12",
            "Upper": "10.77.1.13",
        },
        domain="school.lab",
    )
    return lab, server


def test_names_resolve_short_and_long_v4_and_v6_and_back(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    server.make()
    node = lab.nets[0].path
    for at in ("10.77.1.1", "fd77:1::1"):
        assert lookup(node, at, "web") == (0, ["10.77.1.11"])
        assert lookup(node, at, "web.school.lab") == (0, ["10.77.1.11"])
        assert lookup(node, at, "web", AAAA) == (0, ["fd77:1::11"])
        assert lookup(node, at, "data_base") == (0, ["10.77.1.12"])
        assert lookup(node, at, "upper") == (0, ["10.77.1.13"])
        assert lookup(node, at, "data_base.school.lab", tcp=True) == (0, ["10.77.1.12"])
    assert lookup(node, "10.77.1.1", "11.1.77.10.in-addr.arpa", PTR)[1][0].startswith("\x03web\x06school")
    assert lookup(node, "10.77.1.1", "data_base", AAAA) == (0, [])
    for unknown in ("nobody", "nobody.school.lab", "example.org"):
        assert lookup(node, "10.77.1.1", unknown) == (3, []), unknown
    server.unmake()
    lab.unmake()


def test_it_listens_on_the_bridge_alone_as_nobody(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    server.make()
    status = Path(f"/proc/{server.pid()}/status")
    until(lambda: "Uid:\t65534" in status.read_text(), "dnsmasq is nobody", 5)  # it listens first
    assert listeners.port_holder("udp", "127.0.0.1", 53) is None
    held = listeners.port_holder("udp", "10.77.1.1", 53)
    assert held is not None
    assert (held.pid, held.command) == (server.pid(), "dnsmasq")
    assert listeners.port_holder("tcp", "fd77:1::1", 53) is not None
    server.unmake()
    assert listeners.port_holder("udp", "", 53) is None
    lab.unmake()


def test_a_change_of_names_takes_effect_without_a_new_process(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    server.make()
    pid = server.pid()
    wanted = replace(server, hosts={"web": "10.77.1.99", "new-one": "10.77.1.98"})
    assert wanted.look().presence is Presence.BROKEN
    assert wanted.change(server)
    assert (wanted.pid() == pid) == place.name.startswith("labctl-dns-")
    # SIGHUP is a signal like any other: dnsmasq reads the file when it gets round to it.
    for _ in range(200):
        if lookup(None, "10.77.1.1", "new-one") == (0, ["10.77.1.98"]):
            break
    assert lookup(None, "10.77.1.1", "new-one") == (0, ["10.77.1.98"])
    assert lookup(None, "10.77.1.1", "web") == (0, ["10.77.1.99"])
    assert lookup(None, "10.77.1.1", "data_base") == (3, [])
    other = replace(wanted, domain="other.lab")
    assert other.change(wanted)
    assert other.pid() != pid
    assert lookup(None, "10.77.1.1", "web.other.lab") == (0, ["10.77.1.99"])
    other.unmake()
    lab.unmake()


def test_make_look_unmake_twice(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    assert server.look().presence is Presence.ABSENT
    server.make()
    pid = server.pid()
    server.make()
    assert server.pid() == pid
    assert server.look().presence is Presence.PRESENT
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert server.look().presence is Presence.STOPPED
    server.make()
    assert server.look().presence is Presence.PRESENT
    # Found again by its mark and its command line when the pid file is lost.
    pid = server.pid()
    Path(server.directory, "dnsmasq.pid").unlink()
    assert server.pid() == pid
    assert (pid, server.mark) in list(dns.servers())
    Path(server.directory, "hosts.new").write_text("the writer was killed here")
    for _ in range(2):
        server.unmake()
    assert not Path(f"/proc/{pid}/exe").exists()
    assert not Path(server.directory).exists()
    assert server.look().presence is Presence.ABSENT
    lab.unmake()


def test_another_process_is_never_taken_for_it(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    server.make()
    real = server.pid()
    other = subprocess.Popen(["sleep", "60"])
    Path(server.directory, "dnsmasq.pid").write_text(str(other.pid))
    assert server.pid() == real
    server.unmake()
    assert other.poll() is None
    other.kill()
    other.wait()
    lab.unmake()


def test_two_labs_have_a_server_each(place: Path) -> None:
    labs = [lab_with_dns(place, number) for number in (1, 2)]
    for lab, server in labs:
        lab.make()
        server.make()
    assert lookup(labs[0][0].nets[0].path, "10.77.1.1", "web") == (0, ["10.77.1.11"])
    assert lookup(labs[1][0].nets[0].path, "10.77.2.1", "web") == (0, ["10.77.2.11"])
    for lab, server in labs:
        server.unmake()
        lab.unmake()


def test_with_internet_other_names_are_asked_upstream(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    server = replace(server, internet=True)
    server.make()
    # Nothing upstream answers in this namespace; what counts is that it is not told not to exist.
    assert "no-resolv" not in server.config_text()
    assert lookup(None, "10.77.1.1", "web.school.lab") == (0, ["10.77.1.11"])
    assert lookup(None, "10.77.1.1", "nobody.school.lab") == (3, [])
    with contextlib.suppress(TimeoutError):
        assert lookup(None, "10.77.1.1", "example.org")[0] != 3
    server.unmake()
    lab.unmake()


def test_a_port_53_that_is_taken_names_its_holder(place: Path) -> None:
    lab, server = lab_with_dns(place)
    lab.make()
    with serving(None, "tcp", "0.0.0.0", 53), pytest.raises(LabError, match="in use") as caught:
        server.make()
    assert f"pid {os.getpid()}" in caught.value.hint
    server.unmake()
    lab.unmake()
