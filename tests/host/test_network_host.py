"""What the network's room says about the host: subnets, ports, marks; and the same work inside a guest."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.linux import guestnet, netlink
from labctl.looks import Owner
from labctl.network import inventory, listeners, probes
from labctl.network.dns import Dns
from labctl.network.marks import find_marked
from labctl.network.model import Listen, PublishedPort
from labctl.network.subnets import Holder, choose_subnets, docker_networks, holders_of, host_holders
from tests.host.network_rig import own_host, pings, rig, serving, sh, snapshot

pytestmark = [pytest.mark.needs("root", "netns", "nft"), pytest.mark.usefixtures("own_host")]
assert own_host


def test_routes_and_addresses_hold_their_subnets(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1, nodes=0)
    lab.bridge.make()
    sh("ip", "route", "add", "10.128.0.0/9", "via", "10.77.1.9")
    sh("ip", "route", "add", "blackhole", "10.64.0.0/12", "table", "77")
    assert holders_of("10.77.1.128/25") == [
        "route via lb1 (10.77.1.0/24)",
        "address 10.77.1.1/24 on lb1 (10.77.1.0/24)",
        "route via no interface in table 77 (10.64.0.0/12)",
    ]
    assert holders_of("10.200.0.0/16", [Holder("10.200.1.0/24", "libvirt network default")]) == [
        "libvirt network default (10.200.1.0/24)",
        "route via lb1 (10.128.0.0/9)",
    ]
    assert holders_of("10.1.2.0/24") == []
    assert holders_of("fd77:1::/64")[0].startswith("route via lb1")
    for subnet in choose_subnets(40, host_holders(), seed="x"):
        assert holders_of(subnet) == []


def test_docker_is_asked_for_networks_that_are_not_up(tmp_path: Path) -> None:
    """A stand-in for the daemon, speaking HTTP on a socket: no Docker runs here."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            networks = [
                {"Name": "shop_default", "IPAM": {"Config": [{"Subnet": "10.5.0.0/16"}]}},
                {"Name": "host", "IPAM": {"Config": None}},
            ]
            assert self.path == "/networks"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(networks).encode())

        def log_message(self, *_: object) -> None: ...

        def address_string(self) -> str:
            return "unix"

    path = str(tmp_path / "docker.sock")
    with socketserver.UnixStreamServer(path, Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert docker_networks(path) == [Holder("10.5.0.0/16", "Docker network shop_default")]
        thread.join()
        assert docker_networks(path, timeout=0.1) == []
    assert docker_networks(str(tmp_path / "nowhere")) == []


def test_who_holds_a_port() -> None:
    with serving(None, "tcp", "127.0.0.1", 4000), serving(None, "udp", "0.0.0.0", 4001):
        held = listeners.port_holder("tcp", "", 4000)
        assert held is not None
        assert (held.pid, held.ip) == (os.getpid(), "127.0.0.1")
        assert f"pid {os.getpid()}" in str(held)
        assert listeners.port_holder("tcp", "127.0.0.1", 4000) is not None
        assert listeners.port_holder("tcp", "127.0.0.2", 4000) is None
        assert listeners.port_holder("udp", "127.0.0.2", 4001) is not None
        assert listeners.port_holder("udp", "", 4000) is None
        assert listeners.port_holder("tcp", "::1", 4000) is None


@pytest.mark.needs("dnsmasq")
def test_what_a_lost_ledger_forgot_is_found_by_its_marks_and_nothing_else(tmp_path: Path) -> None:
    sh("iptables-nft", "-P", "FORWARD", "DROP")
    sh("ip", "link", "add", "lb-not-ours", "type", "bridge")
    before = snapshot(tmp_path)
    lab = rig(tmp_path / "labs", 1, ports=(PublishedPort("tcp", "", 8080, "10.77.1.11", 80, "lb1"),))
    # Namespaces are kept at LABS/LAB/net/NODE, as a home has them.
    folder = tmp_path / "labs" / "00000001" / "net"
    lab.nets = [replace(net, path=str(folder / net.name)) for net in lab.nets]
    lab.nets[1] = replace(lab.nets[1], userns=f"{lab.nets[1].path}.user", id_base=100000)
    other = rig(tmp_path / "other", 2, instance="bbbbbbbb")
    lab.make()
    other.make()
    server = Dns(
        owner=lab.bridge.owner,
        name="lab",
        directory=str(tmp_path / "dns"),
        listen=(Listen("lb1", "10.77.1.1"),),
    )
    server.make()
    found = find_marked("aaaaaaaa", str(tmp_path / "labs"))
    assert sorted({(item.kind, item.name) for item in found}) == [
        ("bridge", "lan"),
        ("dns", "lab"),
        ("firewall", "lab"),
        ("net", "n0"),
        ("net", "n1"),
    ]
    assert {item.owner for item in found} == {Owner("aaaaaaaa", "00000001")}
    for item in found:
        item.remove()
        item.remove()
    assert find_marked("aaaaaaaa", str(tmp_path / "labs")) == []
    assert pings(other.nets[0].path, "10.77.2.12")
    other.unmake()
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_the_inventory_sees_a_difference_of_every_kind(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert inventory.differences(before, snapshot(tmp_path)) == []
    lab = rig(tmp_path, 1, nodes=1, internet=True)
    lab.make()
    sh("iptables-nft", "-P", "FORWARD", "DROP")
    kinds = {line.split()[1] for line in inventory.differences(before, snapshot(tmp_path))}
    assert kinds == {"links", "addresses", "routes", "nft", "iptables", "namespaces", "sysctls"}
    lab.unmake()


def test_a_guest_makes_the_networks_of_its_containers(tmp_path: Path) -> None:
    """The ground floor alone, in an isolated interpreter, as it runs inside a virtual machine."""
    lab = rig(tmp_path, 1)
    with netlink.Netlink() as kernel:
        kernel.do(netlink.add_bridge("lb1"), netlink.set_link("lb1", up=True))
    text = guestnet.document([net.plain() for net in lab.nets])
    assert guestnet.read_nodes(text) == [net.plain() for net in lab.nets]
    root = Path(guestnet.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from labctl.linux import guestnet; "

    def net(verb: str, given: str = text) -> tuple[int, dict[str, dict[str, str]]]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code + f"sys.exit(guestnet.main([{verb!r}]))"],
            input=given,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.returncode, json.loads(done.stdout or "{}")

    assert net("look") == (0, {"faults": {"n0": "absent", "n1": "absent"}})
    assert net("add") == (0, {"failures": {}})
    assert net("add") == (0, {"failures": {}})
    assert net("look") == (0, {"faults": {"n0": "", "n1": ""}})
    assert pings(lab.nets[0].path, "10.77.1.12")
    assert pings(lab.nets[0].path, "fd77:1::12")
    assert net("del") == (0, {"failures": {}})
    assert net("del") == (0, {"failures": {}})
    assert net("add", '{"nodes": [{}]}')[0] == 2
    assert net("nonsense")[0] == 2
    sh("ip", "link", "del", "lb1")
    code_, answer = net("add")
    assert code_ == 1
    assert "no bridge lb1" in answer["failures"]["n0"]


def test_errors_are_of_the_kind_people_see(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1, nodes=1)
    with pytest.raises(LabError, match="no bridge lb1"):
        lab.nets[0].make()


def test_probes_try_and_leave_nothing(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert probes.why_no_nft() == ""
    netem = probes.why_no_netem()
    assert netem == "" or "netem" in netem or "qdisc" in netem
    assert probes.br_netfilter() is Path("/proc/sys/net/bridge").exists()
    assert inventory.differences(before, snapshot(tmp_path)) == []
