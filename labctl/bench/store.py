"""The samples of a run on disk: one file of JSON lines, each whole and on the disk before the next is begun.

The first line tells the schema and the plan.  Further lines are `conditions`, `task`, `place`, `sample`,
`cell` (why a benchmark has no figure in a place), `note` and `end`.  A kill loses at most the line that
was being written.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labctl.errors import Busy, LabError, UsageError, Where

SCHEMA = 1
NAME = "samples.jsonl"
OUTPUT_LIMIT = 16_384  # characters of a run's output that are kept


class Journal:
    """The file while a run writes it.  Raises Busy when another does, LabError when it can't be written."""

    def __init__(self, folder: Path) -> None:
        import fcntl

        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise failed(self.path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise Busy(
                f"another labctl bench writes {self.path}", hint="wait for it, or choose another --out"
            ) from error
        self._drop_torn()

    def _drop_torn(self) -> None:
        """Cut off a last line that a kill left unfinished."""
        size = os.fstat(self._file).st_size
        if not size:
            return
        tail = os.pread(self._file, min(size, 1 << 20), max(0, size - (1 << 20)))
        if not tail.endswith(b"\n"):
            os.ftruncate(self._file, size - len(tail) + tail.rfind(b"\n") + 1)

    def write(self, kind: str, body: Mapping[str, Any]) -> None:
        """Add a line, and wait until the disk has it.  Raises LabError (a full disk)."""
        line = json.dumps({"type": kind, "at": round(time.time(), 3), **body}, ensure_ascii=False) + "\n"
        data = line.encode("utf-8", "replace")
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise failed(self.path, error) from error

    def close(self) -> None:
        """Close the file; its lock goes with it."""
        os.close(self._file)


def failed(path: Path, error: OSError) -> LabError:
    """What to raise when a file of a run can't be read or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LabError(
            f"cannot write {path}: the disk is full",
            hint="what was measured is kept; make room and run the same command again to go on",
        )
    return LabError(f"cannot use {path}: {error.strerror}", hint="choose another folder with --out")


def exists(folder: Path) -> bool:
    """Whether a run has been begun there."""
    try:
        return (folder / NAME).stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise failed(folder / NAME, error) from error


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run.  Raises UsageError for what is no run, is broken, or is from a newer labctl."""
    path = folder / NAME if folder.is_dir() else folder
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no run: there is no {NAME} in it", hint="labctl bench PROFILE --out DIR"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    found = list(_lines(text, path))
    if not found or found[0].get("type") != "run":
        raise UsageError(f"{path} holds no run: its first line is none of labctl bench")
    schema = found[0].get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise UsageError(
            f"{path} has no schema version that is known", where=Where(str(path), 1, field="schema")
        )
    if schema > SCHEMA:
        raise UsageError(
            f"{path} was written by a newer labctl (schema {schema}; this one reads up to {SCHEMA})",
            hint="use that labctl, or a newer one",
        )
    return found


def _lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return  # the line that was being written when the run was killed
            raise UsageError(f"this line is broken: {error}", where=Where(str(path), number)) from error
        if not isinstance(body, dict):
            raise UsageError("this line is no JSON object", where=Where(str(path), number))
        yield body
