"""The runtime: a cold `labrun`, its launcher, and twenty at once, against crun, runc, bwrap and podman.

All that is compared is interleaved in one run.  Figures are wall-clock ms, min / median / max.  Every tool
gets the same program, root, namespaces, limits, capabilities and seccomp filter, as far as it has them; only
labrun mounts an overlay, since the others have none of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
from common import arguments, goal, machine, median, spread, table, timed

from labctl.linux import netlink, netnode, proc
from labctl.linux import syscalls as sc
from labctl.linux.cgroups import Cgroup, Layout
from labctl.linux.netlink import Netlink
from labctl.runtime import spec
from labctl.runtime.client import KeeperClient, Launch

MANY = 20
SECONDS = 60
LABRUN = str(Path(sys.executable).with_name("labrun"))
BUSYBOX = "/bin/busybox"
BRIDGE = "labctlbench"
CGROUP = "/labctl-bench"
IDLE = ["/bin/sleep", "1000"]


class Rig:
    """A root of busybox, bundles on it, and a keeper."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "image"
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            (self.image / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.image / "bin/busybox")
        for name in ("sleep", "true"):
            (self.image / "bin" / name).symlink_to("busybox")
        self.client = KeeperClient(folder / "keeper")

    def bundle(self, name: str, args: Sequence[str], *, overlay: bool, netns: str = "") -> Path:
        """Write one: without a user namespace, which would cost the others a copy of the image."""
        path = self.folder / "bundles" / name
        path.mkdir(parents=True, exist_ok=True)
        upper = {"lowers": [str(self.image)], "upper": str(path / "upper"), "work": str(path / "work")}
        config = spec.default_config(
            args,
            cgroup=f"{CGROUP}/{name}",
            hostname=name,
            rootfs=str(self.image),
            id_base=0,
            memory=128 << 20,
            pids=64,
            netns=netns,
            **(upper if overlay else {}),  # type: ignore[arg-type]
        )
        # crun lets everything through to devices where nothing is said.
        config["linux"]["resources"]["devices"] = [{"allow": False, "access": "rwm"}]
        (path / "config.json").write_text(json.dumps(config))
        return path

    def tool(self, program: str, *words: str) -> None:
        """Run an OCI runtime with a state folder of its own.  Raises CalledProcessError."""
        quiet([program, "--root", str(self.folder / "run" / Path(program).name), *words])


def quiet(argv: Sequence[str]) -> None:
    """Run a program that prints nothing of interest.  Raises CalledProcessError."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=SECONDS)


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """A bridge that is gone afterwards."""
    with Netlink() as host:
        host.do(netlink.add_bridge(BRIDGE), netlink.set_link(BRIDGE, up=True))
    try:
        yield
    finally:
        with Netlink() as host:
            host.do(netlink.delete_link(BRIDGE))


def cold_tools(rig: Rig, stack: contextlib.ExitStack) -> dict[str, Callable[[], None]]:
    """What runs /bin/true once and leaves nothing, by the tool's name."""
    ours, plain = (
        rig.bundle("ours", ["/bin/true"], overlay=True),
        rig.bundle("plain", ["/bin/true"], overlay=False),
    )
    found: dict[str, Callable[[], None]] = {
        "labrun, overlay": lambda: rig.tool(LABRUN, "run", "--bundle", str(ours), "c")
    }
    for name in ("crun", "runc"):
        if program := shutil.which(name):
            found[name] = lambda program=program: rig.tool(program, "run", "--bundle", str(plain), "c")  # type: ignore[misc]
    if program := shutil.which("bwrap"):
        spaces = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--cap-drop", "ALL")
        root = ("--ro-bind", str(rig.image), "/", "--proc", "/proc", "--dev", "/dev")
        found["bwrap, no limits, no filter"] = lambda: quiet([program, *spaces, *root, "/bin/true"])
    try:
        podman = stack.enter_context(peers.podman(rig.folder / "podman"))
        podman.load(rig.image)
        words = ("run", "--rm", "--network", "none", peers.IMAGE, "/bin/true")
        found["podman"] = lambda: quiet([*podman.prefix, *words])
    except peers.Missing as error:
        print(f"podman: not measured: {error}\n")
    return found


def cold(rig: Rig, rounds: int) -> dict[str, Any]:
    """(g): one container from nothing to nothing, and (h): the same by the launcher that runs already."""
    print("## Run /bin/true and remove\n")
    with contextlib.ExitStack() as stack:
        works = cold_tools(rig, stack)
        warm = Launch("warm", str(rig.bundle("warm", ["/bin/true"], overlay=True)))

        def by_launcher() -> None:
            if error := rig.client.launch([warm])["warm"]:
                raise RuntimeError(error)
            rig.client.delete(["warm"])

        works["labctl's launcher, overlay"] = by_launcher
        times: dict[str, list[float]] = {name: [] for name in works}
        for number in range(rounds + 1):
            for name, work in works.items():
                took = timed(work)
                if number:  # the first fills caches
                    times[name].append(took)
    table(("", "ms"), [(name, spread(values)) for name, values in times.items()])
    ours = median(times["labrun, overlay"])
    for name, limit in (("crun", 1.6), ("runc", 1.0)):
        if name in times:
            goal(f"(g) labrun / {name}, cold", ours / median(times[name]), limit)
    if "crun" in times:
        launcher = median(times["labctl's launcher, overlay"])
        goal("(h) launcher / crun", launcher / median(times["crun"]), 1.0)
    return times


def many(rig: Rig, rounds: int) -> dict[str, Any]:
    """(i): twenty detached on a bridge, ours with their networks made, crun's without; (j): all removed."""
    print(f"## {MANY} detached containers\n")
    times: dict[str, tuple[list[float], list[float]]] = {"labctl, on a bridge": ([], [])}
    names = [f"c{number}" for number in range(MANY)]
    nodes = [
        netnode.Node(
            name, str(rig.folder / name), (netnode.Nic(f"lbb{name}", "eth0", BRIDGE, "", (), True, 0, ""),)
        )
        for name in names
    ]
    items = [
        Launch(name, str(rig.bundle(name, IDLE, overlay=True, netns=node.path)))
        for name, node in zip(names, nodes, strict=True)
    ]
    plain = {name: rig.bundle(f"plain-{name}", IDLE, overlay=False) for name in names}

    def start() -> None:
        if failed := {
            **netnode.make_nodes(nodes),
            **{k: v for k, v in rig.client.launch(items).items() if v},
        }:
            raise RuntimeError(str(failed))

    runtimes = {name: program for name in ("crun", "runc") if (program := shutil.which(name))}
    times |= {f"{name}, no network": ([], []) for name in runtimes}
    with bridge():
        for _ in range(rounds):
            up, down = times["labctl, on a bridge"]
            up.append(timed(start))
            down.append(timed(rig.client.delete, names))
            netnode.unmake_nodes(nodes)
            for name, program in runtimes.items():
                up, down = times[f"{name}, no network"]
                up.append(timed(_start_each, rig, program, plain))
                down.append(timed(_delete_each, rig, program, names))
    table(("", "start", "remove"), [(name, spread(up), spread(down)) for name, (up, down) in times.items()])
    if "crun" in runtimes:
        (up, down), (their_up, their_down) = times["labctl, on a bridge"], times["crun, no network"]
        goal("(i) labctl / crun, start", median(up) / median(their_up), 1.0)
        goal("(j) labctl / crun, remove", median(down) / median(their_down), 0.2)
    return times


def _start_each(rig: Rig, program: str, bundles: dict[str, Path]) -> None:
    for name, path in bundles.items():
        rig.tool(program, "run", "--detach", "--bundle", str(path), name)


def _delete_each(rig: Rig, program: str, names: Sequence[str]) -> None:
    for name in names:
        rig.tool(program, "delete", "--force", name)


def one_hierarchy() -> None:
    """In a mount namespace of our own, without the second hierarchy of a hybrid machine: crun wants none."""
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    layout = Layout.detect()
    if layout.kind == "hybrid":
        sc.umount(layout.v2)


def main() -> None:
    """Both parts, or those of --only."""
    given = arguments(__doc__ or "", rounds=10)
    if os.geteuid() != 0:
        sys.exit("run as root: runtimes make namespaces and control groups")
    if proc.read(BUSYBOX) is None:
        sys.exit(f"{BUSYBOX} is missing: apt-get install busybox-static")
    machine()
    one_hierarchy()
    # In memory, as /run is on most machines: what runtimes write down should not wait for a busy disk.
    folder = Path(tempfile.mkdtemp(prefix="labctl-bench-", dir="/dev/shm"))
    rig = Rig(folder)
    found = {}
    try:
        rig.client.start()
        for letters, part in (("gh", cold), ("ij", many)):
            if not given.only or set(letters) & set(given.only):
                found[letters] = part(rig, given.rounds)
    finally:
        rig.client.delete(rig.client.states())
        rig.client.close()
        Cgroup(f"{CGROUP}/x", Layout.detect()).remove_empty_parents()
        shutil.rmtree(folder)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
