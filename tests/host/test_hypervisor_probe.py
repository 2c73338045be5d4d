"""Trials: each tells the truth about this machine, in bounded time, and remembers it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.hypervisor import payload, probe
from labctl.hypervisor.capability import Capability
from tests.e2e.labs import until

pytestmark = pytest.mark.timeout(600)


@pytest.mark.needs("tcg")
@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64"])
def test_emulation_is_tried(home: Home, arch: str) -> None:
    found = probe.probe_emulation(home, arch)
    if probe.qemu_program(arch) is None:
        assert not found.ok and f"qemu-system-{arch} is not installed" in found.reason
        assert found.remedy.startswith("apt-get install qemu-system-")
        return
    assert found.ok, found
    assert 0 < found.seconds < probe.EMULATION_SECONDS
    assert probe.probe_emulation(home, arch) == found, "the second answer is remembered"


@pytest.mark.needs("tcg")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": 1}', "\0\0"])
def test_a_damaged_cache_is_as_good_as_none(home: Home, text: str) -> None:
    first = probe.probe_emulation(home)
    path = home.cache / "probes.json"
    path.write_text(text)
    assert probe.probe_emulation(home).ok == first.ok
    assert probe.probe_emulation(home) == probe.probe_emulation(home)


@pytest.mark.needs("tcg")
def test_a_remembered_answer_of_another_shape_is_tried_again(home: Home) -> None:
    probe.probe_emulation(home)
    path = home.cache / "probes.json"
    path.write_text(path.read_text().replace('"reason"', '"raison"'))
    assert probe.probe_emulation(home).ok


@pytest.mark.needs("tcg")
def test_a_guest_that_does_nothing_ends_in_bounded_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "EMULATION_SECONDS", 1.0)
    halt = b"\xf4\xeb\xfd".ljust(65520, b"\x90") + bytes.fromhex("e90d00").ljust(16, b"\x90")
    monkeypatch.setitem(payload.PAYLOADS, "x86_64", lambda: halt)
    found = probe.probe_emulation(home, fresh=True)
    assert not found.ok and "did nothing for 1 s" in found.reason


def test_an_unknown_architecture_is_a_sentence(home: Home) -> None:
    found = probe.probe_emulation(home, "vax")
    assert not found.ok and "vax" in found.reason and "aarch64" in found.remedy


@pytest.mark.needs("root", "kernel")
def test_hardware_answers_with_reason_and_remedy(home: Home) -> None:
    found = probe.probe_hardware(home)
    assert found.ok or (found.reason and found.remedy)
    again = probe.probe_hardware(home)  # the first may have fetched the kernel
    assert again.ok == found.ok
    assert again.seconds < probe.HARDWARE_SECONDS + 30  # bounded, on a busy machine as well


def test_what_dev_kvm_can_say(tmp_path: Path) -> None:
    gone = probe._look_at_device(str(tmp_path / "kvm"))
    assert gone is not None and not gone.ok and gone.remedy
    plain = tmp_path / "plain"
    plain.write_text("")
    no_kvm = probe._look_at_device(str(plain))
    assert no_kvm is not None and "can't make a virtual machine" in no_kvm.reason


TRIAL = probe._Trial(b"", "", None, 8.0)


@pytest.mark.parametrize(
    ("trial", "word"),
    [
        (dataclasses.replace(TRIAL, errors="KVM internal error. Suberror: 1"), "KVM internal error"),
        (TRIAL, "printed nothing"),
        (dataclasses.replace(TRIAL, output=b"Linux version 6.1\n"), "did not finish booting"),
        (dataclasses.replace(TRIAL, status=1, errors="error: no MSR"), "QEMU failed: no MSR"),
    ],
)
def test_each_way_to_fail_has_its_sentence(trial: probe._Trial, word: str) -> None:
    found = probe._judge_hardware(trial, Path("vmlinuz"))
    assert not found.ok and word in found.reason and found.remedy and found.detail


def test_a_kernel_that_looked_for_its_root_is_proof() -> None:
    output = b"[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    assert probe._judge_hardware(dataclasses.replace(TRIAL, output=output), Path("vmlinuz")).ok


def test_para_of_this_host_itself_is_a_matter_of_xen(home: Home) -> None:
    found = probe.probe_para(home)
    assert isinstance(found, Capability)
    assert not found.ok and "Xen" in found.reason


@pytest.mark.needs("tcg")
def test_a_killed_trial_leaves_no_guest_and_its_folder_goes_with_the_next(home: Home) -> None:
    script = (
        "from labctl.home import Home\nfrom labctl.hypervisor import probe\n"
        "halt = b'\\xf4\\xeb\\xfd'.ljust(65520, b'\\x90') + bytes.fromhex('e90d00').ljust(16, b'\\x90')\n"
        "probe.PAYLOADS['x86_64'] = lambda: halt\n"
        "probe.probe_emulation(Home.find(), 'x86_64', fresh=True)\n"
    )
    trials = home.cache / "boot" / "trials"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        until(lambda: len(guests_of(trials)) == 1 and any(trials.glob("*/serial")), "the guest runs")
        process.kill()
    until(lambda: guests_of(trials) == [], "the guest has ended too")
    assert len(list(trials.iterdir())) == 1
    assert probe.probe_emulation(home, "x86_64", fresh=True).ok
    assert list(trials.iterdir()) == []


def guests_of(folder: Path) -> list[int]:
    """The processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "cwd").readlink()).startswith(f"{folder}/"):
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile
    return found
