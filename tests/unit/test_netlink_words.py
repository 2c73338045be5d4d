"""What the ground floor of the network makes of names and numbers, without a kernel."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from labctl.linux import netlink
from labctl.linux.netnode import sysctl_path
from labctl.network.listeners import _address


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0/rp_filter", "net/ipv4/conf/eth0/rp_filter"),
        ("net.ipv4.conf.eth0.rp_filter", "net/ipv4/conf/eth0/rp_filter"),
        ("net.ipv4.conf.eth0.100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv6.neigh.eth0.100.base_reachable_time_ms", "net/ipv6/neigh/eth0.100/base_reachable_time_ms"),
    ],
)
def test_a_sysctl_in_dots_or_slashes(key: str, path: str) -> None:
    assert sysctl_path(key, ["eth0", "eth0.100"][:: -1 if ".100." in key else 1]) == f"/proc/sys/{path}"


@pytest.mark.parametrize(
    "key", ["kernel.hostname", "net/../kernel/hostname", "net..x", "net.ipv4", "", "net/a//b"]
)
def test_what_is_no_sysctl_of_the_network_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not a sysctl"):
        sysctl_path(key)


def test_messages_are_aligned_and_say_what_they_are_about() -> None:
    for request in (
        netlink.add_bridge("lb1", mac="02:00:00:00:00:01"),
        netlink.set_link("lb1", alias="labctl:x"),
        netlink.add_veth("lv1", "eth0", 3, mac="02:00:00:00:00:02", mtu=1400, master=7),
        netlink.add_address(3, "fd00::1/64", "lb1"),
        netlink.add_route("default", "fd00::2"),
    ):
        assert len(request.body) % 4 == 0
        assert request.what.startswith("cannot ")


def test_addresses_of_proc_net() -> None:
    little = sys.byteorder == "little"
    assert _address("0100007F" if little else "7F000001") == "127.0.0.1"
    assert _address("00000000") == "0.0.0.0"
    assert _address("0" * 32) == "::"
    if little:
        assert _address("000000FD000000000000000001000000") == "fd00::1"
        assert _address("0000000000000000FFFF00000100007F") == "127.0.0.1"


def test_the_ground_floor_runs_on_python_3_9_with_the_standard_library_alone() -> None:
    for name in ("netlink", "netns", "netnode", "netfilter", "guestnet"):
        source = Path(netlink.__file__).with_name(f"{name}.py").read_text()
        tree = ast.parse(source, feature_version=(3, 9))
        assert "from __future__ import annotations" in source
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                module = (node.module or "").split(".")
                assert module[0] in sys.stdlib_module_names or module[:2] == ["labctl", "linux"]
