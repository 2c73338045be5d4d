"""Containers: labctl against docker and podman, a second `up`, cost by count, memory, `down`.

All that is compared is interleaved in one run.  Figures are wall-clock ms, min / median / max.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import peers
from common import Bench, arguments, bench, goal, machine, median, spread, table, timed

MANY = 20
FRESH = 50
COUNTS = (10, 50, 100, 200)


def against_peers(made: Bench, rounds: int) -> dict[str, Any]:
    """(b) and (f): 20 containers on one bridge, started and removed, by labctl and by each peer."""
    print(f"## {MANY} containers on one bridge: up and down\n")
    profile = made.containers(MANY)
    made.up(profile)  # builds the image where it is missing
    made.down()
    times: dict[str, tuple[list[float], list[float]]] = {"labctl": ([], [])}
    missing, versions = [], {"labctl": made.run("--version").stdout.strip()}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-peers-")))
        there: list[peers.Peer] = []
        for name, start in peers.ALL.items():
            try:
                peer = stack.enter_context(start(folder / name))
                peer.load(rootfs(made))
                peer.up(1)
                peer.down(1)
            except peers.Missing as error:
                missing.append(f"{name}: not measured: {error}")
                continue
            there.append(peer)
            times[name], versions[name] = ([], []), peer.version
        for _ in range(rounds):
            times["labctl"][0].append(timed(made.up, profile))
            times["labctl"][1].append(timed(made.down))
            for peer in there:
                times[peer.name][0].append(timed(peer.up, MANY))
                times[peer.name][1].append(timed(peer.down, MANY))
    sums = {name: [a + b for a, b in zip(*both, strict=True)] for name, both in times.items()}
    rows = [
        (f"{name} ({versions[name]})", spread(up), spread(down), spread(sums[name]))
        for name, (up, down) in times.items()
    ]
    table(("", "up", "down", "both"), rows)
    for line in missing:
        print(line + "\n")
    best = min((median(sums[name]) for name in sums if name != "labctl"), default=0.0)
    if best:
        goal("(b) the better peer / labctl, up and down", best / median(sums["labctl"]), 5, least=True)
    goal("(f) down / up of labctl", median(times["labctl"][1]) / median(times["labctl"][0]), 1 / 3)
    return {name: {"up": up, "down": down} for name, (up, down) in times.items()}


def rootfs(made: Bench) -> Path:
    """The unpacked image, one layer."""
    from labctl.image.store import Store

    store = Store(made.home / "cache" / "images")
    (layer,) = store.rootfs(store.resolve("micro", ""))
    return layer


def again(made: Bench, rounds: int) -> dict[str, Any]:
    """(c): `up` of a lab that is up already."""
    print(f"## `up` on a lab of {FRESH} containers that is up\n")
    profile = made.containers(FRESH)
    fresh, second = [], []
    for _ in range(rounds):
        fresh.append(timed(made.up, profile))
        second += [timed(made.up, profile) for _ in range(2)]
        made.down()
    table(("fresh up", "second up"), [(spread(fresh), spread(second))])
    goal("(c) second / fresh", median(second) / median(fresh), 0.1)
    return {"fresh": fresh, "second": second}


def by_count(made: Bench, rounds: int) -> dict[str, Any]:
    """(d): what one more container costs.  The start of the program, which labs of any size pay once, is
    told by a lab of one container."""
    print("## Cost per container\n")
    counts = (1, *COUNTS)
    ups: dict[int, list[float]] = {count: [] for count in counts}
    downs: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            ups[count].append(timed(made.up, made.containers(count)))
            downs[count].append(timed(made.down))
    base_up, base_down = median(ups[1]), median(downs[1])
    rows, each = [], {}
    for count in counts:
        up, down = median(ups[count]), median(downs[count])
        more = (up - base_up) / (count - 1) if count > 1 else 0.0
        less = (down - base_down) / (count - 1) if count > 1 else 0.0
        if count > 1:
            each[count] = more
        rows.append((str(count), spread(ups[count]), spread(downs[count]), f"{more:.1f}", f"{less:.1f}"))
    table(("containers", "up", "down", "up: ms for one more", "down: ms for one more"), rows)
    goal("(d) dearest / cheapest, up", max(each.values()) / min(each.values()), 1.5)
    return {"up": ups, "down": downs}


def memory(made: Bench, rounds: int) -> dict[str, Any]:
    """(e): what the host pays for an idle container, beyond the payload itself."""
    print("## Memory of an idle container\n")
    user, kernel, slab = [], [], []
    for _ in range(rounds):
        before = meminfo()
        made.up(made.containers(MANY))
        keeper, groups, payload = processes(made)
        after = meminfo()
        user.append((keeper + groups - payload) / MANY)
        kernel.append((before["MemAvailable"] - after["MemAvailable"]) / MANY)
        slab.append(
            sum(after[key] - before[key] for key in ("Slab", "KernelStack", "PageTables", "Percpu")) / MANY
        )
        made.down()
    table(
        ("KiB for each container", "min / median / max"),
        [
            ("user memory beyond the payload (keeper's PSS + others in the cgroup)", spread(user)),
            ("slab, stacks, page tables, per-cpu of the kernel", spread(slab)),
            ("all that MemAvailable lost, payload and page cache included", spread(kernel)),
        ],
    )
    goal("(e) user memory beyond the payload, MiB", median(user) / 1024, 1)
    goal("(e) with the kernel's, MiB", (median(user) + median(slab)) / 1024, 1)
    return {"user": user, "kernel": kernel, "slab": slab}


def meminfo() -> dict[str, int]:
    """/proc/meminfo in KiB (proc(5))."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def pss(pid: int) -> int:
    """The proportional set size of a process in KiB (proc(5), smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def processes(made: Bench) -> tuple[int, int, int]:
    """(PSS of the keeper, PSS of all in the containers' cgroups, PSS of the payloads), in KiB."""
    from labctl.runtime.client import KeeperClient, find_marked

    instance = (made.home / "state" / "instance").read_text().strip()
    groups = find_marked(instance)
    (lab,) = {group.lab for group in groups}
    client = KeeperClient(made.home / "state" / "labs" / lab / "run")
    payloads = {state.pid for state in client.states().values()}
    inside = {pid for group in groups for pid in group.pids}
    return pss(client.keeper_pid()), sum(map(pss, inside)), sum(map(pss, payloads))


def main() -> None:
    """All parts, or those of --only."""
    given = arguments(__doc__ or "", rounds=5)
    parts = {"bf": against_peers, "c": again, "d": by_count, "e": memory}
    found = {}
    machine()
    with bench(given.cache) as made:
        made.up(made.containers(1))  # image and page cache are warm for all
        made.down()
        for letters, part in parts.items():
            if not given.only or set(letters) & set(given.only):
                found[letters] = part(made, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
