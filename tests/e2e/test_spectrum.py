"""The spectrum lab, whole: every tier that this machine can run, used alike, compared, and gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, touched

pytestmark = [
    pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel"),
    pytest.mark.long,
    pytest.mark.timeout(600),
]


def test_the_spectrum_is_one_lab(home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]) -> None:
    lab = Lab(home, tmp_path, "spectrum", "")
    up = json.loads(lab.good("up", "spectrum", "--skip-unavailable", "--json", timeout=400))
    nodes = {node["name"]: node for node in up["nodes"]}
    assert set(nodes) == {"emu", "para", "hard", "box", "nested", "xen-host"}
    here = [name for name, node in nodes.items() if node["state"] != "skipped"]
    assert {"emu", "box"} <= set(here)
    assert {nodes[name]["state"] for name in here} == {"ready"}
    for name in set(nodes) - set(here):
        assert nodes[name]["reason"] and not nodes[name]["addresses"], name

    again = json.loads(lab.good("up", "spectrum", "--skip-unavailable", "--json"))
    assert touched(again) == {}

    for name in here:
        assert lab.sh(name, "hostname") == name
        assert lab.code(name, "exit 37") == 37
        done = lab.run("exec", f"spectrum/{name}", "--", "sh", "-c", "cat; echo err >&2", stdin="in\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n"), name
        assert lab.code(name, "kill -9 $$") == 137
        assert lab.code(name, "no-such-program") == 127
        for other in here:
            assert lab.code(name, f"ping -c 1 -W 10 {other}") == 0, f"{name} reaches {other}"
    kernels = {name: lab.sh(name, "uname -r") for name in here}
    assert kernels["emu"] != kernels["box"]

    lab.good("check", "spectrum")
    compared = json.loads(lab.good("compare", "spectrum", "--json"))
    assert {row["key"] for row in compared["rows"]} >= {"kernel", "pid1", "hostname"}

    lab.good("down", "spectrum")
    assert lab.labs() == []
    assert host_inventory() == []
