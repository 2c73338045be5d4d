"""What virtual machines have in common with containers, and machines of another architecture."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, touched, until

pytestmark = [
    pytest.mark.needs("libvirt", "tcg", "kernel", *CONTAINERS),
    pytest.mark.timeout(300),
]

SHARING = """
name: share
volumes: {data: {}}
defaults: {image: micro}
nodes:
  m:
    tier: emulation
    memory: 128MiB
    volumes: ["data:/srv/my data", "./shown:/mnt/shown:ro"]
    tmpfs: {/scratch: 8MiB}
    read_only: true
    vm: {topology: {cores: 2}, pin: 0, balloon: true, disk_cache: writeback, disk_io: threads}
    disks:
      data: {size: 64MiB, mount: /data}
      slow: {size: 32MiB, bus: scsi, format: raw, cache: none, io: native, serial: s-1, mount: "/slow one"}
      tools: {image: micro, read_only: true, mount: /tools}
      given: {source: ./given.img}
    files: {/etc/motd: hello}
    command: [sh, -c, "echo served; exec sleep 1000"]
  c: {volumes: ["data:/srv"]}
"""

FOREIGN = """
name: far
defaults: {image: micro}
nodes:
  far: {tier: emulation, arch: aarch64, ready: 80, command: [httpd, -f, -p, "80", -h, /var/www]}
  near: {tier: container}
"""

EDITED = """
name: edit
networks: {lan: {}, back: {}}
nodes:
  m:
    tier: emulation
    image: micro
    memory: 128MiB
    networks: [lan]
    disks: {data: {size: 16MiB, mount: /data}}
    provision: ["echo x >>/root/provisioned"]
"""


def affinities(domain: str) -> set[str]:
    """Which CPUs of the host the virtual CPUs of a domain may run on, by the kernel's word."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another program may end meanwhile
            if f"guest={domain},".encode() not in (process / "cmdline").read_bytes():
                continue
            for thread in (process / "task").iterdir():
                if (thread / "comm").read_text().startswith("CPU "):
                    status = (thread / "status").read_text()
                    found.add(status.partition("Cpus_allowed_list:")[2].split()[0])
    return found


@pytest.mark.long
def test_folders_memory_and_a_sealed_root(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "share", SHARING)
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "word").write_text("from the host")
    given = tmp_path / "given.img"
    given.write_bytes(b"given".ljust(1 << 20, b"."))
    lab.up()
    assert lab.sh("m", "cat /mnt/shown/word") == "from the host"
    assert lab.code("m", "echo no >/mnt/shown/word") == 1, "it is mounted read-only"
    lab.sh("m", "echo one >'/srv/my data/m'; chown 1000:1001 '/srv/my data/m'")
    assert lab.sh("c", "cat /srv/m; stat -c %u:%g /srv/m; echo two >/srv/c") == "one\n1000:1001"
    assert lab.sh("m", "cat '/srv/my data/c'; stat -c %u '/srv/my data/c'") == "two\n0"

    assert lab.sh("m", "df -k /scratch | awk 'END {print $2}'") == "8192"
    assert lab.sh("m", "echo kept >/scratch/x; cat /scratch/x /etc/motd") == "kept\nhello"
    assert lab.code("m", "touch /etc/x") == 1 and lab.code("m", "touch /root/x") == 1, "/ is read-only"
    assert lab.good("logs", "share/m").strip() == "served", "its output is kept all the same"

    by_serial = "for d in /sys/block/vd*; do grep -qx given $d/serial && echo ${d##*/}; done"
    device = lab.sh("m", by_serial)
    assert (
        lab.sh("m", f"head -c 5 /dev/{device}; echo; blockdev --getsize64 /dev/{device}") == "given\n1048576"
    )
    lab.sh("m", f"printf wrote >/dev/{device}; sync; echo kept | tee /data/x >'/slow one/x'")
    assert lab.sh("m", "ls /tools/bin/busybox; grep -c ' /slow.040one ext4 ' /proc/mounts").endswith("\n1")
    assert lab.code("m", "touch /tools/x") == 1
    assert lab.sh("m", "cat /sys/block/sda/device/vpd_pg80 | tail -c 3") == "s-1"
    disks = {disk["name"]: disk for disk in lab.status()["m"]["disks"]}
    assert [disks["data"][key] for key in ("size", "format", "bus", "mount")] == [
        64 << 20,
        "qcow2",
        "virtio",
        "/data",
    ]
    assert disks["slow"]["format"] == "raw" and disks["given"]["size"] == 1 << 20

    assert lab.sh("m", "nproc; cat /sys/devices/system/cpu/cpu*/topology/core_id") == "2\n0\n1"
    assert lab.sh("m", "cat /sys/bus/virtio/drivers/virtio_balloon/virtio*/device") == "0x0005"
    assert affinities("share.m") == {"0"}

    lab.good("restart", "share/m")
    assert lab.sh("m", "cat '/srv/my data/m' '/srv/my data/c'; ls /scratch") == "one\ntwo"
    assert lab.code("m", "touch /etc/x") == 1
    assert lab.sh("m", f"cat /data/x '/slow one/x'; head -c 5 /dev/$({by_serial})") == "kept\nkept\nwrote"
    lab.down()
    assert given.read_bytes()[:6] == b"given.", "what the machine wrote went to a layer"
    assert (tmp_path / "shown" / "word").read_text() == "from the host"
    assert host_inventory() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_edit_keeps_what_the_machine_wrote(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab = Lab(home, tmp_path, "edit", EDITED)
    lab.up()
    lab.sh("m", "echo kept | tee /root/kept >/data/kept")
    small = int(lab.sh("m", "df -k / | awk 'END {print $2}'"))
    kept = "cat /root/kept /data/kept /root/provisioned"

    lab.write(
        EDITED.replace("[lan]", "[lan, back]").replace("memory: 128MiB", "memory: 160MiB\n    disk: 9GiB")
    )
    told = touched(json.loads(lab.good("plan", str(lab.file), "--json")))
    assert told["vmdisk:m"].startswith("change: ")
    assert told["vmdisk:m"].endswith("its disk is grown from 8192 to 9216 MiB, kept")
    assert told["domain:m"].startswith("restart: ") and "memory_bytes" in told["domain:m"]
    assert "disk:m.data" not in told and told["provision:m"].startswith("change: record")
    began = lab.starts("m")
    assert touched(lab.up()) == told, "what was planned was done"
    assert lab.starts("m") != began
    assert lab.sh("m", kept) == "kept\nkept\nx", "nothing was lost, and provisioning ran once"
    assert int(lab.sh("m", "df -k / | awk 'END {print $2}'")) - small > 900 << 10
    assert lab.sh("m", "ls /sys/class/net; nproc").split() == ["eth0", "eth1", "lo", "1"]
    assert int(lab.sh("m", "awk '/MemTotal/ {print $2}' /proc/meminfo")) > 110 << 10
    assert touched(lab.up()) == {}

    before = lab.file.read_text()
    lab.write(before.replace("9GiB", "1GiB"))
    assert "can't be made smaller" in lab.up_fails(2) and lab.states() == {"m": "ready"}

    points = (
        "rest:after:domain:m",
        "unmake:after:domain:m",
        "change:before:vmdisk:m",
        "change:after:vmdisk:m",
    )
    for number, point in enumerate(points):
        lab.write(before.replace("memory:", f"env: {{N: '{number}'}}\n    memory:"))
        assert lab.run("up", str(lab.file), LABCTL_FAULT=f"kill@{point}").returncode == -9, point
        lab.up()
        assert lab.sh("m", f"{kept}; echo $N") == f"kept\nkept\nx\n{number}", point
    lab.run("up", str(lab.file), "--set", "nodes.m.cpus=2", LABCTL_FAULT="kill@rest:before:domain:m")
    lab.down()
    assert host_inventory() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_cards_and_disks_come_while_it_runs(
    home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    small = EDITED.replace("lan: {}, back: {}", "lan: {}").replace(
        "    disks: {data: {size: 16MiB, mount: /data}}\n", ""
    )
    lab = Lab(home, tmp_path, "edit", small)
    lab.up()
    began = lab.starts("m")
    lab.write(EDITED.replace("[lan]", "[lan, back]") + "  c: {image: micro, networks: [back]}\n")
    told = touched(json.loads(lab.good("plan", str(lab.file), "--json")))
    assert told["domain:m"].startswith("change: ") and told["domain:m"].endswith("attached live")
    for point in ("change:before:domain:m", "change:after:domain:m", "change:before:reach:m"):
        assert lab.run("up", str(lab.file), LABCTL_FAULT=f"kill@{point}").returncode == -9, point
    lab.up()
    assert lab.starts("m") == began and lab.states() == {"m": "ready", "c": "ready"}
    assert lab.sh("m", "ping -c 1 -W 20 c >/dev/null && cat /sys/class/net/eth1/operstate") == "up"
    assert lab.sh("m", "echo kept >/data/kept; grep -c ' /data ext4 ' /proc/mounts") == "1"
    assert touched(lab.up()) == {}
    lab.good("restart", "edit/m")
    assert lab.sh("m", "ping -c 1 -W 20 c >/dev/null && cat /data/kept") == "kept"
    lab.write(EDITED)
    assert touched(lab.up())["domain:m"].startswith("restart: "), "nothing is taken from a machine as it runs"
    assert lab.sh("m", "cat /data/kept; ls /sys/class/net").split() == ["kept", "eth0", "lo"]
    lab.down()
    assert host_inventory() == []


@pytest.mark.needs("ovmf")
@pytest.mark.long
def test_uefi_and_a_screen(home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]) -> None:
    profile = "name: uefi\nnodes: {m: {tier: emulation, image: micro, vm: {firmware: uefi, graphics: vnc}}}\n"
    lab = Lab(home, tmp_path, "uefi", profile)
    lab.write(profile.replace("image: micro", "image: micro, machine: microvm"))
    assert "no UEFI firmware for x86_64 and microvm" in lab.up_fails(4) and lab.labs() == []
    lab.write(profile)
    assert lab.run("up", str(lab.file), LABCTL_FAULT="kill@make:after:nvram:m").returncode == -9
    lab.up()
    assert lab.sh("m", "cat /sys/firmware/efi/fw_platform_size") == "64"
    command = lab.status()["m"]["viewer"]
    assert lab.good("console", "uefi/m", "--graphical").strip() == command
    address, _, port = command.removeprefix("vncviewer ").partition("::")
    with socket.create_connection((address, int(port)), timeout=20) as screen:
        assert address == "127.0.0.1" and screen.recv(12).startswith(b"RFB 003."), "RFC 6143, 7.1.1"
    memory = next(home.state.glob("labs/*/nodes/m/nvram.fd"))
    inode = memory.stat().st_ino
    lab.write(profile.replace("graphics: vnc", "graphics: none"))
    assert touched(lab.up()).keys() == {"domain:m", "reach:m", "ready:m"}
    assert memory.stat().st_ino == inode, "what its firmware remembers is kept"
    assert "no screen" in lab.fails(2, "console", "uefi/m", "--graphical")
    lab.down()
    assert host_inventory() == []


@pytest.mark.long
def test_another_architecture(home: Home, tmp_path: Path, host_inventory: Callable[[], list[str]]) -> None:
    lab = Lab(home, tmp_path, "far", FOREIGN)
    lab.up()
    assert "aarch64" in lab.status()["far"]["accelerator"]
    assert lab.sh("far", "uname -m") == "aarch64"
    assert lab.code("far", "exit 5") == 5
    assert lab.code("near", "ping -c 1 -W 20 far") == 0 and lab.code("far", "ping -c 1 -W 20 near") == 0
    asked = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 far 80"
    assert "It works" in lab.sh("near", asked)
    lab.down()
    assert host_inventory() == []


def test_an_image_that_cannot_be_built_for_it(home: Home, tmp_path: Path) -> None:
    lab = Lab(
        home, tmp_path, "far", "name: far\nnodes: {far: {tier: emulation, arch: aarch64, image: base}}\n"
    )
    said = lab.up_fails(4)
    assert "base" in said and "arm64" in said and "micro" in said
    assert lab.labs() == []


def test_more_machines_than_the_host_has_memory_for(home: Home, tmp_path: Path) -> None:
    each = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 >> 20
    many = f"{{tier: emulation, image: micro, memory: {each}MiB, replicas: 100}}"
    lab = Lab(home, tmp_path, "many", f"name: many\nnodes: {{m: {many}}}\n")
    told = lab.up_fails(4)
    assert f"the 100 machines of lab many take {100 * each} MiB of memory together; this host has" in told
    lab.write("name: many\nnodes: {m: {tier: para, image: micro, arch: aarch64}}\n")
    told = lab.up_fails(4)
    assert "para runs the host's own architecture" in told and "not aarch64" in told
    assert lab.labs() == []


def test_a_machine_shares_folders_only(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lab = Lab(
        home,
        tmp_path,
        "wrong",
        'name: wrong\nnodes:\n  m: {tier: emulation, volumes: ["./file:/etc/x"]}\n'
        '  p: {tier: para, volumes: ["data:/srv"]}\nvolumes: {data: {}}\n',
    )
    said = lab.up_fails(2)
    assert "nodes.m.volumes" in said and "folders only" in said and "`files`" in said
    assert "nodes.p.volumes" in said and "no way to a folder of this host" in said
    assert lab.labs() == []


@pytest.mark.long
def test_a_kernel_that_panics_is_told(home: Home, tmp_path: Path) -> None:
    disk = "s: {size: 16MiB, bus: sata, mount: /s}"
    profile = f"name: panic\nnodes: {{m: {{tier: emulation, image: micro, disks: {{{disk}}}}}}}\n"
    lab = Lab(home, tmp_path, "panic", profile)
    lab.up()
    lab.sh("m", "echo kept | tee /root/kept >/s/kept; sync")
    driver = "/sys/bus/platform/drivers/pvpanic-mmio/QEMU0001:00"
    until(lambda: lab.code("m", f"test -e {driver}") == 0, "its driver is loaded", 60)
    # From behind, so that the session ends well: one that is cut off is noticed a minute later.
    lab.sh("m", "(sleep 1; echo c >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &")
    until(lambda: lab.states()["m"] == "failed", "it has ended", 60)
    assert "its kernel panicked: sysrq triggered crash" in lab.status()["m"]["reason"]
    lab.up()
    assert lab.states() == {"m": "ready"} and lab.sh("m", "cat /root/kept /s/kept") == "kept\nkept"
    lab.down()
