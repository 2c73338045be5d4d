"""Getting at the text of a profile: every way in which that can fail has one sentence."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from labctl.data import data
from labctl.errors import Problem, ProfileError, Where
from labctl.profile.words import nearest
from labctl.records import dataclass

LIMIT = 1_000_000  # bytes; the largest lab known to us needs a twentieth


@dataclass(frozen=True)
class Source:
    """The text of a profile and where it is from."""

    text: str
    folder: Path  # where its relative paths start from
    name: str  # as it was asked for, for messages
    file: str = ""  # its absolute path; empty for standard input


def read_text(path: str | Path) -> Source:
    """The text of a profile.

    A name without a slash that is no file here may be a shipped profile ("hello"); "-" is standard
    input.  Raises ProfileError; never reads more than LIMIT bytes.
    """
    if str(path) == "-":
        text = _decode(sys.stdin.buffer.read(LIMIT + 1), "standard input")
        return Source(text, Path.cwd(), "standard input")
    file = str(path)
    real = _locate(file)
    try:
        # O_NONBLOCK: a named pipe without a writer must not hold us up.
        handle = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            raw = _read(handle, file, real)
        finally:
            os.close(handle)
    except OSError as error:
        raise _no(file, f"can't be read: {error.strerror}") from error
    full = real.absolute()
    return Source(_decode(raw, file), full.parent, file, str(full))


def _read(handle: int, file: str, real: Path) -> bytes:
    """All of a regular file that is not too large."""
    status = os.fstat(handle)
    if stat.S_ISDIR(status.st_mode):
        raise _no(file, "is a folder, not a profile", _inside(real))
    if not stat.S_ISREG(status.st_mode):
        raise _no(file, "is no regular file", "use - for standard input")
    if status.st_size > LIMIT:
        raise _too_large(file, status.st_size)
    raw = b""
    while len(raw) <= LIMIT and (piece := os.read(handle, LIMIT + 1 - len(raw))):
        raw += piece
    return raw


def shipped() -> list[str]:
    """The names of the profiles that come with labctl."""
    folder = data("profiles")
    return sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []


def _locate(file: str) -> Path:
    if not file or "\0" in file:
        raise _no(file, "is no file name")
    path = Path(file)
    try:
        if path.exists() or path.is_symlink():
            return path
    except OSError as error:  # a name that is too long, a folder that can't be entered
        raise _no(file, f"can't be read: {error.strerror}") from error
    names = shipped()
    if "/" not in file and file.removesuffix(".yaml") in names:
        return data("profiles", file.removesuffix(".yaml") + ".yaml")
    folder = path.parent
    try:
        near = [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")] if folder.is_dir() else []
    except OSError:
        near = []  # only the suggestion is lost
    guess = nearest(path.name, [*near, *names]).removeprefix("; ")
    raise _no(file, "there is no such file", guess or f"profiles that come with labctl: {', '.join(names)}")


def _inside(folder: Path) -> str:
    try:
        found = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return ""
    return f"profiles in it: {', '.join(found[:5])}" if found else ""


def _decode(raw: bytes, file: str) -> str:
    if len(raw) > LIMIT:
        raise _too_large(file, len(raw))
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _no(file, "is UTF-16 text", "save it as UTF-8")
    if b"\0" in raw:
        raise _no(file, "is a binary file, not YAML")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
        line = raw.count(b"\n", 0, at) + 1
        column = at - (raw.rfind(b"\n", 0, at) + 1) + 1
        problem = Problem("the text is not UTF-8", Where(file, line, column), "save it as UTF-8")
        raise ProfileError([problem]) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise _no(file, "is empty", "`labctl init` writes one to start from")
    return text


def _too_large(file: str, size: int) -> ProfileError:
    return _no(file, f"has {size} bytes; {LIMIT} are the limit of a profile", "is it the right file?")


def _no(file: str, message: str, hint: str = "") -> ProfileError:
    name = file if len(file) <= 300 else file[:299] + "…"
    return ProfileError([Problem(message, Where(name or "''"), hint)])
