# ruff: noqa: E501  (the table is read line by line)
"""How a container is kept apart: what an isolation can't honour is refused, and what each one is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labctl.errors import ProfileError, UsageError
from labctl.home import Home
from labctl.lab.compare import HOST, Column, compared
from labctl.lab.making import refuse_privileged
from labctl.lab.model import Options
from labctl.lab.observe import Observation
from labctl.profile import load_text
from labctl.tiers.container import ContainerNode
from tests.unit.test_lab_planner import planned, profile_of


def mistakes(node: str, more: str = "") -> list[str]:
    """Every problem of a lab of one container, whose fields are flow YAML on line 2."""
    with pytest.raises(ProfileError) as caught:
        load_text(f"name: t\nnodes: {{a: {{{node}}}}}\n{more}", file="lab.yaml", environ={})
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("isolation: chroot, memory: 64MiB", "nodes.a.memory: a chroot has no memory: chroot(2) limits nothing"),
        ("isolation: chroot, cpus: 0.5", "nodes.a.cpus: a chroot has no cpus: chroot(2) limits nothing"),
        ("isolation: chroot, pids: 10", "nodes.a.pids: a chroot has no pids: chroot(2) limits nothing"),
        ("isolation: chroot, networks: [lan]", "nodes.a.networks: a chroot has no networks: it has the host's network"),
        ("isolation: chroot, ports: ['80']", "nodes.a.ports: a chroot has no ports: it has the host's network"),
        ("isolation: chroot, hostname: b", "nodes.a.hostname: a chroot has no hostname: its host name is the host's"),
        ("isolation: chroot, sysctls: {net.ipv4.ip_forward: 1}", "nodes.a.sysctls: a chroot has no sysctls: its kernel settings are the host's"),
        ("isolation: chroot, read_only: true", "nodes.a.read_only: a chroot has no read_only: chroot(2) changes the root and nothing about it"),
        ("isolation: chroot, privileged: true", "nodes.a.privileged: a chroot has no privileged: it has all rights of the host already"),
        ("isolation: chroot, capabilities: [NET_ADMIN]", "nodes.a.capabilities: a chroot has all of the host's capabilities already"),
        ("isolation: vserver, sysctls: {net.ipv4.ip_forward: 1}", "nodes.a.sysctls: a vserver has no sysctls: most kernel settings are the host's"),
        ("isolation: vserver, gateway: none", "nodes.a.gateway: a vserver has no gateway: its routes are the host's"),
        ("isolation: vserver, capabilities: [NET_RAW]", "nodes.a.capabilities: with NET_RAW a vserver could leave its address or its processes"),
        ("isolation: vserver, networks: []", "nodes.a.networks: a vserver is on one network, not 0: it is kept to one address"),
        ("isolation: vserver, networks: [{network: lan, mtu: 1400}]", "nodes.a.networks: a vserver has no interface of its own, so no mtu"),
        ("isolation: lxc, user: www-data", "nodes.a.user: the init of a system container is root's"),
        ("isolation: docker, init: true", "nodes.a.init: a docker container has no init"),
        ("isolation: jail", "nodes.a.isolation: 'jail' is none of chroot, vserver, lxc, docker"),
        ("tier: emulation, isolation: lxc", "nodes.a.isolation: a virtual machine has no isolation"),
    ],
)  # fmt: skip
def test_what_an_isolation_has_not_is_refused_at_its_place(fields: str, message: str) -> None:
    found = mistakes(fields, "networks: {lan: {}}\n" if "networks" in fields else "")
    assert found[0].startswith("lab.yaml:2:") and message in found[0], found
    assert len(found) == 1 + ("ports" in fields), found  # a port without a network is told twice


def test_an_inherited_limit_is_no_limit_of_a_chroot_either() -> None:
    found = mistakes("isolation: chroot", "defaults: {memory: 64MiB}\n")
    assert (
        len(found) == 1 and found[0].startswith("lab.yaml:3:") and "takes the inherited one away" in found[0]
    )
    text = (
        "name: t\ndefaults: {memory: 64MiB, init: true}\nnodes: {a: {isolation: chroot, memory: }, b: {}}\n"
    )
    assert load_text(text, environ={}).nodes["a"].memory is None


def test_a_vserver_needs_the_host_and_ipv4_on_its_network() -> None:
    assert "which is not on x" in mistakes("isolation: vserver", "networks: {x: {host_address: false}}\n")[0]
    assert "speaks IPv4 alone" in mistakes("isolation: vserver", "networks: {x: {ipv6: true}}\n")[0]
    inside = mistakes("isolation: vserver, inside: b}, b: {tier: emulation")
    assert "isolation: vserver is for this host alone" in inside[0]


def test_only_a_vserver_and_a_chroot_need_to_be_allowed() -> None:
    options = Options(home=Home.find())
    refuse_privileged(profile_of("nodes: {a: {isolation: lxc}, b: {}}\n"), options)
    with pytest.raises(UsageError) as caught:
        refuse_privileged(profile_of("nodes: {a: {isolation: chroot}, b: {isolation: vserver}}\n"), options)
    assert caught.value.message.startswith("a: a chroot has all rights of this host; b: a vserver has")
    assert "--allow-privileged" in caught.value.hint


FOUR = "nodes:\n" + "".join(
    f"  {kind}: {{isolation: {kind}}}\n" for kind in ("chroot", "vserver", "lxc", "docker")
)


def config(node: str) -> dict[str, Any]:
    """The OCI configuration of one of the four."""
    item = planned(profile_of(FOUR)).graph[f"container:{node}"]
    assert isinstance(item, ContainerNode)
    found: dict[str, Any] = json.loads(item.config)
    return found


def test_what_each_isolation_is_made_of() -> None:
    kinds = {
        node: {row["type"] for row in config(node)["linux"]["namespaces"]}
        for node in ("chroot", "vserver", "lxc", "docker")
    }
    assert kinds["chroot"] == set()
    assert kinds["vserver"] == {"pid", "ipc", "uts", "mount"}
    assert kinds["lxc"] == kinds["docker"] == {*kinds["vserver"], "network", "user", "cgroup"}
    chroot, vserver, lxc = config("chroot"), config("vserver"), config("lxc")
    assert chroot["mounts"] == [] and "capabilities" not in chroot["process"] and not chroot["hostname"]
    assert set(chroot["linux"]["resources"]) == {"devices"}
    assert vserver["annotations"]["org.labctl.address"] == "10.100.0.2"
    assert not {"CAP_NET_RAW", "CAP_MKNOD"} & set(vserver["process"]["capabilities"]["bounding"])
    assert lxc["process"]["args"] == ["/run/labctl/init"] and not lxc["process"]["noNewPrivileges"]
    assert lxc["annotations"]["org.labctl.stop-signal"] == "SIGUSR2"
    held = set(lxc["process"]["capabilities"]["bounding"])
    assert "CAP_SYS_BOOT" in held and not {"CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_MAC_ADMIN"} & held


def test_a_vserver_has_an_address_of_the_host_that_the_firewall_lets_nodes_reach() -> None:
    graph = planned(profile_of(FOUR)).graph
    bridge, firewall = graph["bridge:lan"], graph["firewall:lab"]
    assert bridge.addresses == ("10.100.0.1/24", "10.100.0.2/32")  # type: ignore[attr-defined]
    assert "ip daddr 10.100.0.2 accept" in firewall.text()  # type: ignore[attr-defined]
    assert "net:vserver" not in graph and "net:chroot" not in graph and "root:chroot" in graph


def test_a_lab_of_nothing_but_a_chroot_has_no_network() -> None:
    plan = planned(profile_of("nodes: {a: {isolation: chroot, volumes: ['data:/data']}}\n"))
    assert not [item for item in plan.graph if item.kind in ("bridge", "firewall", "dns", "net")]
    assert plan.graph["root:a"].needs == ("folder:lab", "volume:data")


def test_a_command_is_a_service_of_the_init_unless_the_node_has_a_table() -> None:
    text = "nodes: {a: {isolation: lxc, command: [serve, 'a b'], env: {X: '1 2'}, workdir: /srv%s}}\n"
    item = planned(profile_of(text % "")).graph["container:a"]
    assert isinstance(item, ContainerNode)
    assert item.files["/etc/inittab"].splitlines()[-1] == "::respawn:/bin/sh /run/labctl/service"
    assert item.files["/run/labctl/service"] == "export X='1 2'\ncd /srv || exit 1\nexec serve 'a b'\n"
    item = planned(profile_of(text % ", files: {/etc/inittab: none}")).graph["container:a"]
    assert isinstance(item, ContainerNode)
    assert not {"/etc/inittab", "/run/labctl/service"} & set(item.files)


def test_the_table_of_a_comparison_tells_the_ways_apart() -> None:
    host = Column(HOST, seen=Observation(boot_id="b", namespaces={"pid": "pid:[1]"}, processes=100))
    same = Observation(boot_id="b", namespaces={"pid": "pid:[1]"}, processes=90)
    own = Observation(boot_id="b", namespaces={"pid": "pid:[2]"}, processes=2)
    columns = [
        host,
        Column("chroot", isolation="chroot", leaves_root=True, seen=same),
        Column("docker", isolation="docker", leaves_root=False, seen=own),
        Column("nested", isolation="docker", inside="vm", seen=own),
    ]
    rows = {row.key: row for row in compared("lab", columns).rows}
    assert rows["way-out"].raw == {HOST: None, "chroot": True, "docker": False, "nested": None}
    assert rows["way-out"].values["nested"] == "not tried"
    assert rows["way-out"].tones == {"chroot": "same", "docker": "own"}
    assert rows["isolation"].raw["chroot"] == "chroot" and rows["isolation"].raw[HOST] is None
    assert rows["processes"].values["chroot"] == "90, the host's among them"
    assert rows["processes"].raw["chroot"] == 90 and rows["processes"].values["docker"] == "2"
