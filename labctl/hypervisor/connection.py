"""Connections to libvirt: found or started, pooled per process, every call bounded in time.

**How calls are bounded.**  Each call runs in a thread of its own and is waited for up to a limit; libvirt's
binding lets go of the interpreter lock while it waits.  libvirt's keepalive is not enough: it needs a
running event loop, and it only notices a daemon whose main loop hangs, not one stuck over a domain.  When
the limit passes, TimedOut is raised and the connection is given up, the next call opens a fresh one.  The
thread and its connection are left behind on purpose: closing it could hang just as well.  A thread costs
0.1 ms.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import unquote

from labctl.errors import HostCannot, LabError, TimedOut
from labctl.home import Home
from labctl.hypervisor import private
from labctl.records import dataclass

T = TypeVar("T")

OPEN_SECONDS = 20.0
CALL_SECONDS = 60.0
HUNG_SECONDS = 60.0  # for so long one that didn't answer isn't asked again
# Sockets of a system's libvirtd: monolithic, and the QEMU daemon of a modular one.
SYSTEM_SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
SYSTEM_URI = "qemu:///system"


@dataclass
class Libvirt:
    """One open connection.  `private` tells whether it leads to labctl's own daemon."""

    uri: str
    private: bool
    conn: Any  # libvirt.virConnect
    users: int = -1  # the file that keeps the private daemon from being ended; -1 for others
    dead: bool = field(default=False, compare=False)

    def call(self, what: str, function: Callable[[Any], T], *, seconds: float = CALL_SECONDS) -> T:
        """Run `function(conn)`; `what` names the object for a person.

        Raises TimedOut after `seconds`, LabError for a refusal by libvirt.
        """
        try:
            return bounded(what, seconds, lambda: function(self.conn))
        except TimedOut:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Never use this connection again, and never close it: closing a hung one hangs."""
        self.dead = True
        _forget(self)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.conn))
        self._let_go()

    def _let_go(self) -> None:
        if self.users >= 0:
            os.close(self.users)
            self.users = -1

    def close(self) -> None:
        """Close it and let the private daemon be ended by others."""
        _forget(self)
        if not self.dead:
            self.dead = True
            try:
                bounded(f"libvirt at {self.uri}", 5, self.conn.close)
            except LabError:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.conn))
        self._let_go()


_pool: dict[str, Libvirt] = {}
_hung: dict[str, tuple[float, HostCannot]] = {}  # uri → until when nobody waits for it again, and why
_pool_lock = threading.RLock()
_silenced = False


def _forget(link: Libvirt) -> None:
    with _pool_lock:
        if _pool.get(link.uri) is link:
            del _pool[link.uri]


def library() -> Any:
    """The libvirt module, told to print nothing.  HostCannot when the binding isn't installed."""
    global _silenced
    try:
        import libvirt
    except ImportError as error:
        raise HostCannot(
            "libvirt's Python binding is not installed", hint="apt-get install python3-libvirt"
        ) from error
    if not _silenced:
        # By default libvirt writes every error to standard error as well as raising it.
        libvirt.registerErrorHandler(_no_output, None)
        _silenced = True
    return libvirt


def _no_output(context: object, error: object) -> None:
    """libvirt's error callback: every error is raised anyway."""


def bounded(what: str, seconds: float, function: Callable[[], T]) -> T:
    """Run a libvirt call with a limit.  TimedOut after `seconds`; libvirtError becomes LabError."""
    libvirt = library()
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread and raised there
            failure.append(error)

    thread = threading.Thread(target=work, name=f"libvirt: {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimedOut(f"{what}: libvirt did not answer within {seconds:g} s", hint="see labctl doctor")
    if failure:
        error = failure[0]
        if isinstance(error, libvirt.libvirtError):
            raise refusal(what, error) from error
        raise error
    return result[0]


class Refused(LabError):
    """libvirt refused a call.  `code` is libvirt's error number (virterror.h)."""

    def __init__(self, message: str, code: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Missing(Refused):
    """libvirt has no such domain."""


class Lost(Refused):
    """The daemon went away during the call."""


def refusal(what: str, error: Any) -> Refused:
    """A libvirtError as a sentence about `what`."""
    libvirt = library()
    code = int(error.get_error_code() or 0)
    text = " ".join(str(error.get_error_message() or error).split())
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return Missing(f"{what}: libvirt has no such domain", code)
    gone = ("client socket is closed", "End of file while reading data", "Broken pipe", "Connection reset")
    if code == libvirt.VIR_ERR_RPC or any(part in text for part in gone):
        return Lost(f"{what}: libvirtd went away: {text}", code, hint="run the command again")
    return Refused(f"{what}: {text}", code)


def connect(uri: str | None, home: Home) -> Libvirt:
    """A connection for this home: to `uri` when one is given, else to the system's libvirtd where one
    answers, else to labctl's own, which is started or joined.  `private` as URI asks for labctl's own.

    Pooled: the same process gets the same connection until it dies.  Raises HostCannot, TimedOut,
    LabError; bounded by OPEN_SECONDS and private.START_SECONDS.
    """
    if uri is None or uri == "":
        with _pool_lock:
            for known in (private.uri(home), SYSTEM_URI):
                if known in _pool and _alive(_pool[known]):
                    return _pool[known]
    return reach(choose_uri(uri, home), home)


def choose_uri(uri: str | None, home: Home) -> str:
    """The URI that `connect` would use, starting nothing.  Bounded by OPEN_SECONDS."""
    if uri and uri != "private":
        return uri
    if not uri and not private.domains(home) and _system_answers():
        return SYSTEM_URI
    return private.uri(home)


def reach(uri: str, home: Home | None, *, sure: bool = True) -> Libvirt:
    """The pooled connection to exactly this URI; labctl's own daemon is started again when it is down.

    `sure` asks the daemon for a sign of life first (0.3 ms); without it the caller copes with Lost.
    """
    with _pool_lock:
        known = _pool.get(uri)
        if known is not None:
            if _alive(known, sure=sure):
                return known
            known.close()
        until, failure = _hung.get(uri, (0.0, None))
        if failure and monotonic() < until:
            raise HostCannot(failure.message, hint=failure.hint)
        own = home is not None and uri == private.uri(home)
        users = private.join(home) if own and home is not None else -1
        try:
            conn = bounded(f"libvirt at {uri}", OPEN_SECONDS, lambda: _dial(uri))
        except LabError as error:
            if users >= 0:
                os.close(users)
            failure = HostCannot(error.message, hint=_open_hint(uri, error, home if own else None))
            if isinstance(error, TimedOut):
                _hung[uri] = monotonic() + HUNG_SECONDS, failure
            raise failure from error
        link = Libvirt(uri, own, conn, users)
        _pool[uri] = link
        return link


def _alive(link: Libvirt, *, sure: bool = True) -> bool:
    """Without an event loop libvirt only learns from a call that the other end is gone."""
    try:
        if link.dead or not link.conn.isAlive():
            return False
        if sure:
            link.call(f"libvirt at {link.uri}", lambda conn: conn.getLibVersion(), seconds=5)
    except (library().libvirtError, LabError):
        return False
    return True


def _dial(uri: str) -> Any:
    libvirt = library()
    mark = "?socket="
    if mark not in uri:
        return libvirt.open(uri)
    head, _, path = uri.partition(mark)
    with private.reachable(Path(unquote(path))) as short:
        return libvirt.open(head + mark + short if short != unquote(path) else uri)


def _open_hint(uri: str, error: LabError, own: Home | None) -> str:
    """What to do about a libvirt that can't be reached; `own` is the home whose private daemon it is."""
    if own is None and ("ermission denied" in error.message or "authentication" in error.message):
        return "run labctl as root, or join the group libvirt"
    if own is not None and isinstance(error, TimedOut):
        pids = " ".join(map(str, sorted(private.daemons(own))))
        return f"labctl's own libvirtd hangs: kill -9 {pids}, and run the command again; the machines go on"
    if error.hint and not isinstance(error, Refused):
        return error.hint
    if own is not None:
        log = private.base(own) / "log" / "libvirtd.log"
        return f"run the command again: it starts labctl's own libvirtd anew; what that said is in {log}"
    if uri.startswith(("qemu:///", "xen:///", "lxc:///")):
        return "start it: systemctl start libvirtd"
    return "is the URI right, and does a libvirtd answer there?"


def _system_answers() -> bool:
    """Whether the host's own libvirtd serves QEMU; never starts anything where no socket is."""
    if not any(Path(path).exists() for path in SYSTEM_SOCKETS):
        return False
    try:
        conn = bounded("the system's libvirtd", OPEN_SECONDS, lambda: library().open(SYSTEM_URI))
    except LabError:
        return False  # a stale socket, no QEMU driver, no right, or hung: labctl's own works beside it
    with _pool_lock:
        _pool.setdefault(SYSTEM_URI, Libvirt(SYSTEM_URI, False, conn))
    return True


def release(home: Home) -> bool:
    """End the private libvirtd when no domain is left and no other labctl uses it; whether it is gone.

    Closes this process's connection to it.  True as well when none was running.  Raises Busy or TimedOut.
    """
    with _pool_lock:
        known = _pool.get(private.uri(home))
        if known is not None:
            known.close()
    return private.end(home)


def close_all() -> None:
    """Close every pooled connection of this process."""
    with _pool_lock:
        for link in list(_pool.values()):
            link.close()
