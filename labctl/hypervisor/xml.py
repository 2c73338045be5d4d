"""From a Domain to libvirt's domain XML (https://libvirt.org/formatdomain.html), by templates/domain.xml.j2.

Pure: asks no host.  Every value is escaped by jinja2; characters that XML 1.0 (section 2.2) has no way to
write are refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import uuid as uuids
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from labctl.data import data
from labctl.errors import UsageError
from labctl.looks import Owner
from labctl.records import dataclass

NAMESPACE = "https://labctl.dev/xmlns/domain/1.0"
METADATA_KEY = "labctl"
_UUIDS = uuids.UUID("6f1d6a3e-5b0c-4c57-9a2e-6c6162637472")
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Described(Protocol):
    """What this module needs of a Domain."""

    @property
    def owner(self) -> Owner: ...
    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def machine(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    @property
    def emulator(self) -> str: ...
    @property
    def disks(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Shape:
    """What follows from architecture and domain type."""

    machine: str
    emulator: str
    features: tuple[str, ...] = ()
    cpu_mode: str = ""
    cpu_model: str = ""
    cpu_features: tuple[tuple[str, str], ...] = ()  # (policy, name)
    pci: bool = True  # devices may be put on the root bus by slot


# One line an architecture: machine, features, the CPU that boots fastest under emulation.
# qemu64 rather than max: fewer features, 0.3 s less.  rdrand: without it the guest waits a second for
# entropy.  cortex-a57 rather than max: pointer authentication is four times slower.
_ARCHES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "x86_64": ("pc", ("<acpi/>", "<apic/>"), "qemu64,+rdrand"),
    "aarch64": ("virt", ("<gic version='3'/>",), "cortex-a57"),
    "riscv64": ("virt", (), "rv64"),
}


def shape(domain: Described) -> Shape:
    """Machine, CPU and features.  UsageError for an architecture that labctl has no template for."""
    if domain.arch not in _ARCHES:
        known = ", ".join(_ARCHES)
        raise UsageError(
            f"{domain.name}: no virtual machine of architecture {domain.arch}", hint=f"one of {known}"
        )
    machine, features, model = _ARCHES[domain.arch]
    cpu = domain.cpu or ("host-passthrough" if domain.type == "kvm" else model)
    chosen = domain.machine or machine
    # The slots below suit a conventional root bus and PCI Express's root complex alike.
    pci = domain.arch == "x86_64" and chosen.startswith(("pc", "q35"))
    emulator = domain.emulator or f"/usr/bin/qemu-system-{domain.arch}"
    if cpu in ("host-passthrough", "host-model", "maximum"):
        return Shape(chosen, emulator, features, cpu_mode=cpu, pci=pci)
    base, *flags = cpu.split(",")
    policies = tuple(
        ("disable" if flag.startswith("-") else "require", flag.lstrip("+-")) for flag in flags if flag
    )
    return Shape(chosen, emulator, features, "", base, policies, pci)


def uuid_of(domain: Described) -> str:
    """The domain's UUID: follows from its mark, so that the QEMU process is known by it."""
    return str(uuids.uuid5(_UUIDS, mark_of(domain)))


def mark_of(domain: Described) -> str:
    """The owner's mark of the domain."""
    return domain.owner.mark("domain", domain.name)


def digest_of(domain: Any) -> str:
    """A short digest of everything the XML is made from: tells whether a defined domain is the same."""
    fields = asdict(domain)
    for name in ("needs", "after", "node", "uri", "home_state", "home_cache", "snapshots", "snapshot"):
        fields.pop(name, None)
    text = json.dumps(
        [fields, asdict(shape(domain)), data("templates", _template_of(domain)).read_text()], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def target_names(disks: Sequence[Any]) -> list[str]:
    """vda, vdb, … or sda, …: libvirt's names by bus; the guest goes by the serial."""
    counts: dict[str, int] = {}
    names = []
    for disk in disks:
        prefix = {"virtio": "vd", "ide": "hd", "xen": "xvd"}.get(disk.bus, "sd")
        index = counts.get(prefix, 0)
        counts[prefix] = index + 1
        names.append(prefix + _letters(index))
    return names


def _letters(index: int) -> str:
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def multiboot(domain: Any) -> list[str]:
    """QEMU's arguments for a kernel that a hypervisor starts (QEMU's multiboot loader: `-initrd` lists the
    modules with their command lines; a comma in one is doubled).  libvirt has no words for modules.
    """
    kernel = f"{domain.kernel} {domain.cmdline}".replace(",", ",,")
    modules = f"{kernel},{domain.initrd.replace(',', ',,')}"
    return ["-kernel", domain.hypervisor, "-append", domain.hypervisor_args, "-initrd", modules]


def domain_xml(domain: Any, run_as: str = "") -> str:
    """The XML to define.  `run_as` ("+UID:+GID"): the user that libvirt runs QEMU as; files then keep the
    owners that they have (see access.py).  "" leaves both to libvirt.

    Raises UsageError for values that no XML can carry.
    """
    _refuse_unwritable(asdict(domain), domain.name)
    text: str = _template(_template_of(domain)).render(
        d=domain,
        shape=shape(domain),
        uuid=uuid_of(domain),
        mark=mark_of(domain),
        digest=digest_of(domain),
        namespace=NAMESPACE,
        names=target_names(domain.disks),
        multiboot=multiboot(domain) if domain.hypervisor else [],
        run_as=run_as,
    )
    return text


def _refuse_unwritable(value: object, name: str) -> None:
    if isinstance(value, str) and _UNWRITABLE.search(value):
        raise UsageError(f"{name!r}: {value!r} holds a control character that a domain can't carry")
    if isinstance(value, dict):
        for item in value.values():
            _refuse_unwritable(item, name)
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_unwritable(item, name)


def _template_of(domain: Described) -> str:
    return "xen.xml.j2" if domain.type == "xen" else "domain.xml.j2"


@functools.cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    # Our own feature elements are markup; all else is text.
    environment.filters["markup"] = Markup
    return environment.from_string(data("templates", name).read_text())
