"""Files below one folder that nothing inside can lead out of (openat2(2), RESOLVE_IN_ROOT).

A tree that came from outside holds symbolic links that point anywhere; every path here is resolved by
the kernel as if the folder were "/", so a link can be followed but never leaves.
"""

from __future__ import annotations

import errno
import os
import shutil
from types import TracebackType

from labctl.image.model import BadImage
from labctl.linux.syscalls import RESOLVE_IN_ROOT, SyscallError, openat2


class Beneath:
    """A folder held open.  Paths are relative, without "..", as `clean` returns them."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> Beneath:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Drop the remembered parent: something changed that paths may lead through."""
        if self._last:
            os.close(self._last[1])
            self._last = None

    def folder(self, path: str, *, make: bool = False) -> int:
        """A descriptor (O_PATH) of the folder, following links inside; the caller must not close it.

        It stays valid until the next call of `folder` or `forget`.  With `make`, missing folders are made
        (root's, 0755).  Raises OSError, or BadImage when something on the way is no folder.
        """
        if not path:
            self.forget()
            return self.fd
        if self._last and self._last[0] == path:
            return self._last[1]
        self.forget()
        try:
            found = self._open(path)
        except FileNotFoundError:
            if not make:
                raise
            found = self._make(path)
        except NotADirectoryError:
            raise BadImage(f"{path}: part of this path is no folder") from None
        self._last = (path, found)
        return found

    def open(self, path: str, flags: int) -> int:
        """Open what `path` leads to, following links inside.  Raises OSError."""
        try:
            return openat2(self.fd, path or ".", flags | os.O_CLOEXEC, resolve=RESOLVE_IN_ROOT)
        except SyscallError as error:
            # The plain kind, so that FileNotFoundError and its like can be caught by name.
            raise OSError(error.errno, error.strerror, path) from None

    def _open(self, path: str) -> int:
        return self.open(path, os.O_PATH | os.O_DIRECTORY)

    def _make(self, path: str) -> int:
        parts = path.split("/")
        parent = os.dup(self.fd)
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            try:
                inner = self._open(prefix)
            except FileNotFoundError:
                try:
                    os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
                    os.chmod(parts[depth - 1], 0o755, dir_fd=parent)  # whatever the umask is
                    inner = self._open(prefix)
                except (FileExistsError, FileNotFoundError):
                    os.close(parent)
                    raise BadImage(f"{prefix} is a link to nowhere, and {path} would lie behind it") from None
            except NotADirectoryError:
                os.close(parent)
                raise BadImage(f"{prefix} is no folder, and {path} would lie in it") from None
            os.close(parent)
            parent = inner
        os.set_inheritable(parent, False)
        return parent

    def clear(self, parent: int, name: str) -> None:
        """Remove whatever has that name in the folder `parent`, without following it; absence is fine."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            # unlink(2) of a folder: EISDIR on Linux, EPERM by POSIX.
            shutil.rmtree(name, dir_fd=parent)


def clean(name: str) -> str:
    """A member's name as a relative path without "." and empty parts ("" is the root itself).

    Raises BadImage for a name with "..", a NUL or of impossible length.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadImage(f"{_shown(name)} would lie outside of the image")
    path = "/".join(parts)
    if "\0" in path or len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise BadImage(f"{_shown(name)} is no usable file name")
    return path


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")


def absent(error: OSError) -> bool:
    """Whether the error means that there is nothing of that name."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)
