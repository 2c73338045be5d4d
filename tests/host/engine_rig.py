"""Podman, buildah and containerd with `labrun` as their runtime, in namespaces of their own.

Their stores, sockets and bridges live in the test's folder or end with the namespaces.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import tarfile
import time
from pathlib import Path

from labctl.image.archive import load, save
from labctl.image.store import Store
from tests.host.runtime_rig import LABRUN, busybox_root

IMAGE = "localhost/labtest:latest"
# Limits below the hard ones, which podman would try to raise: that takes CAP_SYS_RESOURCE.
_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_json = ["labrun"]
[engine.runtimes]
labrun = ["{labrun}"]
"""
_CONTAINERD = """
version = 2
root = "{folder}/ctd/root"
state = "{folder}/ctd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/c.sock"
[debug]
address = "{folder}/d.sock"
[ttrpc]
address = "{folder}/t.sock"
"""
# What engines write at fixed places becomes a folder of the test's own; crun and containerd take a
# hybrid hierarchy for v2, so that part is hidden from them.
_OWN = ("/run/containers", "/run/libpod", "/var/lib/cni", "/run/netns", "/etc/cni/net.d", "/run/containerd")
_SETUP = "ip link set lo up; umount /sys/fs/cgroup/unified 2>/dev/null; "


def image_archive(folder: Path) -> Path:
    """An OCI archive made by labctl's own store of a busybox root."""
    root = busybox_root(folder / "image")
    with tarfile.open(folder / "root.tar", "w") as tar:
        tar.add(root, ".")
    store = Store(folder / "store")
    load(store, folder / "root.tar", ref=IMAGE)
    save(store, IMAGE, folder / "image.tar")
    return folder / "image.tar"


class Engines:
    """Commands of the engines; `folder` must have a short path, for their sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"labtest-{secrets.token_hex(4)}"
        self.labrun = folder / "labrun"
        words = " ".join(shlex.quote(word) for word in LABRUN)
        self.labrun.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        self.labrun.chmod(0o755)
        (folder / "containers.conf").write_text(_CONF.format(labrun=self.labrun))
        (folder / "containerd.toml").write_text(_CONTAINERD.format(folder=folder))
        mounts = "; ".join(f"mkdir -p {path} && mount -t tmpfs none {path}" for path in _OWN)
        script = f"{_SETUP}{mounts}; echo ready; exec cat"
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"
        self.daemon: subprocess.Popen[bytes] | None = None

    def enter(self, *argv: str) -> list[str]:
        """A command in the engines' namespaces."""
        conf = f"CONTAINERS_CONF={self.folder}/containers.conf"
        return ["nsenter", f"--target={self.holder.pid}", "--mount", "--net", "env", conf, *argv]

    def run(
        self, *argv: str, data: str | None = None, seconds: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        stdin = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            self.enter(*argv), capture_output=True, text=True, timeout=seconds, check=False, **stdin
        )  # type: ignore[call-overload,no-any-return]

    def podman_argv(self, *words: str) -> list[str]:
        place = [f"--root={self.folder}/root", f"--runroot={self.folder}/run"]
        return ["podman", "--runtime", "labrun", *place, *words]

    def podman(self, *words: str, data: str | None = None, code: int = 0) -> str:
        """Podman's stdout; it must end with `code`."""
        done = self.run(*self.podman_argv(*words), data=data)
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start_containerd(self) -> None:
        log = (self.folder / "containerd.log").open("wb")
        argv = self.enter("containerd", "-c", f"{self.folder}/containerd.toml")
        self.daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.run(*self.ctr_argv("version")).returncode:
            assert self.daemon.poll() is None, (self.folder / "containerd.log").read_text()[-500:]
            assert time.monotonic() < end
            time.sleep(0.1)

    def ctr_argv(self, *words: str) -> list[str]:
        return ["ctr", "-a", f"{self.folder}/c.sock", "-n", self.mark, *words]

    def ctr(self, *words: str, code: int = 0) -> str:
        """ctr's stdout; it must end with `code`."""
        done = self.run(*self.ctr_argv(*words))
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        self.run(*self.podman_argv("pod", "rm", "--all", "--force", "--time", "0"))
        self.run(*self.podman_argv("rm", "--all", "--force", "--time", "0"))
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait(30)
        self.holder.kill()
        self.holder.wait(30)
        for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            for name in ("libpod_parent", self.mark):
                for path, _, _ in os.walk(root / name, topdown=False):
                    try:
                        Path(path).rmdir()
                    except OSError:
                        continue  # another engine's, or gone
        subprocess.run(
            ["umount", "--lazy", str(self.folder / "root/overlay")], capture_output=True, timeout=10
        )
