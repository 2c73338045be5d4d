"""Files for a QEMU that does not run as root.

The system's libvirtd runs QEMU as a user of its own (libvirt-qemu, qemu) and by default gives every file
of a domain to that user, kernel and shared base image included, and back to root afterwards: two domains
on one base fight over it.  So the domain says "run as this user, leave the owners alone" (a static DAC
label without relabelling), and we see to it that this user can read what it must:

- a node's own disks (writable, or holding its keys): given to that user, mode 0600, nobody else's;
- what all nodes share (kernel, initramfs, base images): made readable for everyone, they hold no secret;
- the folders on the way: passable (x) but not listable for others, and only those below labctl's own home.
  SSH keys are files of mode 0600 of root in folders that QEMU needs no way through: nothing changes there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from labctl.errors import HostCannot, LabError
from labctl.hypervisor.connection import Libvirt


def run_as(link: Libvirt) -> str:
    """The DAC label ("+UID:+GID") that this libvirt runs QEMU under; "" when it is root or not known."""
    if link.private or not link.uri.startswith("qemu:///system"):
        return ""
    text = link.call("libvirt's capabilities", lambda conn: conn.getCapabilities())
    for model in ElementTree.fromstring(text).iterfind("./host/secmodel"):
        if model.findtext("model") == "dac":
            labels = {label.get("type"): label.text or "" for label in model.iterfind("baselabel")}
            label = labels.get("qemu") or labels.get("kvm") or ""
            return "" if label.startswith("+0:") else label
    return ""


def _owner(label: str) -> tuple[int, int]:
    uid, _, gid = label.replace("+", "").partition(":")
    return int(uid), int(gid)


def prepare(domain: Any, label: str) -> None:
    """Make the files of `domain` usable for the user of `label`; nothing to do without a label.

    Raises HostCannot when a folder outside of labctl's home bars the way.
    """
    if not label:
        return
    uid, gid = _owner(label)
    roots = [Path(root) for root in (domain.home_state, domain.home_cache) if root]
    private = [disk.path for disk in domain.disks if not disk.readonly or disk.serial.endswith("config")]
    private += [domain.nvram] if domain.nvram else []
    shared = [disk.path for disk in domain.disks if disk.path not in private]
    shared += [disk.backing for disk in domain.disks if disk.backing]
    shared += [path for path in _boot_files(domain) if path]
    try:
        for name in private:
            _open_way(Path(name), uid, gid, roots)
            os.chown(name, uid, gid)
            Path(name).chmod(0o600)
        for name in shared:
            _open_way(Path(name), uid, gid, roots)
            _open_shared(Path(name), uid, gid, roots)
    except OSError as error:
        raise LabError(f"virtual machine {domain.name}: {error.filename}: {error.strerror}") from error


def _open_shared(path: Path, uid: int, gid: int, roots: list[Path]) -> None:
    """Let the user read a file; the mode of one that is not labctl's own stays as it is."""
    info = path.stat()
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o004 or (info.st_uid == uid and mode & 0o400) or (info.st_gid == gid and mode & 0o040):
        return
    if not any(root in path.parents for root in roots):
        raise HostCannot(
            f"libvirt runs QEMU as user {uid}, which may not read {path}", hint=f"chmod o+r {path}"
        )
    path.chmod(mode | 0o444)


def _boot_files(domain: Any) -> tuple[str, ...]:
    return (domain.kernel, domain.initrd, domain.firmware, domain.hypervisor)


def _open_way(path: Path, uid: int, gid: int, roots: list[Path]) -> None:
    """See that the user may pass every folder above `path`."""
    for folder in reversed(path.parents):
        info = folder.stat()
        if _passable(info, uid, gid):
            continue
        if not any(folder == root or root in folder.parents for root in roots):
            raise HostCannot(
                f"libvirt runs QEMU as user {uid}, which may not enter {folder} on the way to {path}",
                hint=f"chmod o+x {folder}, or move labctl's home with LABCTL_HOME",
            )
        folder.chmod(stat.S_IMODE(info.st_mode) | 0o001)


def _passable(info: os.stat_result, uid: int, gid: int) -> bool:
    if info.st_uid == uid:
        return bool(info.st_mode & 0o100)
    if info.st_gid == gid:
        return bool(info.st_mode & 0o010)
    return bool(info.st_mode & 0o001)
