"""A host of one's own for the network's tests: a private network namespace, so that the machine's own
links, rules and sysctls are never touched, and so that two test runs never meet."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labctl.linux import netlink, netnode, netns
from labctl.looks import Owner
from labctl.network import dns, inventory
from labctl.network.bridge import Bridge
from labctl.network.firewall import LabFirewall
from labctl.network.model import BridgeRule, Interface, PublishedPort
from labctl.network.nodenet import NodeNet

WORLD4, WORLD6 = "198.51.100.2", "2001:db8::2"


@pytest.fixture
def own_host(tmp_path: Path) -> Iterator[None]:
    """The test's thread is in a network namespace of its own, with lo up; what a failed test left goes."""
    before = netns.current_fd()
    netns.unshare_net()
    try:
        with netlink.Netlink() as kernel:
            kernel.do(netlink.set_link("lo", up=True))
        # A new namespace takes these over from the first one, which may forward by itself.
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"):
            Path("/proc/sys/net", path).write_text("0")
        yield
    finally:
        netns.enter_fd(before)
        os.close(before)
        for point in inventory.namespaces():
            if point.startswith(f"{tmp_path}/"):
                netns.unbind(point)
        for pid, _ in dns.servers():
            if f"{tmp_path}/" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, 9)


def snapshot(tmp_path: Path) -> inventory.Snapshot:
    """The inventory without what other labs do on this machine meanwhile: mounts and processes are shared."""
    taken = inventory.inventory()
    taken["namespaces"] = [point for point in taken["namespaces"] if point.startswith(f"{tmp_path}/")]
    taken["dnsmasq"] = [mark for mark in taken["dnsmasq"] if mark.startswith(("labctl:aaaa", "labctl:bbbb"))]
    return taken


def sh(*argv: str, ok: bool = True, text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30)
    assert not ok or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def pings(path: str | None, target: str) -> bool:
    """Whether a ping from the namespace at `path` (None: the host) comes back: asked again for ten seconds,
    since a host under load answers late and a bridge's new port a moment after it is there."""
    return _pinged(path, target, "-i0.2", "-w10")


def silent(path: str | None, target: str) -> bool:
    """Whether no ping comes back within a second; a rule that drops them is there before the question."""
    return not _pinged(path, target, "-W1")


def _pinged(path: str | None, target: str, *words: str) -> bool:
    argv = ["ping", "-n", "-c1", *words, target]
    done = netns.run_in(path, lambda: subprocess.run(argv, capture_output=True, timeout=20))
    return done.returncode == 0


def _socket(proto: str, ip: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(1.5)
    return made


@contextlib.contextmanager
def serving(
    path: str | None, proto: str, ip: str, port: int, answer: bytes = b"hello"
) -> Iterator[list[str]]:
    """A server inside a namespace; yields the list of the clients' addresses as it saw them."""
    server = netns.run_in(path, lambda: _socket(proto, ip))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((ip, port))
    server.settimeout(0.1)
    seen: list[str] = []
    stop = threading.Event()
    if proto == "tcp":
        server.listen()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                if proto == "tcp":
                    client, peer = server.accept()
                    seen.append(peer[0])
                    with client:
                        client.sendall(answer)
                else:
                    _, peer = server.recvfrom(100)
                    seen.append(peer[0])
                    server.sendto(answer, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        server.close()


def ask(path: str | None, proto: str, ip: str, port: int) -> bytes:
    """What a server answers; b"" when it can't be reached."""
    with netns.run_in(path, lambda: _socket(proto, ip)) as client:
        try:
            client.connect((ip, port))
            if proto == "udp":
                client.send(b"?")
            return client.recv(100)
        except OSError:
            return b""


def world(tmp_path: Path) -> str:
    """Another host, on the far side of the host's uplink `up0`; both have default routes to each other."""
    path = str(tmp_path / "world")
    nic = netnode.Nic("up0", "eth0", "", "02:00:00:00:ff:02", (f"{WORLD4}/24", f"{WORLD6}/64"), True, 0, "w")
    assert netnode.make_nodes([netnode.Node("world", path, (nic,))]) == {}
    with netlink.Netlink() as kernel:
        index = netlink.by_name(kernel.links())["up0"].index
        kernel.do(
            netlink.add_address(index, "198.51.100.1/24"),
            netlink.add_address(index, "2001:db8::1/64"),
            netlink.add_route("default", WORLD4),
            netlink.add_route("default", WORLD6),
        )
        # The kernel adds the local route of a v6 address a moment after the address.
        for _ in range(500):
            if any(route.destination == "2001:db8::1/128" for route in kernel.routes()):
                break
            time.sleep(0.001)
    return path


@dataclass
class Rig:
    """A lab's network: one bridge, nodes at .11, .12 …, a firewall."""

    bridge: Bridge
    nets: list[NodeNet]
    firewall: LabFirewall
    gone: list[Callable[[], None]] = field(default_factory=list)

    def make(self) -> None:
        self.bridge.make()
        assert NodeNet.make_many(self.nets) == {}
        self.firewall.make()

    def unmake(self) -> None:
        self.firewall.unmake()
        assert NodeNet.unmake_many(self.nets) == {}
        self.bridge.unmake()


def rig(
    tmp_path: Path,
    number: int,
    *,
    nodes: int = 2,
    internet: bool = False,
    ports: tuple[PublishedPort, ...] = (),
    gateway: bool = True,
    instance: str = "aaaaaaaa",
) -> Rig:
    """Lab `number`: 10.77.NUMBER.0/24 and fd77:NUMBER::/64 on bridge lbNUMBER."""
    owner = Owner(instance, f"{number:08x}")
    four, six = f"10.77.{number}", f"fd77:{number}::"
    bridge = Bridge(owner=owner, name="lan", ifname=f"lb{number}", addresses=(f"{four}.1/24", f"{six}1/64"))
    nets = [
        NodeNet(
            owner=owner,
            name=f"n{i}",
            path=str(tmp_path / f"lab{number}" / f"n{i}"),
            hostname=f"n{i}",
            interfaces=(
                Interface(
                    host_name=f"lv{number}x{i}",
                    name="eth0",
                    bridge=bridge.ifname,
                    mac=f"02:00:00:{number:02x}:{i >> 8:02x}:{i & 255:02x}",
                    addresses=(f"{four}.{11 + i}/24", f"{six}{11 + i}/64"),
                ),
            ),
            gateway4=f"{four}.1" if gateway else "",
            gateway6=f"{six}1" if gateway else "",
        )
        for i in range(nodes)
    ]
    rule = BridgeRule(bridge.ifname, f"{four}.0/24", f"{six}/64", internet)
    folder = tmp_path / f"lab{number}"
    folder.mkdir(parents=True, exist_ok=True)
    firewall = LabFirewall(
        owner=owner,
        name="lab",
        table=f"labctl_{owner.lab}",
        bridges=(rule,),
        ports=ports,
        folder=str(folder),
    )
    return Rig(bridge, nets, firewall)
