"""The script of observations, asked of this very machine, and what is read out of its lines."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import LabError, TimedOut
from labctl.guest.machine import Completed
from labctl.lab.observe import NAMESPACES, IdRange, observe, observe_host, parse, words
from labctl.lab.observe_script import SCRIPT

SHELLS = [
    shell for shell in (("sh",), ("busybox", "sh"), ("dash",), ("bash", "--posix")) if shutil.which(shell[0])
]


class Place:
    """A node that answers with what it was given, or by a program of this machine."""

    def __init__(self, code: int = 0, out: bytes = b"", err: bytes = b"") -> None:
        self.answer = Completed(code, out, err)

    def exec(self, argv: Sequence[str], **_more: Any) -> int:
        return self.answer.code

    def run(self, argv: Sequence[str], **_more: Any) -> Completed:
        return self.answer


def read(path: str) -> str:
    return Path(path).read_text().strip()


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_this_machine_as_its_shell_sees_it(shell: tuple[str, ...]) -> None:
    links = {name for _, name in socket.if_nameindex()}
    seen = observe_host(shell=shell)
    now = {name for _, name in socket.if_nameindex()}  # other tests may make links meanwhile
    assert links & now <= set(seen.net_devices) <= links | now
    assert seen.kernel == os.uname().release
    assert seen.hostname == socket.gethostname()
    assert seen.boot_id == read("/proc/sys/kernel/random/boot_id")
    assert seen.pid1 == read("/proc/1/comm")
    assert seen.cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    assert seen.capabilities_known == int(read("/proc/sys/kernel/cap_last_cap")) + 1
    assert seen.memory == int(read("/proc/meminfo").split()[1]) * 1024
    assert seen.memory_available and 0 < seen.memory_available < seen.memory
    assert not [a for a in seen.addresses if a.startswith(("127.", "fe80"))]
    kinds = {kind for kind in NAMESPACES if Path("/proc/self/ns", kind).exists()}
    assert seen.namespaces == {kind: str(Path("/proc/self/ns", kind).readlink()) for kind in kinds}
    assert set(seen.ipc) == {"shm", "sem", "msg"}
    maps = [IdRange(*(int(n) for n in line.split())) for line in read("/proc/self/uid_map").splitlines()]
    assert list(seen.users) == maps
    assert "null" in seen.char_devices
    assert seen.seccomp in ("none", "filter") and seen.no_new_privileges is not None
    assert seen.uptime and seen.uptime > 0
    assert seen.processes and seen.processes > 1 and seen.mounts and seen.root_type


def test_all_shells_tell_the_same() -> None:
    told = [set(words(subprocess.check_output([*shell, "-c", SCRIPT], text=True))) for shell in SHELLS]
    assert all(keys == told[0] for keys in told)


def test_it_says_nothing_on_standard_error_and_needs_no_path() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", SCRIPT], env={"PATH": "/none"}, capture_output=True, timeout=30, check=False
    )
    lines = words(done.stdout.decode())
    assert done.stderr == b""
    assert "done" in lines and lines["kernel"] == [os.uname().release]
    assert "cap-last" in lines and not parse(lines).capabilities_known  # without cat this one can't be told


def test_an_answer_that_breaks_off_is_no_observation() -> None:
    with pytest.raises(LabError, match="box can't be observed: out of memory"):
        observe(Place(137, b"kernel 6.1\n", b"out of memory\n"), "box")
    with pytest.raises(LabError, match="box can't be observed: its shell ended with 0"):
        observe(Place(0, b"kernel 6.1\n"), "box")


def test_an_image_without_a_shell_is_told_as_such() -> None:
    with pytest.raises(LabError, match="box can't be observed: its image has no shell"):
        observe(Place(127, b"", b"sh: not found"), "box")


def test_a_host_that_hangs_or_has_no_shell() -> None:
    with pytest.raises(TimedOut, match=r"no answer within 0\.2 s"):
        observe_host(0.2, ("sh", "-c", "sleep 5", "sh"))
    with pytest.raises(LabError, match="No such file"):
        observe_host(shell=("/none/sh",))


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("memory-max 9223372036854771712", "memory_limit", None),
        ("memory-max max", "memory_limit", None),
        ("memory-max 67108864", "memory_limit", 64 << 20),
        ("cpu-max max 100000", "cpu_limit", None),
        ("cpu-max 50000 100000", "cpu_limit", 0.5),
        ("cpu-max 1 0", "cpu_limit", None),
        ("cpu 0xd08\ncpu-part 1", "cpu", "Cortex-A72"),
        ("cpu 0xfff\ncpu-part 1", "cpu", "ARM part 0xfff"),
        ("dmi-vendor QEMU\ndmi-product Standard PC", "hypervisor", "QEMU Standard PC"),
        ("dmi-vendor Dell\ndmi-product R640", "hypervisor", ""),
        ("dmi-vendor Dell\nhypervisor-flag 1", "hypervisor", "one that gives no name"),
        ("hypervisor KVM\ndmi-vendor QEMU", "hypervisor", "KVM"),
        ("hypervisor-type xen\nguest-type PVH", "hypervisor", "xen PVH"),
        ("device-tree linux,dummy-virt", "hypervisor", "linux,dummy-virt"),
        (
            "address6 fd000000000000000000000000000002 eth0\naddress4 10.1.2.3\naddress4 10.1.2.3",
            "addresses",
            ("10.1.2.3", "fd00::2"),
        ),
        ("uid-map 0 100000 65536", "users", (IdRange(0, 100000, 65536),)),
        ("uid-map 0 x 1", "users", ()),
        ("status-CapEff 00000000a80425fb", "capabilities_known", 0),
        ("root-type rootfs\nroot-type overlay", "root_type", "overlay"),
        ("uptime nan 1", "uptime", None),
    ],
)
def test_single_answers(lines: str, field: str, value: object) -> None:
    assert getattr(parse(words(lines)), field) == value


def test_the_usual_fourteen_capabilities_by_name() -> None:
    found = parse(words("status-CapEff 00000000a80425fb")).capabilities
    assert len(found) == 14 and "CAP_CHOWN" in found and "CAP_SYS_ADMIN" not in found


KEYS = (
    "kernel",
    "processes",
    "uid-map",
    "address4",
    "address6",
    "cpu-max",
    "status-CapEff",
    "uptime",
    "cpus",
)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.text()), max_size=20))
def test_whatever_a_node_says_is_read_without_trouble(lines: list[tuple[str, str]]) -> None:
    seen = parse(words("\n".join(f"{key} {value}" for key, value in lines)))
    assert len(seen.kernel) <= 200 and (seen.kernel.isprintable() or "\t" in seen.kernel)
