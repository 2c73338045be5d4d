"""What the host pays for a node in memory: the proportional set size (PSS, proc(5)) of its processes.

For a VM that is QEMU's; for a container its processes'.  PSS counts a page that several share in parts, so
that the sum over all nodes is what they cost together.  What the kernel itself keeps for a node (page
tables, network buffers) and the page cache are not in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labctl.bench.faults import Failed, NotHere
from labctl.bench.model import Better
from labctl.bench.places import Place
from labctl.bench.site import Site
from labctl.bench.tasktypes import Figure, Task
from labctl.lab import api

MIB = 1 << 20
TOUCHED = 64  # MiB


def idle(site: Site, place: Place) -> dict[str, float]:
    """MiB for the node while it does nothing, how many such fit into 1 GiB, and the lab's helpers."""
    own = node_bytes(site, place) / MIB
    if own <= 0:
        raise NotHere("its processes can't be seen from here")
    return {"pss": own, "density": 1024 / own, "helpers": helper_bytes(site) / MIB}


def after_work(site: Site, place: Place) -> dict[str, float]:
    """MiB for the node after a workload in it touched 64 MiB and gave them back."""
    node_bytes(site, place)
    done = place.machine.run(["labbench", "fill", str(TOUCHED)], timeout=60)
    if done.code:
        raise Failed(f"labbench fill ended with {done.code}", done.text + done.errors)
    return {"pss": node_bytes(site, place) / MIB}


def node_bytes(site: Site, place: Place) -> int:
    """PSS of the node's processes on this host, in bytes.  Raises NotHere where they can't be told apart."""
    if place.is_host:
        raise NotHere("the host does not pay for itself")
    if place.inside:
        raise NotHere(f"its memory is part of {place.inside}'s")
    told = api.inspect(site.lab, place.name, site.options)
    specs = {row["key"].partition(":")[0]: row["spec"] for row in told["resources"]}
    if "domain" in specs:
        from labctl.hypervisor import processes
        from labctl.hypervisor.domain import Domain
        from labctl.resource.codec import decode

        return processes.usage(decode(Domain, json.dumps(specs["domain"])).uuid).pss_bytes
    return sum(pss(pid) for pid in _container_pids(told["record"], site))


def _container_pids(record: dict[str, Any], site: Site) -> list[int]:
    """The processes of a container: those in its control group."""
    from labctl.errors import LabError
    from labctl.tiers import machines
    from labctl.tiers.record import NodeRecord

    try:
        found = machines.container(NodeRecord.from_json(json.dumps(record)))
        mine = _groups(getattr(found, "pid", 0))
    except (LabError, OSError) as error:
        raise NotHere(f"its first process can't be found: {error}") from error
    return [pid for pid in _pids() if _groups(pid) == mine]


def _groups(pid: int) -> str:
    """The control groups of a process that labctl made, as the kernel tells them."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines if "/labctl/" in line)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def pss(pid: int) -> int:
    """The proportional set size of a process in bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def helper_bytes(site: Site) -> int:
    """PSS of what the lab as a whole keeps running: its keeper, its DNS server, its private libvirtd."""
    marks = (
        str(site.options.home.lab(site.status.id)).encode(),
        str(site.options.home.state / "libvirtd").encode(),
    )
    total = 0
    for pid in _pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if (
            any(mark in command for mark in marks)
            and b"qemu-system" not in command
            and "/labctl/" not in _groups(pid)
        ):
            total += pss(pid)
    return total


TASKS = (
    Task(
        suite="cost",
        name="idle",
        title="memory that the host pays for an idle node",
        about="PSS of the node's processes; for a VM all guest memory that was touched since its boot.",
        tool="/proc/PID/smaps_rollup",
        figures=(
            Figure("pss", "memory that the host pays for an idle node", "MiB", Better.LOWER),
            Figure("density", "idle nodes that fit into 1 GiB", "nodes/GiB", Better.HIGHER),
            Figure(
                "helpers", "keeper, DNS server and private libvirtd of the whole lab", "MiB", Better.NEITHER
            ),
        ),
        warmup=0,
        quick=True,
        early=True,
        function=idle,
    ),
    Task(
        suite="cost",
        name="after-work",
        title=f"memory that the host pays after {TOUCHED} MiB were touched and given back",
        about="A container's pages go back to the host at once; a VM keeps what its kernel has had in use.",
        tool="labbench, /proc/PID/smaps_rollup",
        figures=(
            Figure(
                "pss",
                f"memory that the host pays after {TOUCHED} MiB were touched and given back",
                "MiB",
                Better.LOWER,
            ),
        ),
        warmup=0,
        needs=("labbench",),
        function=after_work,
    ),
)
