"""AppArmor profiles and SELinux labels of a container's process and mounts.

Where the kernel hasn't got the module that a configuration asks for, that is an error and never left out.
Sources: Documentation/admin-guide/LSM/apparmor.rst, selinux(8), the runtime spec's `process.apparmorProfile`,
`process.selinuxLabel` and `linux.mountLabel`.
"""

from __future__ import annotations

import os

from labctl.linux import proc
from labctl.linux.syscalls import SyscallError
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Config = dict[str, Any]

_LABELLED = ("tmpfs", "mqueue", "devpts", "ramfs", "overlay", "ext4", "xfs")


def apparmor_enabled() -> bool:
    """Whether this kernel confines by AppArmor."""
    return (proc.read("/sys/module/apparmor/parameters/enabled") or "").startswith("Y")


def selinux_enabled() -> bool:
    """Whether this kernel confines by SELinux."""
    return os.path.exists("/sys/fs/selinux/enforce")


def check(config: Config) -> None:
    """Refuse what this kernel can't do.  Raises ContainerError."""
    process = config.get("process") or {}
    profile = process.get("apparmorProfile")
    if profile and profile != "unconfined" and not apparmor_enabled():
        raise ContainerError(
            f"process.apparmorProfile {profile!r} is asked for, but this kernel has no AppArmor"
        )
    for name, label in (
        ("process.selinuxLabel", process.get("selinuxLabel")),
        ("linux.mountLabel", (config.get("linux") or {}).get("mountLabel")),
    ):
        if label and not selinux_enabled():
            raise ContainerError(f"{name} {label!r} is asked for, but SELinux is not enabled on this machine")


def confine(process: Config) -> None:
    """Take effect at the next execve.  Raises ContainerError, SyscallError."""
    check({"process": process})
    if label := process.get("selinuxLabel"):
        _write("/proc/thread-self/attr/exec", label, f"SELinux label {label}")
    if apparmor_enabled() and (profile := process.get("apparmorProfile")):
        own = "/proc/thread-self/attr/apparmor/exec"
        path = own if os.path.exists(own) else "/proc/thread-self/attr/exec"
        _write(path, f"exec {profile}", f"AppArmor profile {profile}")


def mount_options(kind: str, label: str) -> list[str]:
    """What gives a new file system of this type the container's SELinux label."""
    return [f"context={label}"] if label and kind in _LABELLED else []


def _write(path: str, text: str, about: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SyscallError(error.errno or 5, "apply", about) from error
