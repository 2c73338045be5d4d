"""A para node on a Xen host that labctl adds: what it is, the verbs on it, and what becomes of it when its
host dies or labctl is killed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.hypervisor.processes import marked
from tests.e2e.labs import CONTAINERS, Lab, listener, until

pytestmark = [
    pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel", "xen"),
    pytest.mark.long,
    pytest.mark.timeout(900),
]

PROFILE = f"""
name: xenlab
defaults: {{image: micro, command: {listener()}, memory: 128MiB}}
nodes:
  para:
    tier: para
    files: [{{path: /var/www/who, content: para}}]
    disks: {{data: {{size: 64MiB, mount: /data}}, tools: {{image: micro, read_only: true, mount: /tools}}}}
  emu: {{tier: emulation, files: [{{path: /var/www/who, content: emu}}]}}
  box: {{files: [{{path: /var/www/who, content: box}}], memory: null}}
"""
NODES = ("para", "emu", "box")


def end_the_host(lab: Lab) -> None:
    """Kill the host machine's QEMU, as the kernel does when memory runs out."""
    import os
    import signal

    mine = [pid for pid, mark in marked().items() if mark.endswith(":domain:xen-host") and _ours(lab, mark)]
    assert len(mine) == 1
    os.kill(mine[0], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{mine[0]}/cmdline").exists() or mine[0] not in marked(), "the host's end")


def _ours(lab: Lab, mark: str) -> bool:
    return mark.split(":")[1] == lab.home.instance()


def test_a_para_node_is_a_node_like_any_other(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "xenlab", PROFILE)
    nodes = {node["name"]: node for node in lab.up(timeout=600)["nodes"]}
    assert {name: node["state"] for name, node in nodes.items()} == dict.fromkeys(
        (*NODES, "xen-host"), "ready"
    )
    assert nodes["para"]["inside"] == "xen-host" and nodes["para"]["runs_on"] == "node xen-host"
    assert re.fullmatch(r"Xen 4\.\d+ PV, on a Xen host under (TCG|KVM)", nodes["para"]["accelerator"])

    proof = lab.sh("para", "cat /sys/hypervisor/type /sys/hypervisor/guest_type; dmesg")
    assert proof.split()[:2] == ["xen", "PV"] and "Hypervisor detected: Xen PV" in proof
    assert lab.sh("para", "hostname; ls /sys/block").split() == [
        "para",
        *(f"xvd{letter}" for letter in "abcd"),
    ]

    for one in NODES:
        assert lab.code(one, "exit 37") == 37
        for other in NODES:
            assert lab.code(one, f"ping -c 1 -W 10 {other}") == 0, f"{one} reaches {other}"
            # Not by wget: Debian's static busybox crashes in it where it has looked a name up.
            asked = f"printf 'GET /who HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {other} 80 | tail -n 1"
            assert lab.sh(one, asked) == other

    for _ in range(2):  # a second session hears what is said in it, and not what the first has missed
        assert b"=42=" in lab.console("para", b"echo =$((6*7))=\r\n", b"=42=")

    (tmp_path / "sent").write_text("there and back\n")
    lab.good("cp", str(tmp_path / "sent"), "xenlab/para:/root/kept")
    assert lab.code("para", "test -x /tools/bin/busybox && ! touch /tools/x && echo more >/data/kept") == 0
    lab.good("pause", "xenlab/para")
    assert lab.states()["para"] == "paused"
    lab.good("resume", "xenlab/para")
    lab.good("stop", "xenlab/para")
    assert lab.states() == {**dict.fromkeys((*NODES, "xen-host"), "ready"), "para": "stopped"}
    lab.good("start", "xenlab/para", timeout=300)
    lab.good("cp", "xenlab/para:/root/kept", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "there and back\n"

    compared = json.loads(lab.good("compare", "xenlab", "--json", timeout=300))
    seen = {row["key"]: row["values"]["para"] for row in compared["rows"]}
    assert "Xen" in str(seen["hypervisor"])

    end_the_host(lab)
    told = lab.status()
    assert told["para"]["state"] == "failed" and "xen-host" in told["para"]["reason"]
    assert told["xen-host"]["state"] == "failed" and told["box"]["state"] == "ready"
    # labctl itself is killed while it repairs, when the guest has been made and nothing else.
    killed = lab.run("up", str(lab.file), timeout=600, LABCTL_FAULT="kill@make:after:guest:para")
    assert killed.returncode == -9, killed.stderr
    lab.up(timeout=600)
    assert lab.sh("para", "cat /root/kept") == "there and back", "its disk is on this host"
    assert lab.sh("para", "cat /data/kept") == "more"

    killed = lab.run("down", "xenlab", LABCTL_FAULT="kill@unmake:after:guest:para")
    assert killed.returncode == -9, killed.stderr
    lab.down()
    assert lab.labs() == []
    assert host_inventory() == []


@pytest.mark.needs("kvm-host")
@pytest.mark.parametrize(
    ("tier", "point"), [("para", "make:after:domain:xen-host"), ("hardware", "make:after:plugs:guest")]
)
def test_a_killed_up_leaves_nothing_that_down_does_not_find(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]], tier: str, point: str
) -> None:
    lab = Lab(
        home,
        tmp_path,
        "xenlab",
        f"nested: always\nname: xenlab\nnodes: {{guest: {{tier: {tier}, image: micro}}}}\n",
    )
    killed = lab.run("up", str(lab.file), timeout=600, LABCTL_FAULT=f"kill@{point}")
    assert killed.returncode in (-9, 0), killed.stderr  # 0 where this machine runs the tier itself
    lab.down()
    assert lab.labs() == []
    assert host_inventory() == []
