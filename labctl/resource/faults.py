"""Places at which a test can have this process killed, so that crash safety is shown and not hoped for.

Off unless LABCTL_FAULT is set:
  LABCTL_FAULT=log:FILE    append the name of every point that is passed to FILE
  LABCTL_FAULT=kill:N      SIGKILL this process when the N-th point (from 1) is reached
  LABCTL_FAULT=kill@NAME   SIGKILL this process at the point of that name
"""

from __future__ import annotations

import os
import signal
import threading

_lock = threading.Lock()
_passed = 0


def point(name: str) -> None:
    """Pass the point `name`: nothing happens unless a test asked for a fault here."""
    wanted = os.environ.get("LABCTL_FAULT")
    if wanted:
        _act(wanted, name)


def _act(wanted: str, name: str) -> None:
    global _passed
    with _lock:
        _passed += 1
        verb, _, what = wanted.partition(":")
        if verb == "log":
            with open(what, "a", encoding="utf-8") as file:  # noqa: PTH123 - one line, appended
                file.write(f"{_passed} {name}\n")
        elif (verb == "kill" and int(what) == _passed) or wanted == f"kill@{name}":
            os.kill(os.getpid(), signal.SIGKILL)
