"""The serial console of a virtual machine: what it printed, and a line to type on.

By opening QEMU's pty, not through libvirt's stream: a blocking stream read in one thread keeps other calls on
the same connection from being sent (seen with libvirt 9.0: one in five stalled until the next byte came).
So this works for machines of this host.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from labctl.errors import Busy, HostCannot, LabError
from labctl.hypervisor import processes
from labctl.hypervisor.domain import Domain

ESCAPE = b"\x1d"  # ^] as in telnet and virsh
_CHUNK = 4096


def attach(domain: Domain, fd_in: int, fd_out: int, *, escape: bytes = ESCAPE, force: bool = False) -> str:
    """Join a terminal to the console until `escape` is typed, input ends or the machine goes off.

    A terminal on `fd_in` is in raw mode meanwhile.  Returns why it ended: "escape", "input" or "machine".
    Raises Busy when someone else is attached (`force` joins beside them), LabError when the machine is off,
    Missing or Foreign as Domain.with_domain does, HostCannot when it runs on another host.
    """
    return join(_terminal(domain), domain.name, fd_in, fd_out, escape=escape, force=force)


def join(
    path: str, name: str, fd_in: int, fd_out: int, *, escape: bytes = ESCAPE, force: bool = False
) -> str:
    """The same for the pseudo-terminal `path`, which is the console of the machine `name`."""
    line = _open(path, name, force)
    try:
        with raw(fd_in):
            return _relay(line, fd_in, fd_out, escape)
    finally:
        os.close(line)


def _terminal(domain: Domain) -> str:
    path = terminal(domain, "serial")
    if not path or not processes.pid_of(domain.uuid):
        raise HostCannot(
            f"the console of {domain.name} is on another host",
            hint=f"virsh -c {domain.uri} console {domain.domain}",
        )
    return path


def terminal(domain: Domain, device: str) -> str:
    """The pseudo-terminal that is the machine's `serial` or `console` device; "" where libvirt names none.

    Raises LabError when the machine is off.
    """
    text = domain.with_domain(lambda found: found.XMLDesc() if found.isActive() else "")
    if not text:
        raise LabError(f"{domain.name} is not running", hint="labctl start")
    source = ElementTree.fromstring(text).find(f"devices/{device}/source")
    path = source.get("path", "") if source is not None else ""
    return path if path.startswith("/dev/pts/") else ""


def _open(path: str, name: str, force: bool) -> int:
    try:
        line = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"console of {name}: {path}: {error.strerror}", hint="run as root") from error
    try:
        fcntl.flock(line, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not force:
            os.close(line)
            raise Busy(
                f"someone else is at the console of {name}", hint="use --force to join beside them"
            ) from error
    return line


def _relay(line: int, fd_in: int, fd_out: int, escape: bytes) -> str:
    """Copy both ways.  What was typed before the end is sent before returning, if the guest takes it."""
    pending, end = b"", ""
    while not end or pending:
        reading = [line] if end else [line, fd_in]
        ready, writable, _ = select.select(reading, [line] if pending else [], [], 5 if end else None)
        if not ready and not writable:
            break  # the guest no longer takes what was typed
        if line in ready and not _copy_out(line, fd_out):
            return "machine"
        if writable:
            pending = pending[_send(line, pending) :]
        if fd_in in ready:
            data = os.read(fd_in, _CHUNK)
            typed, found, _ = data.partition(escape) if escape else (data, b"", b"")
            pending += typed
            end = "escape" if found else "" if data else "input"
    return end


def _send(line: int, data: bytes) -> int:
    try:
        return os.write(line, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno == errno.EIO:
            return 0  # hung up: the next read says so
        raise


def _copy_out(line: int, fd_out: int) -> bool:
    """Pass on what the machine printed; False when it has gone off."""
    try:
        data = os.read(line, _CHUNK)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno == errno.EIO:
            return False
        raise
    view = memoryview(data)
    while view:
        view = view[os.write(fd_out, view) :]
    return bool(data)


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode (termios(3)) for a terminal, its old settings afterwards; nothing for other files."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def log_tail(domain: Domain, size: int = 65536) -> bytes:
    """The last `size` bytes that the machine printed, also of earlier starts; empty when there is no log."""
    if not domain.console_log:
        return b""
    try:
        with Path(domain.console_log).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()
    except FileNotFoundError:
        return b""
