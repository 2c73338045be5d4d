"""The serial console of a virtual machine: what it printed, and a line to type on.

Through libvirt's stream, not by opening the pty: that also works with a remote libvirt, and libvirt sees to
it that one person types at a time.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labctl.errors import Busy, LabError
from labctl.hypervisor.connection import Refused, library, refusal
from labctl.hypervisor.domain import Domain

ESCAPE = b"\x1d"  # ^] as in telnet and virsh
_CHUNK = 4096


def attach(domain: Domain, fd_in: int, fd_out: int, *, escape: bytes = ESCAPE, force: bool = False) -> str:
    """Join a terminal to the console until `escape` is typed, input ends or the machine goes off.

    A terminal on `fd_in` is in raw mode meanwhile.  Returns why it ended: "escape", "input" or "machine".
    Raises Busy when someone else is attached (unless `force`, which ends that), LabError when it is off.
    """
    stream = _open(domain, force)
    ended = threading.Event()
    wake_read, wake_write = os.pipe()
    reader = threading.Thread(
        target=_copy_out,
        args=(stream, fd_out, ended, wake_write),
        name=f"console: {domain.name}",
        daemon=True,
    )
    try:
        with _raw(fd_in):
            reader.start()
            return _copy_in(domain, stream, fd_in, wake_read, ended, escape)
    finally:
        with contextlib.suppress(library().libvirtError):
            stream.abort()
        reader.join(5)
        os.close(wake_read)
        if not reader.is_alive():
            os.close(wake_write)


def _open(domain: Domain, force: bool) -> Any:
    libvirt = library()
    flags = libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else libvirt.VIR_DOMAIN_CONSOLE_SAFE

    def open_console(found: Any) -> Any:
        stream = found.connect().newStream()
        found.openConsole(None, stream, flags)
        return stream

    try:
        return domain.with_domain(open_console)
    except Refused as error:
        if "Active console session" in error.message:
            raise Busy(
                f"someone else is at the console of {domain.name}", hint="use --force to take over"
            ) from error
        if error.code == libvirt.VIR_ERR_OPERATION_INVALID:
            raise LabError(f"{domain.name} is not running", hint="labctl start") from error
        raise


def _copy_out(stream: Any, fd_out: int, ended: threading.Event, wake: int) -> None:
    try:
        while data := stream.recv(_CHUNK):
            if not isinstance(data, bytes):
                break
            view = memoryview(data)
            while view:
                view = view[os.write(fd_out, view) :]
    except (library().libvirtError, OSError):
        pass  # aborted by us, the machine went off, or nobody reads any more: all mean the end
    ended.set()
    os.write(wake, b"x")


def _copy_in(
    domain: Domain, stream: Any, fd_in: int, wake: int, ended: threading.Event, escape: bytes
) -> str:
    libvirt = library()
    while True:
        ready, _, _ = select.select([fd_in, wake], [], [])
        if ended.is_set():
            return "machine"
        if fd_in not in ready:
            continue
        data = os.read(fd_in, _CHUNK)
        typed, found, _ = data.partition(escape) if escape else (data, b"", b"")
        try:
            while typed:
                typed = typed[stream.send(typed) :]
        except libvirt.libvirtError as error:
            if ended.wait(1):
                return "machine"
            raise refusal(f"console of {domain.name}", error) from error
        if found:
            return "escape"
        if not data:
            return "input"


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
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
