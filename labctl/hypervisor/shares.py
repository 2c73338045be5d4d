"""The daemon behind folders that machines share with this host: virtiofsd, found where libvirt finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from labctl.errors import HostCannot

# QEMU, docs/interop/vhost-user.json: each folder overrides files of the same name in those after it.
FOLDERS = ("/etc/qemu/vhost-user", "/usr/share/qemu/vhost-user")


def daemon() -> str:
    """The program that serves folders to machines.  Raises HostCannot when none is installed."""
    for file in _descriptions():
        try:
            told = json.loads(file.read_text())
        except (OSError, ValueError):
            continue  # libvirt passes over what it can't read as well
        binary = told.get("binary", "") if isinstance(told, dict) and told.get("type") == "fs" else ""
        if isinstance(binary, str) and os.access(binary, os.X_OK):
            return binary
    raise HostCannot(
        "a virtual machine can have no volumes here: virtiofsd is not installed",
        hint="apt-get install virtiofsd (Debian 12: qemu-system-common)",
    )


def _descriptions() -> Iterator[Path]:
    files: dict[str, Path] = {}
    for folder in reversed(FOLDERS):
        files |= {path.name: path for path in Path(folder).glob("*.json")}
    yield from (files[name] for name in sorted(files))
