"""Can this host run a tier?  Found out by running it, bounded in time; never by the presence of a file.

For emulation a few instructions are enough (payload.py).  For hardware virtualization they are not: there
are machines whose /dev/kvm runs simple code and then fails for a real kernel, because it is itself emulated
in software.  So that trial boots a stock kernel as far as the search for its root file system.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from labctl.errors import LabError
from labctl.events import Emit, silent
from labctl.home import Home
from labctl.hypervisor.capability import Capability, cached
from labctl.hypervisor.payload import PAYLOADS, WORD, X86_EXIT_STATUS
from labctl.image.scratch import Scratch
from labctl.records import dataclass

EMULATION_SECONDS = 10.0
HARDWARE_SECONDS = 8.0
_MACHINES = {"x86_64": ("pc", "qemu64"), "aarch64": ("virt", "cortex-a57"), "riscv64": ("virt", "rv64")}
_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm", "riscv64": "qemu-system-misc"}
# linux/kvm.h
_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_API = 0xAE00, 0xAE01, 12
# A stock kernel that got this far has done everything but find a root file system, which it has none of.
_KERNEL_DONE = (
    b"VFS: Unable to mount root fs",
    b"VFS: Cannot open root device",
    b"Run /init as init process",
)


# How a trial's program is started, so that the kernel ends it when we are killed (PR_SET_PDEATHSIG).
TIED = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True)
class _Trial:
    output: bytes
    errors: str
    status: int | None  # None: still running at the limit
    seconds: float


def qemu_program(arch: str) -> Path | None:
    """QEMU for this architecture, or None."""
    found = shutil.which(f"qemu-system-{arch}", path="/usr/bin:/usr/local/bin:/usr/libexec")
    return Path(found) if found else None


def probe_emulation(home: Home, arch: str = "x86_64", *, fresh: bool = False) -> Capability:
    """Whether QEMU can emulate a machine of `arch`.  Bounded by EMULATION_SECONDS; cached."""
    name = f"emulation:{arch}"
    if arch not in PAYLOADS:
        known = ", ".join(PAYLOADS)
        return Capability(
            name, False, f"labctl emulates no machines of architecture {arch}", f"use one of {known}"
        )
    program = qemu_program(arch)
    if program is None:
        reason = f"qemu-system-{arch} is not installed"
        return Capability(name, False, reason, f"apt-get install {_PACKAGES[arch]}")
    return cached(home, name, program, lambda: _try_emulation(home, name, arch, program), fresh=fresh)


def _try_emulation(home: Home, name: str, arch: str, program: Path) -> Capability:
    machine, cpu = _MACHINES[arch]
    with trial_folder(home) as folder:
        rom = folder / "payload.rom"
        rom.write_bytes(PAYLOADS[arch]())
        argv = [str(program), "-M", machine, "-cpu", cpu, "-accel", "tcg", "-m", "64", "-bios", str(rom)]
        if arch == "x86_64":
            argv += ["-device", "isa-debug-exit"]
        trial = _run(argv, folder, EMULATION_SECONDS, (WORD,), grace=2.0)
    expected = X86_EXIT_STATUS if arch == "x86_64" else 0
    if WORD in trial.output and trial.status == expected:
        return Capability(name, True, detail=f"a guest ran {trial.seconds:.2f} s in {program}")
    if trial.status is None:
        reason = f"QEMU started, but its guest did nothing for {EMULATION_SECONDS:.0f} s"
        return Capability(
            name, False, reason, "see whether the host is overloaded, then run labctl doctor again"
        )
    if "accel" in trial.errors and "tcg" in trial.errors:
        return Capability(
            name, False, "this QEMU has no TCG emulator", f"apt-get install {_PACKAGES[arch]}", trial.errors
        )
    reason = f"QEMU failed: {trial.errors or f'exit status {trial.status}'}"
    return Capability(name, False, reason, f"apt-get install --reinstall {_PACKAGES[arch]}")


@contextmanager
def trial_folder(home: Home) -> Iterator[Path]:
    """A folder for one trial; what a killed one has left goes with the next."""
    scratch = Scratch(home.cache / "boot" / "trials")
    scratch.sweep()
    with scratch.folder("trial") as folder:
        yield folder


def _run(argv: list[str], folder: Path, seconds: float, enough: tuple[bytes, ...], *, grace: float) -> _Trial:
    """Run QEMU until it ends, or `seconds`, or `grace` seconds after one of `enough` was printed."""
    serial, errors = folder / "serial", folder / "errors"
    words = ["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-serial", f"file:{serial}"]
    begun = monotonic()
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            [*TIED, *argv, *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=folder,
            start_new_session=True,
        )
    limit = begun + seconds
    status: int | None = None
    try:
        while (status := process.poll()) is None and monotonic() < limit:
            if any(word in _read(serial) for word in enough):
                limit = min(limit, monotonic() + grace)
            sleep(0.01)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    text = " ".join(_read(errors).decode(errors="replace").split())
    text = text.removeprefix(f"{argv[0]}: ").removeprefix(f"{Path(argv[0]).name}: ")
    return _Trial(_read(serial), text, status, monotonic() - begun)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def probe_hardware(
    home: Home, *, kernel: Path | None = None, fresh: bool = False, emit: Emit = silent
) -> Capability:
    """Whether a stock kernel boots under KVM here.  Bounded by HARDWARE_SECONDS (and the download of a
    kernel, the first time); the trial's answer is cached, a missing file or right is looked up each time."""
    arch = platform.machine()
    program = qemu_program(arch)
    if program is None or arch not in _MACHINES:
        package = _PACKAGES.get(arch, "qemu-system")
        return Capability(
            "hardware", False, f"qemu-system-{arch} is not installed", f"apt-get install {package}"
        )
    refused = _look_at_device()
    if refused is not None:
        return refused
    return cached(
        home, "hardware", program, lambda: _try_hardware(home, program, arch, kernel, emit), fresh=fresh
    )


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _no_extensions() -> tuple[str, str]:
    """Why the CPU has neither vmx nor svm, and what to do about it."""
    if "hypervisor" in _cpu_flags():
        return (
            "this machine is itself virtual, and its hypervisor passes no virtualization extensions "
            "(vmx, svm) on",
            "on the machine below: modprobe -r kvm_intel && modprobe kvm_intel nested=1 (or kvm_amd), "
            "and give this machine the CPU model host-passthrough; or use --fallback emulation",
        )
    return (
        "the CPU shows no virtualization extensions (vmx, svm)",
        "switch on Intel VT-x or AMD-V (SVM) in the firmware's setup, or use --fallback emulation",
    )


def _look_at_device(device: str = "/dev/kvm") -> Capability | None:
    """What already /dev/kvm and the CPU rule out; None when a trial is worth it."""

    def no(reason: str, remedy: str, detail: str = "") -> Capability:
        return Capability("hardware", False, reason, remedy, detail)

    flags = _cpu_flags()
    if not Path(device).exists():
        if platform.machine() == "x86_64" and not flags & {"vmx", "svm"}:
            return no(*_no_extensions(), f"no {device}")
        module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else "kvm"
        return no(f"the kernel's KVM is not loaded: there is no {device}", f"modprobe {module}")
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        if os.geteuid() == 0 or os.access(device, os.R_OK | os.W_OK):
            return no(
                f"{device} may not be opened although its mode allows it: a device cgroup forbids it",
                "allow c 10:232 rwm in the unit or container that labctl runs in "
                "(systemd: DeviceAllow=/dev/kvm rw)",
                str(error),
            )
        return no(
            f"no right to open {device}", "usermod -aG kvm $USER and log in again, or run labctl as root"
        )
    except OSError as error:
        return no(
            f"{device} can't be opened: {error.strerror}", "modprobe kvm_intel or kvm_amd, and see dmesg"
        )
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API:
            return no(f"{device} speaks API {version}, not {_KVM_API}", "use the kernel of your distribution")
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return no(
            f"KVM can't make a virtual machine ({error.strerror}): another hypervisor may hold the CPU",
            "end VirtualBox, VMware or Xen on this host (or rmmod vboxdrv), then try again",
        )
    finally:
        os.close(fd)
    return None


def _trial_kernel(home: Home, arch: str, emit: Emit) -> Path | None:
    """A stock kernel: labctl's own, or the host's."""
    from labctl.image.kernels import DEFAULT_KERNELS, kernel

    try:
        return Path(kernel(home.cache, DEFAULT_KERNELS[arch], emit).vmlinuz)
    except LabError:
        host = Path("/boot") / f"vmlinuz-{platform.release()}"
        return host if os.access(host, os.R_OK) else None


def _try_hardware(home: Home, program: Path, arch: str, kernel: Path | None, emit: Emit) -> Capability:
    image = kernel or _trial_kernel(home, arch, emit)
    if image is None:
        return Capability("hardware", False, "no kernel to try KVM with", "labctl image kernel cloud-amd64")
    machine = "pc" if arch == "x86_64" else "virt,gic-version=host"
    console = "ttyS0" if arch == "x86_64" else "ttyAMA0"
    argv = [str(program), "-M", machine, "-cpu", "host", "-accel", "kvm", "-m", "256", "-kernel", str(image)]
    argv += ["-append", f"console={console} earlyprintk=serial panic=-1 mitigations=off cryptomgr.notests"]
    with trial_folder(home) as folder:
        trial = _run(argv, folder, HARDWARE_SECONDS, _KERNEL_DONE, grace=0.0)
    return _judge_hardware(trial, image)


def _judge_hardware(trial: _Trial, image: Path) -> Capability:
    if any(word in trial.output for word in _KERNEL_DONE):
        return Capability("hardware", True, detail=f"{image.name} booted under KVM in {trial.seconds:.1f} s")
    how = _how_it_failed(trial)
    lines = trial.output.decode(errors="replace").strip().splitlines()
    detail = f"{trial.errors[:400]}; last line of the guest: {lines[-1] if lines else '(none)'}"
    if platform.machine() == "x86_64" and not _cpu_flags() & {"vmx", "svm"}:
        reason = (
            "/dev/kvm is here, but the CPU has no virtualization extensions: this KVM is emulated in "
            f"software, and {how}"
        )
        return Capability("hardware", False, reason, _no_extensions()[1], detail)
    return Capability(
        "hardware", False, f"KVM is here, but {how}", "see dmesg, or use --fallback emulation", detail
    )


def _how_it_failed(trial: _Trial) -> str:
    if "KVM internal error" in trial.errors:
        return "a stock kernel stops in it with a KVM internal error"
    if trial.status is None and not trial.output:
        return f"a stock kernel printed nothing in it for {HARDWARE_SECONDS:.0f} s"
    if trial.status is None:
        return f"a stock kernel did not finish booting in it within {HARDWARE_SECONDS:.0f} s"
    first = trial.errors.removeprefix("error: ").partition(f" qemu-system-{platform.machine()}:")[0]
    return f"QEMU failed: {first[:120] or f'exit status {trial.status}'}"


def probe_para(home: Home) -> Capability:
    """Whether this host itself runs Xen PV guests: it would have to be Xen's dom0."""
    del home  # same shape as the other probes; nothing is cached
    try:
        under = Path("/sys/hypervisor/type").read_text().strip()
    except OSError:
        under = ""
    capabilities = Path("/proc/xen/capabilities")
    dom0 = under == "xen" and capabilities.exists() and "control_d" in capabilities.read_text()
    if dom0:
        # A lab's guests then run in a Xen host of their own all the same.
        return Capability("para", False, "labctl doesn't use the Xen of this host yet")
    if under == "xen":
        return Capability("para", False, "this host is itself a guest of Xen")
    return Capability("para", False, "this host doesn't run under Xen")
