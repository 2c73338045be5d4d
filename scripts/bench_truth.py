"""Does `labctl bench` tell the truth?  Work of known cost in host and containers, on a quiet machine.

    sudo .venv/bin/python scripts/bench_truth.py

Brings a lab of two identical containers and one with half a processor up, measures, prints a verdict a line
and takes the lab down.  Exit code 3 when one does not hold.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from labctl.bench import site as sites
from labctl.bench import statistics
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
    "counted loop, ns a round": (("labbench", "spin", "50000000"), "ns_per_op"),
    "sleep of 0.5 s": (("labbench", "timed", "sleep", "0.5"), "seconds"),
    "write at 8 MiB/s": (("labbench", "write", "/var/tmp/truth", "8", "1"), "mib_per_second"),
}
RUNS, COMPARISONS, SAMPLES = 15, 20, 8


def _sample(place: Place, argv: tuple[str, ...], key: str) -> float:
    done = place.machine.run(list(argv), timeout=60)
    return float(document(done.text, argv[0])[key])


def _say(good: bool, text: str) -> bool:
    print(f"{'ok  ' if good else 'FAIL'}  {text}")  # noqa: T201
    return good


def _agreement(site: sites.Site) -> list[bool]:
    said = []
    for what, (argv, key) in WORK.items():
        taken: dict[str, list[float]] = {"host": [], "one": []}
        for turn in range(RUNS):
            for name in sorted(taken, reverse=bool(turn % 2)):
                taken[name].append(_sample(site.places[name], argv, key))
        host, one = (statistics.summary(taken[name]).median for name in ("host", "one"))
        off = abs(one / host - 1)
        said.append(_say(off <= 0.02, f"{what}: host {host:.4g}, container {one:.4g}, {off:.2%} apart (2 %)"))
    return said


def _equals(site: sites.Site) -> bool:
    called = 0
    for _ in range(COMPARISONS):
        taken: dict[str, list[float]] = {"one": [], "two": []}
        for turn in range(SAMPLES):
            for name in sorted(taken, reverse=bool(turn % 2)):
                taken[name].append(_sample(site.places[name], ("labbench", "spin", "5000000"), "ns_per_op"))
        found = statistics.compared(taken["one"], taken["two"])
        called += found is not None and found.verdict is not statistics.Verdict.SAME
    return _say(
        called <= 1,
        f"two identical containers were called different in {called} of {COMPARISONS} comparisons",
    )


def _half(site: sites.Site) -> bool:
    from labctl.bench import limits

    shares = [limits.cpu(site, site.places["half"])["cpus"] for _ in range(5)]
    median = statistics.summary(shares).median
    return _say(
        abs(median - 0.5) <= 0.03, f"a container limited to 0.5 processors used {median:.3f} (0.50 ± 0.03)"
    )


def main() -> int:
    """Measure and tell."""
    options = Options()
    profile = load_text(PROFILE)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.callback(api.down, profile.name, options)
        api.up(profile, options)
        site = sites.survey(profile.name, options)
        sites.add_host(site, stack, Path(folder) / "host")
        good = [*_agreement(site), _equals(site), _half(site)]
    return 0 if all(good) else 3


if __name__ == "__main__":
    sys.exit(main())
