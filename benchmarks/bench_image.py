"""Images: pull, push and build of 200 MB, and a VM's disk of it, against skopeo, podman, docker and umoci.

All that is compared is interleaved in one run.  Figures are wall-clock ms, min / median / max.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Bench, arguments, bench, goal, machine, median, spread, table, timed

MIB = 1 << 20
FILES, FILE_BYTES = 1600, 64 << 10  # 100 MiB in files, and 100 MiB that a RUN writes
LIBRARY = """
import sys
from pathlib import Path
from labctl.image.disk import disk
from labctl.image.registry import pull
from labctl.image.store import Store
what, root, ref, cache = sys.argv[1:5]
store = Store(Path(root))
if what == "pull":
    store.rootfs(pull(store, ref))
else:
    disk(store, store.resolve(ref), Path(cache), 1 << 30)
"""


class Missing(Exception):
    """A peer that isn't here, or doesn't run."""


def call(*argv: str | Path) -> None:
    """Run a command; raises Missing with its last words when it fails."""
    try:
        done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError as error:
        raise Missing(f"{argv[0]} is not installed") from error
    if done.returncode:
        raise Missing(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-300:]}")


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A new, empty docker-registry."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
    config = {
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}}, "http": {"addr": host},
    }  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            time.sleep(0.05)
        yield host
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[list[str]]:
    """A dockerd of our own, without a bridge and without firewall rules."""
    if not shutil.which("dockerd") or not shutil.which("docker"):
        raise Missing("docker is not installed")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    socket_name = f"unix://{folder}/docker.sock"
    argv = ["dockerd", f"--host={socket_name}", f"--data-root={folder}/data", f"--exec-root={folder}/exec",
            f"--pidfile={folder}/pid", f"--config-file={folder}/config.json", "--bridge=none",
            "--iptables=false", "--ip-forward=false"]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log)
    client = ["docker", "-H", socket_name]
    try:
        until = time.monotonic() + 60
        while subprocess.run([*client, "version"], capture_output=True, timeout=20, check=False).returncode:
            if server.poll() is not None or time.monotonic() > until:
                last = (folder / "log").read_text().strip().splitlines()[-1:]
                raise Missing(f"dockerd did not start: {last}")
            time.sleep(0.2)
        yield client
    finally:
        server.terminate()
        server.wait(30)


def context(folder: Path, base: str) -> Path:
    """What is built: 1600 files, half of whose bytes are noise, and as much again from a RUN."""
    chance = random.Random(1)
    (folder / "files").mkdir(parents=True)
    for number in range(FILES):
        place = folder / "files" / f"d{number % 40}"
        place.mkdir(exist_ok=True)
        (place / f"f{number}").write_bytes(chance.randbytes(FILE_BYTES // 2) + bytes(FILE_BYTES // 2))
    (folder / "Containerfile").write_text(
        f'FROM {base}\nCOPY files /files\nRUN cp -r /files /copied\nENV A=1\nCMD ["true"]\n'
    )
    return folder


class Tools:
    """labctl and the peers, each with what it does as a function."""

    def __init__(self, made: Bench, folder: Path, client: list[str]) -> None:
        self.made, self.folder = made, folder
        self.store = folder / "images"
        # Podman refuses a long path for its runroot.
        self.short = Path(tempfile.mkdtemp(prefix="lb-"))
        self.podman = ["podman", f"--root={folder}/podman", f"--runroot={self.short}/run"]
        self.docker = client
        self.env = {**os.environ, "LABCTL_HOME": str(made.home)}

    def labctl(self, *words: str) -> None:
        """A command line; raises RuntimeError when it fails."""
        done = self.made.run(*words)
        if done.returncode:
            raise RuntimeError(f"labctl {' '.join(words)}: {done.stderr[-500:]}")

    def library(self, what: str, root: Path, ref: str, cache: Path) -> None:
        """What no verb does alone, in a process of its own."""
        argv = [sys.executable, "-c", LIBRARY, what, str(root), ref, str(cache)]
        subprocess.run(argv, check=True, timeout=600, env=self.env)


def measure(ways: dict[str, Callable[[], object]], rounds: int, before: Callable[[str], object]) -> Any:
    """Times of each way, interleaved; a way that fails once is left out and named."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if name not in times:
                continue
            try:
                before(name)
                times[name].append(timed(way))
            except Missing as error:
                del times[name]
                print(f"{name}: not measured: {error}\n")
    return times


def told(title: str, times: dict[str, list[float]], ours: str, limit: float) -> None:
    """The table, and the ratio to the best peer."""
    print(f"## {title}\n")
    table(("", "ms"), [(name, spread(values)) for name, values in times.items() if values])
    best = min((median(v) for n, v in times.items() if n != ours and v), default=0.0)
    if best:
        goal(f"the best peer / {ours}", best / median(times[ours]), limit, least=True)


def run(made: Bench, rounds: int, only: str) -> dict[str, Any]:
    """All parts."""
    folder = made.home / "images-bench"
    folder.mkdir(parents=True)
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        client: list[str] = []
        try:
            client = stack.enter_context(docker(folder / "docker"))
        except Missing as error:
            print(f"docker: not measured: {error}\n")
        tools = Tools(made, folder, client)
        stack.callback(shutil.rmtree, tools.short, True)
        stack.callback(tools.made.run, "image", "rm", "bench:1", "b:1", "localhost/box:latest")
        tools.labctl("image", "build", "micro")
        tools.labctl("image", "tag", "micro", "localhost/box:latest")
        tools.labctl(
            "image", "export", "localhost/box", str(folder / "box.tar"), "--format", "docker-archive"
        )
        call(*tools.podman, "load", "-i", folder / "box.tar")
        if client:
            call(*client, "load", "-i", folder / "box.tar")
        place = context(folder / "context", "localhost/box:latest")
        tools.labctl("image", "build", str(place), "-t", "bench:1")
        tools.labctl("image", "export", "bench:1", str(folder / "bench.tar"))
        call("skopeo", "copy", f"oci-archive:{folder}/bench.tar", f"oci:{folder}/layout:bench")
        for letter, part in (("a", build), ("b", push), ("c", pull), ("d", disks)):
            if not only or letter in only:
                found.update(part(tools, place, rounds))
    return found


def build(tools: Tools, place: Path, rounds: int) -> dict[str, Any]:
    """A build in which every step is carried out."""
    file = f"{place}/Containerfile"
    ways: dict[str, Callable[[], object]] = {
        "labctl image build": lambda: tools.labctl(
            "image", "build", str(place), "-t", "b:1", "--no-cache", "--network", "none"
        ),
        "podman build": lambda: call(
            *tools.podman, "build", "--no-cache", "--isolation=chroot", "-t", "b:1",
            "-f", file, place,
        ),
    }  # fmt: skip
    if tools.docker:
        ways["docker build"] = lambda: call(
            *tools.docker, "build", "--no-cache", "--network=none", "-t", "b:1", "-f", file, place
        )
    times = measure(ways, rounds, lambda name: None)
    told("build of 200 MiB, nothing cached", times, "labctl image build", 1)
    return {"build": times}


def push(tools: Tools, place: Path, rounds: int) -> dict[str, Any]:
    """Into an empty registry, compressed with gzip."""
    with contextlib.suppress(Missing):
        call(*tools.podman, "load", "-i", tools.folder / "bench.tar")
        call(*tools.podman, "tag", "bench:1", "b:1")
    held = contextlib.ExitStack()
    host = ""
    # The store itself: skopeo, too, is to compress what it sends.
    source = f"oci:{tools.made.home / 'cache' / 'images'}:bench:1"

    def fresh(name: str) -> None:
        nonlocal host
        held.close()
        host = held.enter_context(registry(tools.folder / "registry"))

    ways: dict[str, Callable[[], object]] = {
        "labctl image push": lambda: tools.labctl("image", "push", "bench:1", f"{host}/b:1"),
        "skopeo copy": lambda: call(
            "skopeo",
            "copy",
            "--dest-tls-verify=false",
            source,
            f"docker://{host}/b:1",
        ),
        "podman push": lambda: call(
            *tools.podman, "push", "--tls-verify=false", "b:1", f"docker://{host}/b:1"
        ),
    }
    with held:
        times = measure(ways, rounds, fresh)
    told("push of 200 MiB into an empty registry", times, "labctl image push", 1)
    return {"push": times}


def pull(tools: Tools, place: Path, rounds: int) -> dict[str, Any]:
    """Into an empty store: kept as blobs (skopeo), or unpacked as well (podman, docker)."""
    folder = tools.folder
    with registry(folder / "registry") as host:
        ref = f"{host}/b:1"
        tools.labctl("image", "push", "bench:1", ref)

        def clean(name: str) -> None:
            for path in ("pulled", "pulled-oci"):
                shutil.rmtree(folder / path, ignore_errors=True)
            for client in (
                [*tools.podman] if "podman" in name else [],
                [*tools.docker] if "docker" in name else [],
            ):
                if client:
                    with contextlib.suppress(Missing):
                        call(*client, "rmi", "-f", ref)
                    with contextlib.suppress(Missing):
                        call(*client, "image", "prune", "-a", "-f")

        script = (
            "import sys; from pathlib import Path; from labctl.image.registry import pull; "
            "from labctl.image.store import Store; pull(Store(Path(sys.argv[1])), sys.argv[2])"
        )
        blobs: dict[str, Callable[[], object]] = {
            "labctl, blobs": lambda: subprocess.run(
                [sys.executable, "-c", script, str(folder / "pulled"), ref], check=True, timeout=600
            ),
            "skopeo copy to an OCI layout": lambda: call(
                "skopeo", "copy", "--src-tls-verify=false", f"docker://{ref}", f"oci:{folder}/pulled-oci:b"
            ),
        }
        whole: dict[str, Callable[[], object]] = {
            "labctl, unpacked": lambda: tools.library("pull", folder / "pulled", ref, folder),
            "podman pull": lambda: call(*tools.podman, "pull", "--tls-verify=false", ref),
        }
        if tools.docker:
            whole["docker pull"] = lambda: call(*tools.docker, "pull", ref)
        times = {**measure(blobs, rounds, clean)}
        told("pull of 200 MiB, blobs only", times, "labctl, blobs", 1)
        unpacked = measure(whole, rounds, clean)
        told("pull of 200 MiB, unpacked", unpacked, "labctl, unpacked", 1)
    return {"pull": {**times, **unpacked}}


def disks(tools: Tools, place: Path, rounds: int) -> dict[str, Any]:
    """From the compressed image to an ext4 disk of 1 GiB."""
    folder = tools.folder

    def clean(name: str) -> None:
        for path in ("disk-cache", "disk-store", "bundle"):
            shutil.rmtree(folder / path, ignore_errors=True)
        (folder / "peer.ext4").unlink(missing_ok=True)
        if name.startswith("labctl"):
            shutil.copytree(made_store, folder / "disk-store")

    def peer() -> None:
        call("umoci", "unpack", "--image", f"{folder}/layout:bench", folder / "bundle")
        call("mke2fs", "-q", "-F", "-t", "ext4", "-d", folder / "bundle/rootfs", folder / "peer.ext4", "1g")

    made_store = folder / "loaded"
    load = (
        "import sys; from pathlib import Path; from labctl.image.archive import load; "
        "from labctl.image.store import Store; "
        "load(Store(Path(sys.argv[1])), Path(sys.argv[2]), ref='bench:1')"
    )
    subprocess.run(
        [sys.executable, "-c", load, str(made_store), str(folder / "layout")], check=True, timeout=600
    )
    ways: dict[str, Callable[[], object]] = {
        "labctl": lambda: tools.library("disk", folder / "disk-store", "bench:1", folder / "disk-cache"),
        "umoci unpack + mke2fs -d": peer,
    }
    times = measure(ways, rounds, clean)
    told("a machine's disk from an image of 200 MiB", times, "labctl", 2)
    return {"disk": times}


def main() -> None:
    """Run the parts asked for: a build, b push, c pull, d disk."""
    given = arguments(__doc__ or "", rounds=5)
    machine()
    with bench(given.cache) as made:
        found = run(made, given.rounds, given.only)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
