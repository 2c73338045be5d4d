"""CPUs and huge pages that a host lacks are refused by name, with what helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labctl.errors import HostCannot
from labctl.hypervisor import resources

MIB = 1 << 20


def test_a_cpu_that_is_not_there() -> None:
    have = os.sched_getaffinity(0)
    resources.refuse_missing_cpus("m", have)
    with pytest.raises(HostCannot, match="m: there is no CPU 70000 to pin it to") as caught:
        resources.refuse_missing_cpus("m", {*have, 70000})
    assert "nodes.m.vm.pin" in caught.value.hint


@pytest.mark.parametrize(
    ("meminfo", "mounts", "said"),
    [
        ("HugePages_Free:    128\nHugepagesize:   2048 kB\n", "h /dev/hugepages hugetlbfs rw 0 0\n", ""),
        ("HugePages_Free:    127\nHugepagesize:   2048 kB\n", "", "128 huge pages; 127 of 2 MiB are free"),
        ("HugePages_Free:    128\nHugepagesize:   2048 kB\n", "t /tmp tmpfs rw 0 0\n", "no hugetlbfs"),
        ("MemFree: 1 kB\n", "", "this kernel has none"),
    ],
)
def test_huge_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str, mounts: str, said: str
) -> None:
    for name, text in (("MEMINFO", meminfo), ("MOUNTS", mounts)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(resources, name, str(tmp_path / name))
    if not said:
        resources.refuse_without_hugepages("m", 256 * MIB)
        return
    with pytest.raises(HostCannot, match=said) as caught:
        resources.refuse_without_hugepages("m", 256 * MIB)
    assert caught.value.hint
