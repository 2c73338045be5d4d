"""Whether a machine of the lab can be the host of a tier, and what is missing when it can't be built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from labctl.errors import LabError
from labctl.home import Home
from labctl.hypervisor.capability import Capability
from labctl.image.model import debian_arch, host_arch


def probe(home: Home, name: str) -> Capability:
    """Whether the image of that name (xen-host, kvm-host) is there or can be built, and run here.

    `detail` says what a guest of it runs on.  Asks the package archive only when nothing is in the cache.
    """
    from labctl.image import recipe
    from labctl.image.store import Store
    from labctl.lab.facts import X86, this_arch

    found = recipe.find(name)
    if found is None:
        return Capability(name, False, f"this labctl has no image {name}", "use --fallback emulation")
    if this_arch() != X86:
        why = f"labctl's {name} is a machine of {X86}, and this host is {this_arch()}"
        return Capability(name, False, why, "use --fallback emulation")
    store = Store(home.cache / "images")
    image = store.find(name, host_arch())
    layers = [Path(layer) for layer in store.rootfs(image)] if image else []
    missing = "" if layers else _missing_packages(home, found.packages)
    if missing:
        remedy = "see that apt can reach Debian's archive (apt-get update), or use --fallback emulation"
        return Capability(name, False, missing, remedy)
    return Capability(name, True, detail=_words(home, name, layers))


def doctor_para(home: Home) -> Capability:
    """What para would run on here: the Xen of this host, one that labctl builds, or why neither."""
    from labctl.hypervisor.probe import probe_para

    native = probe_para(home)
    built = probe(home, "xen-host")
    if built.ok:
        return Capability("para", True, detail=f"{built.detail}, on a Xen host that labctl adds to the lab")
    return Capability(
        "para", False, f"{native.reason}, and no Xen host can be built: {built.reason}", built.remedy
    )


def doctor_hardware(home: Home, native: Capability) -> Capability:
    """What hardware would run on here: this host's KVM (as tried: `native`), or why not and what else can."""
    if native.ok:
        return native
    built = probe(home, "kvm-host")
    if built.ok:
        way = "or labctl up --nested always: a KVM host under emulation, slow"
        return replace(native, remedy=f"{native.remedy}; {way}")
    return replace(native, reason=f"{native.reason}, and no KVM host can be built: {built.reason}")


def _missing_packages(home: Home, packages: tuple[str, ...]) -> str:
    """Why the packages can't be had; "" when the archive has them all."""
    from labctl.image.boot_apt import AptRoot

    apt = AptRoot.at(home.cache, debian_arch(host_arch()))
    try:
        apt.update()
        lacking = [package for package in packages if not apt.known(package)]
    except LabError as error:
        return error.message
    return f"Debian's archive has no package {', '.join(lacking)}" if lacking else ""


def _words(home: Home, name: str, layers: list[Path]) -> str:
    if name != "xen-host":
        return "KVM"
    from labctl.image.boot_apt import AptRoot

    files = [path.name for layer in layers for path in layer.glob("boot/xen-*.gz")]
    text = files[-1].removeprefix("xen-") if files else ""
    if not text:
        text = AptRoot.at(home.cache, debian_arch(host_arch())).known("xen-system-amd64")
    version = re.match(r"[0-9]+\.[0-9]+", text)
    return f"Xen {version[0]} PV" if version else "Xen PV"
