"""Containers started and removed many times: nothing may grow.

    sudo .venv/bin/python -m tests.leak_runtime --count 1000

Each round is `labrun run` of a container with all namespaces, limits and a seccomp filter (a cold process),
or with --keeper a launch and a removal by one keeper, as a lab does it.  Before and after are counted: the
keeper's descriptors and memory, mounts, control groups, network namespaces, processes, files in the state
folder.  Prints the figures; ends with 1 when one has grown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from labctl.linux.cgroups import Layout
from tests.host.oci_rig import Oci
from tests.host.runtime_rig import Rig

WARM_UP = 20  # rounds before the first count: what is loaded once is no leak
MEMORY_SLACK_KB = 512  # an allocator's page more or less
SHARED = ("mounts", "network namespaces")  # counted for the whole host


def figures(folder: Path, instance: str, keeper: int = 0) -> dict[str, int]:
    """What could be left, as counts; memory in KiB."""
    layout = Layout.detect()
    found = {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": sum(
            1
            for root in {layout.v2, *layout.v1.values()} - {""}
            for path in Path(root).glob(f"**/*{instance}*/**/")
            if path.is_dir()
        ),
        "network namespaces": len({_namespace(path) for path in Path("/proc").glob("[0-9]*/ns/net")} - {""}),
        "processes": sum(1 for path in Path("/proc").glob("[0-9]*/cgroup") if instance in _read(path)),
        "files": sum(
            1 for path in folder.glob("**/*") if "image" not in path.parts and "rootfs" not in path.parts
        ),
    }
    if keeper:
        found["keeper's descriptors"] = len(list(Path(f"/proc/{keeper}/fd").iterdir()))
        rows = dict(line.split(":", 1) for line in _read(Path(f"/proc/{keeper}/status")).splitlines())
        found["keeper's memory, KiB"] = int(rows["VmRSS"].split()[0])
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # ended meanwhile


def _namespace(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def cold(folder: Path, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """`labrun run` again and again: figures before and after."""
    oci = Oci(folder)
    oci.write("true")
    try:
        for _ in range(min(WARM_UP, count)):
            oci.ok("run", "c")
        before = figures(folder, oci.cgroup.strip("/"))
        for _ in range(count):
            oci.ok("run", "c")
        return before, figures(folder, oci.cgroup.strip("/"))
    finally:
        oci.close()


def kept(folder: Path, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """A lab's way: one keeper launches and reaps, and what is to go is removed."""
    rig = Rig(folder)
    try:
        launch = rig.bundle("n", "exec sleep 1000")
        before: dict[str, int] = {}
        for index in range(min(WARM_UP, count) + count):
            if index == min(WARM_UP, count):
                before = figures(folder, rig.instance, rig.client.keeper_pid())
            for errors in (rig.client.launch([launch], 30.0), rig.client.delete(["n"])):
                if any(errors.values()):
                    raise SystemExit(f"round {index}: {errors}")
        return before, figures(folder, rig.instance, rig.client.keeper_pid())
    finally:
        rig.close()


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """The names of what is more than it was; what others on a shared host change as well is only shown."""
    slack = {"keeper's memory, KiB": MEMORY_SLACK_KB}
    shared = SHARED if os.environ.get("LABCTL_SHARED_HOST") else ()
    return [
        name
        for name, value in before.items()
        if name not in shared and after[name] > value + slack.get(name, 0)
    ]


def run() -> int:
    """The command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--count", type=int, default=1000, help="rounds (default 1000)")
    words.add_argument("--keeper", action="store_true", help="by one keeper, as a lab does it")
    given = words.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="labctl-leak-"))
    folder.chmod(0o755)
    begun = time.monotonic()
    try:
        before, after = (kept if given.keeper else cold)(folder, given.count)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{given.count} containers started and removed in {time.monotonic() - begun:.0f} s, pid {os.getpid()}"
    )
    for name, value in before.items():
        print(f"{name:22} {value:8} before {after[name]:8} after")
    if more := grown(before, after):
        print(f"grown: {', '.join(more)}")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(run())
