"""What a machine is told: shell text that survives any value, keys, names of signals and sysctls."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import LabError
from labctl.image.boot_elf import needs
from labctl.image.boot_keys import dropbear_key, make_key
from labctl.image.boot_tsc import host_tsc_khz
from labctl.image.bootconfig import (
    BootConfig,
    Memory,
    Nic,
    Route,
    Share,
    config_disk,
    node_text,
    process_text,
    signal_name,
    sysctl_path,
)
from labctl.image.initramfs import Node, command_line, cpio, module_names
from labctl.image.kernels import Kernel

NASTY = 'it\'s "a" $(touch /tmp/x) `b`; \n\\ end\t*'


def shell(script: str) -> str:
    done = subprocess.run(["sh", "-euc", script], capture_output=True, timeout=20, check=True)
    return done.stdout.decode()  # not text=True, which turns a carriage return into a line feed


def calls(config: BootConfig, name: str = "lab_network") -> list[list[str]]:
    """What the guest's functions are called with, found out by a shell."""
    stubs = "".join(
        f'{word}() {{ printf "{word}"; printf "|%s" "$@"; echo; }}\n'
        for word in ("nic", "addr", "route", "setting", "share", "memory", "seal")
    )
    return [line.split("|") for line in shell(f"{stubs}{node_text(config)}\n{name}").splitlines()]


def test_every_value_reaches_the_guest_as_it_is() -> None:
    config = BootConfig("box", env={"A": NASTY, "B": "x=y"}, cwd=NASTY, command=("prog", NASTY))
    text = process_text(config)
    script = (
        f'{text}\nprintf "%s" "$lab_cwd"; printf "%s" "-SPLIT-"; eval "set -- $lab_env"; printf "<%s>" "$@"'
    )
    assert shell(script) == f"{NASTY}-SPLIT-<A={NASTY}><B=x=y>"


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30))
def test_any_environment_survives(value: str) -> None:
    text = process_text(BootConfig("box", env={"V": value}))
    assert shell(f'{text}\neval "set -- $lab_env"; printf "%sX" "$1"') == f"V={value}X"


def test_network_in_the_stated_order() -> None:
    config = BootConfig(
        "box",
        (
            Nic("eth0", "52:54:00:AA:00:01", ("10.1.0.2/24", "fd00::2/64")),
            Nic("eth1", "52:54:00:aa:00:02", up=False, mtu=1400),
        ),
        gateway4="10.1.0.1",
        routes=(Route("10.9.0.0/16", "10.1.0.9", metric=50), Route("10.8.0.0/16", dev="eth1")),
    )
    assert calls(config) == [
        ["nic", "eth0", "52:54:00:aa:00:01", "0", "1", "1", ""],
        ["addr", "eth0", "10.1.0.2/24"],
        ["addr", "eth0", "fd00::2/64"],
        ["nic", "eth1", "52:54:00:aa:00:02", "1400", "0", "1", ""],
        ["route", "10.9.0.0/16", "10.1.0.9", "", "50"],
        ["route", "10.8.0.0/16", "", "eth1"],
        ["route", "default", "10.1.0.1", ""],
    ]


def test_without_ipv6_no_such_address_is_set() -> None:
    config = BootConfig("box", (Nic("eth0", "aa", ("fd00::2/64",)),), gateway6="fd00::1", ipv6=False)
    said = calls(config)
    assert ["setting", "net/ipv6/conf/all/disable_ipv6", "1"] in said
    assert [words for words in said if words[0] in ("addr", "route")] == []


def test_a_container_host_carries_addresses_and_sysctls_on_bridges() -> None:
    config = BootConfig(
        "box",
        (Nic("eth0", "aa", ("10.1.0.2/24",)),),
        routes=(Route("10.8.0.0/16", dev="eth0"),),
        sysctls={"net.ipv4.conf.eth0.rp_filter": "0", "kernel.shmmax": "1"},
        hosts_containers=True,
    )
    assert calls(config) == [
        ["nic", "eth0", "aa", "0", "1", "1", "lab0"],
        ["addr", "lab0", "10.1.0.2/24"],
        ["route", "10.8.0.0/16", "", "lab0"],
    ]
    assert calls(config, "lab_sysctls") == [
        ["setting", "net/ipv4/conf/eth0/rp_filter", "0"],
        ["setting", "net/ipv4/conf/lab0/rp_filter", "0"],
        ["setting", "kernel/shmmax", "1"],
    ]


def test_mounts_come_before_the_seal() -> None:
    config = BootConfig(
        "box",
        shares=(Share("labshare0", "/srv/my data"), Share("labshare1", "/mnt", read_only=True)),
        memories=(Memory("/tmp"), Memory("/scratch", 8 << 20, "0700")),
        read_only=True,
    )
    assert calls(config, "lab_mounts") == [
        ["share", "labshare0", "/srv/my data", "rw"],
        ["share", "labshare1", "/mnt", "ro"],
        ["memory", "/tmp", "nosuid,nodev,mode=1777"],
        ["memory", "/scratch", f"nosuid,nodev,mode=0700,size={8 << 20}"],
        ["seal", ""],
    ]
    assert calls(BootConfig("box"), "lab_mounts") == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_sysctls_in_either_spelling(name: str, path: str) -> None:
    assert sysctl_path(name) == path


@pytest.mark.parametrize("name", ["net/../../etc/passwd", "/etc/passwd", "net//x/../y"])
def test_a_sysctl_stays_below_proc_sys(name: str) -> None:
    with pytest.raises(LabError):
        sysctl_path(name)


@pytest.mark.parametrize(
    ("given_name", "name"),
    [("SIGTERM", "TERM"), ("quit", "QUIT"), ("9", "KILL"), ("SIGRTMIN+3", "37"), ("37", "37")],
)
def test_signal_names(given_name: str, name: str) -> None:
    assert signal_name(given_name) == name


def test_an_unknown_signal_is_refused() -> None:
    with pytest.raises(LabError, match="SIGNOPE"):
        signal_name("SIGNOPE")


def names_on(disk: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(disk, "r:") as archive:
        return {info.name: info for info in archive}


def test_config_disk_holds_both_archives(tmp_path: Path) -> None:
    overlay = tmp_path / "files.tar"
    with tarfile.open(overlay, "w") as archive:
        for name, data in (("./etc/hosts", b"1.2.3.4 mine\n"), ("srv/data", os.urandom(3 << 20))):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mode = len(data), 1234, 0o4750
            archive.addfile(info, io.BytesIO(data))
    key = make_key()
    disk = tmp_path / "config.img"
    config_disk(disk, BootConfig("box", host_key=key.private, files=str(overlay), authorized_keys=("k",)))
    assert stat.S_IMODE(disk.stat().st_mode) == 0o600 and disk.stat().st_size % 512 == 0
    found = names_on(disk)
    assert next(iter(found)) == "lab-node"
    # the profile's own file of that name wins
    assert "etc/hosts" not in found and "etc/hostname" in found
    assert stat.S_IMODE(found["host_key"].mode) == 0o600
    with disk.open("rb") as stream:
        stream.seek(1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as second:
            assert [(info.name, info.uid, info.mode) for info in second][1] == ("srv/data", 1234, 0o4750)


def test_a_broken_overlay_leaves_no_disk(tmp_path: Path) -> None:
    (tmp_path / "files.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(LabError, match="config disk of box"):
        config_disk(tmp_path / "config.img", BootConfig("box", files=str(tmp_path / "files.tar")))
    assert [path.name for path in tmp_path.iterdir()] == ["files.tar"]


def test_dropbear_key_holds_the_same_key() -> None:
    pair = make_key("host")
    blob = dropbear_key(pair.private)
    assert blob[:19] == struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 64)
    import base64

    assert base64.b64decode(pair.public.split()[1])[-32:] == blob[-32:]
    assert pair.public.endswith(" host")


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END"])
def test_other_keys_are_refused(text: str) -> None:
    with pytest.raises(LabError):
        dropbear_key(text)


def test_cpio_is_what_cpio_reads(tmp_path: Path) -> None:
    nodes = [
        Node("a", stat.S_IFDIR | 0o755),
        Node("a/file", stat.S_IFREG | 0o640, b"12345"),
        Node("a/link", stat.S_IFLNK | 0o777, b"file"),
    ]
    blob = b"".join(cpio(nodes))
    assert blob == b"".join(cpio(nodes)) and len(blob) % 4 == 0
    tool = shutil.which("cpio") or shutil.which("busybox")
    assert tool, "cpio and busybox are both missing"
    argv = [tool, "-id"] if tool.endswith("cpio") else [tool, "cpio", "-id"]
    subprocess.run(argv, input=blob, cwd=tmp_path, timeout=20, check=True, capture_output=True)
    assert (tmp_path / "a/file").read_bytes() == b"12345"
    assert stat.S_IMODE((tmp_path / "a/file").stat().st_mode) == 0o640
    assert str((tmp_path / "a/link").readlink()) == "file"


def test_module_list_has_no_section_names() -> None:
    names = module_names()
    assert {"virtio_blk", "overlay", "veth"} <= set(names)
    assert not [name for name in names if "[" in name or "#" in name]


def kernel_of(arch: str) -> Kernel:
    return Kernel("k", arch, "x", "6.1", Path("/v"), None, Path("/m"))


def test_command_line_by_architecture() -> None:
    x86 = command_line(kernel_of("x86_64"), tsc_khz=2_400_000, extra=("a.b=1",)).split()
    assert {"console=ttyS0", "quiet", "tsc_early_khz=2400000"} <= set(x86) and x86[-1] == "a.b=1"
    arm = command_line(kernel_of("aarch64"), tsc_khz=2_400_000)
    assert "console=ttyAMA0" in arm and "tsc" not in arm
    assert "tsc_early" not in command_line(kernel_of("x86_64"), host_arch="aarch64", tsc_khz=1)


def test_tsc_is_measured_once(tmp_path: Path) -> None:
    first = host_tsc_khz(tmp_path)
    assert host_tsc_khz(tmp_path) == first
    if os.uname().machine == "x86_64":
        assert 500_000 < first < 10_000_000


def test_needs_of_a_program_agree_with_ldd() -> None:
    program = Path("/bin/sh").resolve()
    wanted = needs(program.read_bytes())
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20, check=True).stdout
    assert wanted.interpreter and wanted.interpreter in listed
    assert all(name in listed for name in wanted.libraries) and wanted.libraries
