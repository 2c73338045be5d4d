"""What one machine is told when it boots, and the little disk that tells it.

The disk (virtio serial `labconfig`) starts with a tar archive: `lab-node`, `lab-process` and `lab-service`
are shell text for templates/init, every value quoted here; then SSH keys and files of /etc.  A second
archive, the files laid over the image, begins at a whole MiB named in `lab-node`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import signal
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path

from labctl.errors import LabError
from labctl.image.boot_files import fresh_file
from labctl.image.boot_keys import dropbear_key
from labctl.records import dataclass

CONFIG_SERIAL = "labconfig"
ROOT_SERIAL = "labroot"
_MIB = 1 << 20
_ETC = ("hosts", "resolv.conf", "hostname")


@dataclass(frozen=True)
class Nic:
    """A network card, found in the machine by its MAC and named there `name`.

    `addresses` with their prefix length ("10.1.2.3/24", "fd00::3/64"); `mtu` 0 is the driver's own.
    """

    name: str
    mac: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    mtu: int = 0


@dataclass(frozen=True)
class Route:
    """A route to `to` (a prefix or "default") by the gateway `via`, or on the link of `dev`.

    Of two to one destination the one with the smaller metric is taken; 0: the kernel's own choice.
    """

    to: str
    via: str = ""
    dev: str = ""
    metric: int = 0


@dataclass(frozen=True)
class Memory:
    """A file system in memory, on `target`.  `size` in bytes, 0: half of the memory; `mode` is octal text."""

    target: str
    size: int = 0
    mode: str = "1777"


@dataclass(frozen=True)
class Share:
    """A folder of the host on `target`, by virtiofs; `tag` is what the machine knows the device by."""

    tag: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Volume:
    """A disk that is mounted on `target`, found by its `serial`, or by `device` where disks have none."""

    serial: str
    target: str
    read_only: bool = False
    device: str = ""


@dataclass(frozen=True)
class BootConfig:
    """All a machine needs to know.

    `host_key` is an Ed25519 key in OpenSSH's format.  `command` is the whole argv of the service, empty for
    none.  `stop_signal` is a name ("SIGTERM" or "TERM"); after `stop_seconds` it becomes SIGKILL.  `files` is
    the path of a tar archive on the host, laid over / with owners and modes, once.  `hosts` maps further
    names to addresses.  With `hosts_containers` each card eth<i> goes into a bridge lab<i>, which then has
    its addresses.  With `init` the image's own /sbin/init is PID 1 and starts what it likes; `command` is
    then not run.  With `dhcp` every card asks for an address.  `volumes`, `shares`, `memories` are mounted
    before anything of the image runs; with `read_only` nothing else of / can be written.
    """

    hostname: str
    interfaces: tuple[Nic, ...] = ()
    gateway4: str = ""
    gateway6: str = ""
    routes: tuple[Route, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ipv6: bool = True
    authorized_keys: tuple[str, ...] = ()
    host_key: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    user: str = ""
    cwd: str = ""
    stop_signal: str = "SIGTERM"
    stop_seconds: float = 10.0
    files: str = ""
    hosts_containers: bool = False
    init: bool = False
    dhcp: bool = False
    volumes: tuple[Volume, ...] = ()
    shares: tuple[Share, ...] = ()
    memories: tuple[Memory, ...] = ()
    read_only: bool = False


def config_disk(path: Path, config: BootConfig) -> None:
    """Write a machine's config disk: a raw image, 0600 because the host key is in it, replaced in one step.

    Raises LabError for a host key of another kind, a `files` archive that can't be read, a full disk.
    """
    try:
        digest, names = _inspect(config.files) if config.files else ("", frozenset())
        seed = os.urandom(64)
        head = _archive(config, digest, names, 0, seed)
        # The place of the second archive is part of the first: write it again once its length is known.
        at = -(-(len(head) + 512) // _MIB)
        head = _archive(config, digest, names, at, seed)
        with fresh_file(path, 0o600) as work, work.open("wb") as disk:
            disk.write(head)
            if config.files:
                disk.seek(at * _MIB)
                with Path(config.files).open("rb") as files:
                    shutil.copyfileobj(files, disk, _MIB)
            size = disk.tell()
            disk.truncate(-(-max(size, 1) // 4096) * 4096)
    except (OSError, tarfile.TarError) as error:
        raise LabError(f"cannot write the config disk of {config.hostname}: {error}") from error


def _inspect(files: str) -> tuple[str, frozenset[str]]:
    """The digest of the overlay and the names in it, without a leading ./"""
    with Path(files).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            return digest, frozenset(name.removeprefix("./") for name in archive.getnames())


def _archive(config: BootConfig, digest: str, names: frozenset[str], at: int, seed: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        # `lab-node` comes first: the guest knows the disk by it where a disk has no serial.
        _add(archive, "lab-node", node_text(config, digest, at))
        _add(archive, "lab-process", process_text(config))
        if config.command and not config.init:
            _add(archive, "lab-service", f"set -- {shlex.join(config.command)}\n")
        # For a machine that goes on from a snapshot, whose generator others have a copy of.
        _add(archive, "seed", seed, 0o600)
        if config.host_key:
            _add(archive, "host_key", dropbear_key(config.host_key), 0o600)
        _add(
            archive,
            "ssh/authorized_keys",
            "".join(f"{key.strip()}\n" for key in config.authorized_keys),
            0o600,
        )
        for name, text in _etc(config):
            # A file that the profile lays over the image wins over the one labctl would write.
            if f"etc/{name}" not in names:
                _add(archive, f"etc/{name}", text)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: str | bytes, mode: int = 0o644) -> None:
    blob = content.encode() if isinstance(content, str) else content
    folder = name.rpartition("/")[0]
    if folder and folder not in archive.getnames():
        above = tarfile.TarInfo(folder)
        above.type, above.mode = tarfile.DIRTYPE, 0o700 if folder == "ssh" else 0o755
        archive.addfile(above)
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(blob), mode
    archive.addfile(info, io.BytesIO(blob))


def node_text(config: BootConfig, digest: str = "", at: int = 0) -> str:
    """`lab-node`: what the machine is, as shell text for templates/init (every value is quoted)."""
    values = {
        "lab_hostname": config.hostname,
        "lab_time": str(int(time.time())),
        "lab_containers": str(int(config.hosts_containers)),
        "lab_init": str(int(config.init)),
        "lab_dhcp": str(int(config.dhcp)),
        "lab_service": str(int(bool(config.command) and not config.init)),
        "lab_stop_signal": signal_name(config.stop_signal),
        "lab_stop_seconds": str(max(1, round(config.stop_seconds))),
        "lab_files": digest,
        "lab_files_at": str(at),
        "lab_macs": " ".join(nic.mac.lower() for nic in config.interfaces),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines += ["lab_network() {", *(f"\t{line}" for line in _network(config)), "\treturn 0", "}"]
    lines += ["lab_sysctls() {", *(f"\t{line}" for line in _sysctls(config)), "\treturn 0", "}"]
    lines += ["lab_mounts() {", *(f"\t{line}" for line in _mounts(config)), "\treturn 0", "}"]
    return "\n".join(lines) + "\n"


def told_later(config: BootConfig) -> tuple[str, ...]:
    """The lines for templates/host/attach: all cards and disks, each line a call of a function there."""
    cards = [shlex.join(["card", nic.mac.lower()]) for nic in config.interfaces]
    mounts = [line for line in _mounts(config) if line.startswith("volume ")]
    return (*cards, *_network(config), *mounts)


def resolver_text(config: BootConfig) -> str:
    """The machine's /etc/resolv.conf; "" when labctl writes none."""
    return dict(_etc(config)).get("resolv.conf", "")


def _network(config: BootConfig) -> Iterator[str]:
    if not config.ipv6:
        yield "setting net/ipv6/conf/all/disable_ipv6 1"
        yield "setting net/ipv6/conf/default/disable_ipv6 1"
    for index, nic in enumerate(config.interfaces):
        bridge = f"lab{index}" if config.hosts_containers else ""
        words = [nic.name, nic.mac.lower(), str(nic.mtu), str(int(nic.up)), str(int(config.ipv6)), bridge]
        yield shlex.join(["nic", *words])
        for address in nic.addresses:
            if config.ipv6 or ":" not in address:
                yield shlex.join(["addr", bridge or nic.name, address])
    bridges = {nic.name: f"lab{index}" for index, nic in enumerate(config.interfaces)}
    for route in config.routes:
        device = bridges.get(route.dev, route.dev) if config.hosts_containers else route.dev
        metric = [str(route.metric)] if route.metric else []
        yield shlex.join(["route", route.to, route.via, device, *metric])
    if config.gateway4:
        yield shlex.join(["route", "default", config.gateway4, ""])
    if config.gateway6 and config.ipv6:
        yield shlex.join(["route", "default", config.gateway6, ""])


def _sysctls(config: BootConfig) -> Iterator[str]:
    bridges = {nic.name: f"lab{index}" for index, nic in enumerate(config.interfaces)}
    for name, value in config.sysctls.items():
        path = sysctl_path(name)
        yield shlex.join(["setting", path, value])
        parts = path.split("/")
        if (
            config.hosts_containers
            and len(parts) > 4
            and parts[2] in ("conf", "neigh")
            and parts[3] in bridges
        ):
            parts[3] = bridges[parts[3]]
            yield shlex.join(["setting", "/".join(parts), value])


def _mounts(config: BootConfig) -> Iterator[str]:
    for volume in config.volumes:
        access = "ro" if volume.read_only else "rw"
        yield shlex.join(["volume", volume.serial, volume.target, access, volume.device])
    for share in config.shares:
        yield shlex.join(["share", share.tag, share.target, "ro" if share.read_only else "rw"])
    for memory in config.memories:
        size = [f"size={memory.size}"] if memory.size else []
        yield shlex.join(["memory", memory.target, ",".join([f"nosuid,nodev,mode={memory.mode}", *size])])
    if config.read_only:
        yield "seal"


def sysctl_path(name: str) -> str:
    """A sysctl's path below /proc/sys, from either spelling: dots, or slashes where a name has dots
    (sysctl(8): the first separator decides)."""
    first = next((char for char in name if char in "./"), ".")
    swap = str.maketrans("./", "/.") if first == "." else {}
    path = name.translate(swap)
    if ".." in path.split("/") or path.startswith("/"):
        raise LabError(f"{name!r} is no sysctl")
    return path


def process_text(config: BootConfig) -> str:
    """`lab-process`: environment, user and folder of the service and of every `labctl exec`."""
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in config.env.items())
    values = {
        "lab_env": pairs,
        "lab_path": config.env.get("PATH", ""),
        "lab_user": config.user,
        "lab_cwd": config.cwd,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _etc(config: BootConfig) -> Iterator[tuple[str, str]]:
    own = [address.split("/")[0] for nic in config.interfaces for address in nic.addresses]
    lines = ["127.0.0.1 localhost"]
    if config.ipv6:
        lines += [
            "::1 localhost ip6-localhost ip6-loopback",
            "ff02::1 ip6-allnodes",
            "ff02::2 ip6-allrouters",
        ]
    lines += [f"{address} {config.hostname}" for address in own[:1] or ["127.0.1.1"]]
    lines += [f"{address} {name}" for name, address in config.hosts.items()]
    yield "hosts", "\n".join(lines) + "\n"
    yield "hostname", f"{config.hostname}\n"
    resolver = [f"search {' '.join(config.search)}"] if config.search else []
    resolver += [f"nameserver {address}" for address in config.dns]
    if resolver:
        yield "resolv.conf", "\n".join(resolver) + "\n"


def signal_name(name: str) -> str:
    """A signal as kill(1) takes it: "SIGTERM", "term" and "15" become "TERM"; SIGRTMIN+3 becomes its number.

    Raises LabError when there is no such signal.
    """
    text = name.strip().upper().removeprefix("SIG")
    if text.isdigit() and 0 < int(text) <= 64:
        return text if int(text) > 31 else signal.Signals(int(text)).name.removeprefix("SIG")
    base, _, offset = text.partition("+")
    if base == "RTMIN" and (not offset or offset.isdigit()):
        return str(34 + int(offset or 0))
    if f"SIG{text}" in signal.Signals.__members__:
        return text
    raise LabError(f"there is no signal {name!r}")
