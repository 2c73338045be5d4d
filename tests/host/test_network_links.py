"""Bridges and the networks of nodes, on a real kernel."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import Foreign, LabError
from labctl.linux import netlink, netnode, netns
from labctl.looks import Presence
from labctl.network import inventory
from labctl.network.bridge import Bridge
from labctl.network.model import Interface, NodeRoute
from labctl.network.nodenet import NodeNet
from tests.host.network_rig import own_host, pings, rig, sh, silent

pytestmark = [pytest.mark.needs("root", "netns"), pytest.mark.usefixtures("own_host")]
assert own_host


def link_names() -> set[str]:
    with netlink.Netlink() as kernel:
        return {link.name for link in kernel.links()}


def test_nodes_of_a_bridge_reach_each_other_and_the_host_v4_and_v6(tmp_path: Path) -> None:
    before = link_names()
    lab = rig(tmp_path, 1)
    lab.bridge.make()
    assert NodeNet.make_many(lab.nets) == {}
    first = lab.nets[0].path
    for target in ("10.77.1.12", "fd77:1::12", "10.77.1.1", "fd77:1::1"):
        assert pings(first, target), target
    for target in ("10.77.1.11", "fd77:1::12"):
        assert pings(None, target), target
    assert NodeNet.unmake_many(lab.nets) == {}
    lab.bridge.unmake()
    assert link_names() == before
    assert not Path(first).exists()


def test_make_twice_keeps_the_namespace_and_looks_present(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    assert lab.bridge.look().presence is Presence.ABSENT
    assert lab.nets[0].look().presence is Presence.ABSENT
    lab.bridge.make()
    lab.nets[0].make()
    identity = Path(lab.nets[0].path).stat().st_ino
    lab.bridge.make()
    lab.nets[0].make()
    assert Path(lab.nets[0].path).stat().st_ino == identity
    assert lab.bridge.look().presence is Presence.PRESENT
    assert lab.nets[0].look().presence is Presence.PRESENT
    for _ in range(2):
        lab.nets[0].unmake()
        lab.bridge.unmake()
    assert lab.bridge.look().presence is Presence.ABSENT
    assert lab.nets[0].look().presence is Presence.ABSENT


def test_a_link_of_somebody_else_is_never_touched_and_its_holder_named(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    sh("ip", "link", "add", "lb1", "type", "bridge")
    sh("ip", "link", "set", "lb1", "alias", "the neighbour's")
    with pytest.raises(Foreign, match="the neighbour's"):
        lab.bridge.make()
    assert lab.bridge.look().presence is Presence.FOREIGN
    lab.bridge.unmake()
    assert "lb1" in link_names()

    sh("ip", "link", "add", "lv1x0", "type", "veth", "peer", "name", "other")
    failures = NodeNet.make_many(lab.nets)
    assert isinstance(failures["n0"], Foreign)
    assert "lv1x0" in str(failures["n0"])
    assert lab.nets[0].look().presence is Presence.FOREIGN
    assert NodeNet.unmake_many(lab.nets) == {}
    assert {"lb1", "lv1x0", "other"} <= link_names()


def test_a_missing_bridge_fails_that_node_alone_and_leaves_nothing(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    lab.bridge.make()
    lost = replace(
        lab.nets[0], interfaces=(replace(lab.nets[0].interfaces[0], bridge="nowhere"),), name="lost"
    )
    failures = NodeNet.make_many([lost, lab.nets[1]])
    assert list(failures) == ["lost"]
    assert "nowhere" in str(failures["lost"])
    assert not os.path.ismount(lost.path)
    assert "lv1x0" not in link_names()
    assert lab.nets[1].look().presence is Presence.PRESENT
    NodeNet.unmake_many(lab.nets)


def test_broken_ones_are_told_apart_and_made_anew(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    lab.bridge.make()
    lab.nets[0].make()
    for damage, words in (
        (("ip", "link", "set", "lv1x0", "down"), "down"),
        (("ip", "link", "set", "lv1x0", "nomaster"), "not a port"),
        (("ip", "link", "del", "lv1x0"), "missing"),
        (("umount", lab.nets[0].path), "namespace"),
    ):
        sh(*damage)
        look = lab.nets[0].look()
        assert look.presence is Presence.BROKEN or words == "namespace", damage
        assert words in look.detail or words == "namespace"
        lab.nets[0].make()
        assert lab.nets[0].look().presence is Presence.PRESENT
        assert pings(lab.nets[0].path, "10.77.1.1")
    sh("ip", "address", "del", "10.77.1.1/24", "dev", "lb1")
    assert lab.bridge.look().presence is Presence.BROKEN
    lab.bridge.make()
    assert lab.bridge.look().presence is Presence.PRESENT
    lab.nets[0].unmake()


def test_a_bridge_changes_in_place(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    lab.bridge.make()
    wanted = replace(lab.bridge, addresses=("10.77.9.1/24",), mtu=1400)
    assert wanted.change(lab.bridge)
    assert wanted.look().presence is Presence.PRESENT
    assert lab.bridge.look().presence is Presence.BROKEN
    assert "mtu 1400" in sh("ip", "address", "show", "lb1")
    assert "fd77" not in sh("ip", "address", "show", "lb1")
    assert not replace(lab.bridge, ifname="lb2").change(lab.bridge)


def test_a_segment_without_an_address_is_out_of_the_hosts_reach(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1)
    pure = replace(lab.bridge, addresses=())
    pure.make()
    assert NodeNet.make_many(lab.nets) == {}
    assert pure.look().presence is Presence.PRESENT
    assert "inet" not in sh("ip", "address", "show", "lb1")
    assert pings(lab.nets[0].path, "10.77.1.12")
    assert silent(None, "10.77.1.12")
    NodeNet.unmake_many(lab.nets)


def test_interfaces_mtu_down_routes_sysctls_and_no_ipv6(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1, nodes=1)
    lab.bridge.make()
    other = replace(lab.bridge, name="wan", ifname="lb2", addresses=())
    other.make()
    net = replace(
        lab.nets[0],
        interfaces=(
            replace(lab.nets[0].interfaces[0], mtu=1300),
            Interface("lv1y", "wan0", "lb2", "02:00:00:00:00:99", ("10.78.0.2/24",), up=False),
            Interface("lv1z", "wan1", "", "02:00:00:00:00:98"),
        ),
        routes=(
            NodeRoute("10.99.0.0/16", "10.77.1.254", metric=20),
            NodeRoute("10.99.0.0/16", "10.77.1.253", metric=10),
            NodeRoute("10.98.0.0/16", "", "eth0"),
        ),
        ipv6=False,
        gateway6="",
        sysctls={
            "net.ipv4.ip_forward": "1",
            "net.ipv4.conf.wan0.rp_filter": "2",
            "net/ipv4/conf/eth0/proxy_arp": "1",
            "kernel.shmmax": "1",
        },
    )
    net.make()

    def inside(*argv: str) -> str:
        return netns.run_in(net.path, lambda: sh(*argv))

    assert "mtu 1300" in inside("ip", "link", "show", "eth0")
    assert "02:00:00:00:00:99" in inside("ip", "link", "show", "wan0")
    assert "state DOWN" in inside("ip", "link", "show", "wan0")
    assert "10.78.0.2/24" in inside("ip", "address", "show", "wan0")
    assert "inet6" not in inside("ip", "address")
    routes = inside("ip", "route")
    assert "10.99.0.0/16 via 10.77.1.254 dev eth0 proto static metric 20" in routes
    assert "via 10.77.1.253" in inside("ip", "route", "get", "10.99.0.1")
    assert "10.98.0.0/16 dev eth0" in routes
    assert "default via 10.77.1.1" in routes
    assert inside("cat", "/proc/sys/net/ipv4/conf/wan0/rp_filter").strip() == "2"
    assert inside("cat", "/proc/sys/net/ipv4/conf/eth0/proxy_arp").strip() == "1"
    assert inside("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"
    net.unmake()


@pytest.mark.parametrize("key", ["net.ipv4.conf.nope.rp_filter", "net/../kernel/hostname", "net.ipv4"])
def test_a_sysctl_that_is_none_fails_the_node_and_leaves_nothing(tmp_path: Path, key: str) -> None:
    lab = rig(tmp_path, 1, nodes=1)
    lab.bridge.make()
    before = link_names()
    with pytest.raises(LabError):
        replace(lab.nets[0], sysctls={key: "1"}).make()
    assert link_names() == before
    assert not os.path.ismount(lab.nets[0].path)


def test_fifty_nodes_at_once_from_a_program_with_many_threads(tmp_path: Path) -> None:
    lab = rig(tmp_path, 1, nodes=50)
    lab.bridge.make()
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait, daemon=True) for _ in range(8)]
    for thread in others:
        thread.start()
    mine = Path("/proc/thread-self/ns/net").stat().st_ino
    assert NodeNet.make_many(lab.nets) == {}
    assert {look.presence for look in NodeNet.look_many(lab.nets).values()} == {Presence.PRESENT}
    assert Path("/proc/thread-self/ns/net").stat().st_ino == mine
    assert len({Path(net.path).stat().st_ino for net in lab.nets}) == 50
    assert pings(lab.nets[0].path, "10.77.1.60")
    assert NodeNet.unmake_many(lab.nets) == {}
    assert not [name for name in link_names() if name.startswith("lv")]
    stop.set()
    for thread in others:
        thread.join()


def test_a_killed_make_is_made_again(tmp_path: Path) -> None:
    """SIGKILL right before the last step, the mount: links with our mark and no namespace path."""
    lab = rig(tmp_path, 1, nodes=1)
    lab.bridge.make()
    child = os.fork()
    if child == 0:
        netns.bind = lambda path: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        lab.nets[0].make()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    lab.nets[0].make()
    assert lab.nets[0].look().presence is Presence.PRESENT
    assert pings(lab.nets[0].path, "10.77.1.1")
    lab.nets[0].unmake()


def test_errors_name_the_object(own_host: None) -> None:
    with netlink.Netlink() as kernel:
        with pytest.raises(netlink.NetlinkError, match=r"cannot change link nosuch: .*ENODEV"):
            kernel.do(netlink.set_link("nosuch", up=True))
        with pytest.raises(netlink.NetlinkError, match=r"cannot create bridge lo"):
            kernel.do(netlink.add_bridge("lo"))
        answers = kernel.run([netlink.add_bridge(f"b{i}") for i in range(70)])
        assert answers == [None] * 70
        doomed = [link for link in kernel.links() if link.kind == "bridge"]
        assert len(doomed) == 70
        # Left to the namespace's end, they would hold up the tests that follow.
        netnode.delete_links(kernel, doomed, set())
        assert [link.name for link in kernel.links()] == ["lo"]


def test_dumps_agree_with_iproute2(own_host: None) -> None:
    Bridge(
        owner=rig(Path("/"), 1).bridge.owner, name="x", ifname="lb9", addresses=("10.9.0.1/24", "fd09::1/64")
    ).make()
    sh("ip", "route", "add", "10.55.0.0/16", "via", "10.9.0.2", "metric", "7")
    with netlink.Netlink() as kernel:
        routes = {(r.destination, r.gateway, r.metric) for r in kernel.routes()}
        addresses = {a.address for a in kernel.addresses()}
    assert ("10.55.0.0/16", "10.9.0.2", 7) in routes
    assert {"10.9.0.1/24", "fd09::1/64", "127.0.0.1/8"} <= addresses
    listed = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, timeout=10).stdout
    assert {line.split(": ")[1].split("@")[0] for line in listed.splitlines()} == link_names()


@pytest.mark.needs("userns")
def test_a_user_namespace_of_its_own_owns_the_network_of_each_node(tmp_path: Path) -> None:
    """Its root configures that network; a program with many threads makes it nevertheless."""
    lab = rig(tmp_path, 1, nodes=20)
    lab.bridge.make()
    nets = [
        replace(net, userns=f"{net.path}.user", id_base=100000 + 65536 * number)
        for number, net in enumerate(lab.nets)
    ]
    assert NodeNet.make_many(nets) == {}
    assert {look.presence for look in NodeNet.look_many(nets).values()} == {Presence.PRESENT}
    assert len({Path(net.userns).stat().st_ino for net in nets}) == 20
    assert pings(nets[0].path, "10.77.1.12")
    enter = ("nsenter", f"--user={nets[1].userns}", f"--net={nets[1].path}")
    assert sh(*enter, "cat", "/proc/self/uid_map").split() == ["0", "165536", "65536"]
    sh(*enter, "ip", "address", "add", "10.77.1.200/24", "dev", "eth0")
    assert pings(nets[0].path, "10.77.1.200")
    # The other's network is not its to configure.
    other = ("nsenter", f"--user={nets[1].userns}", f"--net={nets[2].path}")
    assert "Operation not permitted" in sh(*other, "ip", "link", "set", "eth0", "mtu", "1400", ok=False)
    sh("umount", nets[3].userns)
    assert nets[3].look().presence is Presence.BROKEN
    nets[3].make()
    assert nets[3].look().presence is Presence.PRESENT
    assert NodeNet.unmake_many(nets) == {}
    assert [point for point in inventory.namespaces() if point.startswith(str(tmp_path))] == []
