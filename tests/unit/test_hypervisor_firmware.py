"""Which UEFI a machine gets, by QEMU's descriptions of firmware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labctl.errors import HostCannot
from labctl.hypervisor import firmware


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(firmware, "FOLDERS", (str(tmp_path),))
    for name in ("code", "vars", "secure"):
        (tmp_path / f"{name}.fd").touch()
    return tmp_path


def describe(folder: Path, number: int, **more: Any) -> None:
    told = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / "code.fd"), "format": "raw"},
            "nvram-template": {"filename": str(folder / "vars.fd"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
    }
    (folder / f"{number}.json").write_text(json.dumps({**told, **more}))


def test_the_first_that_fits_is_taken(folder: Path) -> None:
    (folder / "10.json").write_text("{")
    describe(folder, 20, features=["secure-boot", "requires-smm"])
    describe(folder, 30, mapping={"device": "memory", "filename": "/x"})
    describe(folder, 40, targets=[{"architecture": "x86_64", "machines": ["pc-q35-*"]}])
    describe(folder, 50)
    for machine in ("", "pc", "q35", "pc-q35-7.2"):
        assert firmware.uefi("m", "x86_64", machine).code == str(folder / "code.fd")
    (folder / "vars.fd").unlink()
    with pytest.raises(HostCannot, match="m: this host has no UEFI firmware for x86_64") as caught:
        firmware.uefi("m", "x86_64")
    assert caught.value.hint == "apt-get install ovmf"


def test_what_there_is_none_for_is_refused(folder: Path) -> None:
    describe(folder, 10)
    with pytest.raises(HostCannot, match="for x86_64 and microvm"):
        firmware.uefi("m", "x86_64", "microvm")
    with pytest.raises(HostCannot) as caught:
        firmware.uefi("m", "aarch64")
    assert caught.value.hint == "apt-get install qemu-efi-aarch64"
    with pytest.raises(HostCannot) as caught:
        firmware.uefi("m", "riscv64")
    assert caught.value.hint == "nodes.m.vm.firmware: bios"
