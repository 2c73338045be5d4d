# ruff: noqa: E501  (the tables are read line by line)
"""Mistakes: all of them at once, each at its place, in words that a person can act on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labctl.errors import ProfileError
from labctl.profile import load_text


def mistakes(text: str, *sets: str, images: list[str] | None = None, folder: Path | None = None) -> list[str]:
    """Every problem of a profile, as shown."""
    with pytest.raises(ProfileError) as caught:
        load_text(text, sets, file="lab.yaml", images=images, folder=folder, environ={})
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def nodes(text: str, more: str = "") -> list[str]:
    """The problems of a lab whose nodes are given as flow YAML on line 2, the rest from line 3 on."""
    return mistakes(f"name: t\nnodes: {{{text}}}\n{more}")


def test_everything_at_once() -> None:
    text = """\
nmae: demo
networks:
  lan: {subnet: 10.1.0.0/24, internte: yes}
nodes:
  server:
    tier: emulaton
    memory: 12 elephants
    networks: {lan: 10.7.0.1}
    depends_on: [client]
  client:
    image: base
    networks: [lan, wlan]
    depends_on: [server]
    environment: {A: 1}
checks:
  - {node: sever, command: ls}
"""
    assert mistakes(text, "nodes.client.cpus=lots") == [
        "-s nodes.client.cpus=lots: nodes.client.cpus: 'lots' must be a number of CPUs such as 2, 0.5 or 500m",
        "lab.yaml:1:1: name: name is missing",
        "lab.yaml:1:1: nmae: unknown key 'nmae' (did you mean name?)",
        "lab.yaml:3:30: networks.lan.internte: unknown key 'internte' (did you mean internet?)",
        "lab.yaml:6:11: nodes.server.tier: 'emulaton' is none of emulation, para, hardware, container; "
        "did you mean emulation?",
        "lab.yaml:7:13: nodes.server.memory: '12 elephants' must be a size such as 256MiB, 1.5G or 512m",
        "lab.yaml:8:21: nodes.server.networks.lan: 10.7.0.1 is outside 10.1.0.0/24, the subnet of lan",
        "lab.yaml:12:21: nodes.client.networks[1]: there is no network 'wlan' (did you mean lan?)",
        "lab.yaml:13:18: nodes.client.depends_on[0]: these wait for each other in a circle: "
        "server → client → server",
        "lab.yaml:14:5: nodes.client.environment: unknown key 'environment' (write env)",
        "lab.yaml:16:12: checks[0].node: there is no node 'sever' (did you mean server?)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "lab.yaml:1:1: a profile is a map (name: …, nodes: …), not a list"),
        ("just text", "lab.yaml:1:1: a profile is a map (name: …, nodes: …), not text"),
        ("# nothing", "lab.yaml: is empty (`labctl init` writes one to start from)"),
        (
            "name: t",
            "lab.yaml:1:1: the lab has no nodes (for example nodes: {box: {tier: container, image: base}})",
        ),
        ("name: t\nnodes: 5", "lab.yaml:2:8: nodes: must be a map (KEY: VALUE), not '5'"),
        ("name: t\nnodes: {a: 5}", "lab.yaml:2:12: nodes.a: must be a map (KEY: VALUE), not '5'"),
        ("name: [t]\nnodes: [a]", "lab.yaml:1:7: name: must be text, not a list"),
        ("name: t\nnodes: [a]\nsource: x", "lab.yaml:3:1: source: unknown key 'source' (remove it)"),
        ("name: t\nservices: {}\nnodes: [a]", "lab.yaml:2:1: services: unknown key 'services' (write nodes)"),
    ],
)
def test_the_whole_file(text: str, problem: str) -> None:
    assert mistakes(text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x/y: ", "nodes.\"x/y\": the name 'x/y' has '/' in it; letters, digits, - and _ are allowed"),
        ('"x\\ny": ', "nodes.\"x\\ny\": the name 'x\\ny' has '\\n' in it; letters, digits, - and _ are allowed"),
        ("'<a>': ", "nodes.\"<a>\": the name '<a>' has '<' '>' in it; letters, digits, - and _ are allowed"),
        ("'\"': ", "nodes.\"\\\"\": the name '\"' has '\"' in it; letters, digits, - and _ are allowed"),
        ("a: {memory: 0}", "nodes.a.memory: 0 of memory is too little for a container (at least 6MiB)"),
        (
            "a: {tier: emulation, memory: 1M}",
            "nodes.a.memory: 1M of memory is too little for a virtual machine (at least 48MiB)",
        ),
        ("a: {memory: 900T}", "nodes.a.memory: 900T of memory: no machine has that much"),
        ("a: {cpus: 0}", "nodes.a.cpus: must be more than 0, not '0'"),
        ("a: {privileged: perhaps}", "nodes.a.privileged: 'perhaps' must be true or false"),
        ("a: {replicas: -1}", "nodes.a.replicas: must be at least 0, not '-1'"),
        ("a: {replicas: 1.5}", "nodes.a.replicas: '1.5' must be a whole number"),
        ("a: {name: b}", "nodes.a.name: unknown key 'name' (the key above is the name; hostname and aliases give others)"),
        ("a: {command: {x: y}}", "nodes.a.command: must be text or a list of texts, not a map"),
        ("a: {env: [X]}", "nodes.a.env[0]: must be KEY=VALUE, not 'X'"),
        ("a: {env: {X: [1]}}", "nodes.a.env.X: must be text, not a list"),
        ("a: {env: {'': 1}}", "nodes.a.env.\"\": '' can't be the name of a variable"),
        ("a: {image: 'a b'}", "nodes.a.image: 'a b' is no image's name (for example base, registry.example.org/team/image:1.2, or a path: ./web)"),
        ("a: {arch: vax}", "nodes.a.arch: 'vax' is no architecture labctl knows: x86_64, aarch64, riscv64"),
        ("a: {ports: [x]}", "nodes.a.ports[0]: 'x' must be a port such as 80, 8080:80, 127.0.0.1:8080:80 or 5353:53/udp"),
        ("a: {ports: [{node_port: 0}]}", "nodes.a.ports[0].node_port: must be at least 1, not '0'"),
        ("a: {ports: ['1:1'], networks: []}", "nodes.a.ports: a is on no network that the host is on, so that no port can be published"),
        ("a: {inside: a}", "nodes.a.inside: a can't be inside itself"),
        ("a: {inside: b}", "nodes.a.inside: there is no node 'b' (there are: a)"),
        ("a: {depends_on: [a]}", "nodes.a.depends_on[0]: a can't depend on itself"),
        ("a: {depends_on: {b: redy}}, b: ", "nodes.a.depends_on.b: 'redy' is none of started, ready; did you mean ready?"),
        ("a: {depends_on: [b]}, b: {replicas: 2}, c: {inside: b}", "nodes.c.inside: there is no node 'b' (its replicas are b-1 … b-2)"),
        ("a: {kernel: x}", "nodes.a.kernel: a container has no kernel (a has tier: container)"),
        ("a: {tier: emulation, pids: 5}", "nodes.a.pids: a virtual machine has no pids (a has tier: emulation)"),
        ("a: {vm: {balloon: true}}", "nodes.a.vm: a container has no vm (a has tier: container)"),
        ("a: {tier: para, vm: {}}", "nodes.a.vm: a Xen guest has no vm (a has tier: para)"),
        ("a: {tier: emulation, vm: {disk_cach: none}}", "nodes.a.vm.disk_cach: unknown key 'disk_cach' (did you mean disk_cache?)"),
        ("a: {tier: emulation, vm: {disk_io: native}}", "nodes.a.vm.disk_io: native needs disk_cache: none or directsync"),
        ("a: {tier: emulation, cpus: 3, vm: {topology: {cores: 2}}}", "nodes.a.vm.topology: 1 × 2 × 1 CPUs are 2, and cpus says 3 (leave out `cpus`)"),
        ("a: {tier: emulation, cpus: 3, vm: {pin: [0, 1]}}", "nodes.a.vm.pin: 2 sets for 3 CPUs (one for all of them, or one for each)"),
        ("a: {tier: emulation, vm: {pin: 3-1}}", "nodes.a.vm.pin: '3-1' names a CPU twice, or a range from high to low"),
        ("a: {tier: emulation, vm: {pin: x}}", "nodes.a.vm.pin: 'x' is no set of CPUs (for example 0-3 or 0,2)"),
        ("a: {tier: emulation, vm: {kvm_paravirt: false}}", "nodes.a.vm.kvm_paravirt: only tier: hardware has it (a has tier: emulation)"),
        ("a: {disks: {d: 1G}}", "nodes.a.disks: a container has no disks (a has tier: container)"),
        ("a: {tier: para, engine: uml, disks: {d: 1G}}", "nodes.a.disks: User Mode Linux has no disks (a has engine: uml)"),
        ("a: {tier: para, disks: {d: {size: 1G, bus: scsi}}}", "nodes.a.disks.d.bus: a Xen guest's disks have no bus to choose (leave out `bus`)"),
        ("a: {tier: emulation, disks: [d]}", "nodes.a.disks[0]: d has no size (for example size: 1GiB)"),
        ("a: {tier: emulation, disks: {d: 1k}}", "nodes.a.disks.d: 1k is no size for a disk (for example 4G)"),
        ("a: {tier: emulation, disks: {d: {size: 1G, io: native}}}", "nodes.a.disks.d.io: native needs cache: none or directsync"),
        ("a: {tier: emulation, disks: {d: {size: 1G, read_only: true}}}", "nodes.a.disks.d.read_only: d is empty, and would stay so (give it image or source)"),
        ("a: {tier: emulation, disks: {d: {image: base, source: /etc/fstab}}}", "nodes.a.disks.d: d has an image and a source (one of the two)"),
        ("a: {tier: emulation, disks: {d: {image: base, format: raw}}}", "nodes.a.disks.d.format: d is a layer, and so qcow2 (leave out `format`)"),
        ("a: {tier: emulation, disks: {d: {source: /nowhere}}}", "nodes.a.disks.d.source: there is no file '/nowhere'"),
        ("a: {tier: emulation, disks: {d: {size: 1G, serial: labroot}}}", "nodes.a.disks.d.serial: the serial labroot is labctl's own"),
        ("a: {tier: emulation, disks: {a b: 1G}}", "nodes.a.disks.\"a b\": 'a b' can't be a disk's name: up to 20 letters, digits, . _ - (such as data)"),
        ("a: {tier: emulation, tmpfs: [/x], disks: {d: {size: 1G, mount: /x}}}", "nodes.a.disks.d: something is mounted on /x already"),
        ("a: {extends: x}", "nodes.a.extends: there is no group 'x' (groups stand under `groups:` at the top)"),
        ("a: {ready: {}}", "nodes.a.ready: needs one of port, command or http; none is given"),
        ("a: {ready: yes}", "nodes.a.ready: 'yes' doesn't say when it is ready (a port, a command or a URL does)"),
        ("a: {ready: false}", "nodes.a.ready: 'false' doesn't say when it is ready (a port, a command or a URL does)"),
        ("a: {ready: 80.5}", "nodes.a.ready: '80.5' doesn't say when it is ready (a port, a command or a URL does)"),
        ("a: {ready: ''}", "nodes.a.ready: empty text doesn't say when it is ready (a port, a command or a URL does)"),
        ("a: {ready: {command: ' '}}", "nodes.a.ready.command: must not be empty"),
        ("a: {command: ''}", "nodes.a.command: is empty (left out, it is the image's; command: [] takes that away)"),
        ("a: {entrypoint: ['']}", "nodes.a.entrypoint: is empty (left out, it is the image's; entrypoint: [] takes that away)"),
        ("a: {ready: {port: 1, http: /}}", "nodes.a.ready: needs one of port, command or http; not port and http"),
        ("a: {ready: 80, networks: []}", "nodes.a.ready: a is on no network, so nothing can reach its port"),
        ("a: {ready: {http: 'ftp://x'}}", "nodes.a.ready.http: 'ftp://x' is no URL (such as http://:8080/ or /health)"),
        ("a: {files: {/x: {}}}", 'nodes.a.files."/x": /x needs content or source, one of the two'),
        ("a: {files: {x: y}}", "nodes.a.files.x: 'x' must be an absolute path in the node, such as /etc/motd, without .."),
        ("a: {files: {/../x: y}}", "nodes.a.files.\"/../x\": '/../x' must be an absolute path in the node, such as /etc/motd, without .."),
        ("a: {root: /nowhere/at/all}", "nodes.a.root: there is no folder '/nowhere/at/all'"),
        ("a: {volumes: [x]}", "nodes.a.volumes[0]: must be VOLUME:PATH or ./FOLDER:PATH, with :ro for read-only"),
        ("a: {volumes: [a:/x], tmpfs: [/x]}", "nodes.a.tmpfs[0]: something is mounted on /x already"),
        ("a: {secrets: [x]}", "nodes.a.secrets[0]: there is no secret 'x'"),
        ("a: {capabilities: [fly]}", "nodes.a.capabilities[0]: 'fly' is no capability of Linux"),
        ("a: {stop_signal: SIGFOO}", "nodes.a.stop_signal: 'SIGFOO' is no signal; write one such as SIGTERM or SIGINT"),
        ("a: {logging: {max_size: 1KiB}}", "nodes.a.logging.max_size: 1KiB is no size for a log (between 64KiB and 1TiB)"),
        ("a: {logging: {max_files: 0}}", "nodes.a.logging.max_files: must be at least 1, not '0'"),
        ("a: {tier: emulation, logging: {}}", "nodes.a.logging: a virtual machine has no logging (a has tier: emulation)"),
        ("a: {sysctls: {x y: 1}}", "nodes.a.sysctls.\"x y\": 'x y' is no sysctl (such as net.ipv4.ip_forward)"),
        ("a: {startup: {source: /nowhere}}", "nodes.a.startup.source: can't read '/nowhere': No such file or directory"),
        ("a: {provision: ['  ']}", "nodes.a.provision[0]: the step does nothing"),
        ("a: {networks: {lan: {adress: 10.0.0.1}}}", "nodes.a.networks.lan.adress: unknown key 'adress' (did you mean addresses?)"),
        ("a: {networks: [lan, {lan: {interface: eth0/x}}]}", "nodes.a.networks[1].lan.interface: 'eth0/x' can't be an interface's name: up to 15 letters, digits, . _ - (such as eth1)"),
        ("a: , A: ", "nodes.A: A and a are one name in DNS"),
        ("a: {aliases: [b]}, b: ", "nodes.a.aliases: the alias b is the name of another node"),
        ("web: {replicas: 2}, web-1: ", "nodes.web: replica 'web-1' has the name of another node"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_node(text: str, problem: str) -> None:
    found = nodes(text)
    assert len(found) == 1, found
    assert found[0].startswith("lab.yaml:2:")
    assert found[0].split(": ", 1)[1] == problem


NETS = "networks: {n: 10.1.0.0/24, m: {subnet: 10.2.0.0/30}, six: 'fd00::/64', w: {subnet: none}, free: , h: {subnet: 10.4.0.0/24, host_address: 10.4.0.9}}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: {networks: {n: 10.9.0.1}}", "10.9.0.1 is outside 10.1.0.0/24, the subnet of n"),
        ("a: {networks: {n: 10.1.0.0}}", "10.1.0.0 is the network address of 10.1.0.0/24"),
        ("a: {networks: {n: 10.1.0.255}}", "10.1.0.255 is the broadcast address of 10.1.0.0/24"),
        ("a: {networks: {h: 10.4.0.9}}", "10.4.0.9 is the host's own address on h (host_address: in the network gives the host another one)"),
        ("a: {networks: {n: 10.1.0.5}}, b: {networks: {n: 10.1.0.5}}", "10.1.0.5 is taken by a on n"),
        ("a: {networks: {n: 10.1.0.5/16}}", "10.1.0.5/16 has another prefix length than 10.1.0.0/24, the subnet of n (leave it out)"),
        ("a: {networks: {n: 300.1.0.5}}", "'300.1.0.5' is no IP address; write one such as 10.1.0.5 or fd00:1::5"),
        ("a: {networks: {n: 224.0.0.1}}", "224.0.0.1 can't be the address of a machine"),
        ("a: {networks: {six: fd01::5}}", "fd01::5 is outside fd00::/64, the subnet of six"),
        ("a: {networks: {six: 'fd00::5'}, ipv6: false}", "fd00::5 is an IPv6 address, and a has ipv6: false"),
        ("a: {networks: {free: 10.3.0.5}}", "free has no IPv4 subnet, so that 10.3.0.5 can't be on it (write subnet: 10.3.0.0/24 in free)"),
        ("a: {networks: {w: 10.3.0.5}}", "w has no subnet, so that 10.3.0.5 needs a prefix length (such as 10.3.0.5/24)"),
        ("a: {}", "networks is missing: say which of n, m, six, w, free, h a is on ([] for none)"),
        ("a: {networks: [m]}, b: {networks: [m]}", "10.2.0.0/30 has room for 1 nodes, and 2 are on m (host_address: false leaves the host out, which counts as one)"),
        ("a: {networks: {n: {mac: '02:00:00:00:00:01'}}}, b: {networks: {n: {mac: '02:00:00:00:00:01'}}}", "the MAC address 02:00:00:00:00:01 is taken by a on n"),
        ("a: {networks: {n: {mac: '01:00:00:00:00:01'}}}", "01:00:00:00:00:01 is a group (multicast) address; the first pair must be even, such as 02"),
        ("a: {networks: [{network: n, interface: x}, {network: m, interface: x}]}", "a has two interfaces called x"),
        ("a: {networks: [n], gateway: 10.9.0.1}", "10.9.0.1 is on none of the networks of a"),
        ("a: {networks: [n], routes: ['10.5.0.0/16 via 10.9.0.1']}", "10.9.0.1 is on none of the networks of a"),
        ("a: {networks: [n], routes: ['10.5.0.0/16 dev eth7']}", "there is no interface 'eth7' (did you mean eth0?)"),
        ("a: {networks: [n], routes: ['10.5.0.0/16']}", "must be a route such as '10.2.0.0/16 via 10.1.0.1' (or '10.2.0.0/16 dev eth1', each with or without 'metric 10')"),
        ("a: {networks: [n], routes: [{to: 10.5.0.1/16, via: 10.1.0.2}]}", "10.5.0.1/16 is an address in a subnet, not a subnet; did you mean 10.5.0.0/16?"),
        ("a: {networks: [n], ports: ['80:1']}, b: {networks: [n], ports: ['0.0.0.0:80:2']}", "port 80/tcp of the host is taken by a"),
        ("a: {networks: [n], ports: ['80:1'], replicas: 2}", "port 80/tcp of the host is taken by a-1"),
        ("a: {networks: {n: 10.1.0.7}, replicas: 2}", "10.1.0.7 is taken by a-1 on n"),
        ("a: {networks: [n], tier: emulation}, b: {inside: a, networks: [n, m]}", "a, which b is inside, is not on m (add m to its networks)"),
        ("a: {networks: [n]}, b: {networks: [n], inside: a}", "a is a container; a container can be inside a virtual machine only (give it a tier such as emulation)"),
        ("a: {networks: [n], tier: hardware}, b: {networks: [n], inside: a}, c: {networks: [n], inside: b}", "b is a container; a container can be inside a virtual machine only (machines of this lab: a)"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_network(text: str, problem: str) -> None:
    found = nodes(text, NETS)
    assert len(found) == 1, found
    assert found[0].split(": ", 2)[2] == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n: 10.1.0.5/24", "10.1.0.5/24 is an address in a subnet, not a subnet; did you mean 10.1.0.0/24?"),
        ("n: banana", "'banana' is no subnet; write one such as 10.1.0.0/24 or fd00:1::/64"),
        ("n: 127.0.0.0/8", "127.0.0.0/8 is not for networks of machines (for example 10.1.0.0/24 or fd00:1::/64)"),
        ("n: 10.0.0.0/31", "10.0.0.0/31 has no room for two machines (a /30 is the least)"),
        ("n: 10.0.0.0/8, m: 10.1.0.0/24", "10.1.0.0/24 overlaps 10.0.0.0/8 of n"),
        ("n: {subnet6: 10.0.0.0/8}", "10.0.0.0/8 is an IPv4 subnet; subnet6 is for IPv6"),
        ("n: {subnet: 10.1.0.0/24, host_address: 10.2.0.1}", "10.2.0.1 is outside 10.1.0.0/24, the subnet of n"),
        ("n: {host_address: 10.2.0.1}", "n has no IPv4 subnet, so that 10.2.0.1 can't be on it (write subnet: 10.2.0.0/24 in n)"),
        ("n: {host_address: false, internet: true}", "internet: true needs the host on the network (remove host_address: false)"),
        ("n: {subnet: none, internet: true}", "subnet: none goes together neither with a subnet nor with internet: true"),
        ("n: {mtu: 5}", "an MTU of 5 is below 68, the least for IPv4"),
        ("n: {mtu: 1000, ipv6: true}", "an MTU of 1000 is below 1280, the least for IPv6"),
        ("n: {mtu: 99999}", "must be at most 65535, not '99999'"),
        ("n: {driver: macvlan}", "unknown key 'driver' (networks are bridges)"),
        ("a/b: ", "the name 'a/b' has '/' in it; letters, digits, - and _ are allowed"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_network(text: str, problem: str) -> None:
    found = mistakes(f"name: t\nnodes: {{a: {{networks: []}}}}\nnetworks: {{{text}}}")
    assert len(found) == 1, found
    assert found[0].startswith("lab.yaml:3:")
    assert found[0].split(": ", 2)[2] == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{node: a}", "command is missing"),
        ("{command: x}", "node is missing"),
        ("{node: a, command: []}", "must not be empty"),
        ("{node: a, command: x, expect: {matches: '(('}}", "this is no regular expression: missing ), unterminated subpattern at character 2 (a backslash is written once between single quotes)"),
        ("{node: a, command: x, expect: {range: 5..1}}", "the range ends (1) before it begins (5)"),
        ("{node: a, command: x, expect: {range: [1]}}", "must be a list of two numbers, such as [1, 5]"),
        ("{node: a, command: x, expect: {range: lots}}", "must be a list, not 'lots'"),
        ("{node: a, command: x, expect: {exit: any}}", "nothing is expected, so that the check can't fail"),
        ("{node: a, command: x, expect: {exit: 300}}", "must be at most 255, not '300'"),
        ("{node: a, command: x, expect: {regex: x}}", "unknown key 'regex' (write matches)"),
        ("{node: a, command: x, within: soon}", "'soon' must be a time such as 30s, 2m, 1h30m or 200ms"),
        ("{node: a, command: x, needs: b}", "there is no node 'b' (there are: a)"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_check(text: str, problem: str) -> None:
    found = mistakes(f"name: t\nnodes: [a]\nchecks: [{text}]")
    assert len(found) == 1, found
    assert found[0].startswith("lab.yaml:3:")
    assert found[0].split(": ", 2)[2] == problem


def test_circles_name_the_whole_way() -> None:
    found = nodes("a: {depends_on: [b]}, b: {depends_on: [c]}, c: {depends_on: [a]}, d: {depends_on: [a]}")
    assert [p.split(": ", 2)[2] for p in found] == ["these wait for each other in a circle: a → b → c → a"]
    inside = nodes("vm: {tier: emulation, depends_on: [c]}, c: {inside: vm}")
    assert [p.split(": ", 2)[2] for p in inside] == ["these wait for each other in a circle: vm → c → vm"]
    groups = mistakes("name: t\nnodes: [a]\ngroups: {x: {extends: y}, y: {extends: x}}")
    assert [p.split(": ", 2)[2] for p in groups] == ["groups extend each other in a circle: x → y → x"]


def test_a_mistake_in_defaults_counts_once_however_many_nodes_have_it() -> None:
    text = "name: t\ndefaults: {memory: x}\ngroups:\n  unused: {tier: y}\nnodes: [a, b, c]"
    assert [p.split(": ")[0] + ": " + p.split(": ")[1] for p in mistakes(text)] == [
        "lab.yaml:2:20: defaults.memory",
        "lab.yaml:4:18: groups.unused.tier",
    ]


def test_volumes_without_a_way_to_them_are_refused_wherever_they_are_written() -> None:
    hint = "has no way to a folder of this host (use files or root)"
    assert nodes("a: {tier: emulation}, b: {inside: a, volumes: ['v:/v']}") == [
        f"lab.yaml:2:46: nodes.b.volumes: a container inside a machine, as b is, {hint}"
    ]
    assert mistakes(
        "name: t\ndefaults: {volumes: ['v:/v']}\nnodes: {a: {tier: para, engine: uml}, c: {}}"
    ) == [f"lab.yaml:2:12: defaults.volumes: User Mode Linux, as a is, {hint}"]


def test_engines_belong_to_their_tiers() -> None:
    other = "runs para nodes, and a has tier: container (labctl, runc, crun or podman)"
    assert nodes("a: {engine: uml}") == [f"lab.yaml:2:21: nodes.a.engine: uml {other}"]
    machine = "only tier: para and tier: container have an engine (a has tier: emulation)"
    assert nodes("a: {tier: emulation, engine: runc}") == [f"lab.yaml:2:30: nodes.a.engine: {machine}"]
    assert nodes("a: {tier: para, engine: crun}") == [
        "lab.yaml:2:33: nodes.a.engine: crun runs containers, and a has tier: para (xen or uml)"
    ]
    assert nodes("a: {tier: emulation}, b: {inside: a, engine: runc}") == [
        "lab.yaml:2:54: nodes.b.engine: a container inside a is run by labctl's own runtime "
        "(leave out engine, or nodes.b.inside)"
    ]
    assert nodes("a: {engine: docker}") == [
        "lab.yaml:2:21: nodes.a.engine: Docker joins no network namespace that was made before "
        "(engine: labctl, runc, crun or podman runs it)"
    ]
    alone = "knows no isolation: lxc, which is labctl's alone (leave out engine, or isolation)"
    assert nodes("a: {engine: runc, isolation: lxc}") == [f"lab.yaml:2:38: nodes.a.isolation: runc {alone}"]
    text = "name: t\ndefaults: {isolation: lxc}\nnodes: {a: {engine: crun}}"
    assert mistakes(text) == [f"lab.yaml:3:21: nodes.a.engine: crun {alone}"]
    text = "name: t\ndefaults: {engine: runc}\nnodes: {a: {}, b: {tier: emulation}, c: {tier: para}}"
    assert load_text(text).nodes["a"].engine == "runc"
    bounds = "crun keeps no log that has bounds (leave out engine, or logging)"
    assert nodes("a: {engine: crun, logging: {}}") == [f"lab.yaml:2:27: nodes.a.logging: {bounds}"]
    assert load_text("name: t\ndefaults: {logging: {max_files: 2}}\nnodes: {a: {engine: crun}}"), "for others"


def test_an_implied_network_can_be_set_from_the_command_line() -> None:
    profile = load_text("name: t\nnodes: {a: {}}", ["networks.lan.subnet=10.2.0.0/24"], environ={})
    assert profile.networks["lan"].subnet == "10.2.0.0/24"
    assert [at.network for at in profile.nodes["a"].networks] == ["lan"]
    assert mistakes("name: t\nnodes: {a: {}}", "networks.lam.internet=true") == [
        "-s networks.lam.internet=true: networks.lam: there is no network 'lam'"
    ]
    assert mistakes("name: t\nnetworks: {wan: {}}\nnodes: {a: {}}", "networks.lan.internet=true") == [
        "-s networks.lan.internet=true: networks.lan: there is no network 'lan'; did you mean wan?"
    ]


def test_fields_of_other_tiers_are_fine_in_defaults() -> None:
    assert load_text("name: t\ndefaults: {kernel: k, pids: 9}\nnodes: {a: {}, b: {tier: emulation}}")


def test_images_are_checked_where_they_are_known() -> None:
    found = mistakes("name: t\nnodes: {a: {image: bsae}}", images=["base", "micro"])
    assert found == ["lab.yaml:2:20: nodes.a.image: there is no image 'bsae' (did you mean base?)"]


def test_secrets_need_a_value(tmp_path: Path) -> None:
    text = "name: t\nnodes: [a]\nsecrets: {f: gone, e: {env: NOT_SET}, b: {}, n: {file: x, env: y}}"
    assert [p.split(": ", 2)[2] for p in mistakes(text, folder=tmp_path)] == [
        f"there is no file '{tmp_path}/gone'",
        "the variable 'NOT_SET' is not set (export it before labctl)",
        "a secret needs a file or env, one of the two",
        "a secret needs a file or env, one of the two",
    ]


def test_declared_volumes_are_the_only_ones() -> None:
    found = mistakes("name: t\nvolumes: [data]\nnodes: {a: {volumes: ['dta:/x']}}")
    assert found == ["lab.yaml:3:23: nodes.a.volumes[0]: there is no volume 'dta' (did you mean data?)"]


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("nodes.a.memory=0", "-s nodes.a.memory=0: nodes.a.memory: 0 of memory is too little for a container (at least 6MiB)"),
        ("nodes.b.memory=1", "-s nodes.b.memory=1: nodes.b: there is no node 'b'"),
        ("nodes.a.memroy=1", "-s nodes.a.memroy=1: nodes.a.memroy: unknown key 'memroy' (did you mean memory?)"),
        ("zzz", "-s zzz: an override must be PATH=VALUE (for example -s nodes.web.memory=512MiB)"),
        ("=1", "-s =1: an override must be PATH=VALUE (for example -s nodes.web.memory=512MiB)"),
        ("a..b=1", "-s a..b=1: an override must be PATH=VALUE (for example -s nodes.web.memory=512MiB)"),
        ("nodes.a.image.x=1", "-s nodes.a.image.x=1: nodes.a.image.x: nodes.a.image is text, so it has no part 'x'"),
        ("nodes.a.aliases[7]=1", "-s nodes.a.aliases[7]=1: nodes.a.aliases[7]: nodes.a.aliases is a list of 1; write nodes.a.aliases[0] … [1]"),
        ("name=[1, 2", "-s name=[1, 2: a [ is opened and never closed (write [a, b])"),
        ("name=", "lab.yaml:1:1: name: name is missing"),
    ],
)  # fmt: skip
def test_mistakes_in_overrides_point_to_the_option(option: str, problem: str) -> None:
    assert mistakes("name: t\nnodes: {a: {image: i, aliases: [q]}}", option) == [problem]


def test_nothing_printed_can_disturb_a_terminal() -> None:
    found = mistakes('name: "a\\e[31mb"\nnodes: {"\\e[2J": {image: "\\a", depends_on: ["\\n"]}}')
    assert len(found) == 4
    assert all(problem.isprintable() for problem in found)


def test_what_has_no_end_is_no_source_of_a_file(tmp_path: Path) -> None:
    assert nodes("a: {files: {/x: {source: /dev/zero}}}") == [
        "lab.yaml:2:34: nodes.a.files.\"/x\".source: '/dev/zero' is no file"
    ]
    os.mkfifo(tmp_path / "pipe")
    told = mistakes("name: t\nnodes: {a: {files: {/x: {source: pipe}}}}", folder=tmp_path)
    assert "pipe' is no file" in told[0]


@pytest.mark.parametrize(
    "subnet", ["0.0.0.0/0", "0.1.0.0/16", "240.0.0.0/8", "127.1.0.0/16", "::ffff:10.0.0.0/120"]
)
def test_a_subnet_that_no_machine_can_be_in(subnet: str) -> None:
    field = "subnet6" if ":" in subnet else "subnet"
    found = nodes("a: {}", f"networks: {{n: {{{field}: '{subnet}'}}}}")
    assert len(found) == 1 and "is not for networks of machines" in found[0], found


def test_what_is_no_mistake() -> None:
    load_text("name: t\nnodes: {a: {ready: {http: ':8000/'}, user: 'www-data:1000'}}", file="lab.yaml")


def test_parts_that_would_be_ignored_are_mistakes() -> None:
    assert mistakes("name: t\nnodes: {a: {}}\nchecks: [{node: [], command: ls}]") == [
        "lab.yaml:3:17: checks[0].node: names no node (a node's name, several of them, or all)"
    ]
    assert mistakes("name: t\ndefaults: {name: x}\nnodes: {a: {}}") == [
        "lab.yaml:2:12: defaults.name: unknown key 'name' (the key above is the name; hostname and aliases give others)"
    ]
    found = mistakes("x-common: &c {image: micro}\nname: t\nnodes: {a: {<<: *c}}")
    assert found == [
        "lab.yaml:1:1: x-common: unknown key 'x-common' (put it under groups, and write extends in the nodes)"
    ]
    assert "no template language" in mistakes("name: {{ lab }}\nnodes: {a: {}}")[0]
    assert "another kind of file" in mistakes("[lab]\nname = 'x'\n")[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('a: {sysctls: {net.ipv4.ip_forward: "1\\n2"}}', "'1\\n2' can't be a sysctl's value"),
        ("a: {user: ':'}", "':' names no user (a name or a number, or both of user:group)"),
        ("a: {user: -1}", "'-1' names no user (a name or a number, or both of user:group)"),
        ("a: {user: 99999999999}", "'99999999999' names no user (a name or a number, or both of user:group)"),
        ("localhost: {}", "localhost is every node's name for itself (another name)"),
        (
            "a: {image: 'https://example.org/x.tar'}",
            "'https://example.org/x.tar' is a URL, and no image's name (labctl image fetch URL --import NAME makes an image of it)",
        ),
        ("a: {ready: 'http://:99999/'}", "'http://:99999/' is no URL (such as http://:8080/ or /health)"),
        ("a: {ready: 'http://[::1/'}", "'http://[::1/' is no URL (such as http://:8080/ or /health)"),
        (
            "a: {tier: docker}",
            "'docker' is none of emulation, para, hardware, container; did you mean container?",
        ),
        ("a: {tier: kvm}", "'kvm' is none of emulation, para, hardware, container; did you mean hardware?"),
        ("a: {pids: 99999999999}", "must be at most 4194304, not '99999999999'"),
        ("a: {volumes: ['d:/proc/sys']}", "/proc/sys is the kernel's: nothing can be mounted there"),
        (
            "a: {files: {/sys/x: y}}",
            "/sys/x is the kernel's: no file can be put there (sysctls sets the kernel's settings)",
        ),
        (
            "a: {dns: 10.1.0.1}",
            "unknown key 'dns' (write files: {/etc/resolv.conf: nameserver ADDRESS}, or dns: false in the network)",
        ),
        (
            "a: {build: .}",
            "unknown key 'build' (write image: ./FOLDER; a folder with a Containerfile or a recipe.yaml is built)",
        ),
    ],
)
def test_an_odd_value(text: str, problem: str) -> None:
    found = nodes(text)
    assert len(found) == 1, found
    assert found[0].split(": ", 2)[2] == problem
