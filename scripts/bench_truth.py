"""Does `labctl bench` tell the truth?  Work of known cost in host and containers, on a quiet machine.

    sudo .venv/bin/python scripts/bench_truth.py [--wait SECONDS]

Brings a lab of two identical containers and one with half a processor up, measures, prints a verdict a line
and takes the lab down.  Exit code 3 when one does not hold.  Before each run it waits until one processor is
idle, `--wait` seconds in all; how many runs were made beside other work is told at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from labctl.bench import limits, statistics
from labctl.bench import site as sites
from labctl.bench.places import Place
from labctl.bench.reading import document
from labctl.lab import api
from labctl.lab.model import Options
from labctl.profile.loader import load_text

PROFILE = """
name: truth-of-bench
defaults: {image: bench, memory: 128MiB}
nodes:
  one: {tier: container}
  two: {tier: container}
  half: {tier: container, cpus: 0.5}
"""
WORK = {
    "counted loop, ns a round": (("labbench", "spin", "200000000"), "ns_per_op"),
    "sleep of 0.5 s": (("labbench", "timed", "sleep", "0.5"), "seconds"),
    "write at 8 MiB/s": (("labbench", "write", "/var/tmp/truth", "8", "1"), "mib_per_second"),
}
RUNS, COMPARISONS, SAMPLES, HALVES = 15, 20, 8, 5
SHORT, LONG = ("labbench", "spin", "5000000"), ("labbench", "spin", "800000000")
LOOK = 0.3  # seconds over which idleness is looked at


@dataclass
class Quiet:
    """Waits for an idle processor, as long as `left` seconds of patience last; counts runs without one."""

    left: float
    runs: int = 0
    busy: int = 0

    def wait(self) -> None:
        """Return when a processor is idle, or patience is spent."""
        self.runs += 1
        while _idle() < 0.9:
            self.left -= LOOK
            if self.left <= 0:
                self.busy += 1
                return


def _idle() -> float:
    """How many processors were idle, over LOOK seconds (proc_stat(5))."""

    def read() -> list[int]:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    before = read()
    time.sleep(LOOK)
    passed = [after - earlier for after, earlier in zip(read(), before, strict=True)]
    idle, waiting = passed[3:5]
    return (os.cpu_count() or 1) * (idle + waiting) / max(1, sum(passed))


def _sample(quiet: Quiet, place: Place, argv: tuple[str, ...], key: str) -> float:
    quiet.wait()
    done = place.machine.run(list(argv), timeout=120)
    return float(document(done.text, argv[0])[key])


def _say(good: bool, text: str) -> bool:
    print(f"{'ok  ' if good else 'FAIL'}  {text}", flush=True)  # noqa: T201
    return good


def _turns(
    quiet: Quiet, site: sites.Site, names: tuple[str, str], runs: int, argv: tuple[str, ...], key: str
) -> dict[str, list[float]]:
    """Samples of two places in turns; who begins changes."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(runs):
        for name in sorted(taken, reverse=bool(turn % 2)):
            taken[name].append(_sample(quiet, site.places[name], argv, key))
    return taken


def _agreement(quiet: Quiet, site: sites.Site) -> list[bool]:
    said = []
    for what, (argv, key) in WORK.items():
        taken = _turns(quiet, site, ("host", "one"), RUNS, argv, key)
        host, one = (statistics.summary(taken[name]).median for name in ("host", "one"))
        off = abs(one / host - 1)
        said.append(_say(off <= 0.02, f"{what}: host {host:.4g}, container {one:.4g}, {off:.2%} apart (2 %)"))
    return said


def _equals(quiet: Quiet, site: sites.Site) -> bool:
    called = 0
    for _ in range(COMPARISONS):
        taken = _turns(quiet, site, ("one", "two"), SAMPLES, SHORT, "ns_per_op")
        found = statistics.compared(taken["one"], taken["two"])
        called += found is not None and found.verdict is not statistics.Verdict.SAME
    return _say(
        called <= 1,
        f"two identical containers were called different in {called} of {COMPARISONS} comparisons",
    )


def _half(quiet: Quiet, site: sites.Site) -> list[bool]:
    taken = _turns(quiet, site, ("one", "half"), HALVES, LONG, "ns_per_op")
    speed = statistics.summary(taken["one"]).median / statistics.summary(taken["half"]).median
    shares = []
    for _ in range(HALVES):
        quiet.wait()
        shares.append(limits.cpu(site, site.places["half"])["cpus"])
    used = statistics.summary(shares).median
    return [
        _say(
            abs(speed - 0.5) <= 0.03, f"with 0.5 processors a loop has {speed:.3f} of its speed (0.50 ± 0.03)"
        ),
        _say(abs(used - 0.5) <= 0.03, f"with 0.5 processors {used:.3f} are used (0.50 ± 0.03)"),
    ]


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="for a quiet machine")
    quiet = Quiet(parser.parse_args().wait)
    options = Options()
    profile = load_text(PROFILE)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.callback(api.down, profile.name, options)
        api.up(profile, options)
        site = sites.survey(profile.name, options)
        sites.add_host(site, stack, Path(folder) / "host")
        good = [*_agreement(quiet, site), _equals(quiet, site), *_half(quiet, site)]
    print(f"{quiet.busy} of {quiet.runs} runs were made while no processor was idle")  # noqa: T201
    return 0 if all(good) else 3


if __name__ == "__main__":
    sys.exit(main())
