"""UEFI for virtual machines: the firmware that this host has, and what one machine's firmware remembers."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from labctl.errors import HostCannot, LabError
from labctl.home import write_hint
from labctl.looks import ABSENT, PRESENT, Look, Owner
from labctl.records import dataclass

# QEMU, docs/interop/firmware.json: each folder overrides files of the same name in those after it, and of the
# descriptions that fit the first by name is taken.
FOLDERS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
# Only of machines with SMM, or with keys of others in their memory.
_NOT = {"requires-smm", "secure-boot", "enrolled-keys", "amd-sev-es", "amd-sev-snp", "intel-tdx"}
_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}
# What descriptions call labctl's choice of a machine, and QEMU's short names: of any version.
_MACHINES = {"x86_64": {"": "pc-i440fx-0", "pc": "pc-i440fx-0", "q35": "pc-q35-0"}}


@dataclass(frozen=True)
class Firmware:
    """Two files: the program, which all machines share, and what a machine's own memory of it starts as."""

    code: str
    template: str


def uefi(name: str, arch: str, machine: str = "") -> Firmware:
    """The UEFI of this host for a machine.  `machine` is QEMU's type, "" for the usual one.

    Raises HostCannot, with what to install, when there is none.
    """
    versioned = _MACHINES.get(arch, {}).get(machine, machine or "virt-0")
    for told in _descriptions():
        if _fits(told, arch, versioned):
            found = told["mapping"]
            files = Firmware(found["executable"]["filename"], found["nvram-template"]["filename"])
            if Path(files.code).exists() and Path(files.template).exists():
                return files
    package = _PACKAGES.get(arch)
    raise HostCannot(
        f"{name}: this host has no UEFI firmware for {arch}" + (f" and {machine}" if machine else ""),
        hint=f"apt-get install {package}" if package else f"nodes.{name}.vm.firmware: bios",
    )


def _fits(told: dict[str, Any], arch: str, machine: str) -> bool:
    try:
        mapping = told["mapping"]
        plain = mapping["device"] == "flash" and mapping.get("mode", "split") == "split"
        raw = plain and {mapping[part]["format"] for part in ("executable", "nvram-template")} == {"raw"}
        targets = [t["machines"] for t in told["targets"] if t["architecture"] == arch]
        meant = any(fnmatch.fnmatch(machine, pattern) for machines in targets for pattern in machines)
        return bool(raw and meant and "uefi" in told["interface-types"] and not _NOT & set(told["features"]))
    except (KeyError, TypeError):
        return False  # a description of another make


def _descriptions() -> Iterator[dict[str, Any]]:
    files: dict[str, Path] = {}
    for folder in reversed(FOLDERS):
        files |= {path.name: path for path in Path(folder).glob("*.json")}
    for name in sorted(files):
        try:
            told = json.loads(files[name].read_text())
        except (OSError, ValueError):
            continue  # libvirt passes over what it can't read as well
        if isinstance(told, dict):
            yield told


@dataclass(frozen=True, kw_only=True)
class Nvram:
    """What the UEFI of one machine remembers (boot entries, its variables): a file in the node's folder."""

    kind: ClassVar[str] = "nvram"
    loses: ClassVar[str] = "what its firmware remembers is lost"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    path: str
    template: str

    def make(self) -> None:
        """Copy the template; a file that is there is kept.  Raises LabError."""
        from labctl.image.boot_files import fresh_file

        path = Path(self.path)
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
            with fresh_file(path, 0o600) as work:
                work.write_bytes(Path(self.template).read_bytes())
        except OSError as error:
            hint = write_hint(path.parent, error)
            raise LabError(f"cannot write {error.filename or path}: {error.strerror}", hint=hint) from error

    def look(self) -> Look:
        """Whether the file is there."""
        return PRESENT if Path(self.path).exists() else ABSENT

    def unmake(self) -> None:
        """Remove it."""
        Path(self.path).unlink(missing_ok=True)
