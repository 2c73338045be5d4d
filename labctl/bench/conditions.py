"""Under what conditions it was measured: kept with the samples, printed in every report.

Everything is read, nothing assumed: what can't be read is left out and not guessed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labctl.bench.places import Place
from labctl.bench.site import Site
from labctl.bench.tasktypes import Task
from labctl.errors import LabError
from labctl.lab import api
from labctl.lab.compare import Column

_CPU = Path("/sys/devices/system/cpu")
_LIBRARIES = ("numpy", "scipy", "matplotlib", "pydantic", "paramiko", "libvirt-python")

# How the names of kernel parameters begin that change what a benchmark shows (kernel-parameters.txt).
_PARAMETERS = (
    *("mitigations", "nospectre", "spec", "spectre", "pti", "nopti", "l1tf", "mds", "retbleed", "tsx"),
    *("isolcpus", "nohz", "rcu", "maxcpus", "nr_cpus", "nosmt", "mem", "numa", "idle", "preempt"),
    *("hugepages", "default_hugepagesz", "transparent_hugepage", "swiotlb", "iommu", "intel_iommu"),
    *("amd_iommu", "intel_pstate", "amd_pstate", "intel_idle", "processor.", "cpufreq", "clocksource"),
    *("tsc", "cgroup", "systemd.unified_cgroup_hierarchy", "kvm", "psi", "random.trust_cpu", "cryptomgr"),
)


def host() -> dict[str, Any]:
    """The machine: processor, kernel, settings, what else runs on it now."""
    found: dict[str, Any] = {
        "cpu_model": _cpu_model(),
        "cpus_online": os.cpu_count() or 1,
        "cpus_usable": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "kernel_build": platform.version(),
        "architecture": platform.machine(),
        "os": _os(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "governor": _word(_CPU / "cpu0/cpufreq/scaling_governor") or "none is told by the kernel",
        "smt": _word(_CPU / "smt/control") or "not told by the kernel",
        "turbo": _turbo(),
        "mitigations": {
            path.name: _word(path) for path in sorted((_CPU / "vulnerabilities").glob("*")) if _word(path)
        },
        "kernel_parameters": kernel_parameters(_word(Path("/proc/cmdline"))),
        "transparent_hugepages": _chosen(_word(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "clocksource": _word(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "cgroups": _cgroups(),
        "load_at_start": list(os.getloadavg()),
        "is_a_virtual_machine": _virtual(),
    }
    return found


def kernel_parameters(line: str) -> str:
    """The words of a kernel's command line that bear on speed; the rest is nobody's business, or secret."""
    words = line.partition(" -- ")[0].split()  # what follows is init's
    return " ".join(word for word in words if word.partition("=")[0].startswith(_PARAMETERS))


def versions(site: Site, tasks: Sequence[Task]) -> dict[str, str]:
    """Versions of labctl, its libraries, the host's programs under it, and the tools in the image."""
    from importlib import metadata

    from labctl import __version__

    found = {"labctl": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if any(node.accelerator for node in site.status.nodes if node.tier != "container"):
        for name, program in (("qemu", f"qemu-system-{platform.machine()}"), ("libvirtd", "libvirtd")):
            if said := _said([program, "--version"]):
                found[name] = said
    place = site.host or next(iter(site.places.values()))
    for tool, script in {t.tool: t.spec.version for t in tasks if t.spec and t.spec.version}.items():
        try:
            told = place.shell(script, 30).text
        except LabError:
            continue
        found[f"{tool} (in the image)"] = " ".join(told.split())[:120]
    return found


def node(site: Site, place: Place) -> dict[str, Any]:
    """One node: what labctl gave it, and what it sees."""
    column = next(column for column in site.seen.columns if column.name == place.name)
    found: dict[str, Any] = {
        "tier": place.tier,
        "accelerator": place.accelerator,
        "emulated": place.emulated,
        "nested": place.nested,
        "image": column.image,
        "memory_given": column.memory_given,
        "cpus_given": column.cpus_given,
        "pids_limit": place.pids_limit,
        "mark": place.mark,
        **_seen(column),
    }
    try:
        told = api.inspect(site.lab, place.name, site.options)
    except LabError as error:
        return {**found, "not_known": error.message}
    found["digest"] = told["record"].get("digest", "")
    specs = {row["key"].partition(":")[0]: row["spec"] for row in told["resources"]}
    if domain := specs.get("domain"):
        found.update(_machine(domain))
    elif place.inside:
        found["network_path"] = f"veth → bridge inside {place.inside} → its own path"
    else:
        found["network_path"] = "veth → bridge"
        found["disk"] = "overlayfs over the image's layers; writes go to the host's file system"
    found["pinning"] = "none"
    return found


def _machine(spec: dict[str, Any]) -> dict[str, Any]:
    """What a VM is made of, from its description."""
    from labctl.hypervisor.domain import Domain
    from labctl.hypervisor.xml import shape
    from labctl.resource.codec import decode

    domain = decode(Domain, json.dumps(spec))
    made = shape(domain)
    features = [f"{'-' if policy == 'disable' else '+'}{name}" for policy, name in made.cpu_features]
    disk = domain.disks[0] if domain.disks else None
    nic = domain.nics[0] if domain.nics else None
    return {
        "machine_type": made.machine,
        "virtualization": domain.type,
        "cpu_model_given": ",".join([made.cpu_mode or made.cpu_model, *features]),
        "virtual_cpus": domain.vcpus,
        "kernel_parameters": kernel_parameters(domain.cmdline),
        "kernel_file": Path(domain.kernel).parent.name if domain.kernel else "",
        "disk_bus": disk.bus if disk else "",
        "disk_format": disk.format if disk else "",
        "disk_cache": disk.cache if disk else "",
        "nic": nic.model if nic else "none",
        "network_path": f"{nic.model if nic else 'no'} network card → tap → bridge",
    }


def _seen(column: Column) -> dict[str, Any]:
    if column.seen is None:
        return {}
    seen = asdict(column.seen)
    keys = (
        "kernel",
        "arch",
        "os",
        "root_type",
        "cpu",
        "cpus",
        "cpu_limit",
        "memory",
        "memory_limit",
        "seccomp",
        "hypervisor",
        "paravirt",
        "clocksource",
    )
    return {f"sees_{key}": seen[key] for key in keys if seen[key] not in (None, "")}


def now() -> dict[str, Any]:
    """What changes from run to run: kept with every sample."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    if speed := _word(_CPU / "cpu0/cpufreq/scaling_cur_freq"):
        found["khz"] = int(speed)
    return found


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()[:4096]
    except OSError:
        return ""


def _chosen(text: str) -> str:
    return next((word.strip("[]") for word in text.split() if word.startswith("[")), text)


def _cpu_model() -> str:
    for line in _word(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _os() -> str:
    for line in _word(Path("/etc/os-release")).splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _turbo() -> str:
    for name, on in (("intel_pstate/no_turbo", "0"), ("cpufreq/boost", "1")):
        if word := _word(_CPU / name):
            return "on" if word == on else "off"
    return "not told by the kernel"


def _cgroups() -> str:
    mounts = _word(Path("/proc/self/mountinfo"))
    v1, v2 = " - cgroup " in mounts, " - cgroup2 " in mounts
    return "v1 and v2 (hybrid)" if v1 and v2 else "v2" if v2 else "v1" if v1 else "none mounted"


def _virtual() -> str:
    """What /proc/cpuinfo says: the flag `hypervisor` is set by every hypervisor that wants to be seen."""
    flags = next((line for line in _word(Path("/proc/cpuinfo")).splitlines() if line.startswith("flags")), "")
    vendor = _word(Path("/sys/class/dmi/id/sys_vendor")) or _word(Path("/sys/hypervisor/type"))
    if "hypervisor" in flags.split():
        return f"yes ({vendor})" if vendor else "yes"
    return "no sign of it" if flags else "not known"


def _said(argv: list[str]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.strip().splitlines()), "")[:120]
