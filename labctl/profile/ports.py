"""Published ports in Docker's short form: [[HOST_IP:]HOST_PORT:]NODE_PORT[/PROTOCOL], with ranges."""

from __future__ import annotations

import re

_SHORT = re.compile(
    r"(?:(?:(?P<ip>\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?(?P<host>[0-9]{0,5}(?:-[0-9]{1,5})?):)?"
    r"(?P<node>[0-9]{1,5}(?:-[0-9]{1,5})?)(?:/(?P<proto>[A-Za-z]+))?",
    re.ASCII,
)
MOST = 1000


def parse_ports(text: str) -> list[dict[str, str | int]]:
    """The ports that a short form names, as the fields of `Port`; raises ValueError in plain words."""
    match = _SHORT.fullmatch(text.strip())
    if not match:
        raise ValueError("must be a port such as 80, 8080:80, 127.0.0.1:8080:80 or 5353:53/udp")
    nodes = _range(match["node"])
    hosts = _range(match["host"]) if match["host"] else [0] * len(nodes)
    if len(hosts) != len(nodes):
        raise ValueError(f"{len(hosts)} ports of the host can't lead to {len(nodes)} of the node")
    common = {"host_ip": (match["ip"] or "").strip("[]"), "proto": (match["proto"] or "tcp").lower()}
    return [{"node_port": node, "host_port": host, **common} for host, node in zip(hosts, nodes, strict=True)]


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    low, high = int(first or 0), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text} is no port from 1 to 65535, or range of them")
    if high - low >= MOST:
        raise ValueError(f"{text} are more than {MOST} ports")
    return list(range(low, high + 1))
