"""A whole lab under test, handled by the command line as a person would, in a home of its own."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labctl.home import Home
from tests.shared_images import shared_cache

CONTAINERS = ("root", "netns", "overlay", "cgroup", "userns", "idmap", "nft", "dnsmasq")


def use_shared_cache(home: Home) -> None:
    """Let the home use the cache of all homes of the tests."""
    shared = shared_cache()
    if home.cache.is_dir() and not home.cache.is_symlink():
        shutil.rmtree(home.cache)
    if not home.cache.is_symlink():
        home.cache.parent.mkdir(parents=True, exist_ok=True)
        home.cache.symlink_to(shared)


class Lab:
    """A profile in a file, and the verbs on it.  `good` calls must end with 0."""

    def __init__(self, home: Home, folder: Path, name: str, text: str) -> None:
        self.home, self.name = home, name
        self.file = folder / f"{name}.yaml"
        self.write(text)
        use_shared_cache(home)

    def write(self, text: str) -> None:
        """The profile from now on."""
        self.file.write_text(text)

    def environment(self, **env: str) -> dict[str, str]:
        """What verbs run with: ours, and `env` on top."""
        return {**os.environ, **env}

    def run(
        self, *words: str, timeout: float = 120, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Any verb, whatever comes of it."""
        return subprocess.run(
            [sys.executable, "-m", "labctl.cli", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(**env),
            check=False,
        )

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Any verb, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "labctl.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**env),
        )

    def good(self, *words: str, timeout: float = 120, **env: str) -> str:
        """What a verb prints; it must end with 0."""
        done = self.run(*words, timeout=timeout, **env)
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def up(self, *words: str, timeout: float = 300, **env: str) -> dict[str, Any]:
        """`up` of the profile, and the document that it prints."""
        told = self.good("up", str(self.file), "--json", *words, timeout=timeout, **env)
        document: dict[str, Any] = json.loads(told)
        return document

    def fails(self, code: int, *words: str, timeout: float = 120, **env: str) -> str:
        """What a verb says that must end with this exit code: one message, and no traceback."""
        done = self.run(*words, timeout=timeout, **env)
        assert done.returncode == code, f"{' '.join(words)}: {done.returncode}: {done.stderr}{done.stdout}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def up_fails(self, code: int, *words: str, timeout: float = 120, **env: str) -> str:
        """The message of an `up` of the profile that must end with this exit code."""
        return self.fails(code, "up", str(self.file), *words, timeout=timeout, **env)

    def sh(self, node: str, script: str) -> str:
        """What a shell script in a node prints, stripped."""
        return self.good("exec", f"{self.name}/{node}", "--", "sh", "-c", script).strip()

    def code(self, node: str, script: str) -> int:
        """The exit code of a shell script in a node."""
        return self.run("exec", f"{self.name}/{node}", "--", "sh", "-c", script).returncode

    def console(self, node: str, typed: bytes, until_said: bytes) -> bytes:
        """Sit at a node's console: press Enter, type, read until something is said, leave with Ctrl-].

        Each answer must come within a minute.
        """
        argv = [sys.executable, "-m", "labctl.cli", "console", f"{self.name}/{node}"]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment()
        ) as there:
            assert there.stdin and there.stdout
            said = b""
            for words, answer in ((b"\r\n", b"# "), (typed, until_said)):
                there.stdin.write(words)
                there.stdin.flush()
                ends = time.monotonic() + 60
                while answer not in said:
                    if not select.select([there.stdout], [], [], max(0.0, ends - time.monotonic()))[0]:
                        there.kill()
                        raise AssertionError(f"no {answer!r} in {said!r}")
                    more = os.read(there.stdout.fileno(), 1000)
                    assert more, said
                    said += more
            there.stdin.write(b"\x1d")
            there.stdin.close()
            there.wait(20)
        return said

    def status(self) -> dict[str, dict[str, Any]]:
        """name → node, as `status` has them."""
        nodes = json.loads(self.good("status", self.name, "--json"))["nodes"]
        return {node["name"]: node for node in nodes}

    def states(self) -> dict[str, str]:
        """name → state."""
        return {name: str(node["state"]) for name, node in self.status().items()}

    def starts(self, *nodes: str) -> dict[str, str]:
        """node → when its first process started, in the kernel's ticks: another one means another machine."""
        return {node: self.sh(node, "cut -d' ' -f22 /proc/1/stat") for node in nodes}

    def labs(self) -> list[str]:
        """All labs of the home."""
        return [lab["lab"] for lab in json.loads(self.good("ls", "--json"))["labs"]]

    def down(self) -> None:
        """Take it down."""
        self.good("down", self.name)


def touched(document: dict[str, Any]) -> dict[str, str]:
    """key → "action: reason" of what a verb's document says was not kept."""
    return {c["key"]: f"{c['action']}: {c['reason']}" for c in document["changes"] if c["action"] != "keep"}


def until(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def listener(node_command: Sequence[str] = ("httpd", "-f", "-p", "80", "-h", "/var/www")) -> str:
    """A command that serves micro's page, as YAML."""
    return json.dumps(list(node_command))
