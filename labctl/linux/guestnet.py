"""The networks of containers inside a virtual machine: JSON in, namespaces on the guest's bridges.

Runs in the guest as `labrun.pyz net add` or `net del` with a document on standard input:

    {"nodes": [{"key": "web", "path": "/run/labctl/net/web",
                "interfaces": [{"host_name": "lv0a1b2c3d4e", "name": "eth0", "bridge": "lab0",
                                "mac": "02:…", "addresses": ["10.1.2.4/24"], "up": true, "mtu": 0}],
                "gateway4": "10.1.2.1", "gateway6": "", "routes": [["10.9.0.0/16", "10.1.2.9", "", 0]],
                "ipv6": true, "sysctls": {"net.ipv4.ip_forward": "1"}, "mark": "labctl:…"}]}

`net del` needs only key, path, mark and the interfaces' host_name.  The answer on standard output is
{"failures": {KEY: MESSAGE}}; the exit code is 0 when there are none, 1 otherwise, 2 for a bad document.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from labctl.linux import netnode
from labctl.linux.netnode import Nic, Node

_USAGE = "usage: net add|del|look  (a JSON document on standard input)"


def read_nodes(text: str) -> list[Node]:
    """The nodes of a document.  Raises ValueError naming what is missing or wrong."""
    try:
        document = json.loads(text)
        return [_node(item) for item in document["nodes"]]
    except KeyError as error:
        raise ValueError(f"the document lacks {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the document is not of the right shape: {error}") from error


def _node(item: dict[str, Any]) -> Node:
    mark = str(item["mark"])
    return Node(
        key=str(item["key"]),
        path=str(item["path"]),
        nics=tuple(_nic(nic, mark) for nic in item.get("interfaces", [])),
        gateway4=str(item.get("gateway4", "")),
        gateway6=str(item.get("gateway6", "")),
        routes=tuple((str(r[0]), str(r[1]), str(r[2]), int(r[3])) for r in item.get("routes", [])),
        ipv6=bool(item.get("ipv6", True)),
        sysctls=tuple((str(k), str(v)) for k, v in item.get("sysctls", {}).items()),
    )


def _nic(item: dict[str, Any], mark: str) -> Nic:
    return Nic(
        host_name=str(item["host_name"]),
        name=str(item.get("name", "eth0")),
        master=str(item.get("bridge", "")),
        mac=str(item.get("mac", "")),
        addresses=tuple(str(address) for address in item.get("addresses", [])),
        up=bool(item.get("up", True)),
        mtu=int(item.get("mtu", 0)),
        alias=mark,
    )


def document(nodes: Sequence[Node]) -> str:
    """The document that `read_nodes` reads back; written on the host."""
    return json.dumps({"nodes": [_plain(node) for node in nodes]})


def _plain(node: Node) -> dict[str, Any]:
    return {
        "key": node.key,
        "path": node.path,
        "mark": node.nics[0].alias if node.nics else "",
        "interfaces": [
            {
                "host_name": nic.host_name,
                "name": nic.name,
                "bridge": nic.master,
                "mac": nic.mac,
                "addresses": list(nic.addresses),
                "up": nic.up,
                "mtu": nic.mtu,
            }
            for nic in node.nics
        ],
        "gateway4": node.gateway4,
        "gateway6": node.gateway6,
        "routes": [list(route) for route in node.routes],
        "ipv6": node.ipv6,
        "sysctls": dict(node.sysctls),
    }


def main(
    argv: Sequence[str], stdin: TextIO = sys.stdin, stdout: TextIO = sys.stdout, stderr: TextIO = sys.stderr
) -> int:
    """`add`, `del` or `look` (answers {"faults": {KEY: TEXT}}, "" for whole, "absent" for none)."""
    if len(argv) != 1 or argv[0] not in ("add", "del", "look"):
        stderr.write(_USAGE + "\n")
        return 2
    try:
        nodes = read_nodes(stdin.read())
    except ValueError as error:
        stderr.write(f"net: {error}\n")
        return 2
    try:
        if argv[0] == "look":
            stdout.write(json.dumps({"faults": netnode.look_nodes(nodes)}) + "\n")
            return 0
        failed = netnode.make_nodes(nodes) if argv[0] == "add" else netnode.unmake_nodes(nodes)
    except OSError as error:
        failed = {node.key: error for node in nodes}
    stdout.write(json.dumps({"failures": {key: str(error) for key, error in failed.items()}}) + "\n")
    return 1 if failed else 0
