"""Docker and podman for the benchmarks, each in mount and network namespaces of its own.

Nothing of theirs stays: the daemon, its data, its bridges and its firewall rules live in the namespaces
or in a temporary folder, and end with it.  A peer that isn't installed is named as missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

IMAGE = "labctl-bench"
NETWORK = "bench"
IDLE = ("sleep", "infinity")
SECONDS = 300


class Missing(Exception):
    """A peer that can't be measured here, and why."""


class Peer:
    """A container engine: `up` starts containers one after another, `down` removes them with one call."""

    def __init__(self, name: str, version: str, prefix: Sequence[str]) -> None:
        self.name, self.version, self.prefix = name, version, [*prefix]
        self.at_once: tuple[str, ...] = ()  # what makes `rm -f` kill without waiting

    def call(self, *argv: str) -> str:
        """Run one of its commands.  Raises CalledProcessError with what it said."""
        done = subprocess.run(
            [*self.prefix, *argv], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode:
            raise Missing(f"{self.name} {argv[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def load(self, rootfs: Path) -> None:
        """Give it the same files as labctl's image, and a bridge network with names."""
        tar = subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE)
        done = subprocess.run(
            [*self.prefix, "import", "-", f"{IMAGE}:latest"],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        tar.wait()
        if done.returncode:
            raise Missing(f"{self.name} import: {done.stderr.strip()[-300:]}")
        self.call("network", "create", NETWORK)

    def up(self, count: int) -> None:
        """`run -d` for each, as a person or a script does it."""
        for number in range(count):
            self.call("run", "-d", "--name", f"c{number}", "--network", NETWORK, IMAGE, *IDLE)

    def down(self, count: int) -> None:
        """One `rm -f` for all."""
        self.call("rm", "-f", *self.at_once, *(f"c{number}" for number in range(count)))


def _holder(setup: str) -> subprocess.Popen[str]:
    """A process that holds a mount and a network namespace in which `setup` was run."""
    script = f"ip link set lo up; umount /sys/fs/cgroup/unified 2>/dev/null; {setup}; echo ready; exec cat"
    held = subprocess.Popen(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None
    if held.stdout.readline().strip() != "ready":
        raise Missing("no mount and network namespaces of their own (run as root)")
    return held


def _enter(held: subprocess.Popen[str]) -> list[str]:
    return ["nsenter", "--target", str(held.pid), "--mount", "--net"]


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _forget_cgroups(*names: str) -> None:
    """Engines leave their empty parent groups behind."""
    for name in names:
        for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            top = root / name
            if top.is_dir():
                for path, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(path).rmdir()


def _which(name: str) -> str:
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin:/usr/local/sbin")
    if not found:
        raise Missing(f"{name} is not installed")
    return found


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Peer]:
    """A dockerd of our own.  Raises Missing."""
    daemon, client = _which("dockerd"), _which("docker")
    for part in ("data", "exec"):
        (folder / part).mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    held = _holder("true")
    log = (folder / "dockerd.log").open("w")
    socket = f"unix://{folder}/docker.sock"
    argv = [
        *_enter(held),
        daemon,
        f"--host={socket}",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/docker.pid",
        f"--config-file={folder}/config.json",
    ]
    running = subprocess.Popen(argv, stdout=log, stderr=log, text=True)
    try:
        peer = Peer("docker", "", [client, "-H", socket])
        until = time.monotonic() + 60
        while True:
            try:
                about = json.loads(peer.call("version", "--format", "{{json .}}"))
                break
            except Missing as error:
                if running.poll() is not None or time.monotonic() > until:
                    said = (folder / "dockerd.log").read_text().strip().splitlines()[-1:]
                    raise Missing(f"dockerd did not start: {said or error}") from error
                time.sleep(0.2)
        driver = peer.call("info", "--format", "{{.Driver}}").strip()
        peer.version = f"{about['Server']['Version']}, {driver}"
        yield peer
    finally:
        _end(running)
        _end(held)
        log.close()
        _forget_cgroups("docker")


# Limits below the hard ones, which podman would try to raise: that takes CAP_SYS_RESOURCE.
PODMAN_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[Peer]:
    """Podman with a store of our own.  Raises Missing."""
    program = _which("podman")
    folder.mkdir(parents=True)
    (folder / "containers.conf").write_text(PODMAN_CONF)
    (folder / "networks").mkdir()
    # Its databases of addresses and networks stand at fixed places: those become folders of our own.
    own = " && ".join(
        f"mkdir -p {path} && mount -t tmpfs none {path}"
        for path in ("/run/containers", "/run/libpod", "/var/lib/cni", "/run/netns", "/etc/cni/net.d")
    )
    held = _holder(own)
    prefix = [
        *_enter(held),
        "env",
        f"CONTAINERS_CONF={folder}/containers.conf",
        program,
        f"--root={folder}/root",
        f"--runroot={folder}/run",
    ]
    try:
        peer = Peer("podman", "", prefix)
        about = json.loads(peer.call("info", "--format", "json"))
        runtime = about["host"]["ociRuntime"]["name"]
        peer.at_once = ("--time", "0")  # docker kills at once, podman waits 10 s for pid 1 first
        peer.version = f"{about['version']['Version']}, {runtime}, {about['store']['graphDriverName']}"
        yield peer
    finally:
        with contextlib.suppress(Missing):
            peer.call("rm", "-f", "--all")
            peer.call("network", "rm", NETWORK)
        _end(held)
        _forget_cgroups("libpod_parent")


ALL: dict[str, Callable[[Path], contextlib.AbstractContextManager[Peer]]] = {
    "docker": docker,
    "podman": podman,
}
