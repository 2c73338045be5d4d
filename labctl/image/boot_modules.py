"""Kernel modules of a package: what is there, what needs what, and the files depmod would write.

Debian's kernel packages come without modules.dep, so it is read from each module's own `.modinfo`
section (a list of NUL-ended `key=value` strings; kernel documentation, "Building External Modules").
"""

from __future__ import annotations

import ctypes
import json
import lzma
import struct
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from labctl.errors import LabError
from labctl.records import dataclass

_SIGNED = b"~Module signature appended~\n"


@dataclass(frozen=True)
class Module:
    """One loadable module.  `path` is relative to the modules folder (kernel/fs/ext4/ext4.ko)."""

    name: str
    path: str
    depends: tuple[str, ...] = ()
    softdeps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModuleTree:
    """All modules of one kernel, by name (with `_`), and the names of those built in."""

    folder: Path
    modules: dict[str, Module]
    builtin: frozenset[str]

    @classmethod
    def scan(cls, folder: Path) -> ModuleTree:
        """Read every module below `folder`, which is a lib/modules/VERSION."""
        found = {}
        for path in sorted(folder.glob("kernel/**/*.ko*")):
            module = describe(path, str(path.relative_to(folder)))
            found[module.name] = module
        builtin = folder / "modules.builtin"
        lines = builtin.read_text().split() if builtin.exists() else []
        return cls(folder, found, frozenset(_name(line) for line in lines))

    def save(self, path: Path) -> None:
        """Write the index, so that a later run need not read a thousand files."""
        record = {
            "modules": [asdict(module) for module in self.modules.values()],
            "builtin": sorted(self.builtin),
        }
        path.write_text(json.dumps(record))

    @classmethod
    def load(cls, folder: Path, index: Path) -> ModuleTree:
        """Read an index written by `save`."""
        record = json.loads(index.read_text())
        modules = [
            Module(
                item["name"],
                item["path"],
                tuple(item["depends"]),
                tuple(item["softdeps"]),
                tuple(item["aliases"]),
            )
            for item in record["modules"]
        ]
        return cls(folder, {module.name: module for module in modules}, frozenset(record["builtin"]))

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The modules of those names and all they depend on, each after what it needs.

        A name that is built in or that this kernel hasn't got is left out: an architecture without
        ACPI has no `button`.  Raises LabError when a module needs one that is missing.
        """
        order: dict[str, Module] = {}

        def visit(name: str, wanted_by: str) -> None:
            name = name.replace("-", "_")
            if name in order or name in self.builtin:
                return
            module = self.modules.get(name)
            if module is None:
                if wanted_by:
                    raise LabError(
                        f"kernel module {wanted_by} needs {name}, which the kernel package lacks",
                        hint="labctl image prune, then try again to download the kernel anew",
                    )
                return
            for other in module.depends:
                visit(other, name)
            for other in module.softdeps:
                visit(other, "")
            order[name] = module

        for name in names:
            visit(name, "")
        return list(order.values())

    def read(self, module: Module) -> bytes:
        """The module as the kernel takes it: unpacked, and without its signature.

        The kernel checks a signature only to refuse or to mark; under emulation hashing ext4 alone
        takes tens of milliseconds.  Without one the kernel says "module verification failed" and goes on.
        """
        blob = unpacked(self.folder / module.path)
        return unsigned(blob)


def describe(path: Path, relative: str) -> Module:
    """Read one module's `.modinfo`."""
    info = modinfo(unpacked(path))
    depends = [name for text in info.get("depends", []) for name in text.split(",") if name]
    softdeps = [
        word for text in info.get("softdep", []) for word in text.split() if word not in ("pre:", "post:")
    ]
    return Module(
        name=_name(relative),
        path=relative,
        depends=tuple(name.replace("-", "_") for name in depends),
        softdeps=tuple(name.replace("-", "_") for name in softdeps),
        aliases=tuple(info.get("alias", [])),
    )


def dep_file(modules: Iterable[Module], paths: dict[str, str], tree: ModuleTree) -> str:
    """modules.dep for those modules (`paths`: name → path in the target), as busybox modprobe reads it."""
    lines = []
    for module in modules:
        needed = [item.name for item in tree.closure([module.name]) if item.name != module.name]
        needed.reverse()  # depmod lists the direct ones first; modprobe loads from the end
        lines.append(f"{paths[module.name]}:" + "".join(f" {paths[name]}" for name in needed) + "\n")
    return "".join(lines)


def alias_file(modules: Iterable[Module]) -> str:
    """modules.alias for those modules: what request_module() in the kernel asks for."""
    return "".join(f"alias {alias} {module.name}\n" for module in modules for alias in module.aliases)


def unpacked(path: Path) -> bytes:
    """A module's bytes; Debian 13 packs them with xz."""
    blob = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(blob)
    if path.suffix == ".zst":
        return zstd(blob)
    return blob


def unsigned(blob: bytes) -> bytes:
    """Cut the signature off: data, signature, a 12-byte struct ending in its length, a magic line."""
    if not blob.endswith(_SIGNED):
        return blob
    end = len(blob) - len(_SIGNED)
    (length,) = struct.unpack(">I", blob[end - 4 : end])
    return blob[: end - 12 - length]


def modinfo(blob: bytes) -> dict[str, list[str]]:
    """The `.modinfo` section of a 64-bit little-endian ELF file, as lists of values by key.

    Raises LabError when the file is no such module.
    """
    if blob[:6] != b"\x7fELF\x02\x01":
        raise LabError("a kernel module is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", blob, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", blob, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", blob, table + index * size) for index in range(count)]
    names_at = headers[names_index][4]
    info: dict[str, list[str]] = {}
    for name, _kind, _flags, _address, offset, length in headers:
        start = names_at + name
        if blob[start : blob.index(b"\0", start)] != b".modinfo":
            continue
        for item in blob[offset : offset + length].split(b"\0"):
            key, separator, value = item.decode(errors="replace").partition("=")
            if separator:
                info.setdefault(key, []).append(value)
    return info


def zstd(blob: bytes, size: int = 0) -> bytes:
    """Unpack one zstd frame with the libzstd that dpkg itself needs; `size` when the frame doesn't say."""
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_getFrameContentSize.restype = ctypes.c_ulonglong
    if not size:
        size = library.ZSTD_getFrameContentSize(blob, ctypes.c_size_t(len(blob)))
        if size >= 1 << 40:  # ZSTD_CONTENTSIZE_UNKNOWN and _ERROR are the two largest values
            raise LabError("a zstd frame doesn't say how large it is")
    buffer = ctypes.create_string_buffer(size)
    done = library.ZSTD_decompress(buffer, ctypes.c_size_t(size), blob, ctypes.c_size_t(len(blob)))
    if done > size:
        raise LabError("a zstd frame is damaged")
    return buffer.raw[:done]


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")
