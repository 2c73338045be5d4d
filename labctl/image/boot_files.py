"""Files of the boot cache: one writer at a time, and nothing half-written under a final name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from labctl.errors import HostCannot, LabError, TimedOut

LOCK_SECONDS = 1800.0  # the longest piece of work under a lock: a kernel download over a slow line


@contextmanager
def locked(path: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold an exclusive flock(2) on `path`, made when missing; the kernel drops it when we die.

    Raises TimedOut after `timeout` seconds, LabError when the file can't be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LabError(
            f"cannot write {path}: {error.strerror}", hint="run as root, or set LABCTL_HOME"
        ) from error
    try:
        _flock(descriptor, path, timeout)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise TimedOut(f"another labctl has held {path} for more than {timeout:.0f} s")
        time.sleep(0.05)


def sweep(final: Path) -> None:
    """Remove what a killed maker of `final` left beside it.  Call it under the lock that makers hold."""
    for left in final.parent.glob(f".{final.name}.*"):
        if left.suffix == ".lock":
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def fresh_dir(final: Path) -> Iterator[Path]:
    """A new folder beside `final` that becomes `final` when the block ends well, and is removed when not.

    Call it under a lock: what a killed maker left is removed first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield work
        work.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def fresh_file(final: Path, mode: int = 0o644) -> Iterator[Path]:
    """A path beside `final` to write to (empty, 0600); it becomes `final`, with `mode`, when all is well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    os.close(descriptor)
    work = Path(name)
    try:
        yield work
        work.chmod(mode)
        work.replace(final)
    finally:
        work.unlink(missing_ok=True)


def run(argv: Sequence[str], *, timeout: float, what: str, package: str = "") -> str:
    """Run a program and return its standard output.

    Raises HostCannot when the program is not installed (`package` is the remedy), TimedOut after
    `timeout` seconds, LabError with the last lines it wrote when it fails.
    """
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": _path()}
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environ,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostCannot(
            f"{argv[0]} is not installed, so labctl can't {what}",
            hint=f"apt-get install {package or argv[0]}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{argv[0]} did not {what} within {timeout:.0f} s") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        tail = "; ".join(lines[-3:]) or f"exit code {done.returncode}"
        raise LabError(f"{argv[0]} could not {what}: {tail}")
    return done.stdout


def _path() -> str:
    """PATH with the sbin folders, which a plain user's PATH lacks (mke2fs lies there)."""
    given = os.environ.get("PATH", "/usr/bin:/bin")
    return f"{given}:/usr/sbin:/sbin"
