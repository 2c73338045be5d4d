"""A cloud image, with a boot loader and a cloud-init of its own, as a node of a lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.cloud_image import cloud_image
from tests.e2e.labs import CONTAINERS, Lab
from tests.shared_images import shared_cache

pytestmark = [
    pytest.mark.long,
    pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel"),
    pytest.mark.timeout(1200),
]

PROFILE = """
name: cloudy
nodes:
  vm:
    tier: emulation
    image: {image}
    cpus: 2
    disk: 2GiB
    vm: {{cloud_init: true}}
    env: {{WORD: "of the lab"}}
    files:
      - {{path: /etc/told, content: "hello", mode: "0640", owner: "0:5"}}
    provision: ["cat /etc/told > /root/provisioned; hostname >> /root/provisioned"]
    startup: touch /run/started
    ready: {{port: 22, timeout: 600}}
    stop_timeout: 60
  box: {{image: micro, command: "sleep 9999"}}
"""


def test_a_cloud_image_is_a_node(home: Home, tmp_path: Path) -> None:
    image = cloud_image(shared_cache())
    lab = Lab(home, tmp_path, "cloudy", PROFILE.format(image=image))
    try:
        lab.good("up", str(lab.file), timeout=900)
        nodes = {node["name"]: node for node in json.loads(lab.good("status", "cloudy", "--json"))["nodes"]}
        assert nodes["vm"]["state"] == "ready"
        script = (
            "hostname; cat /root/provisioned; echo; stat -c '%a %g' /etc/told; ls /run/started; echo $WORD;"
            "ls /etc/ssh/ssh_host_*_key; df -m / | awk 'END {print ($2 > 1400)}'; id -u"
        )
        said = lab.good("exec", "cloudy/vm", "--", "sh", "-c", script).split("\n")
        assert said == [
            *("vm", "hellovm", "", "640 5", "/run/started", "of the lab"),
            *("/etc/ssh/ssh_host_ed25519_key", "1", "0", ""),
        ]
        addresses = lab.good("exec", "cloudy/vm", "--", "ip", "-br", "address", "show", "eth0")
        assert all(address in addresses for address in nodes["vm"]["addresses"])
        lab.good("exec", "cloudy/box", "--", "ping", "-c", "1", "-w", "10", "vm")
        lab.good("exec", "cloudy/vm", "--", "getent", "hosts", "box")
        failing = lab.run("exec", "cloudy/vm", "--", "sh", "-c", "exit 7")
        assert failing.returncode == 7
        (tmp_path / "there").write_text("and back")
        lab.good("cp", str(tmp_path / "there"), "cloudy/vm:/srv/there")
        lab.good("cp", "cloudy/vm:/srv/there", str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "and back"
        assert "Cloud-init" in lab.good("logs", "cloudy/vm")
        lab.good("stop", "cloudy/vm", timeout=120)
        refused = lab.run("image", "export", "cloudy/vm", str(tmp_path / "x.vmdk"))
        assert refused.returncode == 2 and "qemu-img convert" in refused.stderr
    finally:
        lab.good("down", "cloudy")
