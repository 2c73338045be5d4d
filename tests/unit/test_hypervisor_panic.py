"""The last words of a kernel, in the log of many boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.hypervisor.panic import last_words

PANIC = "[    9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x9\r\n[    9.2] CPU: 0\r\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("LABCTL-READY\r\n", ""),
        (f"LABCTL-READY\r\n{PANIC}", "Attempted to kill init! exitcode=0x9"),
        (PANIC, "Attempted to kill init! exitcode=0x9"),
        (f"{PANIC}LABCTL-READY\r\n", ""),
        (PANIC.replace("init!", "\udcff"), "Attempted to kill \ufffd exitcode=0x9"),
        (PANIC + "x" * 20000, ""),
    ],
)
def test_last_words(tmp_path: Path, log: str, words: str) -> None:
    (tmp_path / "log").write_bytes(log.encode(errors="surrogateescape"))
    assert last_words(str(tmp_path / "log")) == words


def test_no_log(tmp_path: Path) -> None:
    assert last_words(str(tmp_path / "none")) == "" and last_words("") == ""
