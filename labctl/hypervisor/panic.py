"""Why a machine's kernel gave up, from the last words on its console."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 16384  # a panic is followed by a page of registers and the call trace
# kernel/panic.c: "Kernel panic - not syncing: REASON"; what the bracket holds is the time since its boot.
_WORDS = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{1,200})")
_READY = b"LABCTL-READY"  # what labctl's init says at the end of a boot


def last_words(console_log: str) -> str:
    """The reason of the last panic that no later boot followed; "" when there is none, or no log."""
    try:
        with Path(console_log).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            tail = log.read()
    except OSError:  # no log, or another user's
        return ""
    return words_in(tail)


def words_in(tail: bytes) -> str:
    """The same from the end of what a console printed."""
    found = _WORDS.findall(tail.rpartition(_READY)[2])
    return found[-1].decode(errors="replace").strip() if found else ""
