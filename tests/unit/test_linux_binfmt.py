"""Which programs are of which CPU, and what the kernel is told of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from labctl.linux import binfmt

# qemu-binfmt-conf.sh's own words for aarch64 and s390x.
AARCH64 = "7f454c460201010000000000000000000200b700"
AARCH64_MASK = "ffffffffffffff00fffffffffffffffffeffffff"
S390X = "7f454c4602020100000000000000000000020016"
S390X_MASK = "ffffffffffffff00fffffffffffffffffffeffff"


def test_headers() -> None:
    assert [part.hex() for part in binfmt.header("aarch64")] == [AARCH64, AARCH64_MASK]
    assert [part.hex() for part in binfmt.header("s390x")] == [S390X, S390X_MASK]
    line = binfmt.entry("aarch64", "/usr/bin/q")
    assert line.startswith(r":labctl-aarch64:M::\x7f\x45") and line.endswith(":/usr/bin/q:POCF")
    assert binfmt.program_names("armhf") == ("qemu-arm-static", "qemu-arm")
    with pytest.raises(KeyError):
        binfmt.header("vax")


def test_own_programs_are_of_this_cpu() -> None:
    arch = os.uname().machine
    magic, mask = binfmt.header(arch)
    with Path(sys.executable).open("rb") as file:
        seen = file.read(20)
    assert bytes(a & m for a, m in zip(seen, mask, strict=True)) == bytes(
        a & m for a, m in zip(magic, mask, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("", ""), "/usr/bin/qemu-aarch64-static"),
        (("enabled", "disabled"), ""),
        (("flags: POCF", "flags: POC"), ""),
        (("b700", "f300"), ""),
        (("offset 0", "offset 4"), ""),
    ],
)
def test_what_the_host_knows(tmp_path: Path, change: tuple[str, str], found: str) -> None:
    text = (
        "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POCF\noffset 0\n"
        f"magic {AARCH64}\nmask {AARCH64_MASK}\n"
    )
    (tmp_path / "qemu-aarch64").write_text(text.replace(*change) if change[0] else text)
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "python3.11").write_text(
        "enabled\ninterpreter /usr/bin/python3.11\nflags: \noffset 0\nmagic a70d0d0a\n"
    )
    assert binfmt.known_to_host("aarch64", str(tmp_path)) == found
    assert binfmt.known_to_host("aarch64", str(tmp_path / "none")) == ""
