"""Scopes: control groups that systemd makes, knows and delegates (systemd.scope(5), its CGROUP_DELEGATION).

Spoken to over D-Bus (org.freedesktop.systemd1(5)): the system's manager for root, else the user's own.
"""

from __future__ import annotations

import os
import stat

from labctl.linux import dbus
from labctl.linux.dbus import Bus, BusError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Property = tuple[str, tuple[str, Any]]  # name, (signature, value)

INFINITY = 0xFFFFFFFFFFFFFFFF
_NAME = "org.freedesktop.systemd1"
_MANAGER = (_NAME, "/org/freedesktop/systemd1", f"{_NAME}.Manager")
_PROPERTIES = (_NAME, "/org/freedesktop/systemd1", "org.freedesktop.DBus.Properties")
_EXISTS, _NO_UNIT, _NOT_LOADED = f"{_NAME}.UnitExists", f"{_NAME}.NoSuchUnit", f"{_NAME}.UnitNotLoaded"


def is_running() -> bool:
    """Whether systemd runs this machine: sd_booted(3)."""
    try:
        return stat.S_ISDIR(os.lstat("/run/systemd/system").st_mode)
    except OSError:
        return False


def slice_path(name: str) -> str:
    """The folder of a slice: "a-b.slice" is "/a.slice/a-b.slice", "-.slice" is "".  Raises ValueError."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not name.endswith(".slice") or "/" in name or not all(parts):
        raise ValueError(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


class Manager:
    """The manager of the system, or of the calling user.  Use with `with`."""

    def __init__(self, *, user: bool) -> None:
        """Connect.  Raises BusError that says what was tried."""
        self.user = user
        self.bus = _connect(user)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.bus.close()

    def own_group(self) -> str:
        """The control group that this manager has for itself and its units, "" for the root.

        Raises BusError.
        """
        ((_, found),) = self.bus.call(_PROPERTIES, "Get", "ss", (_MANAGER[2], "ControlGroup"))
        return str(found).rstrip("/")

    def start(self, unit: str, properties: Sequence[Property]) -> None:
        """Make a transient unit and wait until it is there; a failed one of this name is forgotten first.

        Raises BusError.
        """
        self._listen()
        try:
            self._start(unit, properties)
        except BusError as error:
            if error.name != _EXISTS:
                raise
            self._forget(unit)
            self._start(unit, properties)

    def _start(self, unit: str, properties: Sequence[Property]) -> None:
        words = (unit, "replace", properties, ())
        (job,) = self.bus.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", words)
        result = self._wait(job)
        if result != "done":
            self._forget(unit)
            raise BusError(f"unable to start unit {unit}: the job ended as {result!r}")

    def set(self, unit: str, properties: Sequence[Property]) -> None:
        """Change a unit until the next boot.  Raises BusError."""
        self.bus.call(_MANAGER, "SetUnitProperties", "sba(sv)", (unit, True, properties))

    def stop(self, unit: str) -> None:
        """Stop a unit and wait for it; one that is gone is fine.  Raises BusError."""
        self._listen()
        try:
            (job,) = self.bus.call(_MANAGER, "StopUnit", "ss", (unit, "replace"))
            self._wait(job)
        except BusError as error:
            if error.name not in (_NO_UNIT, _NOT_LOADED):
                raise
        self._forget(unit)

    def attach(self, unit: str, pid: int) -> None:
        """Move a process into a unit's group, where we may not do so ourselves.  Raises BusError."""
        self.bus.call(_MANAGER, "AttachProcessesToUnit", "ssau", (unit, "", [pid]))

    def _forget(self, unit: str) -> None:
        try:
            self.bus.call(_MANAGER, "ResetFailedUnit", "s", (unit,))
        except BusError as error:
            if error.name not in (_NO_UNIT, _NOT_LOADED):
                raise

    def _listen(self) -> None:
        if not self.bus.direct:
            rule = f"type='signal',interface='{_MANAGER[2]}',member='JobRemoved'"
            self.bus.call(dbus.BUS, "AddMatch", "s", (rule,))
        self.bus.call(_MANAGER, "Subscribe")

    def _wait(self, job: str) -> str:
        """How a job ended."""
        for body in self.bus.signals("JobRemoved"):
            if body[1] == job:
                return str(body[3])
        raise BusError(f"job {job} never ended")


def _connect(user: bool) -> Bus:
    """The bus first, then the manager's own socket, which serves where no bus runs."""
    if user:
        folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={folder}/bus"
        private = f"{folder}/systemd/private"
    else:
        address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket"
        private = "/run/systemd/private"
    try:
        return Bus(dbus.socket_of(address))
    except BusError as error:
        try:
            return Bus(private, direct=True)
        except BusError:
            raise error from None
