"""A busybox container of the test's own, by labctl's runtime."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labctl.guest.container import ContainerMachine
from labctl.runtime import spec
from labctl.runtime.client import KeeperClient, Launch

APPLETS = """sh cat echo ls sleep id tar printf ps readlink stty mount pwd ln mkdir rm true hostname dmesg
env head dd sha256sum"""
INSTANCE = f"guesttest{os.getpid()}"


def rootfs(base: Path) -> Path:
    """A root file system with nothing but busybox."""
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "usr", "srv"):
        (base / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", base / "bin/busybox")
    for name in APPLETS.split():
        (base / "bin" / name).symlink_to("busybox")
    (base / "usr/lib").mkdir()
    (base / "lib").symlink_to("usr/lib")
    (base / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n")
    (base / "etc/group").write_text("root:x:0:\nweb:x:44:\n")
    (base / "etc/os-release").write_text('PRETTY_NAME="Test OS 1"\n')
    return base


@contextmanager
def container(base: Path, argv: list[str], name: str = "box", **more: Any) -> Iterator[ContainerMachine]:
    """Run argv in a container until the block ends."""
    rootfs(base / "lower")
    for part in ("upper", "work", "log", "run"):
        (base / part).mkdir()
    etc: Mapping[str, str] = {"/etc/hosts": str(base / "hosts")}
    (base / "hosts").write_text("127.0.0.1 localhost\n")
    config = spec.default_config(
        argv,
        cgroup=f"/labctl/{INSTANCE}/{base.name}/{name}",
        hostname=name,
        lowers=[str(base / "lower")],
        upper=str(base / "upper"),
        work=str(base / "work"),
        files=etc,
        stdout=str(base / "log/stdout"),
        stderr=str(base / "log/stderr"),
        memory=64 << 20,
        pids=64,
        **more,
    )
    (base / "config.json").write_text(json.dumps(config))
    client = KeeperClient(base / "run")
    try:
        assert client.launch([Launch(name, str(base))], 20.0) == {name: ""}
        yield ContainerMachine(base / "run", name, f"lab/{name}")
    finally:
        client.delete([name])
        client.close()
