"""A new container's control group: made by ourselves, made by systemd as a scope, or none at all.

An ordinary user may have no right to one.  As in runc that is fine as long as no limit is asked for.
"""

from __future__ import annotations

import errno
import os

from labctl.linux import cgroups, devices, limits, namespaces
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import sources, spec
from labctl.runtime.errors import ContainerError, debug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from labctl.runtime.scope import Scope
    from labctl.runtime.state import Document

_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


class Place:
    """Where a container's processes will be counted and limited; `group` is None where that is nowhere."""

    def __init__(
        self,
        config: dict[str, Any],
        id_: str,
        layout: Layout,
        *,
        everywhere: bool = False,
        by_systemd: bool = False,
    ) -> None:
        """Find out.  `everywhere`: in every v1 hierarchy, as runc.  Raises ContainerError, ValueError."""
        linux = config.get("linux") or {}
        self.notes: dict[str, str] = config.get("annotations") or {}
        self.resources: dict[str, Any] = linux.get("resources") or {}
        self.rules = _device_rules(config)
        self.scope: Scope | None = None
        self.extra = limits.extra_controllers({**self.resources, "devices": self.rules})
        if everywhere:  # else it would stay in its engine's groups elsewhere
            known = (*self.extra, *cgroups.ALWAYS)
            self.extra += [name for name in layout.v1 if "=" not in name and name not in known]
        asked = linux.get("cgroupsPath") or ""
        if by_systemd:
            from labctl.runtime.scope import Scope

            self.scope = Scope.of(asked, id_, user=namespaces.ORDINARY)
            path = self.scope.path
        elif namespaces.ORDINARY and not asked.startswith("/"):
            path = f"{_own_folder()}/{asked or id_}"
        else:
            path = cgroups.systemd_path(asked or f"/{id_}")
        self.group: Cgroup | None = Cgroup(path, layout, self.extra)

    def describe(self, document: Document) -> None:
        """Write into the container's state where it is."""
        document["cgroup"] = self.group.path if self.group is not None else ""
        document["controllers"] = self.extra
        if self.scope is not None:
            document["scope"], document["scope_user"] = self.scope.unit, self.scope.user

    def refuse_taken(self) -> None:
        """One group for two containers would mean one limit, one freezer and one end for both.

        Raises ContainerError, worded as runc does.
        """
        group = self.group
        if group is None or not group.exists():
            return
        if pids := group.procs():
            count = len(pids)
            raise ContainerError(f"container's cgroup is not empty: {count} process(es) found: {group.path}")
        if group.frozen():
            raise ContainerError(f"container's cgroup unexpectedly frozen: {group.path}")

    def make(self) -> None:
        """Make it, with its limits; what systemd makes comes with its first process.  Raises OSError."""
        if self.scope is None and self.group is not None:
            try:
                self.group.create()
            except OSError as error:
                self._do_without(error)
            self._limit()

    def enter(self, pid: int) -> None:
        """Put the container's first process into it.  Raises OSError, ContainerError."""
        if self.group is None:
            return
        if self.scope is not None:
            rules = devices.rules_of(self.rules) if self.rules else []
            self.scope.start(pid, self.resources, rules, self.notes)
            self.group.create()
            self._limit()
            if namespaces.ORDINARY:  # no more than systemd has given us
                return
        try:
            self.group.attach(pid)
        except OSError as error:
            self._do_without(error)

    def _limit(self) -> None:
        address = self.notes.get(spec.ADDRESS)
        if address and (self.group is None or not self.group.v2):
            raise ContainerError(f"cannot keep it to {address}: no cgroup2 file system is mounted here")
        if self.group is not None:
            limits.apply(self.group, self.resources)
            if self.rules:
                devices.apply(self.group, self.rules)
            if address:
                from labctl.linux import oneaddress

                oneaddress.restrict(self.group.v2, address)

    def _do_without(self, error: OSError) -> None:
        """Go on without a group, if that is nobody's loss.  Raises `error`, ContainerError."""
        if not namespaces.ORDINARY or error.errno not in _NO_RIGHT or self.group is None:
            raise error
        limited = [name for name, value in self.resources.items() if value and name != "devices"]
        if limited:
            raise ContainerError(
                "rootless needs no limits + no cgrouppath when no permission is granted for cgroup: "
                f"{error} (limits asked for: {', '.join(limited)})"
            ) from error
        debug(f"no control group: {error}")
        self.group.remove()
        self.group = None


def _own_folder() -> str:
    """The group above the caller's own: that has processes, and so can hand no controllers on (v2)."""
    return os.path.dirname(cgroups.of_process("self").get("", "/")).rstrip("/")


def _device_rules(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked for.  Else, for who isn't kept from all devices by an own user namespace: the usual
    ones and those of `linux.devices`.  A nested root has no say over devices, nor has an ordinary user."""
    if namespaces.ORDINARY or namespaces.nested():
        return []
    linux = config.get("linux") or {}
    asked = (linux.get("resources") or {}).get("devices")
    if asked or sources.namespace_paths(config).get("user") is not None:
        return list(asked or ())
    own = [row for row in linux.get("devices") or () if row["type"] != "p"]
    listed = [{**row, "type": row["type"].replace("u", "c"), "allow": True} for row in own]
    return [{"allow": False, "access": "rwm"}, *listed]
