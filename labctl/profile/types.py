"""The scalar types of a profile: text, flags, sizes, times, addresses, each made uniform when it is read."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, StringConstraints, WithJsonSchema

from labctl.profile import units, words


class Tier(StrEnum):
    """How a node is virtualized."""

    EMULATION = "emulation"
    PARA = "para"
    HARDWARE = "hardware"
    CONTAINER = "container"


class Condition(StrEnum):
    """What a node waits for in another: that it has started, or that it is ready."""

    STARTED = "started"
    READY = "ready"


class MountKind(StrEnum):
    """What is mounted: a named volume of the lab, or a file or folder of the host."""

    VOLUME = "volume"
    BIND = "bind"


class Protocol(StrEnum):
    """The protocol of a published port."""

    TCP = "tcp"
    UDP = "udp"


class Hypervisor(StrEnum):
    """What lets a machine of the lab run machines of its own."""

    XEN = "xen"
    KVM = "kvm"


class Devices(StrEnum):
    """Whether a VM sees devices made for virtualization, or emulated real ones."""

    VIRTIO = "virtio"
    EMULATED = "emulated"


class DiskCache(StrEnum):
    """How the host caches a VM's disk (formatdomain.html, `cache`)."""

    NONE = "none"
    WRITETHROUGH = "writethrough"
    WRITEBACK = "writeback"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"


class Firmware(StrEnum):
    """What a VM starts with."""

    BIOS = "bios"
    UEFI = "uefi"


class Graphics(StrEnum):
    """What a VM shows a picture on."""

    NONE = "none"
    VNC = "vnc"


class DiskIo(StrEnum):
    """How QEMU reads and writes a VM's disk (formatdomain.html, `io`)."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class Isolation(StrEnum):
    """What keeps a container apart, by the name of what first did it so."""

    CHROOT = "chroot"
    VSERVER = "vserver"
    LXC = "lxc"
    DOCKER = "docker"


class DiskFormat(StrEnum):
    """How a further disk lies on the host."""

    QCOW2 = "qcow2"
    RAW = "raw"


class DiskBus(StrEnum):
    """What a further disk hangs on in its machine."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"


class Nested(StrEnum):
    """When labctl adds a host machine for a tier that this host can't run: for para, for every one, never."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Engine(StrEnum):
    """What makes a para node (a hypervisor, or a kernel that runs as a program), or runs a container."""

    XEN = "xen"
    UML = "uml"
    LABCTL = "labctl"
    LXC = "lxc"
    PODMAN = "podman"
    DOCKER = "docker"
    RUNC = "runc"
    CRUN = "crun"


_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _flag(value: object) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get(value.lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError("must be true or false")
    return flag


def _whole(value: object) -> object:
    # bool is an int to Python, and 80.0 one to pydantic: neither is one to a reader.
    if isinstance(value, (bool, float)):
        raise ValueError("must be a whole number")
    return value


def _printable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not have a NUL character in it")
    return value


def _text(**schema: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", **schema})


def _or_empty(check: Callable[[str], str]) -> AfterValidator:
    """The same check for a field where empty text stands for labctl's choice."""
    return AfterValidator(lambda value: check(value) if value else value)


Text = Annotated[str, StringConstraints(max_length=1_000_000), AfterValidator(_printable)]
Flag = Annotated[bool, BeforeValidator(_flag), WithJsonSchema({"type": "boolean"})]
Whole = Annotated[int, BeforeValidator(_whole)]
Size = Annotated[
    int,
    BeforeValidator(units.parse_size),
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": r"^[0-9]+(\.[0-9]+)?\s*([KkMmGgTt]([Ii]?[Bb]?)|[Bb])?$",
            "examples": ["256MiB", "1.5G", "512m"],
        }
    ),
]
Cpus = Annotated[
    float,
    BeforeValidator(units.parse_cpus),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "minimum": 0,
            "maximum": 4096,
            "pattern": r"^[0-9]+(\.[0-9]+)?$|^[0-9]+m$",
            "examples": [1, 0.5, "500m"],
        }
    ),
]
Duration = Annotated[
    float,
    BeforeValidator(units.parse_duration),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "minimum": 0,
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)\s*)+$|^[0-9]+(\.[0-9]+)?$",
            "examples": ["30s", "2m", "1h30m", "200ms"],
        }
    ),
]
Mode = Annotated[
    str,
    BeforeValidator(words.mode),
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": "^(0o?)?[0-7]{1,4}$", "examples": ["0644", "0755"]}
    ),
]
_DNS = rf"{words.NAME}(\.{words.NAME})*\.?"
_MAC = "[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}"
_IP = "[0-9A-Fa-f.:]+"
_IFNAME = "[A-Za-z0-9_.-]{1,15}"

Name = Annotated[str, AfterValidator(words.name), _text(pattern=f"^{words.NAME}$")]
DnsName = Annotated[str, AfterValidator(words.dns_name), _text(pattern=f"^{_DNS}$")]
Address = Annotated[str, AfterValidator(words.address), _text(pattern=f"^{_IP}(/[0-9]{{1,3}})?$")]
Capability = Annotated[str, AfterValidator(words.capability), _text(examples=["NET_ADMIN"])]
CpuSet = Annotated[
    str,
    AfterValidator(words.cpu_set),
    _text(pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$", examples=["0-1"]),
]
DiskName = Annotated[
    str, AfterValidator(words.disk_name), _text(pattern=f"^{words.DISK}$", examples=["data"])
]
Destination = Annotated[str, AfterValidator(words.destination), _text(examples=["default", "10.2.0.0/16"])]
GuestPath = Annotated[str, AfterValidator(words.absolute), _text(pattern="^/", examples=["/etc/motd"])]
# "Maybe…": empty text stands for labctl's choice.
MaybeName = Annotated[str, _or_empty(words.name), _text(pattern=f"^({words.NAME})?$")]
MaybeDnsName = Annotated[str, _or_empty(words.dns_name), _text(pattern=f"^({_DNS})?$")]
MaybeDiskName = Annotated[str, _or_empty(words.disk_name), _text(pattern=f"^({words.DISK})?$")]
MaybeInterface = Annotated[
    str, _or_empty(words.interface), _text(pattern=f"^({_IFNAME})?$", examples=["eth1"])
]
MaybeMac = Annotated[str, _or_empty(words.mac), _text(pattern=f"^({_MAC})?$", examples=["02:00:00:00:00:01"])]
MaybeSubnet = Annotated[str, _or_empty(words.subnet), _text(pattern=f"^({_IP}/[0-9]{{1,3}})?$")]
MaybeAddress = Annotated[
    str, _or_empty(words.bare_address), _text(pattern=f"^({_IP})?$", examples=["10.1.0.1"])
]
MaybeGateway = Annotated[
    str, AfterValidator(words.gateway), _text(pattern=f"^({_IP}|none)?$", examples=["10.1.0.1"])
]
MaybeSignal = Annotated[str, _or_empty(words.stop_signal), _text(examples=["SIGTERM", "SIGINT"])]
MaybeGuestPath = Annotated[str, _or_empty(words.absolute), _text(pattern="^(/|$)", examples=["/srv"])]
MaybeArch = Annotated[
    str,
    _or_empty(words.arch),
    WithJsonSchema({"enum": ["", *words.ARCHES, "amd64", "arm64"]}),
]
