"""Can this host run User Mode Linux?  Found out by booting its kernel with nothing but an initramfs."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from time import monotonic

from labctl.errors import LabError
from labctl.events import Emit, silent
from labctl.home import Home
from labctl.hypervisor.capability import Capability, cached
from labctl.hypervisor.probe import TIED, trial_folder

SECONDS = 15.0
NAME = "para by User Mode Linux"


def probe_uml(home: Home, *, fresh: bool = False, emit: Emit = silent) -> Capability:
    """Whether it boots here.  Bounded by SECONDS (and the download of its kernel, the first time); cached."""
    from labctl.image.initramfs import initramfs
    from labctl.image.kernels import kernel

    if platform.machine() != "x86_64":
        reason = f"User Mode Linux is for x86_64, and this host is {platform.machine()}"
        return Capability(NAME, False, reason, "use tier: emulation")
    if os.geteuid() != 0:
        return Capability(
            NAME, False, "network cards for User Mode Linux need root's rights", "run labctl as root"
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return Capability(NAME, False, "there is no /dev/net/tun for its network cards", "modprobe tun")
    try:
        found = kernel(home.cache, "uml", emit)
        start = initramfs(home.cache, found, emit)
    except LabError as error:
        return Capability(NAME, False, error.message, error.hint or "apt-get install user-mode-linux")
    return cached(home, NAME, found.boot, lambda: _try(home, found.boot, start), fresh=fresh)


def _try(home: Home, program: Path, start: Path) -> Capability:
    """Boot it as far as labctl's init, which says so and ends."""
    began = monotonic()
    with trial_folder(home) as folder:
        words = [str(program), "mem=128M", "umid=m", "uml_dir=uml/", f"initrd={start}", "con=null"]
        words += ["con0=null,fd:1", "quiet", "panic=-1", "labctl.probe"]
        Path(folder, "uml").mkdir()
        said = Path(folder, "said")
        # In a PID namespace of its own, so that all its processes end with it.
        argv = [*TIED, "unshare", "--pid", "--fork", "--kill-child", "--", *words]
        with said.open("wb") as out:
            running = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )
        try:
            running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        text = said.read_bytes().decode(errors="replace")
    seconds = monotonic() - began
    if "LABCTL-PROBE ok" in text:
        return Capability(NAME, True, detail=f"its kernel booted in {seconds:.1f} s")
    lines = text.strip().splitlines() or ["it said nothing"]
    return Capability(
        NAME, False, f"its kernel does not boot here: {lines[-1][:200]}", "see whether /dev/shm is full"
    )
