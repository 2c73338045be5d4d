"""The note in a lab's folder of what the host's forwarding was: written before the first switch is moved.

The lab's nft table holds the same record, for other labctls to see; this one is there when somebody has
flushed the firewall.  It is about one boot and one network namespace, as the switches are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from labctl.linux import proc

NAME = "forwarding.json"


def _here() -> list[object]:
    space = os.stat("/proc/self/ns/net")  # noqa: PTH116 - of a link of the kernel's
    return [proc.boot_id(), space.st_dev, space.st_ino]


def write(folder: str, former: dict[str, str]) -> None:
    """Have it on disk that these sysctls had these values; without any, the note goes.  Raises OSError."""
    path = Path(folder, NAME)
    if not former:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump({"where": _here(), "former": former}, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read(folder: str) -> dict[str, str]:
    """What the note says; {} without one, and for one of another boot or namespace."""
    try:
        note = json.loads(Path(folder, NAME).read_text(encoding="utf-8"))
        former = note["former"] if note["where"] == _here() else {}
        return {str(key): str(value) for key, value in former.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # no note, or the rest of one: then the table alone is asked


def others(folder: str) -> list[dict[str, str]]:
    """What the notes of the home's other labs say."""
    own = Path(folder)
    try:
        return [read(str(path)) for path in own.parent.iterdir() if path != own]
    except OSError:
        return []
