"""Names that labctl derives: the same profile under the same name gives the same ones."""

from __future__ import annotations

import hashlib

from labctl.looks import Owner


def lab_id(instance: str, name: str) -> str:
    """The id of a lab: 8 hex digits that follow from the home's instance id and the lab's name."""
    return hashlib.sha256(f"{instance}\0{name}".encode()).hexdigest()[:8]


def _digest(owner: Owner, *parts: object) -> str:
    text = "\0".join((owner.instance, owner.lab, *map(str, parts)))
    return hashlib.sha256(text.encode()).hexdigest()


def bridge_name(owner: Owner, network: str) -> str:
    """The bridge of a network on the host; 12 of the 15 characters that IFNAMSIZ allows."""
    return "lb" + _digest(owner, "network", network)[:10]


def port_name(owner: Owner, node: str, index: int, *, vm: bool) -> str:
    """The host's end of a node's interface: a tap for a VM, a veth for a container."""
    return ("lt" if vm else "lv") + _digest(owner, "interface", node, index)[:10]


def mac(owner: Owner, node: str, index: int) -> str:
    """A MAC address from QEMU's range 52:54:00, which is locally administered."""
    tail = _digest(owner, "mac", node, index)
    return ":".join(("52", "54", "00", tail[:2], tail[2:4], tail[4:6]))


def domain_name(lab: str, node: str) -> str:
    """The name of a VM in virsh and virt-manager."""
    return f"{lab}.{node}"


def table_name(owner: Owner) -> str:
    """The nftables table of a lab."""
    return f"labctl_{owner.lab}"
