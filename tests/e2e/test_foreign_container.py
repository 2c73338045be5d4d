"""A container of another CPU, beside one of this host's, under a rule that only it has."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.image.boot_apt import AptRoot
from labctl.image.model import host_arch
from labctl.linux import binfmt
from tests.e2e.labs import CONTAINERS, Lab
from tests.shared_images import shared_cache

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS, "binfmt")]

ARCH = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
PROFILE = f"""
name: foreign
nodes:
  other:
    image: micro
    arch: {ARCH}
    command: uname -m; exec httpd -f -p 80 -h /etc
    ready: {{port: 80}}
    memory: 256MiB
  own: {{image: micro, command: sleep 9999}}
"""


def emulators() -> Path:
    """qemu-user-static, unpacked: nothing is installed on this host, and none of its rules change."""
    place = shared_cache() / "qemu-user"
    if not place.is_dir():
        apt = AptRoot.at(shared_cache(), host_arch())
        apt.update()
        with tempfile.TemporaryDirectory(dir=shared_cache()) as scratch:
            (deb,) = apt.download(["qemu-user-static"], Path(scratch))
            work = Path(scratch, "tree")
            subprocess.run(["dpkg-deb", "-x", str(deb), str(work)], check=True, timeout=120)
            work.rename(place)
    return place / "usr/bin"


def test_a_container_of_another_cpu(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "foreign", PROFILE)
    known = binfmt.known_to_host(ARCH)
    before = sorted(Path(binfmt.HOST).iterdir())
    if not known:
        told = lab.up_fails(4, PATH="/usr/bin:/bin")
        assert "apt-get install qemu-user-static" in told or Path(f"/usr/bin/qemu-{ARCH}-static").exists()
    try:
        lab.up(timeout=300, PATH=f"{os.environ['PATH']}:{emulators()}")
        assert lab.sh("other", "uname -m") == ARCH and lab.sh("own", "uname -m") == os.uname().machine
        assert lab.good("logs", "foreign/other").strip() == ARCH
        nodes = lab.status()
        assert nodes["other"]["tier"] == "container (emulated CPU)" and nodes["own"]["tier"] == "container"
        assert "labctl micro" in lab.sh("own", "wget -q -O - -T 10 http://other/os-release")
        rows = lab.good("compare", "foreign", timeout=300)
        assert "qemu-user, emulated" in rows and "(emulated CPU)" in rows
        assert "(emulated CPU)" in lab.good("graph", "foreign") + lab.good("graph", str(lab.file))
        lab.good("restart", "foreign/other", PATH=f"{os.environ['PATH']}:{emulators()}")
        assert lab.sh("other", "uname -m") == ARCH
        # The rule is the container's own: neither this host nor the other container has it.
        assert sorted(Path(binfmt.HOST).iterdir()) == before
        assert known or lab.code("own", "ls /dev/binfmt_misc") != 0
    finally:
        lab.down()
