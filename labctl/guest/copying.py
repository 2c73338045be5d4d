"""Copies between the host and a node: `docker cp`'s rules, for any node whose file tree can be reached.

The rules (docs.docker.com, "docker container cp"): a file onto a folder lands in it; onto a name that isn't
there, it gets that name; a folder onto a folder lands in it under its own name, unless it was given as
`SRC/.`, which stands for its content; a folder onto a file is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol, TypeVar

from labctl.errors import LabError, UsageError
from labctl.guest import trees
from labctl.guest.machine import Copied
from labctl.records import dataclass

S = TypeVar("S")
T = TypeVar("T")


class Tree(Protocol):
    """The file tree of a node."""

    def look(self, path: str) -> tuple[str, str]:
        """(dir, file, absent, or link for one that leads nowhere; the path with its links followed)."""

    def pack(self, out: IO[bytes], directory: str, name: str) -> None:
        """Write one entry of a folder and all below it as a tar stream, under its name (or ./name)."""

    def unpack(self, stream: IO[bytes], directory: str) -> None:
        """Unpack a tar stream below a folder that is there."""


@dataclass(frozen=True)
class _Landing:
    """Where a copy lands: the folder that is there, and the name in it ("." = the folder itself)."""

    folder: str
    name: str


def copy_in(tree: Tree, src: str, dest: str, stream: IO[bytes] | None, where: str) -> Copied:
    """Copy `src` of the host, or the tar archive `stream` when src is "-", to `dest` in the node."""
    kind, real = tree.look(_absolute(dest))
    if src == "-":
        if stream is None:
            raise UsageError("a copy from - needs a tar archive on its input")
        if kind != "dir":
            raise UsageError(f"{where}:{dest} is no folder", hint="a tar archive is unpacked in a folder")
        tree.unpack(stream, real)
        return Copied()
    source = Path(src)
    content = _is_content(src)
    try:
        is_dir = (
            source.is_dir() if content or src.endswith("/") else source.is_dir() and not source.is_symlink()
        )
        source.lstat()
    except OSError as error:
        raise UsageError(f"cannot read {src}: {error.strerror}") from error
    if not is_dir and src.endswith(("/", "/.")):
        raise UsageError(f"{src} is a file, not a folder")
    landing = _landing(f"{where}:{dest}", kind, real, dest, is_dir, content, _base(src))
    folder, name = _split(str(source.resolve()) if src.endswith(("/", "/.")) or src == "." else src)
    done, _ = through_pipe(
        lambda out: trees.pack(out, folder, name, landing.name),
        lambda inp: tree.unpack(inp, landing.folder),
    )
    return _copied(done)


def copy_out(tree: Tree, src: str, dest: str, stream: IO[bytes] | None, where: str) -> Copied:
    """Copy `src` of the node to `dest` on the host, or as a tar archive to `stream` when dest is "-"."""
    path = _absolute(src)
    kind, real = tree.look(path)
    if kind == "absent" or (kind == "link" and src.endswith(("/", "/."))):
        raise UsageError(f"there is no {where}:{src}")
    # Like docker cp: a link is copied as a link, unless its content was asked for.
    folder, name = _split(real if src.endswith(("/", "/.")) else path)
    if dest == "-":
        if stream is None:
            raise UsageError("a copy to - needs an output for the tar archive")
        tree.pack(stream, folder, name)
        return Copied()
    there, target = trees.look(dest)
    landing = _landing(dest, there, target, dest, kind == "dir", _is_content(src), _base(path))
    try:
        unpacker = trees.Unpacker(landing.folder, trusted=False, owners=os.geteuid() == 0)
    except OSError as error:
        raise UsageError(f"cannot write {dest}: {landing.folder}: {error.strerror}") from error
    _, done = through_pipe(
        lambda out: tree.pack(out, folder, name),
        lambda inp: unpacker.unpack(inp, (name, landing.name)),
    )
    return _copied(done)


def _copied(done: trees.Summary) -> Copied:
    return Copied(done.entries, done.size, tuple(done.skipped))


def through_pipe(write: Callable[[IO[bytes]], S], read: Callable[[IO[bytes]], T]) -> tuple[S, T]:
    """Run a writer and a reader at the two ends of a pipe: what both returned, or the first real failure.

    Raises LabError: for the cause's message, the cause itself when it is one already.
    """
    inner, outer = os.pipe()
    failed: list[Exception] = []
    written: list[S] = []

    def writer() -> None:
        try:
            with open(outer, "wb") as out:  # noqa: PTH123
                written.append(write(out))
        except BrokenPipeError:
            pass  # the reader gave up, and says why
        except (LabError, OSError, ValueError) as error:
            failed.append(error)

    thread = threading.Thread(target=writer, name="copy", daemon=True)
    thread.start()
    result: list[T] = []
    mine: Exception | None = None
    try:
        with open(inner, "rb") as inp:  # noqa: PTH123
            result.append(read(inp))
            while inp.read(1 << 16):  # the padding after a tar archive
                pass
    except (LabError, OSError, ValueError) as error:
        mine = error
    finally:
        thread.join(60)
    cause = failed[0] if failed else mine
    if isinstance(cause, LabError):
        raise cause
    if cause is not None:
        raise LabError(f"the copy failed: {cause}") from cause
    if not written:
        raise LabError("the copy failed: the other side took only a part of it")
    return written[0], result[0]


def _landing(
    shown: str, kind: str, real: str, dest: str, source_is_dir: bool, content: bool, base: str
) -> _Landing:
    if kind == "dir":
        return _Landing(real, "." if content and source_is_dir else base)
    if kind == "file":
        if source_is_dir:
            raise UsageError(f"{shown} is a file, and a folder can't be copied onto it")
        if dest.endswith(("/", "/.")):
            raise UsageError(f"{shown} is a file, not a folder")
        return _Landing(*_split(real))
    if dest.endswith("/") and not source_is_dir:
        raise UsageError(f"there is no folder {shown}", hint="make it first, or leave out the last /")
    return _Landing(*_split(real))


def _absolute(path: str) -> str:
    """Paths in a node count from its /, whatever the working folder is there."""
    if not path:
        raise UsageError("the path in the node is empty", hint="use LAB/NODE:/path")
    return path if path.startswith("/") else "/" + path


def _is_content(path: str) -> bool:
    return path.endswith("/.") or path == "."


def _base(path: str) -> str:
    """The name that a copy of `path` gets in a folder."""
    trimmed = path[:-2] if path.endswith("/.") else path
    name = os.path.basename(os.path.abspath(trimmed))  # noqa: PTH100, PTH119
    return name or "."


def _split(path: str) -> tuple[str, str]:
    trimmed = path.rstrip("/") or "/"
    if trimmed == "/":
        return "/", "."
    folder, name = os.path.split(trimmed)
    return folder or ".", name
