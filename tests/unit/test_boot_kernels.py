"""Kernels: the catalog, ELF and bzImage reading, module dependencies, Debian sources."""

from __future__ import annotations

import lzma
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from labctl.errors import LabError, UsageError
from labctl.image.boot_apt import debian_sources
from labctl.image.boot_files import fresh_dir, fresh_file
from labctl.image.boot_modules import ModuleTree, alias_file, dep_file, modinfo, unsigned
from labctl.image.boot_vmlinux import extract_vmlinux, unpack_payload
from labctl.image.kernels import DEFAULT_KERNELS, catalog, entry


def elf(info: bytes) -> bytes:
    """A 64-bit ELF file with a .modinfo section and a section name table, and nothing else."""
    names = b"\0.modinfo\0.shstrtab\0"
    body = info + names
    table = 64 + len(body)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 1, 62, 1)
    head += struct.pack("<QQQIHHHHHH", 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    for name, offset, size in ((1, 64, len(info)), (10, 64 + len(info), len(names))):
        sections += struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
    return head + body + sections


def tree(folder: Path, modules: dict[str, bytes]) -> ModuleTree:
    for path, info in modules.items():
        target = folder / "kernel" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(elf(info))
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return ModuleTree.scan(folder)


def test_catalog_has_a_kernel_for_every_default_architecture() -> None:
    for arch, name in DEFAULT_KERNELS.items():
        assert catalog()[name].arch == arch


def test_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        entry("cloud-amd46")
    assert "cloud-amd64" in caught.value.hint


def test_modinfo_reads_repeated_keys() -> None:
    info = modinfo(elf(b"alias=a*\0alias=b\0depends=x,y\0license=GPL\0"))
    assert info["alias"] == ["a*", "b"]
    assert info["depends"] == ["x,y"]


def test_modinfo_refuses_what_is_no_module() -> None:
    with pytest.raises(LabError):
        modinfo(b"#!/bin/sh\n" + bytes(100))


def test_closure_puts_dependencies_first_and_leaves_builtin_out(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        {
            "net/virtio_net.ko": b"depends=net_failover,virtio\0alias=virtio:d1v*\0",
            "net/net_failover.ko": b"depends=failover\0",
            "net/failover.ko": b"depends=\0",
            "virtio/virtio.ko": b"depends=\0",
        },
    )
    names = [module.name for module in found.closure(["virtio-net", "ext4", "no_such"])]
    assert names == ["failover", "net_failover", "virtio", "virtio_net"]


def test_closure_says_which_module_misses_what(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": b"depends=gone\0"})
    with pytest.raises(LabError, match="a needs gone"):
        found.closure(["a"])


def test_index_survives_saving(tmp_path: Path) -> None:
    found = tree(tmp_path / "m", {"a.ko": b"depends=b\0alias=x\0softdep=pre: b\0", "b.ko": b"depends=\0"})
    found.save(tmp_path / "index.json")
    assert ModuleTree.load(tmp_path / "m", tmp_path / "index.json") == found


def test_depmod_files(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": b"depends=b\0alias=net-pf-10\0", "b.ko": b"depends=\0"})
    modules = found.closure(["a"])
    paths = {module.name: f"{module.name}.ko" for module in modules}
    assert dep_file(modules, paths, found) == "b.ko:\na.ko: b.ko\n"
    assert alias_file(modules) == "alias net-pf-10 a\n"


def test_unsigned_cuts_exactly_the_signature() -> None:
    signed = b"module" + b"S" * 40 + bytes(8) + struct.pack(">I", 40) + b"~Module signature appended~\n"
    assert unsigned(signed) == b"module"
    assert unsigned(b"module") == b"module"


@pytest.mark.parametrize("packer", ["gzip", "xz", "lz4", "zstd"])
def test_every_packing_of_a_kernel(tmp_path: Path, packer: str) -> None:
    data = b"\x7fELF" + bytes(range(256)) * 5000
    size = struct.pack("<I", len(data))
    if packer == "gzip":
        compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
        payload = compressor.compress(data) + compressor.flush()
    elif packer == "xz":
        payload = lzma.compress(data) + size
    else:
        flags = ["-l"] if packer == "lz4" else []
        argv = [packer, *flags, "-c", "-q"]
        payload = (
            subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True, timeout=60).stdout + size
        )
    assert unpack_payload(payload) == data
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    assert extract_vmlinux(bytes(image) + payload) == data


def test_a_file_that_is_no_bzimage() -> None:
    with pytest.raises(LabError, match="bzImage"):
        extract_vmlinux(bytes(4096))


def test_sources_are_debians_only(tmp_path: Path) -> None:
    parts = tmp_path / "apt/sources.list.d"
    parts.mkdir(parents=True)
    (parts / "debian.sources").write_text(
        "Types: deb\n# why\nURIs: http://deb.debian.org/debian\nSuites: trixie trixie-updates\n"
        "Components: main contrib\nArchitectures: amd64\nSigned-By: /k.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://x.org/debian\nSuites: s\nComponents: main\n"
    )
    (parts / "other.list").write_text("deb https://packages.cloud.google.com/apt cloud-sdk main\n")
    (tmp_path / "apt/sources.list").write_text(
        "deb [arch=amd64 signed-by=/k.gpg] http://ftp.de.debian.org/debian/ trixie-backports main\n"
    )
    text = debian_sources(tmp_path)
    assert text.count("Types: deb") == 2
    assert "Architectures" not in text and "google" not in text and "x.org" not in text
    assert "Suites: trixie trixie-updates\nComponents: main\nSigned-By: /k.gpg" in text
    assert "URIs: http://ftp.de.debian.org/debian/\nSuites: trixie-backports" in text


def test_sources_fall_back_to_the_release(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=trixie\n")
    assert "Suites: trixie-security" in debian_sources(tmp_path)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError), fresh_dir(tmp_path / "d") as work:
        (work / "x").write_text("x")
        raise ValueError
    with pytest.raises(ValueError), fresh_file(tmp_path / "f") as path:
        path.write_text("x")
        raise ValueError
    assert list(tmp_path.iterdir()) == []
