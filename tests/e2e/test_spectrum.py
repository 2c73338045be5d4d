"""The spectrum lab, whole: all four tiers, on hosts that labctl builds where this machine can't run one; used
alike, compared, and gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, touched

pytestmark = [
    pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel", "xen", "kvm-host"),
    pytest.mark.long,
    pytest.mark.timeout(900),
]


HOSTS = {"para": "xen-host", "hard": "kvm-host"}


def test_the_spectrum_is_one_lab(home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]) -> None:
    lab = Lab(home, tmp_path, "spectrum", "")
    up = ("up", "spectrum", "--nested", "always", "--json")
    # labctl is killed when a guest has been made and nothing of it is known yet; the next `up` goes on there.
    killed = lab.run(*up, timeout=600, LABCTL_FAULT="kill@make:after:guest:hard")
    assert killed.returncode in (-9, 0), killed.stderr  # 0 where this machine's own KVM runs `hard`
    nodes = {node["name"]: node for node in json.loads(lab.good(*up, timeout=600))["nodes"]}
    hosts = {name: node["inside"] for name, node in nodes.items() if node["inside"] and name != "nested"}
    assert hosts.items() <= HOSTS.items()
    assert set(nodes) == {"emu", "para", "hard", "box", "nested", *hosts.values()}
    assert {node["state"] for node in nodes.values()} == {"ready"}
    assert touched(json.loads(lab.good(*up))) == {}

    for name in nodes:
        assert lab.sh(name, "hostname") == name
        assert lab.code(name, "exit 37") == 37
        done = lab.run("exec", f"spectrum/{name}", "--", "sh", "-c", "cat; echo err >&2", stdin="in\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n"), name
        assert lab.code(name, "kill -9 $$") == 137
        assert lab.code(name, "no-such-program") == 127
    kernels = {name: lab.sh(name, "uname -r") for name in ("emu", "box")}
    assert kernels["emu"] != kernels["box"]
    proof_of_kvm(lab)
    if "hard" in hosts:
        on_its_host(lab, nodes["hard"])

    lab.good("check", "spectrum", timeout=300)  # each node is reached from each other one, by name
    compared = json.loads(lab.good("compare", "spectrum", "--json", timeout=300))
    seen = {row["key"]: row["values"] for row in compared["rows"]}
    assert {"kernel", "pid1", "hostname"} <= set(seen)
    assert "KVM" in str(seen["hypervisor"]["hard"]) and "Xen" in str(seen["hypervisor"]["para"])

    killed = lab.run("down", "spectrum", LABCTL_FAULT="kill@unmake:after:guest:hard")
    assert killed.returncode in (-9, 0), killed.stderr
    if lab.labs():
        lab.good("down", "spectrum")
    assert lab.labs() == []
    assert host_inventory() == []


def proof_of_kvm(lab: Lab) -> None:
    """The guest's kernel says that KVM runs it, and takes the time from it."""
    said = lab.sh("hard", "dmesg; cat /sys/devices/system/clocksource/clocksource0/available_clocksource")
    assert "Hypervisor detected: KVM" in said and "kvm-clock" in said.splitlines()[-1]


def on_its_host(lab: Lab, hard: dict[str, str]) -> None:
    """A guest of the lab's own KVM host: what it is, and the verbs on it."""
    assert hard["runs_on"] == "node kvm-host"
    assert hard["accelerator"] in ("KVM, on a KVM host under TCG", "KVM, on a KVM host under KVM")
    assert "<domain type='kvm'" in lab.sh("kvm-host", "cat /run/libvirt/qemu/spectrum.hard.xml")

    assert b"=42=" in lab.console("hard", b"echo =$((6*7))=\r\n", b"=42=")
    sent, got = lab.file.with_name("sent"), lab.file.with_name("got")
    sent.write_text("there and back\n")
    lab.good("cp", str(sent), "spectrum/hard:/root/kept")
    lab.good("pause", "spectrum/hard")
    assert lab.states()["hard"] == "paused"
    lab.good("resume", "spectrum/hard")
    lab.good("stop", "spectrum/hard")
    assert lab.states()["hard"] == "stopped"
    lab.good("start", "spectrum/hard", timeout=300)
    lab.good("cp", "spectrum/hard:/root/kept", str(got))
    assert got.read_text() == "there and back\n"
