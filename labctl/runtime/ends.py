"""What a keeper sees happen to its containers: ROOT/ended.jsonl, a JSON object a line.

Whoever asks for what a lab went through reads it (labctl.lab.journal).  At 256 KiB it becomes ended.jsonl.1.
"""

from __future__ import annotations

import os
import time

from labctl.linux import proc
from labctl.runtime import jsonio, state
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from labctl.linux.cgroups import Cgroup, Layout
    from labctl.runtime.state import Store

FILE = "ended.jsonl"
_MOST = 1 << 18


class Watch:
    """The kills for want of memory that are known of, by container."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, self._layout = store, layout
        self._groups: dict[str, Cgroup] = {}
        self._known: dict[str, int] = {}

    def begin(self, id_: str) -> None:
        """From now on this container's are counted."""
        try:
            document = self._store.read(id_)
        except (ContainerError, OSError):
            return  # removed meanwhile
        if document.get("cgroup"):
            self._groups[id_] = state.cgroup_of(document, self._layout)
            self._known[id_] = _kills(self._groups[id_])

    def look(self) -> None:
        """Write down what has come since the last look."""
        for id_ in list(self._groups):
            self._look(id_)

    def _look(self, id_: str) -> None:
        now = _kills(self._groups[id_])
        if now > self._known[id_]:
            _add(self._store.root, {"node": id_, "event": "oom", "count": now - self._known[id_]})
        self._known[id_] = now

    def forget(self, id_: str) -> None:
        """It is removed."""
        self._groups.pop(id_, None)
        self._known.pop(id_, None)

    def end(self, id_: str, code: int | None) -> None:
        """It has ended."""
        if id_ in self._groups:
            self._look(id_)
        self.forget(id_)
        _add(self._store.root, {"node": id_, "event": "ended", "exit_code": code})


def _kills(group: Cgroup) -> int:
    folder = group.v1.get("memory")
    text = proc.read(f"{folder}/memory.oom_control" if folder else f"{group.v2}/memory.events")
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0


def _add(root: str, row: dict[str, Any]) -> None:
    """As far as the disk lets us: a container's end is in its state as well."""
    path = f"{root}/{FILE}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, (jsonio.dumps({"at": time.time(), **row}) + "\n").encode())
            if os.fstat(fd).st_size > _MOST:
                os.rename(path, path + ".1")
        finally:
            os.close(fd)
    except OSError:
        return
