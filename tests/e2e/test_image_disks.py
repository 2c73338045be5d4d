"""A node exported as a disk boots on its own, in a QEMU that knows nothing of labctl, and goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel")]

PROFILE = """
name: away
nodes:
  vm:
    {tier: emulation, image: micro, memory: 192MiB, disk: 512MiB,
     command: "uname -r >> /etc/boots; sync; [ -e /etc/last ] && kill -USR2 1; sleep 9999"}
  box: {image: micro, command: "echo $$ > /etc/box; chown 12:34 /etc/box; sleep 9999"}
"""


def boot(disk: Path, kind: str) -> str:
    """Boot it by BIOS from an IDE disk; returns the serial console when the machine has ended itself."""
    log = disk.with_suffix(".log")
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-cpu", "max", "-display", "none",
            "-serial", f"file:{log}", "-monitor", "none", "-no-reboot", "-nic", "none",
            "-drive", f"file={disk},format={kind},if=ide"]  # fmt: skip
    subprocess.run(argv, timeout=240, check=True)
    return log.read_text(errors="replace")


def read(disk: Path, kind: str, path: str) -> str:
    raw = disk.with_suffix(".raw")
    subprocess.run(
        ["qemu-img", "convert", "-f", kind, "-O", "raw", str(disk), str(raw)], timeout=120, check=True
    )
    done = subprocess.run(
        ["debugfs", "-R", f"cat {path}", f"{raw}?offset=1048576"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_nodes_as_disks(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "away", PROFILE)
    vmdk, qcow2 = tmp_path / "vm.vmdk", tmp_path / "box.qcow2"
    try:
        lab.good("up", str(lab.file), timeout=300)
        lab.good("exec", "away/vm", "--", "sh", "-c", "until [ -s /etc/boots ]; do sleep 0.1; done")
        running = lab.run("image", "export", "away/vm", str(vmdk))
        assert running.returncode == 2 and "labctl stop away/vm" in running.stderr and not vmdk.exists()
        lab.good("exec", "away/vm", "--", "sh", "-c", "touch /etc/last; sync")
        lab.good("stop", "away/vm", "away/box")
        lab.good("image", "export", "away/vm", str(vmdk), timeout=300)
        lab.good("image", "export", "away/box", str(qcow2), "--size", "1GiB", timeout=300)
    finally:
        lab.good("down", "away")
    boot(vmdk, "vmdk")
    kernels = read(vmdk, "vmdk", "/etc/boots").split()
    assert len(kernels) == 2 and kernels[0].endswith("cloud-amd64") and kernels[1].endswith("-amd64")
    assert kernels[0] != kernels[1]
    assert read(qcow2, "qcow2", "/etc/box").strip().isdigit()
