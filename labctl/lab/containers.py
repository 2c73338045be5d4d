"""Whether this host can run containers, found out by running one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.home import Home
from labctl.linux.cgroups import Layout
from labctl.tiers.select import Ability

if TYPE_CHECKING:
    from labctl.hypervisor.capability import Capability

BUSYBOX = "/bin/busybox"


def ability() -> Ability:
    """A quick answer for `up`: rights and kernel features, a fraction of a millisecond."""
    if os.geteuid() != 0:
        return Ability(False, "containers are made by root only", "run labctl with sudo")
    if Layout.detect().kind == "none":
        return Ability(False, "no cgroup hierarchy is mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        if not Path("/proc/self/ns", kind).exists():
            return Ability(False, f"the kernel has no {kind} namespaces", "boot a kernel that has them")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return Ability(False, "the kernel has no overlayfs", "modprobe overlay")
    return Ability(True)


def foreign(arch: str) -> Ability:
    """Whether containers of another CPU run here; `detail` is the program for it, "" if the host does it.

    What the host itself starts for such programs is used as it is.  Else each container gets a binfmt_misc of
    its own, for a statically linked qemu-user: the host's, which all its processes share, is never written.
    """
    from labctl.linux import binfmt

    try:
        if binfmt.known_to_host(arch):
            return Ability(True)
    except KeyError:
        return Ability(False, f"no emulator of {arch} is known for containers", "use tier: emulation")
    names = binfmt.program_names(arch)
    found = next((path for name in names if (path := shutil.which(name)) and _is_static(path)), "")
    refusal = binfmt.private_refusal()
    if found and not refusal:
        return _reachable(os.path.realpath(found))
    install = "apt-get install qemu-user-static"
    if refusal:
        why = f"this host starts no {arch} programs, and a container can't have its own rule: {refusal}"
        return Ability(False, why, f"{install} binfmt-support, or use tier: emulation")
    return Ability(False, f"there is no {names[0]}", f"{install}, or use tier: emulation")


def _reachable(program: str) -> Ability:
    """The program as the detail, where root of a container, who is nobody on this host, may get at it."""
    for place in (Path(program), *Path(program).parents):
        if not place.stat().st_mode & 0o001:
            return Ability(False, f"containers can't run {program}: {place} is closed", f"chmod o+x {place}")
    return Ability(True, detail=program)


def _is_static(program: str) -> bool:
    """Whether it needs no loader: one would be looked for in the container."""
    from labctl.image.boot_elf import is_elf, needs

    try:
        blob = Path(program).read_bytes()
    except OSError:
        return False
    return is_elf(blob) and not needs(blob).interpreter


def trial(home: Home) -> Capability:
    """Run /bin/true in a real container with all its namespaces and limits, and remove it."""
    import tempfile

    from labctl.hypervisor.capability import Capability

    quick = ability()
    if not quick.ok:
        return Capability("container", False, quick.reason, quick.remedy)
    from labctl.runtime import spec
    from labctl.runtime.client import KeeperClient, Launch
    from labctl.runtime.errors import ContainerError

    if not Path(BUSYBOX).exists():
        return Capability("container", True, detail="not tried: busybox-static is not installed")
    home.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home.state) as folder:
        base = Path(folder)
        for part in ("lower/bin", "lower/proc", "lower/dev", "lower/sys", "upper", "work", "run"):
            (base / part).mkdir(parents=True)
        (base / "lower/bin/busybox").write_bytes(Path(BUSYBOX).read_bytes())
        (base / "lower/bin/busybox").chmod(0o755)
        config = spec.default_config(
            ["/bin/busybox", "true"],
            cgroup=f"/labctl/{home.instance()}/doctor/{base.name}",
            lowers=[str(base / "lower")],
            upper=str(base / "upper"),
            work=str(base / "work"),
            memory=32 << 20,
            pids=16,
        )
        (base / "config.json").write_text(json.dumps(config))
        client = KeeperClient(base / "run")
        try:
            error = client.launch([Launch("trial", str(base))], 20.0)["trial"]
            code = -1 if error else client.wait("trial", 10.0)
        except (ContainerError, OSError) as failure:
            error, code = str(failure), -1
        finally:
            client.delete(["trial"])
            client.close()
    if error or code != 0:
        return Capability(
            "container", False, error or f"the trial ended with {code}", "see docs/troubleshooting.md"
        )
    kind = Layout.detect().kind
    return Capability("container", True, detail=f"namespaces, overlayfs and limits work (cgroups {kind})")
