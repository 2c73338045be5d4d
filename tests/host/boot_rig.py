"""Machines for the boot tests: bare QEMU with user-mode networking, so that nothing of the host changes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko

from labctl.image.boot_keys import make_key
from labctl.image.bootconfig import BootConfig, config_disk
from labctl.image.disk import node_disk
from labctl.image.initramfs import command_line, host_tsc_khz, initramfs
from labctl.image.kernels import Kernel, kernel

_IDE = {"labroot": "ide-hd,bus=ide.0,drive=labroot", "labconfig": "ide-cd,bus=ide.1,drive=labconfig"}
BOOT_SECONDS = 90.0  # a busy machine with two cores; a quiet one needs two seconds
HOST_KEY, CLIENT_KEY = make_key("host"), make_key("client")
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")


def busybox_tree(folder: Path, cache: Path, debian: str = "amd64") -> Path:
    """A small image: busybox with links, three users, and files whose owners and modes matter."""
    for name in ("bin", "sbin", "etc", "root", "tmp", "var", "usr/bin", "home/app"):
        (folder / name).mkdir(parents=True)
    shutil.copy(cache / "boot/programs" / debian / "tree/bin/busybox", folder / "bin/busybox")
    for name in ("sh", "ls", "cat", "id", "sleep", "env", "true", "stat", "df", "uname", "ip", "wc", "tty"):
        (folder / "bin" / name).symlink_to("busybox")
    for name in ("init", "poweroff"):
        (folder / "sbin" / name).symlink_to("../bin/busybox")
    (folder / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"
    )
    (folder / "etc/group").write_text("root:x:0:\napp:x:1001:\nextra:x:2000:app,other\nthird:x:2001:\n")
    (folder / "bin/notexec").write_text("#!/bin/sh\n")
    (folder / "etc/secret").write_text("s")
    (folder / "etc/secret").chmod(0o640)
    if os.getuid() == 0:
        os.chown(folder / "etc/secret", 1000, 2000)
        os.mknod(folder / "etc/zero", 0o020666, os.makedev(1, 5))
        os.setxattr(folder / "etc/secret", "user.note", b"kept")
    return folder


@dataclass
class Vm:
    """A running machine."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    _client: paramiko.SSHClient | None = field(default=None)

    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_ready(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while "LABCTL-READY" not in (said := self.console()):
            assert "LABCTL-FAILED" not in said and self.process.poll() is None, said
            assert time.monotonic() < deadline, f"no READY within {BOOT_SECONDS} s: {said}"
            time.sleep(0.02)

    def ssh(self) -> paramiko.SSHClient:
        """A connection that trusts only the host key that the machine was given."""
        if self._client is None:
            client = paramiko.SSHClient()
            kind, blob = HOST_KEY.public.split()[:2]
            entry = paramiko.hostkeys.HostKeyEntry.from_line(f"[127.0.0.1]:{self.port} {kind} {blob}")
            assert entry is not None and entry.key is not None
            client.get_host_keys().add(f"[127.0.0.1]:{self.port}", kind, entry.key)
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            key = self.folder / "id"
            key.write_text(CLIENT_KEY.private)
            client.connect(
                "127.0.0.1", self.port, "root", key_filename=str(key), timeout=20, banner_timeout=20,
                allow_agent=False, look_for_keys=False,
            )  # fmt: skip
            self._client = client
        return self._client

    def run(self, command: str, stdin: bytes = b"", tty: bool = False) -> tuple[int, str, str]:
        """Exit code, standard output, standard error of an SSH command."""
        send, out, err = self.ssh().exec_command(command, timeout=60, get_pty=tty)
        send.write(stdin)
        if not tty:  # the end of a terminal's input hangs it up
            send.channel.shutdown_write()
        said, complained = out.read().decode(), err.read().decode()
        return out.channel.recv_exit_status(), said, complained

    def ask(self, command: str) -> str:
        """The output of a command that must succeed."""
        code, out, err = self.run(command)
        assert code == 0, (command, code, out, err)
        return out

    def qmp(self, command: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self.folder / "qmp"))
            stream = link.makefile("rw")
            stream.readline()
            for verb, words in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": verb, "arguments": words}) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    assert "error" not in answer, answer
        return answer["return"]

    def ended(self, seconds: float = 40) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self.process.kill()
        self.process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def booted(
    folder: Path,
    cache: Path,
    disk: Path,
    config: BootConfig,
    *,
    name: str = "cloud-amd64",
    machine: str = "q35",
    nics: Sequence[str] = MACS[:1],
    size: int = 0,
    emulated: bool = False,
    ready: bool = True,
) -> Iterator[Vm]:
    """Boot `disk` (or go on with the layer in `folder`) until READY; the machine is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    files = kernel(cache, name)
    if not (folder / "disk.qcow2").exists():
        node_disk(folder / "disk.qcow2", disk)
    if size:
        subprocess.run(["qemu-img", "resize", "-q", folder / "disk.qcow2", str(size)], timeout=20, check=True)
    config_disk(folder / "config.img", config)
    port = free_port()
    argv = _argv(files, folder, machine, str(initramfs(cache, files)), port, nics, emulated, cache)
    (folder / "console.log").unlink(missing_ok=True)
    vm = Vm(subprocess.Popen(argv, stdin=subprocess.DEVNULL), folder, port)
    try:
        if ready:
            vm.wait_ready()
        yield vm
    finally:
        vm.close()


def _argv(
    files: Kernel, folder: Path, machine: str, initrd: str, port: int, nics: Sequence[str],
    emulated: bool, cache: Path,
) -> list[str]:  # fmt: skip
    kind = "device" if machine.startswith("microvm") else "pci"
    cpu = "qemu64,+rdrand" if files.arch == "x86_64" else "cortex-a57"
    argv = [f"qemu-system-{files.arch}", "-accel", "tcg", "-nodefaults", "-no-user-config", "-no-reboot"]
    argv += ["-display", "none", "-m", "256", "-smp", "1", "-M", machine, "-cpu", cpu]
    argv += ["-kernel", str(files.boot), "-initrd", initrd]
    argv += ["-append", command_line(files, tsc_khz=host_tsc_khz(cache))]
    argv += ["-chardev", f"socket,id=c,path={folder}/tty,server=on,wait=off,logfile={folder}/console.log"]
    argv += ["-serial", "chardev:c", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    disks = (("labroot", "disk.qcow2", "qcow2", "off"), ("labconfig", "config.img", "raw", "on"))
    for serial, file, form, readonly in disks:
        argv += ["-drive", f"if=none,id={serial},file={folder}/{file},format={form},readonly={readonly}"]
        if emulated:
            argv += ["-device", _IDE[serial]]
        else:
            argv += ["-device", f"virtio-blk-{kind},drive={serial},serial={serial}"]
    card = "e1000" if emulated else f"virtio-net-{kind}"
    for index, mac in enumerate(nics):
        forward = f",hostfwd=tcp:127.0.0.1:{port}-:22" if mac == MACS[0] else ",restrict=on"
        argv += ["-netdev", f"user,id=n{index}{forward}", "-device", f"{card},netdev=n{index},mac={mac}"]
    return argv
