"""Why a machine's kernel gave up, and what else it said last, from what its console printed."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 16384  # a panic is followed by a page of registers and the call trace
# kernel/panic.c: "Kernel panic - not syncing: REASON"; what the bracket holds is the time since its boot.
_WORDS = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")
_READY = b"LABCTL-READY"  # what labctl's init says at the end of a boot


# What a terminal would not show as text: ECMA-48's control sequences, and single control characters.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")


def last_words(console_log: str) -> str:
    """The reason of the last panic that no later boot followed; "" when there is none, or no log."""
    return words_in(_tail(console_log))


def last_lines(console_log: str, count: int) -> list[str]:
    """The last lines that aren't empty, as text; [] when there are none, or no log."""
    text = _CONTROL.sub("", _tail(console_log).decode(errors="replace").replace("\r", "\n"))
    return [line.rstrip()[:200] for line in text.splitlines() if line.strip()][-count:]


def _tail(console_log: str) -> bytes:
    try:
        with Path(console_log).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            return log.read()
    except OSError:  # no log, or another user's
        return b""


def words_in(tail: bytes) -> str:
    """The same from the end of what a console printed."""
    found = _WORDS.findall(tail.rpartition(_READY)[2])
    return found[-1].decode(errors="replace").strip() if found else ""
