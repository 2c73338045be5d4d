"""What all benchmarks share: a home of their own, labctl as a command, clocks, medians, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SECONDS = 600


class Bench:
    """One run: `labctl` with a home in a temporary folder, whose image cache may be one that is there."""

    def __init__(self, folder: Path, cache: Path | None) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        if cache:
            (self.home / "cache").symlink_to(cache.resolve())
        self.program = [str(Path(sys.executable).with_name("labctl"))]
        self.environment = {**os.environ, "LABCTL_HOME": str(self.home)}

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run labctl.  Raises RuntimeError with what it said when it fails."""
        done = subprocess.run(
            [*self.program, *argv],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"labctl {' '.join(argv)}: {done.stderr.strip()[-500:]}")
        return done

    def json(self, *argv: str) -> Any:
        """Run a verb with --json."""
        return json.loads(self.run(*argv, "--json").stdout)

    def containers(self, count: int) -> Path:
        """A profile of idle containers on one bridge, called bench."""
        path = self.folder / f"bench{count}.yaml"
        path.write_text(
            "name: bench\nnetworks: {lan: {}}\nnodes:\n  c:\n"
            f"    {{tier: container, image: micro, replicas: {count}, command: [sleep, infinity]}}\n"
        )
        return path

    def up(self, profile: Path) -> None:
        """Bring a lab up."""
        self.run("up", "-q", str(profile))

    def down(self) -> None:
        """Take all labs down."""
        self.run("down", "-q", "--all")


def arguments(about: str, *, rounds: int) -> argparse.Namespace:
    """The options of a benchmark."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often; default {rounds}")
    parser.add_argument("--cache", type=Path, help="a labctl cache to use, so that no image is built")
    parser.add_argument("--only", default="", help="letters of the parts to run; default all")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


@contextlib.contextmanager
def bench(cache: Path | None) -> Iterator[Bench]:
    """A home that is gone afterwards, with everything that was made in it."""
    if os.geteuid() != 0:
        sys.exit("run as root: labctl and its peers make namespaces and bridges")
    folder = Path(tempfile.mkdtemp(prefix="labctl-bench-"))
    made = Bench(folder, cache)
    try:
        yield made
    finally:
        if (made.home / "state").exists():
            made.down()
        shutil.rmtree(folder)


def timed(work: Callable[..., object], *arguments: object) -> float:
    """How long a call takes, in ms."""
    began = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - began) * 1000


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """min / median / max in whole numbers."""
    return f"{min(values):.0f} / {median(values):.0f} / {max(values):.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as Markdown has it."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def goal(name: str, value: float, limit: float, *, least: bool = False) -> None:
    """Print a ratio beside its goal.  A figure, not a test: machines and their load differ."""
    met = value >= limit if least else value <= limit
    word = "at least" if least else "at most"
    print(f"{name}: {value:.2f} (goal: {word} {limit:g}; {'met' if met else 'NOT met'})\n", flush=True)


def machine() -> None:
    """Print where this ran."""
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}", end="")
    print(f", load {load:.1f} at the start\n", flush=True)
