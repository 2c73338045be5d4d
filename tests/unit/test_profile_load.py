"""Loading: every short form, merging, replicas, overrides, and the round trip through the ledger's JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.errors import ProfileError
from labctl.profile import Condition, MountKind, Node, Profile, Protocol, Tier, load, load_text
from labctl.profile.source import shipped


def node(text: str, more: str = "") -> Node:
    """The node `a` of a small lab, its fields given as flow YAML."""
    return lab(f"nodes: {{a: {{{text}}}}}\n{more}").nodes["a"]


def lab(text: str, *sets: str) -> Profile:
    """A lab called t."""
    return load_text(f"name: t\n{text}", sets)


def test_the_least_profile() -> None:
    profile = lab("nodes: [a]")
    a = profile.nodes["a"]
    assert (a.name, a.hostname, a.tier, a.image) == ("a", "a", Tier.CONTAINER, "base")
    assert [(at.network, at.interface) for at in a.networks] == [("lan", "eth0")]
    assert list(profile.networks) == ["lan"]


@pytest.mark.parametrize(
    ("written", "networks"),
    [
        ("lan", [("lan", "eth0", (), True)]),
        ("[lan, wan]", [("lan", "eth0", (), True), ("wan", "eth1", (), True)]),
        ("{wan: , lan: 10.1.0.5}", [("wan", "eth0", (), True), ("lan", "eth1", ("10.1.0.5/24",), True)]),
        ("{lan: [10.1.0.5, fd00::5]}", [("lan", "eth0", ("10.1.0.5/24", "fd00::5/64"), True)]),
        ("[{lan: 10.1.0.5}, wan]", [("lan", "eth0", ("10.1.0.5/24",), True), ("wan", "eth1", (), True)]),
        ("[{network: lan, interface: eth1}, wan]", [("lan", "eth1", (), True), ("wan", "eth0", (), True)]),
        ("{lan: {address: 10.1.0.5/24, up: no}}", [("lan", "eth0", ("10.1.0.5/24",), True)]),
        ("{lan: none}", [("lan", "eth0", (), False)]),
        ("{lan: {addresses: []}}", [("lan", "eth0", (), False)]),
        ("[lan, lan]", [("lan", "eth0", (), True), ("lan", "eth1", (), True)]),
        ("[]", []),
    ],
)
def test_networks_of_a_node(written: str, networks: list[object]) -> None:
    nets = "networks: {lan: [10.1.0.0/24, 'fd00::/64'], wan: {internet: true}}"
    found = node(f"networks: {written}", nets).networks
    assert [(at.network, at.interface, at.addresses, at.assign) for at in found] == networks


def test_bare_segments_and_links_without_addresses() -> None:
    profile = lab(
        "networks: {wire: {subnet: none, host_address: false, mtu: 9000}}\n"
        "nodes:\n  a: {networks: {wire: {address: 192.0.2.1/30, mac: '02-00-00-00-00-0A'}}}\n"
        "  b: {networks: [wire]}"
    )
    wire = profile.networks["wire"]
    assert (wire.assign, wire.host, wire.subnet) == (False, False, "")
    (a,), (b,) = profile.nodes["a"].networks, profile.nodes["b"].networks
    assert (a.addresses, a.mac, a.mtu, a.assign) == (("192.0.2.1/30",), "02:00:00:00:00:0a", 9000, False)
    assert (b.addresses, b.assign) == ((), False)


def test_the_host_on_a_network() -> None:
    net = lab("networks: {n: {subnet: 10.1.0.0/24, host_address: [10.1.0.254]}}\nnodes: [a]").networks["n"]
    assert (net.host, net.host_address) == (True, "10.1.0.254")
    assert lab("networks: {n: {host_address: no}}\nnodes: [a]").networks["n"].host is False
    assert lab("networks: {n: 'fd00:1::/64'}\nnodes: [a]").networks["n"].ipv6 is True


def test_commands_are_shell_lines_or_lists() -> None:
    assert node("command: echo hi").command == ("/bin/sh", "-c", "echo hi")
    assert node("command: [sleep, 5, on]").command == ("sleep", "5", "on")
    assert node("command: []").command == ()
    assert node("image: x").command is None


def test_texts_stay_as_written() -> None:
    a = node("env: {COUNTRY: no, PORT: 8080, V: 1.10, E: '', T: true}, user: 1000, labels: [x=1=2]")
    assert a.env == {"COUNTRY": "no", "PORT": "8080", "V": "1.10", "E": "", "T": "true"}
    assert (a.user, a.labels) == ("1000", {"x": "1=2"})


def test_amounts() -> None:
    a = node("memory: 1.5G, cpus: 500m, disk: 4GiB, stop_timeout: 2m, tier: emulation")
    assert (a.memory, a.cpus, a.disk, a.stop_timeout) == (3 << 29, 0.5, 4 << 30, 120.0)


def test_ports() -> None:
    found = node(
        "ports: ['8080:80', 443, '127.0.0.1:53:53/udp', {host_port: 9, node_port: 10}, '7000-7001:1-2']"
    ).ports
    assert [(p.host_ip, p.host_port, p.node_port, p.proto) for p in found] == [
        ("", 8080, 80, Protocol.TCP),
        ("", 0, 443, Protocol.TCP),
        ("127.0.0.1", 53, 53, Protocol.UDP),
        ("", 9, 10, Protocol.TCP),
        ("", 7000, 1, Protocol.TCP),
        ("", 7001, 2, Protocol.TCP),
    ]


@pytest.mark.parametrize(
    "written", ["b", "[b]", "{b: }", "{b: started}", "{b: {condition: service_started}}"]
)
def test_depends_on(written: str) -> None:
    assert lab(f"nodes: {{a: {{depends_on: {written}}}, b: }}").nodes["a"].depends_on == {
        "b": Condition.STARTED
    }


def test_ready() -> None:
    assert (ready := node("ready: 80").ready) and (ready.port, ready.timeout, ready.interval) == (
        80,
        60.0,
        1.0,
    )
    assert (ready := node("ready: 'test -e /x'").ready) and ready.command == ("/bin/sh", "-c", "test -e /x")
    assert (ready := node("ready: [true]").ready) and ready.command == ("true",)
    assert (ready := node("ready: 'http://:8080/'").ready) and ready.http == "http://:8080/"
    assert (ready := node("ready: {http: /x, timeout: 5m}").ready) and (ready.http, ready.timeout) == (
        "/x",
        300.0,
    )


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "one").write_text("1")
    (tmp_path / "boot.startup").write_text("ip link\nfalse\n")
    text = """
    name: t
    nodes:
      a:
        root: tree
        files: {/etc/motd: hi, /one: {source: one, mode: 600, owner: "5:6"}}
        volumes: [data:/data, ./tree:/tree:ro, {type: bind, source: one, target: /1}]
        tmpfs: {/run: 1m, /tmp: }
        startup: {source: boot.startup}
        secrets: [key]
      b:
        files: ["one:/one:0755"]
        tmpfs: /run
    secrets: {key: ./one}
    """
    profile = load_text(text, folder=tmp_path)
    a, b = profile.nodes["a"], profile.nodes["b"]
    assert a.root == str(tmp_path / "tree")
    assert [(f.path, f.content, f.source, f.mode, f.owner) for f in a.files] == [
        ("/etc/motd", "hi", "", None, ""),
        ("/one", None, str(tmp_path / "one"), "0600", "5:6"),
    ]
    assert [(m.kind, m.source, m.target, m.read_only) for m in a.volumes] == [
        (MountKind.VOLUME, "data", "/data", False),
        (MountKind.BIND, str(tmp_path / "tree"), "/tree", True),
        (MountKind.BIND, str(tmp_path / "one"), "/1", False),
    ]
    assert [(t.target, t.size) for t in a.tmpfs] == [("/run", 1 << 20), ("/tmp", None)]
    assert a.startup == "ip link\nfalse\n"
    assert [(s.secret, s.target, s.mode) for s in a.secrets] == [("key", "/run/secrets/key", "0400")]
    assert list(profile.volumes) == ["data"]
    assert profile.secrets["key"].file == str(tmp_path / "one")
    assert b.files[0].mode == "0755"
    assert b.tmpfs[0].target == "/run"


def test_provision_routes_capabilities_gateways() -> None:
    a = node(
        'provision: ["# first\\n\\nset -e\\ntrue", {install: apt-get update}, '
        "{name: x, run: y, timeout: 5}], "
        "routes: ['10.2.0.0/16 via 10.1.0.9 metric 5', {to: default, via: 10.1.0.2}], "
        "networks: {n: 10.1.0.7}, capabilities: [net_admin, CAP_SYS_TIME], "
        "gateway: [10.1.0.2, none], privileged: yes, stop_signal: int",
        "networks: {n: 10.1.0.0/24}",
    )
    assert [(s.name, s.timeout) for s in a.provision] == [("set -e", 600.0), ("install", 600.0), ("x", 5.0)]
    assert [(r.to, r.via, r.metric) for r in a.routes] == [
        ("10.2.0.0/16", "10.1.0.9", 5),
        ("default", "10.1.0.2", 0),
    ]
    assert a.capabilities.add == ("CAP_NET_ADMIN", "CAP_SYS_TIME")
    assert a.privileged is True
    assert a.stop_signal == "SIGINT"
    assert a.gateway6 == "none"


def test_defaults_groups_and_nodes_are_merged_nearest_first() -> None:
    profile = lab(
        """
defaults: {memory: 64MiB, env: {A: 1, B: 1, C: 1}, ports: [1], labels: {x: 1}}
groups:
  base: {memory: 128MiB, env: [B=2], ports: [2]}
  more: {extends: base, env: {C: 3}, user: 7}
  other: {user: 8}
nodes:
  plain: {}
  full: {extends: [more, other], env: {A: , D: 4}, ports: [3]}
  bare: {extends: more, memory: , labels: }
"""
    )
    plain, full, bare = (profile.nodes[key] for key in ("plain", "full", "bare"))
    assert (plain.memory, plain.env) == (64 << 20, {"A": "1", "B": "1", "C": "1"})
    assert (full.memory, full.env, full.user) == (128 << 20, {"B": "2", "C": "3", "D": "4"}, "8")
    assert [p.node_port for p in full.ports] == [3]
    assert (bare.memory, bare.labels, bare.user) == (None, {}, "7")


def test_replicas_and_what_refers_to_them() -> None:
    profile = lab(
        "nodes: {web: {replicas: 3}, one: {replicas: 1}, none: {replicas: 0}, "
        "c: {depends_on: {web: ready, none: }}}\n"
        "checks: [{name: up, node: [web, c], command: 'true', needs: web}, {node: all, command: ls -l}]"
    )
    assert list(profile.nodes) == ["web-1", "web-2", "web-3", "one-1", "c"]
    assert profile.nodes["web-2"].replica_of == "web"
    assert profile.nodes["web-2"].hostname == "web-2"
    assert profile.nodes["c"].depends_on == dict.fromkeys(("web-1", "web-2", "web-3"), Condition.READY)
    assert [c.name for c in profile.checks[:4]] == ["up (web-1)", "up (web-2)", "up (web-3)", "up (c)"]
    assert profile.checks[0].needs == ("web-1", "web-2", "web-3")
    assert [c.name for c in profile.checks[4:]] == [f"{n}: ls -l" for n in profile.nodes]


def test_containers_inside_are_on_their_machines_networks() -> None:
    profile = lab(
        "networks: [x, y, z]\n"
        "nodes: {vm: {tier: emulation, networks: [z, x]}, c: {inside: vm}, d: {networks: [y]}}"
    )
    assert [at.network for at in profile.nodes["c"].networks] == ["z", "x"]


def test_expectations() -> None:
    def expect(text: str) -> object:
        check = lab(f"nodes: [a]\nchecks: [{{node: a, command: x, expect: {text}}}]").checks[0]
        return check.expect.model_dump(exclude_defaults=True)

    assert expect("3") == {"exit": 3}
    assert expect("some text") == {"output": "some text"}
    assert expect("{exit: any, equals: 5}") == {"exit": None, "equals": "5"}
    assert expect("{exit_code: 2, matches: 'a+'}") == {"exit": 2, "matches": "a+"}
    assert expect("{range: [1, null]}") == {"range": (1.0, None)}
    assert expect("{range: 1.5..}") == {"range": (1.5, None)}
    assert expect("{range: -5..-1}") == {"range": (-5.0, -1.0)}


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("nodes.a.memory=1G", "memory", 1 << 30),
        ("nodes.a.env.X=no", "env", {"X": "no"}),
        ("nodes.a.sysctls.net.ipv4.ip_forward=1", "sysctls", {"net.ipv4.ip_forward": "1"}),
        ('nodes.a.sysctls."net.ipv4.ip_forward"=1', "sysctls", {"net.ipv4.ip_forward": "1"}),
        ("defaults.image=micro", "image", "micro"),
        ("nodes.a={image: x}", "image", "x"),
        ("nodes.a.command=[a, b=c]", "command", ("a", "b=c")),
        ("nodes.a.aliases[0]=x", "aliases", ("x",)),
        ("nodes.a.user=", "user", ""),
    ],
)
def test_overrides(option: str, field: str, value: object) -> None:
    assert getattr(lab("nodes: {a: {aliases: [q], user: root}}", option).nodes["a"], field) == value


def test_overrides_reach_lists_and_new_parts() -> None:
    profile = lab(
        "nodes: [a]\nchecks: [{node: a, command: x}]",
        "checks[0].within=9s",
        "checks.1={node: a, command: y}",
        "networks={lan: {internet: true}}",
        "nodes.a.memory=64m",
    )
    assert profile.checks[0].within == 9.0
    assert profile.checks[1].command[-1] == "y"
    assert profile.networks["lan"].internet is True
    assert profile.nodes["a"].memory == 64 << 20


def test_another_name() -> None:
    assert load_text("name: t\nnodes: [a]", name="other").name == "other"
    with pytest.raises(ProfileError) as caught:
        load_text("name: t\nnodes: [a]", name="no/good")
    assert str(caught.value.problems[0]).startswith("--name: ")


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_load_and_survive_the_ledger(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.description
    assert profile.checks
    assert Path(profile.source).is_file()
    assert Profile.from_json(profile.to_json()) == profile
    assert load(name, name="copy").name == "copy"


def test_the_spectrum_differs_in_its_tiers_only() -> None:
    profile = load("spectrum")
    assert {key: n.tier for key, n in profile.nodes.items()} == {
        "emu": Tier.EMULATION,
        "para": Tier.PARA,
        "hard": Tier.HARDWARE,
        "box": Tier.CONTAINER,
        "nested": Tier.CONTAINER,
    }
    assert {n.image for n in profile.nodes.values()} == {"base"}
    assert profile.nodes["nested"].inside == "emu"
    assert len(profile.checks) == 25
    assert all(check.needs and check.needs[0] in check.name for check in profile.checks)


def test_a_large_lab_loads() -> None:
    text = "name: t\nnodes:\n" + "".join(
        f"  n{i}: {{image: base, env: {{A: {i}}}, networks: [lan]}}\n" for i in range(500)
    )
    assert len(load_text(text).nodes) == 500
