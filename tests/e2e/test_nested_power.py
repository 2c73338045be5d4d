"""Verbs on a lab with a container inside a machine: in order, and none waits in vain."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, touched

pytestmark = [
    pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel"),
    pytest.mark.long,
    pytest.mark.timeout(400),
]

NESTED = """
name: lab
networks: {lan: {}, bare: {subnet: none, host_address: false}}
defaults: {image: micro}
nodes:
  inner:
    {inside: vm, memory: 32MiB, networks: [bare], command: httpd -f -p 80 -h /etc, ready: {http: /hostname}}
  vm: {tier: emulation, image: base, memory: 256MiB, networks: [lan, bare]}
"""
LIMIT = "find /sys/fs/cgroup -path '*inner*' -name memory.max -exec cat {} +"


def test_what_is_inside_rests_before_its_machine_and_comes_back_after_it(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "lab", NESTED)
    lab.up()
    lab.sh("inner", "echo kept > /root/note")

    lab.good("pause", "lab")
    assert lab.states() == {"inner": "paused", "vm": "paused"}
    lab.good("pause", "lab/inner")
    began = time.monotonic()
    assert "lab/vm is paused, and inner is inside it" in lab.fails(1, "exec", "lab/inner", "--", "true")
    assert time.monotonic() - began < 15, "it is told at once, and not after the time limit of a connection"
    assert "labctl resume lab/vm" in lab.fails(1, "exec", "lab/vm", "--", "true")
    for verb in ("resume", "start", "stop"):
        told = lab.fails(1, verb, "lab/inner")
        assert "vm, is paused" in told and "labctl resume vm" in told
    lab.good("resume", "lab")
    assert lab.states() == {"inner": "ready", "vm": "ready"}

    lab.good("restart", "lab/vm")
    assert lab.states() == {"inner": "ready", "vm": "ready"}
    assert lab.sh("inner", "cat /root/note") == "kept"

    first = lab.starts("inner")
    lab.write(NESTED.replace("32MiB", "48MiB"))
    assert set(touched(lab.up())) == {"inside:inner"}
    assert lab.starts("inner") == first, "a new limit starts nothing anew"
    assert lab.sh("vm", LIMIT).split() == [str(48 << 20)]

    lab.good("stop", "lab")
    assert lab.states() == {"inner": "stopped", "vm": "stopped"}
    lab.good("stop", "lab")
    assert "vm, is stopped" in lab.fails(1, "start", "lab/inner")
    lab.down()
    assert host_inventory() == []
