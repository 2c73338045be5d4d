"""The host's TSC frequency, measured: an emulated x86 machine counts with it and need not find it out.

QEMU's emulator answers `rdtsc` with the host's own counter (cpu_get_host_ticks).  /proc/cpuinfo shows the
clock of the moment, which on a laptop is not the counter's, and a wrong figure makes a guest's clock wrong.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import platform
import time
from collections.abc import Callable
from pathlib import Path

from labctl.home import Home
from labctl.image.boot_files import fresh_file

# rdtsc; shl rdx, 32; or rax, rdx; ret   (Intel SDM volume 2)
_CODE = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
_SECONDS = 0.02


def host_tsc_khz(cache: Path | None = None) -> int:
    """The frequency in kHz, measured once for 20 ms and kept for this CPU; 0 where that can't be done.

    Kept, so that the same profile gives the same machine each time.  `cache` None: labctl's own.
    """
    if platform.machine() != "x86_64":
        return 0
    kept = (cache or Home.find().cache) / "boot" / f"tsc-{_cpu()}"
    try:
        return int(kept.read_text())
    except (OSError, ValueError):
        found = measure_khz()
    if found:
        with fresh_file(kept) as path:
            path.write_text(f"{found}\n")
    return found


def measure_khz() -> int:
    """Measure the TSC against the system's clock, for 20 ms; 0 where a program can't make code of its own."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened kernel allows no memory that is both written and executed
        return 0
    page.write(_CODE)
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    rates = sorted(_rate(rdtsc) for _ in range(3))
    return round(rates[1] / 1000)


def _rate(rdtsc: Callable[[], int]) -> float:
    """Ticks a second, over a third of the time."""
    began, first = time.monotonic_ns(), rdtsc()
    time.sleep(_SECONDS / 3)
    ended, last = time.monotonic_ns(), rdtsc()
    return float(last - first) / (ended - began) * 1e9


def _cpu() -> str:
    """A short name of this host's CPU: a cache on a disk that moves must not tell another's frequency."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    keys = ("vendor_id", "cpu family", "model", "model name", "stepping")
    model = [line for line in lines if line.partition(":")[0].strip() in keys]
    return hashlib.sha256("\n".join(model).encode()).hexdigest()[:12]
