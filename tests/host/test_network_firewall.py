"""A lab's firewall on a real kernel: what passes, what doesn't, and that the host is left as it was."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import Foreign, HostCannot
from labctl.linux import netns
from labctl.looks import Presence
from labctl.network import former, inventory, nft, tools
from labctl.network.model import PublishedPort
from labctl.network.nodenet import NodeNet
from tests.host.network_rig import (
    WORLD4,
    WORLD6,
    Rig,
    ask,
    own_host,
    pings,
    rig,
    serving,
    sh,
    silent,
    snapshot,
    world,
)

pytestmark = [pytest.mark.needs("root", "netns", "nft"), pytest.mark.usefixtures("own_host")]
assert own_host

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
FORWARD6 = Path("/proc/sys/net/ipv6/conf/all/forwarding")


@pytest.fixture
def outside(tmp_path: Path, own_host: None) -> str:
    return world(tmp_path)


def published(
    number: int, host_port: int, *, proto: str = "tcp", host_ip: str = "", v6: bool = False, node: int = 0
) -> PublishedPort:
    ip = f"fd77:{number}::{11 + node}" if v6 else f"10.77.{number}.{11 + node}"
    return PublishedPort(proto, host_ip, host_port, ip, 80, f"lb{number}")


@pytest.fixture
def two(tmp_path: Path, outside: str) -> Iterator[tuple[Rig, Rig]]:
    """Two labs, both with a way to the internet."""
    labs = rig(tmp_path, 1, internet=True), rig(tmp_path, 2, internet=True)
    for lab in labs:
        lab.make()
    yield labs
    for lab in labs:
        lab.unmake()


def test_labs_do_not_reach_each_other(two: tuple[Rig, Rig]) -> None:
    one, other = two
    assert FORWARD.read_text().strip() == "1"
    assert pings(one.nets[0].path, "10.77.1.12")
    assert silent(one.nets[0].path, "10.77.2.11")
    assert silent(other.nets[0].path, "10.77.1.11")
    assert silent(one.nets[0].path, "fd77:2::11")
    with serving(other.nets[0].path, "tcp", "10.77.2.11", 80):
        assert ask(None, "tcp", "10.77.2.11", 80) == b"hello"
        assert ask(one.nets[0].path, "tcp", "10.77.2.11", 80) == b""
    # It is the firewall that stops them, not the lack of a way.
    sh("nft", "flush", "ruleset")
    assert pings(one.nets[0].path, "10.77.2.11")
    assert pings(one.nets[0].path, "fd77:2::11")


def test_the_internet_only_where_asked_and_behind_the_hosts_address(tmp_path: Path, outside: str) -> None:
    before = snapshot(tmp_path)
    open_lab, closed = rig(tmp_path, 1, internet=True), rig(tmp_path, 2)
    open_lab.make()
    closed.make()
    with serving(outside, "tcp", WORLD4, 80) as seen, serving(outside, "udp", WORLD6, 53) as seen6:
        assert ask(open_lab.nets[0].path, "tcp", WORLD4, 80) == b"hello"
        assert ask(open_lab.nets[0].path, "udp", WORLD6, 53) == b"hello"
        assert seen == ["198.51.100.1"]
        assert seen6 == ["2001:db8::1"]
        assert ask(closed.nets[0].path, "tcp", WORLD4, 80) == b""
        assert ask(closed.nets[0].path, "udp", WORLD6, 53) == b""
        assert len(seen + seen6) == 2
    assert silent(outside, "10.77.1.11")
    open_lab.unmake()
    closed.unmake()
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_host_services_are_closed_to_nodes_but_for_dns_and_those_named(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    lab.make()
    node = lab.nets[0].path
    assert pings(node, "10.77.1.1")
    assert pings(node, "fd77:1::1")
    with (
        serving(None, "tcp", "0.0.0.0", 8000),
        serving(None, "udp", "10.77.1.1", 53),
        serving(None, "tcp", "fd77:1::1", 53),
    ):
        assert ask(node, "udp", "10.77.1.1", 53) == b"hello"
        assert ask(node, "tcp", "fd77:1::1", 53) == b"hello"
        assert ask(node, "tcp", "10.77.1.1", 8000) == b""
        wanted = replace(lab.firewall, host_services=("tcp/8000",))
        assert wanted.change(lab.firewall)
        assert ask(node, "tcp", "10.77.1.1", 8000) == b"hello"
    lab.unmake()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("internet", [False, True])
def test_published_ports_from_everywhere_they_should_be(
    tmp_path: Path, outside: str, proto: str, internet: bool
) -> None:
    before = snapshot(tmp_path)
    ports = (
        published(1, 8080, proto=proto),
        published(1, 8081, proto=proto, host_ip="127.0.0.1"),
        published(1, 8082, proto=proto, host_ip="198.51.100.1"),
        published(1, 8083, proto=proto, v6=True),
    )
    lab = rig(tmp_path, 1, internet=internet, ports=ports, gateway=internet)
    lab.make()
    assert lab.firewall.look().presence is Presence.PRESENT
    node = lab.nets[0].path
    with serving(node, proto, "10.77.1.11", 80) as seen, serving(node, proto, "fd77:1::11", 80):
        assert ask(None, proto, "127.0.0.1", 8080) == b"hello"
        assert ask(None, proto, "198.51.100.1", 8080) == b"hello"
        assert ask(None, proto, "10.77.1.1", 8080) == b"hello"
        assert ask(None, proto, "127.0.0.1", 8081) == b"hello"
        assert ask(None, proto, "198.51.100.1", 8082) == b"hello"
        assert ask(None, proto, "2001:db8::1", 8083) == b"hello"
        assert set(seen) == {"10.77.1.1"}
        seen.clear()
        assert ask(outside, proto, "198.51.100.1", 8080) == b"hello"
        assert ask(outside, proto, "2001:db8::1", 8083) == b"hello"
        # With a way back the node sees who asks; without, the bridge asks in its place.
        assert seen == [WORLD4 if internet else "10.77.1.1"]
        assert ask(outside, proto, "198.51.100.1", 8082) == b"hello"
        assert ask(None, proto, "127.0.0.1", 8082) == b""
        assert ask(outside, proto, "198.51.100.1", 8081) == b""
        assert ask(lab.nets[1].path, proto, "10.77.1.1", 8080) == b"hello"
    lab.unmake()
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_nodes_cannot_reach_the_hosts_loopback_through_a_published_port(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1, ports=(published(1, 8080, host_ip="127.0.0.1"),))
    lab.make()
    assert Path("/proc/sys/net/ipv4/conf/lb1/route_localnet").read_text().strip() == "1"
    assert FORWARD.read_text().strip() == "0"
    node = lab.nets[0].path
    netns.run_in(node, lambda: sh("ip", "route", "replace", "127.9.0.0/16", "via", "10.77.1.1"))
    netns.run_in(node, lambda: sh("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"))
    with serving(None, "udp", "127.9.0.1", 53) as seen:
        assert ask(None, "udp", "127.9.0.1", 53) == b"hello"
        seen.clear()
        assert ask(node, "udp", "127.9.0.1", 53) == b""
        assert seen == []
        sh("nft", "delete", "chain", "inet", lab.firewall.table, "guard")
        assert lab.firewall.look().presence is Presence.BROKEN
    lab.unmake()


def test_another_lab_cannot_use_a_published_port(tmp_path: Path) -> None:
    one, other = rig(tmp_path, 1, ports=(published(1, 8080),)), rig(tmp_path, 2)
    one.make()
    other.make()
    with serving(one.nets[0].path, "tcp", "10.77.1.11", 80):
        assert ask(None, "tcp", "10.77.1.1", 8080) == b"hello"
        assert ask(other.nets[0].path, "tcp", "10.77.2.1", 8080) == b""
        assert ask(other.nets[0].path, "tcp", "10.77.1.1", 8080) == b""
    one.unmake()
    other.unmake()


def test_forwarding_comes_back_with_the_last_lab_of_any_instance(tmp_path: Path, outside: str) -> None:
    for path in (FORWARD, FORWARD6):
        assert path.read_text().strip() == "0"
    Path("/proc/sys/net/ipv4/conf/up0/forwarding").write_text("1")
    before = snapshot(tmp_path)
    labs = [rig(tmp_path, n, internet=True, instance=f"{n:08d}", nodes=0) for n in (1, 2, 3)]
    for lab in labs:
        lab.make()
    labs[0].firewall.make()
    for lab in (labs[0], labs[2], labs[1]):
        assert FORWARD.read_text().strip() == FORWARD6.read_text().strip() == "1"
        assert lab.firewall.look().presence is Presence.PRESENT
        lab.unmake()
    assert FORWARD.read_text().strip() == FORWARD6.read_text().strip() == "0"
    assert Path("/proc/sys/net/ipv4/conf/up0/forwarding").read_text().strip() == "1"
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_forwarding_that_was_on_stays_on(tmp_path: Path, outside: str) -> None:
    FORWARD.write_text("1")
    lab = rig(tmp_path, 1, internet=True, nodes=0)
    lab.make()
    assert nft.lab_tables()[0].former == {"net/ipv6/conf/all/forwarding": "0"}
    lab.unmake()
    assert FORWARD.read_text().strip() == "1"


def test_forwarding_is_given_back_after_somebody_flushed_the_firewall(tmp_path: Path, outside: str) -> None:
    before = snapshot(tmp_path)
    one, other = rig(tmp_path, 1, internet=True, nodes=0), rig(tmp_path, 2, internet=True, nodes=0)
    one.make()
    sh("nft", "flush", "ruleset")
    other.make()
    one.unmake()
    assert FORWARD.read_text().strip() == FORWARD6.read_text().strip() == "1", "the other relies on it"
    sh("nft", "flush", "ruleset")
    other.firewall.make()
    assert other.firewall.look().presence is Presence.PRESENT
    sh("nft", "flush", "ruleset")
    other.unmake()
    assert FORWARD.read_text().strip() == FORWARD6.read_text().strip() == "0"
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_a_note_of_another_boot_or_namespace_says_nothing(tmp_path: Path, outside: str) -> None:
    lab = rig(tmp_path, 1, internet=True, nodes=0)
    lab.make()
    note = Path(lab.firewall.folder, former.NAME)
    assert former.read(lab.firewall.folder) == nft.lab_tables()[0].former != {}
    sh("nft", "flush", "ruleset")
    note.write_text(note.read_text().replace('"where": ["', '"where": ["x'))
    lab.unmake()
    assert FORWARD.read_text().strip() == "1" and not note.exists()


def test_forwarding_stays_on_for_somebody_who_came_later(tmp_path: Path, outside: str) -> None:
    lab = rig(tmp_path, 1, internet=True, nodes=0)
    lab.make()
    sh("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "-j", "MASQUERADE")
    lab.unmake()
    assert FORWARD.read_text().strip() == "1"


def test_a_firewall_that_needs_less_gives_forwarding_back(tmp_path: Path, outside: str) -> None:
    lab = rig(tmp_path, 1, internet=True, nodes=0)
    lab.make()
    less = replace(lab.firewall, bridges=(replace(lab.firewall.bridges[0], internet=False),))
    assert lab.firewall.look().presence is Presence.PRESENT
    assert less.look().presence is Presence.BROKEN
    assert less.change(lab.firewall)
    assert FORWARD.read_text().strip() == "0"
    assert less.look().presence is Presence.PRESENT
    lab.unmake()


def test_make_twice_ours_and_foreign(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    assert lab.firewall.look().presence is Presence.ABSENT
    lab.make()
    lab.firewall.make()
    assert lab.firewall.look().presence is Presence.PRESENT
    sh("nft", "flush", "chain", "inet", lab.firewall.table, "forward")
    assert lab.firewall.look().presence is Presence.BROKEN
    lab.firewall.make()
    assert lab.firewall.look().presence is Presence.PRESENT
    lab.unmake()
    lab.unmake()
    sh("nft", "add", "table", "inet", lab.firewall.table)
    assert lab.firewall.look().presence is Presence.FOREIGN
    with pytest.raises(Foreign, match=lab.firewall.table):
        lab.firewall.make()
    lab.firewall.unmake()
    assert ("inet", lab.firewall.table) in nft.tables()


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
@pytest.mark.parametrize("docker", [True, False])
def test_dockers_forward_policy_is_coped_with_and_left_as_it_was(
    tmp_path: Path, outside: str, flavour: str, docker: bool
) -> None:
    programs = [f"iptables-{flavour}", f"ip6tables-{flavour}"]
    for program in programs:
        sh(program, "-P", "FORWARD", "DROP")
        sh(program, "-P", "INPUT", "DROP")
        sh(program, "-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
        if docker:
            sh(program, "-N", "DOCKER-USER")
            sh(program, "-A", "FORWARD", "-j", "DOCKER-USER")
            sh(program, "-A", "DOCKER-USER", "-j", "RETURN")
    rules = [sh(program, "-S") for program in programs]
    before = snapshot(tmp_path)
    lab = rig(tmp_path, 1, internet=True, ports=(published(1, 8080),))
    lab.bridge.make()
    assert NodeNet.make_many(lab.nets) == {}
    node = lab.nets[0].path
    assert Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    assert silent(node, "10.77.1.12"), "br_netfilter was expected to drop bridged frames here"
    lab.firewall.make()
    assert lab.firewall.look().presence is Presence.PRESENT
    for target in ("10.77.1.12", "fd77:1::12", "10.77.1.1", "fd77:1::1"):
        assert pings(node, target), target
    with serving(outside, "tcp", WORLD4, 80), serving(node, "tcp", "10.77.1.11", 80):
        assert ask(node, "tcp", WORLD4, 80) == b"hello"
        assert ask(outside, "tcp", "198.51.100.1", 8080) == b"hello"
    lab.firewall.make()
    chain = "DOCKER-USER" if docker else "FORWARD"
    assert sh(programs[0], "-S", chain).count("labctl:") == 2
    # Somebody flushes the chain: the next look says so, the next make mends it.
    sh(programs[0], "-F", chain)
    assert lab.firewall.look().presence is Presence.BROKEN
    lab.firewall.make()
    assert pings(node, "10.77.1.12")
    lab.unmake()
    if docker:
        sh(programs[0], "-A", "DOCKER-USER", "-j", "RETURN")
    assert [sh(program, "-S") for program in programs] == rules
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_nothing_is_added_where_nothing_drops(tmp_path: Path) -> None:
    sh("iptables-nft", "-A", "FORWARD", "-s", "203.0.113.0/24", "-j", "ACCEPT")
    rules = sh("iptables-nft", "-S")
    lab = rig(tmp_path, 1)
    lab.make()
    assert sh("iptables-nft", "-S") == rules
    assert pings(lab.nets[0].path, "10.77.1.12")
    lab.unmake()


def test_a_host_without_nft_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_SBIN", str(tmp_path))
    with pytest.raises(HostCannot, match="nft") as caught:
        rig(tmp_path, 1).firewall.make()
    assert "apt-get install nftables" in caught.value.hint


STEPS = [
    "nft.apply",
    "forwarding.enable",
    "iptables.make",
    "iptables.unmake",
    "forwarding.restore",
    "nft.delete",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_killed_at_any_step_within_it_is_taken_away_whole(
    tmp_path: Path, outside: str, step: str, late: bool
) -> None:
    """SIGKILL before and after every act inside make and unmake; then unmake, and nothing is left."""
    sh("iptables-nft", "-P", "FORWARD", "DROP")
    lab = rig(tmp_path, 1, internet=True, nodes=0, ports=(published(1, 8080),))
    lab.bridge.make()
    before = snapshot(tmp_path)
    module, name = step.split(".")
    child = os.fork()
    if child == 0:
        room = sys.modules[f"labctl.network.{module}"]
        real = getattr(room, name)

        def fatal(*args: object) -> None:
            if late:
                real(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        if name in ("unmake", "restore", "delete"):
            lab.firewall.make()
        setattr(room, name, fatal)
        lab.firewall.make()
        lab.firewall.unmake()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lab.firewall.unmake()
    # route_localnet is the bridge's own, and goes with it.
    lab.bridge.unmake()
    lab.bridge.make()
    assert inventory.differences(before, snapshot(tmp_path)) == []


def test_many_labs_at_once_do_not_get_in_each_others_way(tmp_path: Path, outside: str) -> None:
    sh("iptables-nft", "-P", "FORWARD", "DROP")
    labs = [rig(tmp_path, number, internet=True, nodes=0) for number in range(1, 9)]
    for lab in labs:
        lab.bridge.make()
    before = snapshot(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda lab: lab.firewall.make(), labs))
        assert {lab.firewall.look().presence for lab in labs} == {Presence.PRESENT}
        assert FORWARD.read_text().strip() == "1"
        list(pool.map(lambda lab: lab.firewall.unmake(), labs))
    assert inventory.differences(before, snapshot(tmp_path)) == []
