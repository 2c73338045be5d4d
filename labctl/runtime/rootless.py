"""What an ordinary user's container must be like, and its id maps: user_namespaces(7), newuidmap(1)."""

from __future__ import annotations

import os
import subprocess

from labctl.linux import cgroups
from labctl.runtime import sources, spec
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from labctl.linux.namespaces import IdMap

_SECONDS = 20


def check(config: dict[str, Any]) -> None:
    """Raises ContainerError, worded as runc does, for what only root can do."""
    if "user" not in sources.namespace_paths(config):
        raise ContainerError("rootless container requires user namespaces")
    if sources.overlay_of(config)[0]:
        raise ContainerError(f"annotation {spec.LOWER}: only root can mount an overlay with idmapped layers")
    maps = spec.id_maps(config)
    for mount in config.get("mounts") or ():
        if mount.get("uidMappings") or {"idmap", "ridmap"} & set(mount.get("options") or ()):
            raise ContainerError(f"mount {mount['destination']}: only root can map the owners of files")
        for option in mount.get("options") or ():
            kind, _, number = option.partition("=")
            if kind in ("uid", "gid") and number.isdigit() and maps[0]:
                _mapped(maps[kind == "gid"], int(number), f"{kind}= mount options for unmapped {kind}")
    groups = ((config.get("process") or {}).get("user") or {}).get("additionalGids")
    if groups and maps[1] and _own_id(maps[1], os.getegid()):
        raise ContainerError("cannot set any additional groups in a rootless container")


def _mapped(rows: list[IdMap], number: int, what: str) -> None:
    if not any(first <= number < first + size for first, _, size in rows):
        raise ContainerError(f"cannot specify {what} in rootless containers")


def _own_id(rows: list[IdMap], own: int) -> bool:
    """Whether a map is the one that the kernel lets anybody write: oneself, and nobody else."""
    return len(rows) == 1 and rows[0][1:] == (own, 1)


def write_maps(pid: int, uids: list[IdMap], gids: list[IdMap]) -> None:
    """Map ids for a process that is alone in a new user namespace.  Raises ContainerError, OSError."""
    if _own_id(gids, os.getegid()):
        cgroups.write(f"/proc/{pid}/setgroups", "deny")  # the kernel's condition for a group of one's own
        cgroups.write(f"/proc/{pid}/gid_map", " ".join(map(str, gids[0])))
    else:
        _by_helper("newgidmap", pid, gids)
    if _own_id(uids, os.geteuid()):
        cgroups.write(f"/proc/{pid}/uid_map", " ".join(map(str, uids[0])))
    else:
        _by_helper("newuidmap", pid, uids)


def _by_helper(program: str, pid: int, rows: list[IdMap]) -> None:
    """The set-uid programs that look into /etc/subuid and /etc/subgid."""
    words = [str(number) for row in rows for number in row]
    try:
        done = subprocess.run(
            [program, str(pid), *words], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise ContainerError(
            f"{program} is not installed (package uidmap): without it only one's own id can be mapped"
        ) from None
    except subprocess.TimeoutExpired as error:
        raise ContainerError(f"{program}: no answer within {_SECONDS} s") from error
    if done.returncode:
        raise ContainerError(f"{program} {' '.join(words)}: {done.stderr.strip()}")
