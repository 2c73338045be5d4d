"""Machines booted for real, under emulation: what the guest's init promises."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.image.boot_programs import programs
from labctl.image.bootconfig import BootConfig, Nic, Route
from labctl.image.disk import make_ext4
from tests.host.boot_rig import CLIENT_KEY, HOST_KEY, MACS, Vm, booted, busybox_tree
from tests.shared_images import shared_cache

pytestmark = [pytest.mark.needs("root", "tcg", "kernel"), pytest.mark.timeout(600)]

GIB = 1 << 30
SERVICE = 'echo hello "$A"; echo err >&2; trap "echo bye; exit 3" QUIT; while :; do sleep 0.2; done'
PLAIN = BootConfig(
    "box",
    (Nic("eth0", MACS[0], ("10.0.2.15/24",)),),
    gateway4="10.0.2.2",
    authorized_keys=(CLIENT_KEY.public,),
    host_key=HOST_KEY.private,
)


@pytest.fixture(scope="module")
def cache() -> Path:
    programs(shared_cache(), "amd64")
    return shared_cache()


@pytest.fixture(scope="module")
def disk(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    tree = busybox_tree(folder / "tree", cache)
    make_ext4([tree], folder / "root.ext4", seed="test", size=GIB)
    return folder / "root.ext4"


def overlay(path: Path) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data, uid, mode in (
            ("srv/page", b"page\n", 1000, 0o4711),
            ("etc/resolv.conf", b"nameserver 9.9.9.9\n", 0, 0o644),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode = len(data), uid, uid, mode
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def full_config(files: str) -> BootConfig:
    return BootConfig(
        "web_1",
        (
            Nic("eth0", MACS[0], ("10.0.2.15/24", "fd00:2::15/64")),
            Nic("eth1", MACS[1], up=True, mtu=1400),
        ),
        gateway4="10.0.2.2",
        routes=(Route("10.77.0.0/16", "10.0.2.9"),),
        dns=("10.0.2.3",),
        search=("lab.test",),
        hosts={"db": "10.0.2.50"},
        sysctls={"net.ipv4.conf.eth1.rp_filter": "2", "net.ipv4.ip_forward": "1", "net.no.such": "1"},
        authorized_keys=(CLIENT_KEY.public,),
        host_key=HOST_KEY.private,
        env={"A": "b c'd", "PATH": "/bin:/opt"},
        command=("sh", "-c", SERVICE),
        user="app:third",
        cwd="/home/app",
        stop_signal="SIGQUIT",
        files=files,
    )


@pytest.fixture(scope="module")
def vm(cache: Path, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """One machine for many questions; its cards are plugged in the other order than the profile's."""
    folder = tmp_path_factory.mktemp("vm")
    config = full_config(overlay(folder / "files.tar"))
    with booted(folder, cache, disk, config, nics=MACS[::-1]) as machine:
        yield machine


def test_cards_are_named_as_stated(vm: Vm) -> None:
    assert vm.ask("cat /sys/class/net/eth0/address /sys/class/net/eth1/address").split() == list(MACS)
    assert vm.ask("cat /sys/class/net/eth1/mtu").strip() == "1400"
    shown = vm.ask("ip addr show eth0")
    assert "inet 10.0.2.15/24" in shown and "inet6 fd00:2::15/64" in shown and "tentative" not in shown
    assert "inet " not in vm.ask("ip addr show eth1")
    routes = vm.ask("ip route")
    assert "default via 10.0.2.2" in routes and "10.77.0.0/16 via 10.0.2.9" in routes


def test_names(vm: Vm) -> None:
    assert vm.ask("cat /proc/sys/kernel/hostname /etc/hostname").split() == ["web_1", "web_1"]
    hosts = vm.ask("cat /etc/hosts")
    assert "10.0.2.15 web_1" in hosts and "10.0.2.50 db" in hosts


def test_sysctls_and_what_could_not_be_done(vm: Vm) -> None:
    assert vm.ask("cat /proc/sys/net/ipv4/conf/eth1/rp_filter /proc/sys/net/ipv4/ip_forward").split() == [
        "2",
        "1",
    ]
    assert vm.ask("cat /run/labctl/problems").splitlines() == ["no sysctl net/no/such on this kernel"]
    assert "labctl: no sysctl net/no/such" in vm.console()


def test_files_are_laid_over_with_owner_and_mode(vm: Vm) -> None:
    assert vm.ask("stat -c '%u %g %a' /srv/page").strip() == "1000 1000 4711"
    assert vm.ask("cat /srv/page /etc/resolv.conf") == "page\nnameserver 9.9.9.9\n"


def test_the_image_keeps_owners_modes_and_devices(vm: Vm) -> None:
    assert vm.ask("stat -c '%u %g %a' /etc/secret").strip() == "1000 2000 640"
    assert vm.ask("stat -c '%F %t %T' /etc/zero").strip() == "character special file 1 5"
    assert vm.ask("stat -c '%u %a' /").strip() == "0 755"


def test_pid_1_and_the_root(vm: Vm) -> None:
    assert "/run/labctl/boot/main" in vm.ask("cat /proc/1/cmdline").replace("\0", " ")
    mounts = {line.split()[1]: line.split()[0] for line in vm.ask("cat /proc/mounts").splitlines()}
    assert mounts["/"].startswith("/dev/vd") and "/proc" in mounts and "/sys/fs/cgroup" in mounts
    # A process in a chroot could make no user namespace; the root must be the namespace's own.
    assert vm.run("/run/labctl/bin/busybox unshare -U true")[0] == 0


def test_exit_codes(vm: Vm) -> None:
    for command, code in (
        ("labctl-exec -- true", 0),
        ("labctl-exec -- sh -c 'exit 7'", 7),
        ("labctl-exec -- nosuch", 127),
        ("labctl-exec -- /no/such", 127),
        ("labctl-exec -- notexec", 126),
        ("labctl-exec -- /etc/passwd", 126),
        ("labctl-exec -- /etc", 126),
        ("labctl-exec -C /nowhere -- true", 126),
        ("labctl-exec -u ghost -- true", 126),
        ("labctl-exec -- sh -c 'kill -9 $$'", 137),
        ("labctl-exec -- sh -c 'kill -TERM $$'", 143),
        ("labctl-exec -- sh -c 'kill -INT $$'", 130),
        ("exit 9", 9),
    ):
        assert vm.run(command)[0] == code, command


def test_no_signal_is_ignored(vm: Vm) -> None:
    """A shell that starts something beside itself hands it SIGINT and SIGQUIT ignored."""
    assert re.search(r"^SigIgn:\s+0+$", vm.ask("labctl-exec -- cat /proc/self/status"), re.M)


def test_a_signal_leaves_no_word_of_ours(vm: Vm) -> None:
    assert vm.run("labctl-exec -- sh -c 'echo x >&2; kill -9 $$'") == (137, "", "x\n")


def test_argv_environment_folder_and_user_arrive_exactly(vm: Vm) -> None:
    words = ["a b", "", "$HOME", "it's", 'q"q', "new\nline", "*", "\\", "--", "-e", "=", "é"]
    command = 'labctl-exec -- sh -c \'printf "<%s>" "$@"\' sh ' + shlex.join(words)
    assert vm.ask(command) == "".join(f"<{word}>" for word in words)
    shown = vm.ask("labctl-exec -e 'X=1 2' -e A=new -u root -- env")
    assert sorted(shown.splitlines()) == ["A=new", "HOME=/root", "PATH=/bin:/opt", "X=1 2"]
    assert vm.ask("labctl-exec -- sh -c pwd").strip() == "/home/app"
    assert vm.ask("labctl-exec -- id").strip() == "uid=1000(app) gid=2001(third)"
    assert vm.ask("labctl-exec -u app -C /tmp -- sh -c 'id; pwd'") == (
        "uid=1000(app) gid=1001(app) groups=2000(extra)\n/tmp\n"
    )
    assert vm.ask("labctl-exec -u 4242 -- sh -c 'id -u; id -g'").split() == ["4242", "0"]


def test_a_long_request_comes_by_standard_input(vm: Vm) -> None:
    body = shlex.join(
        ["-u", "root", "--", "sh", "-c", 'cat; echo; printf "%s" "$1" | wc -c', "sh", "x" * 60_000]
    )
    code, out, err = vm.run(f"labctl-exec @{len(body)}", body.encode() + b"rest of the input")
    assert (code, out, err) == (0, "rest of the input\n60000\n", "")


def test_streams_are_apart_and_whole(vm: Vm) -> None:
    blob = os.urandom(300_000)
    send, out, _ = vm.ssh().exec_command("labctl-exec -- cat", timeout=60)
    send.write(blob)
    send.channel.shutdown_write()
    assert out.read() == blob
    assert vm.run("labctl-exec -- sh -c 'echo o; echo e >&2'") == (0, "o\n", "e\n")


def test_busybox_is_there_for_copies(vm: Vm) -> None:
    packed = vm.run("labctl-exec -b -u root -- tar -c -f - -C /srv page")
    assert packed[0] == 0 and packed[1].startswith("page\0")


def test_terminal(vm: Vm) -> None:
    code, out, _ = vm.run("labctl-exec -u root -- tty", tty=True)
    assert code == 0 and re.match(r"/dev/pts/\d", out)
    channel = vm.ssh().get_transport().open_session(timeout=20)  # type: ignore[union-attr]
    channel.get_pty()
    channel.exec_command("labctl-exec -- sleep 60")
    time.sleep(1)
    channel.send(b"\x03")
    assert channel.recv_exit_status() == 130
    channel = vm.ssh().invoke_shell(term="vt100")
    channel.settimeout(30)
    channel.send(b"echo $TERM-$((6*7))-$PWD; exit 5\n")
    said = b""
    while chunk := channel.recv(4096):
        said += chunk
    assert b"vt100-42-/root" in said and channel.recv_exit_status() == 5


def test_the_service_runs_and_logs(vm: Vm) -> None:
    assert vm.ask("cat /run/labctl/log/stdout") == "hello b c'd\n"
    assert vm.ask("cat /run/labctl/log/stderr") == "err\n"
    pid = vm.ask("cat /run/labctl/service.pid").strip()
    status = vm.ask(f"cat /proc/{pid}/status")
    assert re.search(r"^Uid:\s+1000\b", status, re.M) and re.search(r"^Gid:\s+2001\b", status, re.M)
    assert vm.run("cat /run/labctl/exit")[0] != 0


def test_console_shell(vm: Vm) -> None:
    with socket.socket(socket.AF_UNIX) as tty:
        tty.settimeout(30)
        tty.connect(str(vm.folder / "tty"))
        tty.sendall(b"\n")
        time.sleep(1)
        tty.sendall(b"tty; echo $((6*7))from-$(cat /etc/hostname)\n")
        said = b""
        while b"42from-web_1" not in said:
            said += tty.recv(4096)
        assert b"/dev/ttyS0" in said
        tty.sendall(b"exit\n")


def test_the_kernel_loads_modules_on_demand(vm: Vm) -> None:
    assert vm.run("ip link add type dummy")[0] == 0
    assert "dummy" in vm.ask("cat /proc/modules")


def test_orphans_are_reaped(vm: Vm) -> None:
    vm.ask("sh -c 'sh -c \"sleep 0.1\" & sleep 0.05' ; sleep 0.5")
    assert "Z (zombie)" not in vm.ask("cat /proc/[0-9]*/status 2>/dev/null; true")


def test_a_stranger_gets_no_shell(vm: Vm, tmp_path: Path) -> None:
    import paramiko

    from labctl.image.boot_keys import make_key

    (tmp_path / "id").write_text(make_key().private)
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        with pytest.raises(paramiko.AuthenticationException):
            client.connect(
                "127.0.0.1", vm.port, "root", key_filename=str(tmp_path / "id"), timeout=20,
                allow_agent=False, look_for_keys=False,
            )  # fmt: skip


def test_power_button_then_a_larger_disk(cache: Path, disk: Path, tmp_path: Path) -> None:
    """The button ends the service by its signal; the next boot has its words, the edits, and more room."""
    config = full_config(overlay(tmp_path / "files.tar"))
    with booted(tmp_path / "vm", cache, disk, config) as machine:
        machine.ask("echo edited >/srv/page; echo kept >/root/mark")
        time.sleep(1)  # the button's driver comes after READY
        machine.qmp("system_powerdown")
        assert machine.ended() == 0
    layer = tmp_path / "vm/disk.qcow2"
    raw = tmp_path / "whole.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", layer, raw], timeout=60, check=True)
    clean = subprocess.run(["e2fsck", "-fn", raw], timeout=60, check=False, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout
    with booted(tmp_path / "vm", cache, disk, config, size=3 * GIB) as machine:
        assert machine.ask("cat /srv/page /root/mark") == "edited\nkept\n"
        assert machine.ask("cat /var/lib/labctl/log/stdout") == "hello b c'd\nbye\nhello b c'd\n"
        blocks = int(machine.ask("stat -f -c %b /"))
        assert 2.7 * GIB < blocks * 4096 < 3 * GIB
        assert machine.run("labctl-poweroff")[0] in (0, -1)
        assert machine.ended() == 0


def test_the_service_ends_by_itself(cache: Path, disk: Path, tmp_path: Path) -> None:
    config = BootConfig(**{**PLAIN.__dict__, "command": ("sh", "-c", "echo done; exit 4")})
    with booted(tmp_path, cache, disk, config, machine="microvm,rtc=on") as machine:
        assert machine.ask("sleep 0.3; cat /run/labctl/exit /run/labctl/log/stdout").split() == ["4", "done"]
        # busybox's and sysvinit's poweroff signal PID 1
        machine.run("kill -USR2 1")
        machine.ended()


def test_an_image_with_nothing_in_it(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    shutil.copy(cache / "boot/programs/amd64/tree/bin/busybox", tmp_path / "tree/busybox.app")
    make_ext4([tmp_path / "tree"], tmp_path / "root.ext4", seed="bare", size=256 << 20)
    config = BootConfig(**{**PLAIN.__dict__, "hosts_containers": True})
    with booted(tmp_path / "vm", cache, tmp_path / "root.ext4", config) as machine:
        # a lone program, no shell, no passwd
        assert machine.ask("labctl-exec -- /busybox.app echo hello") == "hello\n"
        assert machine.ask("labctl-exec -b -- ls /").split().count("busybox.app") == 1
        # a container host: the card is in a bridge that carries its address
        shown = machine.ask("labctl-exec -b -- ip addr show lab0")
        assert "inet 10.0.2.15/24" in shown and MACS[0] in shown
        assert "master lab0" in machine.ask("labctl-exec -b -- ip link show eth0")
        loaded = machine.ask("labctl-exec -b -- cat /proc/modules")
        assert {"overlay", "bridge", "veth"} <= {line.split()[0] for line in loaded.splitlines()}
        assert {"cpu", "memory", "pids"} <= set(
            machine.ask("labctl-exec -b -- cat /sys/fs/cgroup/cgroup.subtree_control").split()
        )


def test_the_images_own_init(cache: Path, disk: Path, tmp_path: Path) -> None:
    config = BootConfig(**{**PLAIN.__dict__, "init": True, "command": ("never", "run")})
    with booted(tmp_path, cache, disk, config) as machine:
        assert machine.ask("cat /proc/1/comm").strip() == "init"
        assert machine.ask("cat /proc/1/cmdline").strip("\0") == "init"
        assert machine.run("labctl-poweroff")[0] in (0, -1)
        assert machine.ended() == 0


def test_no_root_disk_is_said(cache: Path, disk: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.raw"
    blank.touch()
    os.truncate(blank, 8 << 20)
    with booted(tmp_path / "vm", cache, blank, PLAIN, ready=False) as machine:
        deadline = time.monotonic() + 60
        while "LABCTL-FAILED: cannot mount" not in machine.console():
            assert time.monotonic() < deadline and machine.process.poll() is None, machine.console()
            time.sleep(0.1)


def test_aarch64(cache: Path, tmp_path: Path) -> None:
    programs(cache, "arm64")
    tree = busybox_tree(tmp_path / "tree", cache, "arm64")
    make_ext4([tree], tmp_path / "root.ext4", seed="arm", size=GIB)
    disk = tmp_path / "root.ext4"
    with booted(tmp_path / "vm", cache, disk, PLAIN, name="cloud-arm64", machine="virt") as machine:
        assert machine.ask("labctl-exec -- uname -m").strip() == "aarch64"
        assert machine.run("labctl-exec -u app -- sh -c 'exit 6'")[0] == 6


@pytest.mark.long
def test_emulated_devices_and_the_full_kernel(cache: Path, disk: Path, tmp_path: Path) -> None:
    """SATA and e1000 have no serials and no virtio: disks are known by what is on them."""
    with booted(tmp_path, cache, disk, PLAIN, name="amd64", emulated=True) as machine:
        assert machine.ask("cat /proc/mounts").startswith("/dev/sda / ext4")
        assert machine.ask("labctl-exec -- cat /sys/class/net/eth0/address").strip() == MACS[0]
