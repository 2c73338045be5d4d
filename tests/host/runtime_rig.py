"""A small root file system and a keeper's folder, for the tests of the runtime."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labctl.linux import proc
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import logbook, logread, spec
from labctl.runtime.client import ContainerState, KeeperClient, Launch
from labctl.runtime.execute import exec_in

BUSYBOX = "/bin/busybox"
REPOSITORY = Path(__file__).resolve().parents[2]
LABRUN = [sys.executable, "-I", "-S", str(REPOSITORY / "scripts/labrun")]


def busybox_root(path: Path) -> Path:
    """A root file system of busybox and its links, with a user `web`."""
    for name in ("bin", "etc", "tmp", "root", "srv"):
        (path / name).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, timeout=10, check=True)
    for name in listed.stdout.split():
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nwebs:x:34:\nextra:x:44:web\n")
    return path


class Rig:
    """Containers of one test: `start`, `run` a command in one, and everything removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = busybox_root(folder / "image")
        self.instance = f"t{secrets.token_hex(4)}"
        self.client = KeeperClient(folder / "run")
        self.layout = Layout.detect()

    def cgroup(self, name: str) -> Cgroup:
        return Cgroup(f"/labctl/{self.instance}/lab/{name}", self.layout)

    def bundle(self, name: str, script: str | list[str], **settings: Any) -> Launch:
        """Write the bundle of one container; `script` is a shell script or an argv."""
        folder = self.folder / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        argv = script if isinstance(script, list) else ["/bin/sh", "-c", script]
        change: Callable[[dict[str, Any]], None] | None = settings.pop("change", None)
        config = spec.default_config(
            argv,
            **{
                "cgroup": self.cgroup(name).path,
                "hostname": name,
                "lowers": [str(self.image)],
                "upper": str(folder / "upper"),
                "work": str(folder / "work"),
                "stdout": str(folder / "stdout"),
                "stderr": str(folder / "stderr"),
                **settings,
            },
        )
        if change is not None:
            change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return Launch(name, str(folder))

    def start(
        self, name: str, script: str | list[str] = "exec sleep 1000", **settings: Any
    ) -> ContainerState:
        """Start one and say what it is; a failure to start fails the test."""
        errors = self.client.launch([self.bundle(name, script, **settings)], 30.0)
        assert errors == {name: ""}, errors
        return self.client.states()[name]

    def failure(self, name: str, script: str | list[str], **settings: Any) -> str:
        """Why one doesn't start; nothing of it may be left."""
        errors = self.client.launch([self.bundle(name, script, **settings)], 30.0)
        assert errors[name], "it started"
        assert not self.cgroup(name).exists()
        assert name not in self.client.states()
        return errors[name]

    def run(self, name: str, *argv: str, data: bytes = b"", **settings: Any) -> tuple[int, str]:
        """Run a command in a container: (exit code, stdout and stderr)."""
        reader, writer = os.pipe()
        given, give = os.pipe()
        try:
            os.write(give, data)
            os.close(give)
            streams = {"stdin": given, "stdout": writer, "stderr": writer}
            code = exec_in(self.client.states()[name], argv, **{**streams, **settings})
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
            os.close(given)
        with os.fdopen(reader, "rb") as file:
            return code, file.read().decode()

    def sh(self, name: str, script: str, **settings: Any) -> str:
        """The output of a shell script that must succeed."""
        code, text = self.run(name, "sh", "-c", script, **settings)
        assert code == 0, text
        return text.strip()

    def output(self, name: str) -> str:
        self.client.flush()
        frames = logread.read(str(self.folder / "nodes" / name), logread.Wanted(logbook.OUT))
        return b"".join(data for _, _, data in frames).decode()

    def wait_for_output(self, name: str, text: str, seconds: float = 10.0) -> str:
        end = time.monotonic() + seconds
        while text not in (said := self.output(name)):
            assert time.monotonic() < end, f"no {text!r} in {said[-300:]!r}"
            time.sleep(0.01)
        return said

    def leftovers(self) -> list[str]:
        """What a removed lab must not leave: cgroups, mounts, processes, state."""
        roots = {self.layout.v2, *self.layout.v1.values()} - {""}
        places = [Path(root, "labctl", self.instance) for root in roots]
        found = [str(path) for path in places if path.exists()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if str(self.folder) in line]
        for path in Path("/proc").glob("[0-9]*/cgroup"):
            try:
                # A zombie of a dead keeper still names its cgroup, until the host's own pid 1 reaps it.
                if self.instance in path.read_text() and proc.alive(int(path.parent.name)):
                    found.append(str(path))
            except OSError:
                continue
        return found + self.client.store.ids()

    def close(self) -> None:
        errors = self.client.delete(self.client.store.ids())
        self.client.close()
        assert not any(errors.values()), errors
        assert self.leftovers() == []


def labrun(*argv: str, timeout: float = 30.0, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run labrun in a cold process."""
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **settings}
    return subprocess.run([*LABRUN, *argv], timeout=timeout, check=False, **settings)
