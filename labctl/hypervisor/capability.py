"""What a trial found out, and the cache of it: per boot of the host, kernel and version of QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from labctl.home import Home
from labctl.hypervisor.private import boot_id
from labctl.records import dataclass


@dataclass(frozen=True)
class Capability:
    """Whether something works here.  `reason` and `remedy` are sentences for a person; `seconds` is what
    finding out took."""

    name: str
    ok: bool
    reason: str = ""
    remedy: str = ""
    detail: str = ""
    seconds: float = 0.0


def cached(
    home: Home, name: str, program: Path, trial: Callable[[], Capability], *, fresh: bool
) -> Capability:
    """The remembered answer, or the trial's.  An unreadable or damaged cache is as good as none."""
    path = home.cache / "probes.json"
    key = _key(name, program)
    known = _load(path)
    if not fresh and key in known:
        with contextlib.suppress(TypeError):
            return Capability(**known[key])  # type: ignore[arg-type]
    begun = monotonic()
    found = trial()
    found = Capability(found.name, found.ok, found.reason, found.remedy, found.detail, monotonic() - begun)
    # Answers of earlier boots are worth nothing any more.
    kept = {old: value for old, value in _load(path).items() if boot_id() in old}
    _save(path, kept | {key: asdict(found)})
    return found


def _key(name: str, program: Path) -> str:
    """QEMU's version by its file: as strict as asking it, and free."""
    info = program.stat()
    qemu = f"{program} {info.st_ino} {info.st_size} {info.st_mtime_ns}"
    return f"{name} {boot_id()} {platform.release()} {qemu} {os.geteuid()}"


def _load(path: Path) -> dict[str, dict[str, object]]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {key: value for key, value in raw.items() if isinstance(key, str) and isinstance(value, dict)}


def _save(path: Path, answers: dict[str, dict[str, object]]) -> None:
    # A cache that can't be written costs time, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="probes.", delete=False) as file:
            json.dump(answers, file, indent=1)
        Path(file.name).replace(path)
