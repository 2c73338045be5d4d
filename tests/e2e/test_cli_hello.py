"""A container from the command line: up, used in every way, gone without a trace."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labctl.home import Home

pytestmark = pytest.mark.needs("root", "netns", "overlay", "cgroup", "userns", "idmap", "nft", "dnsmasq")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

PROFILE = """
name: shop
nodes:
  web:
    tier: container
    image: micro
    labels: {role: front}
    env: {GREETING: hello}
    command: 'echo started; echo trouble >&2; exec sleep 1000'
  db:
    tier: container
    image: micro
    logging: {max_size: 64KiB, max_files: 2}
    command: 'seq 40000; exec sleep 1000'
checks:
  - {name: web greets, node: web, command: 'echo $GREETING', expect: hello}
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "shop.yaml"
    path.write_text(PROFILE)
    return str(path)


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(good(done))
    assert body["schema_version"] == 1
    return body


def test_up_use_down(
    labctl: Cli, profile: str, host_inventory: Callable[[], list[str]], tmp_path: Path, home: Home
) -> None:
    up = document(labctl("up", profile, "--json", "--check"))
    assert {node["name"]: node["state"] for node in up["nodes"]} == {"web": "ready", "db": "ready"}
    assert up["checks"][0]["passed"] is True

    again = labctl("up", profile, "--json")
    assert {change["action"] for change in document(again)["changes"]} == {"keep"}

    _exec(labctl)
    _run(labctl)
    _copy(labctl, tmp_path)
    _look(labctl, profile)
    _watch(labctl)
    _power(labctl)

    good(labctl("down", "shop"))
    assert host_inventory() == []
    _events(labctl)
    good(labctl("down", "shop"))
    assert document(labctl("ls", "--json"))["labs"] == []


def _exec(labctl: Cli) -> None:
    assert good(labctl("exec", "web", "--", "cat", stdin="through\n")) == "through\n"
    assert good(labctl("exec", "shop/web", "sh", "-c", "echo $GREETING")) == "hello\n"
    assert (
        good(labctl("exec", "-e", "A=b c", "-w", "/tmp", "web", "--", "sh", "-c", 'echo "$A"; pwd'))
        == "b c\n/tmp\n"
    )
    done = labctl("exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 37")
    assert (done.returncode, done.stdout, done.stderr) == (37, "out\n", "err\n")
    assert labctl("exec", "web", "--", "no-such-program").returncode == 127
    assert labctl("exec", "web", "--", "/etc/passwd").returncode == 126
    assert labctl("exec", "web", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert labctl("exec", "--timeout", "0.5", "web", "--", "sleep", "60").returncode == 1


def _run(labctl: Cli) -> None:
    assert good(labctl("run", "shop", "--", "hostname")).splitlines() == ["web | web", "db  | db"]
    assert good(labctl("run", "-l", "role=front", "*", "--", "hostname")).splitlines() == ["web | web"]
    done = labctl("run", "--json", "shop", "--", "sh", "-c", "test $(hostname) = db")
    assert done.returncode == 1
    results = json.loads(done.stdout)["results"]
    assert {result["node"]: result["code"] for result in results} == {"web": 1, "db": 0}
    assert "failed in 1 of 2 nodes: web (1)" in done.stderr


def _copy(labctl: Cli, folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in/file").write_text("content")
    (folder / "in/file").chmod(0o640)
    good(labctl("cp", str(folder / "in"), "web:/tmp"))
    assert good(labctl("exec", "web", "--", "stat", "-c", "%a", "/tmp/in/file")).strip() == "640"
    good(labctl("cp", "shop/web:/tmp/in/file", str(folder / "out")))
    assert (folder / "out").read_text() == "content"
    command = [sys.executable, "-m", "labctl.cli", "cp", "web:/tmp/in", "-"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert "in/file" in archive.getnames()


def _look(labctl: Cli, profile: str) -> None:
    done = labctl("logs", "web")
    assert (done.stdout, done.stderr) == ("started\n", "trouble\n")
    done = labctl("logs", "-t", "--since", "1h", "web")
    stamp = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
    assert re.fullmatch(f"{stamp} started\n", done.stdout) and re.fullmatch(f"{stamp} trouble\n", done.stderr)
    assert good(labctl("logs", "--until", "1h", "web")) == "" == good(labctl("logs", "--tail", "0", "web"))
    assert labctl("logs", "--since", "1m", "--until", "1h", "web").returncode == 2
    status = document(labctl("status", "--json"))
    web = next(node for node in status["nodes"] if node["name"] == "web")
    assert {"tier", "state", "runs_on", "addresses", "image"} <= set(web)
    assert status["lab"] == "shop" and web["addresses"]
    text = good(labctl("status"))
    assert "NODE" in text and web["addresses"][0] in text
    assert "web" in good(labctl("graph", "shop")) and "<svg" in good(labctl("graph", "shop", "-f", "svg"))
    assert document(labctl("inspect", "shop/web"))
    plan = document(labctl("plan", profile, "--json", "-s", "nodes.web.env.GREETING=bye"))
    touched = {change["node"] for change in plan["changes"] if change["action"] != "keep"}
    assert touched == {"web"}
    compared = document(labctl("compare", "shop", "--json"))
    assert {row["key"] for row in compared["rows"]} >= {"kernel", "pid1", "hostname"}


def _watch(labctl: Cli) -> None:
    burn = "timeout 30 sh -c 'while :; do :; done' >/dev/null 2>&1 & :"
    good(labctl("exec", "web", "--", "sh", "-c", burn))
    stats = document(labctl("stats", "--json", "shop", "--interval", "0.5"))
    web, db = stats["nodes"]
    assert [web["node"], db["node"]] == ["web", "db"] and web["state"] == "running"
    assert web["cpu_percent"] > db["cpu_percent"] >= 0, "one computes, the other sleeps"
    assert web["memory_bytes"] > 0 and web["pids"] == 3 and web["net_received_bytes"] > 0
    assert web["block_written_bytes"] is None or web["block_written_bytes"] >= 0
    text = good(labctl("stats", "--no-stream", "--interval", "0.1"))
    assert text.splitlines()[0].startswith("NODE") and text.splitlines()[1].startswith("web")
    assert labctl("stats", "--interval", "0").returncode == 2
    assert labctl("stats", "nonesuch").returncode == 2
    found = document(labctl("top", "web", "--json"))["processes"]
    assert [found[0]["pid"], found[0]["uid"], found[0]["command"]] == [1, 0, "sleep 1000"]
    assert found[0]["host_pid"] > 1 and found[0]["memory_bytes"] > 0
    assert good(labctl("top", "db")).startswith("UID")
    kept = good(labctl("logs", "db"))
    assert kept.endswith("\n40000\n") and 30_000 < len(kept) <= 128 << 10, "the newest of 229 KB"


def _events(labctl: Cli) -> None:
    rows = [json.loads(line) for line in good(labctl("events", "shop", "--json")).splitlines()]
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    web = [row["event"] for row in rows if row["node"] == "web"]
    assert web[:3] == ["starting", "running", "ready"] and {"paused", "stopped", "ended"} <= set(web)
    ended = next(row for row in rows if row["event"] == "ended")
    assert (ended["node"], ended["exit_code"], ended["lab"]) == ("web", 137, "shop")
    assert next(row["event"] for row in rows if not row["node"]) == "up-began"
    assert rows[-1]["event"] == "down" and rows[-1]["schema_version"] == 1
    assert good(labctl("events", "--since", str(rows[-1]["at"]))).rstrip().endswith("shop  down")
    assert labctl("events", "nonesuch").returncode == 2
    assert labctl("events", "--since", "yesteryear").returncode == 2


def _power(labctl: Cli) -> None:
    good(labctl("pause", "web"))
    assert _state(labctl, "web") == "paused"
    good(labctl("resume", "web"))
    attached = subprocess.Popen(
        [sys.executable, "-m", "labctl.cli", "attach", "web"], stdin=subprocess.DEVNULL
    )
    time.sleep(0.5)
    assert attached.poll() is None
    good(labctl("stop", "web"))
    assert attached.wait(20) == 137, "a sleep that is process 1 has no handler for SIGTERM"
    assert _state(labctl, "web") == "stopped"
    assert labctl("attach", "web").returncode == 1
    assert document(labctl("stats", "web", "--json"))["nodes"][0]["state"] == "stopped"
    assert labctl("exec", "web", "--", "true").returncode == 1
    good(labctl("start", "web"))
    good(labctl("wait", "web", "--timeout", "20"))
    assert _state(labctl, "web") == "ready"
    assert good(labctl("exec", "web", "--", "sh", "-c", "cat /tmp/in/file")) == "content"


def _state(labctl: Cli, name: str) -> str:
    nodes = document(labctl("status", "shop", "--json"))["nodes"]
    return str(next(node["state"] for node in nodes if node["name"] == name))


def test_a_terminal_is_a_terminal(labctl: Cli, profile: str) -> None:
    good(labctl("up", profile))
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "labctl.cli", "exec", "web", "--", "sh", "-c", "tty; exit 5"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        assert process.wait(30) == 5
    text = os.read(controller, 4096).decode()
    os.close(controller)
    assert "/dev/" in text and "not a tty" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_can_be_continued(labctl: Cli, profile: str, number: int, home: Home) -> None:
    """Interrupted while a node that never becomes ready is waited for."""
    slow = ["-s", "nodes.db.ready={command: ['false'], timeout: 60s}"]
    command = [sys.executable, "-m", "labctl.cli", "up", profile, *slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (home.ledger.exists() and _web_runs(labctl)):
            time.sleep(0.2)
        process.send_signal(number)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "`labctl down shop` removes it" in err
    assert {node["name"] for node in document(labctl("up", profile, "--json"))["nodes"]} == {"web", "db"}


def _web_runs(labctl: Cli) -> bool:
    done = labctl("status", "shop", "--json")
    if done.returncode:
        return False
    states = {node["name"]: node["state"] for node in json.loads(done.stdout)["nodes"]}
    return states.get("web") in ("running", "ready")
