"""Kernels for machines: Debian packages, downloaded once, unpacked into the cache by version.

`images/kernels/catalog.toml` names them.  A kernel in the cache is used without asking the network.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import shutil
import tempfile
import tomllib
from functools import cache as remember
from pathlib import Path

from labctl.data import data
from labctl.errors import LabError, UsageError
from labctl.events import Emit, Note, silent
from labctl.image.boot_apt import AptRoot
from labctl.image.boot_files import fresh_dir, fresh_file, locked, run
from labctl.image.boot_modules import ModuleTree
from labctl.image.boot_vmlinux import extract_vmlinux
from labctl.records import dataclass

DEFAULT_KERNELS = {"x86_64": "cloud-amd64", "aarch64": "cloud-arm64", "riscv64": "riscv64"}
_FORMAT = 1  # raise when the layout of a cached kernel changes


@dataclass(frozen=True)
class KernelEntry:
    """A line of the catalog.  `arch` is QEMU's and libvirt's word, `debian` Debian's."""

    name: str
    arch: str
    debian: str
    package: str
    about: str


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache.

    `vmlinux` is the plain ELF kernel, which boots faster; only x86 has one.  `modules` is its
    lib/modules/VERSION folder.
    """

    name: str
    arch: str
    debian: str
    version: str
    vmlinuz: Path
    vmlinux: Path | None
    modules: Path

    @property
    def boot(self) -> Path:
        """The file to hand to QEMU or libvirt as `<kernel>`."""
        return self.vmlinux or self.vmlinuz

    def tree(self) -> ModuleTree:
        """Its modules and what they depend on."""
        return ModuleTree.load(self.modules, self.modules.parent / "modules.json")


@remember
def catalog() -> dict[str, KernelEntry]:
    """The kernels labctl knows, by name."""
    with data("images", "kernels", "catalog.toml").open("rb") as file:
        table = tomllib.load(file)
    return {name: KernelEntry(name=name, **fields) for name, fields in table.items()}


def entry(name: str) -> KernelEntry:
    """One kernel of the catalog; raises UsageError with the nearest name when unknown."""
    known = catalog()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known kernels: {', '.join(known)}"
    raise UsageError(f"unknown kernel {name!r}", hint=hint)


def kernel(cache: Path, name: str, emit: Emit = silent, *, refresh: bool = False) -> Kernel:
    """The kernel of that name, downloaded and unpacked when it isn't in `cache` yet.

    `refresh` asks the archive for a newer one.  Safe to call from several processes at once.
    Raises UsageError for an unknown name, HostCannot when it has to be downloaded and can't be,
    LabError when the package is not as expected.
    """
    wanted = entry(name)
    base = cache / "boot" / "kernels" / wanted.arch
    if not refresh and (found := _cached(base, wanted)):
        return found
    with locked(base / f".{name}.lock"):
        if not refresh and (found := _cached(base, wanted)):
            return found
        return _fetch(cache, base, wanted, emit)


def forget(cache: Path, name: str) -> None:
    """Drop a kernel from the cache; the next use downloads it again."""
    wanted = entry(name)
    base = cache / "boot" / "kernels" / wanted.arch
    with locked(base / f".{name}.lock"):
        found = _cached(base, wanted)
        (base / f"{name}.json").unlink(missing_ok=True)
        if found:
            shutil.rmtree(found.vmlinuz.parent, ignore_errors=True)


def _cached(base: Path, wanted: KernelEntry) -> Kernel | None:
    try:
        record = json.loads((base / f"{wanted.name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    folder = base / str(record.get("folder", ""))
    if record.get("format") != _FORMAT or not (folder / "complete").exists():
        return None
    return _kernel(wanted, folder, str(record["version"]))


def _kernel(wanted: KernelEntry, folder: Path, version: str) -> Kernel:
    vmlinux = folder / "vmlinux"
    return Kernel(
        name=wanted.name,
        arch=wanted.arch,
        debian=wanted.debian,
        version=version,
        vmlinuz=folder / "vmlinuz",
        vmlinux=vmlinux if vmlinux.exists() else None,
        modules=folder / "modules" / version,
    )


def _fetch(cache: Path, base: Path, wanted: KernelEntry, emit: Emit) -> Kernel:
    apt = AptRoot.at(cache, wanted.debian)
    apt.update()
    package = apt.resolve(wanted.package)
    label = f"{package}_{apt.version(package)}_{_FORMAT}".replace(":", "-").replace("/", "-")
    folder = base / label
    if not (folder / "complete").exists():
        emit(Note("", f"downloading kernel {wanted.name} ({package})"))
        with fresh_dir(folder) as work, tempfile.TemporaryDirectory(dir=base, prefix=f".{label}.") as scratch:
            (deb,) = apt.download([package], Path(scratch))
            unpacked = Path(scratch) / "root"
            run(["dpkg-deb", "-x", str(deb), str(unpacked)], timeout=300, what="unpack a kernel")
            _lay_out(unpacked, work, package)
    version = (folder / "complete").read_text().strip()
    with fresh_file(base / f"{wanted.name}.json") as path:
        record = {"format": _FORMAT, "folder": label, "version": version, "package": package}
        path.write_text(json.dumps(record) + "\n")
    return _kernel(wanted, folder, version)


def _lay_out(unpacked: Path, work: Path, package: str) -> None:
    """Move what a machine needs from an unpacked kernel package into `work`."""
    images = sorted(unpacked.glob("boot/vmlinu[xz]-*")) or sorted(unpacked.glob("usr/bin/linux.uml"))
    places = ("lib/modules/*", "usr/lib/modules/*", "usr/lib/uml/modules/*")
    trees = next((found for place in places if (found := sorted(unpacked.glob(place)))), [])
    if not images or not trees:
        raise LabError(f"{package} holds no kernel or no modules", hint="choose another kernel")
    version = trees[0].name
    blob = images[0].read_bytes()
    if blob[:2] == b"\x1f\x8b":
        blob = gzip.decompress(blob)
    (work / "vmlinuz").write_bytes(blob)
    if images[0].name == "linux.uml":
        (work / "vmlinuz").chmod(0o755)  # User Mode Linux is a kernel and a program
    if blob[0x202:0x206] == b"HdrS":
        (work / "vmlinux").write_bytes(extract_vmlinux(blob))
    (work / "modules").mkdir()
    shutil.move(trees[0], work / "modules" / version)
    for config in unpacked.glob("boot/config-*"):
        shutil.copy(config, work / "config")
    tree = ModuleTree.scan(work / "modules" / version)
    tree.save(work / "modules" / "modules.json")
    # Written last: a folder without it is not used, whatever else is in it.
    with (work / "complete").open("w") as file:
        file.write(version + "\n")
        file.flush()
        os.fsync(file.fileno())
