"""Ctrl-C: exit code 130, one line, at once; and what labctl was running in a node ends there too."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab, until

pytestmark = pytest.mark.needs(*CONTAINERS)

BOXES = """
name: lab
defaults: {image: micro}
nodes: {a: {}, b: {}}
checks: [{name: never, node: all, command: sleep 1234, timeout: 100s}]
"""
MACHINES = """
name: lab
defaults: {image: base}
nodes:
  vm: {tier: emulation, memory: 384MiB}
  nested: {inside: vm}
"""
# A program that a signal ends only as a group, as most start-up scripts are.
NAP = ("sh", "-c", "sleep 1234; true")


def naps(lab: Lab, node: str) -> int:
    """How many of these run in a node now."""
    # `read` leaves out the NULs between the words.
    look = "read -r line <$f; case $line in sleep1234*) n=$((n + 1));; esac"
    script = f"n=0; for f in /proc/[0-9]*/cmdline; do {look}; done; echo $n"
    return int(lab.sh(node, f"( {script} ) 2>/dev/null"))


def interrupted(lab: Lab, *words: str, when: Callable[[], bool], by: int = signal.SIGINT) -> None:
    """Begin a verb, end it when that holds: it says one line and its exit code is 130."""
    with lab.begin(*words) as process:
        try:
            until(when, f"{words} is at work", 60)
            began = time.monotonic()
            process.send_signal(by)
            if by == signal.SIGKILL:
                process.stdout, process.stderr = None, None
                process.wait(10)
                return
            _out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert time.monotonic() - began < 25, "it waited for what it ran"
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("labctl:")] == ["labctl: interrupted"]


def test_containers(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "lab", BOXES)
    lab.up()
    for words in (("exec", "lab/a", "--", *NAP), ("run", "lab", "--", *NAP), ("check", "lab")):
        interrupted(lab, *words, when=lambda: naps(lab, "a") == 1)
        until(lambda: naps(lab, "a") == 0 and naps(lab, "b") == 0, f"nothing of {words[0]} runs on")
    # One that is killed can pass nothing on, but the command itself goes with it.
    nap = ("sh", "-c", "exec sleep 1234")
    interrupted(lab, "exec", "lab/a", "--", *nap, when=lambda: naps(lab, "a") == 1, by=signal.SIGKILL)
    until(lambda: naps(lab, "a") == 0, "nothing runs on")
    # A program may end in its own way.
    script = "trap 'echo bye; exit 3' INT; touch /tmp/on; while :; do sleep 0.1; done"
    with lab.begin("exec", "lab/a", "--", "sh", "-c", script) as process:
        until(lambda: lab.code("a", "test -e /tmp/on") == 0, "it runs")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "bye\n", "labctl: interrupted\n")
    assert "did not end within" in lab.fails(1, "exec", "--timeout", "0.5", "lab/a", "--", *NAP)
    assert naps(lab, "a") == 0
    began = time.monotonic()
    # There is nothing to see of a verb that only waits: a second is enough for it to begin.
    interrupted(lab, "logs", "-f", "lab/a", when=lambda: time.monotonic() - began > 1)
    lab.down()


@pytest.mark.long
@pytest.mark.needs("libvirt", "tcg", "kernel")
@pytest.mark.timeout(400)
def test_commands_in_machines_end_with_ctrl_c_and_with_labctl(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "lab", MACHINES)
    lab.up()
    for node in ("vm", "nested"):
        for by in (signal.SIGINT, signal.SIGKILL):
            interrupted(lab, "exec", f"lab/{node}", "--", *NAP, when=lambda n=node: naps(lab, n) == 1, by=by)
            until(lambda n=node: naps(lab, n) == 0, f"nothing runs on in {node} after {by}", 30)
        lab.fails(1, "exec", "--timeout", "2", f"lab/{node}", "--", *NAP)
        until(lambda n=node: naps(lab, n) == 0, f"nothing runs on in {node} after its time", 30)
    interrupted(lab, "run", "lab", "--", *NAP, when=lambda: naps(lab, "nested") == 1)
    until(lambda: naps(lab, "vm") == 0, "nothing runs on", 30)
    # What a command leaves running on purpose is not labctl's to end.
    lab.sh("vm", "nohup sleep 1234 >/dev/null 2>&1 & sleep 0.2")
    lab.good("exec", "--timeout", "20", "lab/vm", "--", "sleep", "4")  # as long as an orphan would live
    assert naps(lab, "vm") == 1
    lab.down()
