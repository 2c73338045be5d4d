"""What a cloud image is told when it boots: a disk for cloud-init's NoCloud source.

An ISO 9660 with the label `cidata` that holds user-data, meta-data and network-config (version 2), made of
templates/cloud; and `files.tar`, laid over the machine's / before its services start.
(cloud-init's documentation, "NoCloud" and "Networking config Version 2".)
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import shutil
import tempfile
from pathlib import Path
from typing import Any

from labctl.data import data
from labctl.errors import LabError
from labctl.image.boot_files import fresh_file, run
from labctl.image.bootconfig import BootConfig, Nic
from labctl.records import dataclass

LABEL = "cidata"
_SECONDS = 120.0
# The disk is found by its label, whatever bus it is on.
_UNPACK = f"""
d=$(mktemp -d) && mount -o ro -t iso9660 "$(blkid -L {LABEL})" "$d" || exit 1
tar -xpf "$d/files.tar" --numeric-owner -C /; code=$?
umount "$d"; rmdir "$d"; exit $code
"""
# The lab's names have no dot, and systemd-resolved asks no server for such (resolved.conf(5),
# ResolveUnicastSingleLabel).  ifupdown leaves resolv.conf(5) to the package resolvconf, which few have.
_RESOLVER = """
if [ -d /run/systemd/resolve ]; then
    mkdir -p /etc/systemd/resolved.conf.d
    printf '[Resolve]\\nResolveUnicastSingleLabel=yes\\n' >/etc/systemd/resolved.conf.d/labctl.conf
    systemctl --no-block try-restart systemd-resolved.service
elif ! grep -qs "^nameserver $1\\$" /etc/resolv.conf && ! command -v resolvconf >/dev/null; then
    rm -f /etc/resolv.conf
    for server; do echo "nameserver $server"; done >/etc/resolv.conf
fi
"""


@dataclass(frozen=True)
class Texts:
    """The three files of a seed."""

    user: str
    meta: str
    network: str


def seed_disk(path: Path, config: BootConfig) -> None:
    """Write a machine's seed: an ISO image, 0600 because the host key is in it, replaced in one step.

    Raises LabError when it can't be written or the host key is none, HostCannot without genisoimage.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".seed.", dir=path.parent) as folder:
            inside = Path(folder)
            told = texts(config)
            for name, text in (
                ("user-data", told.user),
                ("meta-data", told.meta),
                ("network-config", told.network),
            ):
                (inside / name).write_text(text)
            if config.files:
                shutil.copy(config.files, inside / "files.tar")
            with fresh_file(path, 0o600) as work:
                argv = ["genisoimage", "-quiet", "-input-charset", "utf-8", "-V", LABEL, "-R", "-J"]
                run([*argv, "-o", str(work), folder], timeout=_SECONDS, what="make a seed for cloud-init")
    except OSError as error:
        raise LabError(f"cannot write the seed of {config.hostname}: {error.strerror}") from error


def texts(config: BootConfig) -> Texts:
    """The seed's files.  Raises LabError for a host key that isn't one."""
    network = _render(
        "network-config", cards=_cards(config), dns=list(config.dns), search=list(config.search)
    )
    digest = ""
    if config.files:
        with Path(config.files).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    user = _render(
        "user-data",
        hostname=config.hostname,
        host_key=config.host_key,
        host_public=_public(config.host_key),
        authorized_keys=list(config.authorized_keys),
        environment="".join(f"{name}={_quoted(value)}\n" for name, value in config.env.items()),
        files=digest,
        ipv6=config.ipv6,
        unpack=_UNPACK,
        dns=list(config.dns),
        resolver=_RESOLVER,
    )
    # cloud-init carries out a seed once for each instance-id: another seed is another instance.
    words = hashlib.sha256("\0".join((network, user, digest)).encode()).hexdigest()
    meta = _render("meta-data", instance=f"labctl-{words[:20]}", hostname=config.hostname)
    return Texts(user, meta, network)


def _cards(config: BootConfig) -> list[dict[str, Any]]:
    """The network cards as the template shows them: each with the routes that leave by it."""
    cards = []
    for nic in config.interfaces:
        addresses = [a for a in nic.addresses if config.ipv6 or ":" not in a]
        routes = []
        for to, gateway in (("0.0.0.0/0", config.gateway4), ("::/0", config.gateway6)):
            if gateway and _reaches(nic, gateway) and (config.ipv6 or ":" not in gateway):
                routes.append({"to": to, "via": gateway})
        for route in config.routes:
            if route.dev == nic.name or (not route.dev and _reaches(nic, route.via)):
                default = "::/0" if ":" in route.via else "0.0.0.0/0"
                words: dict[str, Any] = {"to": default if route.to == "default" else route.to}
                words |= {"via": route.via} if route.via else {"scope": "link"}
                routes.append(words | ({"metric": route.metric} if route.metric else {}))
        cards.append(
            {
                "name": nic.name,
                "mac": nic.mac.lower(),
                "mtu": nic.mtu,
                "addresses": addresses,
                "routes": routes,
            }
        )
    return cards


def _reaches(nic: Nic, address: str) -> bool:
    """Whether a gateway is on the link of a card."""
    if not address:
        return False
    target = ipaddress.ip_address(address)
    nets = [ipaddress.ip_interface(own).network for own in nic.addresses]
    return any(target.version == net.version and target in net for net in nets)


def _public(host_key: str) -> str:
    """The public half of an OpenSSH private key, as one line of authorized_keys(5)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_private_key,
    )

    try:
        key = load_ssh_private_key(host_key.encode(), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LabError(f"the SSH host key can't be read: {error}") from error
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _quoted(value: str) -> str:
    """A value of /etc/environment (pam_env(7)): in quotes where it holds white space or a #."""
    return f'"{value}"' if any(char.isspace() or char in "#'" for char in value) else value


@functools.cache
def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    return environment.from_string(data("templates", "cloud", name).read_text())


def _render(name: str, **values: Any) -> str:
    text: str = _template(name).render(**values)
    return text
