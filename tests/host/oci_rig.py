"""One bundle after another for `labrun`, as an engine writes them: what the conformance tests stand on."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import spec
from tests.host.runtime_rig import LABRUN, busybox_root, labrun

Config = dict[str, Any]


class Oci:
    """A bundle with a busybox root, without a user namespace, and `labrun` on a root folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.rootfs = busybox_root(self.bundle / "rootfs")
        self.root = folder / "run"
        self.cgroup = f"/labctl-oci-{os.getpid()}-{folder.name}"
        self.layout = Layout.detect()

    def config(
        self, script: str | list[str] = "true", change: Callable[[Config], None] | None = None
    ) -> Config:
        """A configuration whose program is a shell script or an argv."""
        config = spec.starting_config(rootless=False)
        process = config["process"]
        process["terminal"] = False
        process["args"] = ["/bin/sh", "-c", script] if isinstance(script, str) else script
        config["root"]["readonly"] = False
        config["linux"]["cgroupsPath"] = f"{self.cgroup}/c"
        if change is not None:
            change(config)
        return copy.deepcopy(config)

    def write(
        self, script: str | list[str] = "true", change: Callable[[Config], None] | None = None
    ) -> Config:
        """Write config.json."""
        config = self.config(script, change)
        (self.bundle / "config.json").write_text(json.dumps(config))
        return config

    def __call__(self, *argv: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return labrun("--root", str(self.root), *argv, **{"cwd": self.bundle, **settings})

    def ok(self, *argv: str, **settings: Any) -> str:
        """Run labrun; its stdout.  A failure fails the test."""
        done = self(*argv, **settings)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def quiet(self, *argv: str, **settings: Any) -> None:
        """As `ok` where the container outlives labrun, and would hold a pipe open."""
        log = self.folder / "log"
        with log.open("w") as out:
            done = self(*argv, capture_output=False, stdout=out, stderr=out, **settings)
        assert done.returncode == 0, log.read_text()

    def run(self, script: str | list[str], change: Callable[[Config], None] | None = None) -> str:
        """What a container prints; it must end with 0."""
        self.write(script, change)
        done = self("run", "c")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def refusal(self, change: Callable[[Config], None], script: str | list[str] = "true") -> str:
        """Why a container is not created; nothing of it may be left."""
        self.write(script, change)
        done = self("create", "c")
        assert done.returncode == 1, f"it was created; {done.stderr}"
        assert self.ok("list", "-q") == ""
        assert not self.group().exists()
        return done.stderr.replace('\\"', '"')

    def state(self, name: str = "c") -> Config:
        found: Config = json.loads(self.ok("state", name))
        return found

    def group(self, name: str = "c") -> Cgroup:
        return Cgroup(f"{self.cgroup}/{name}", self.layout)

    def wait_for(self, status: str, name: str = "c", seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while (now := self.state(name)["status"]) != status:
            assert time.monotonic() < end, f"still {now}"
            time.sleep(0.01)

    def popen(self, *argv: str, **settings: Any) -> subprocess.Popen[str]:
        command = [*LABRUN, "--root", str(self.root), *argv]
        return subprocess.Popen(command, cwd=self.bundle, text=True, **settings)

    def close(self) -> None:
        for name in self("list", "-q").stdout.split():
            self("delete", "--force", name)
        self.group("x").remove_empty_parents(self.cgroup)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.folder) not in mounts


def hook(script: str, *, timeout: int = 5) -> Config:
    """One hook that is a shell script."""
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout}
