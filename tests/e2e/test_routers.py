"""A lab of routers on bare Ethernets, as courses of networking have them: a container, a VM, and what is
between them.  The host is on none of its networks, and still reaches every node."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS, "libvirt", "tcg", "kernel")]

PROFILE = """
name: triangle
networks:
  left: {subnet: none, host_address: false}
  right: {subnet: none, host_address: false}
  fast: {subnet: 10.99.1.0/29, host_address: false}
  slow: {subnet: 10.99.2.0/29, host_address: false}
defaults: {image: micro, capabilities: [NET_ADMIN]}
groups:
  router: {sysctls: {net.ipv4.ip_forward: 1}}
nodes:
  r1:
    extends: router
    networks: [left, {fast: 10.99.1.1}, {slow: 10.99.2.1}]
    routes:
      - {to: 220.1.1.0/24, via: 10.99.1.2, metric: 10}
      - {to: 220.1.1.0/24, via: 10.99.2.2, metric: 20}
    startup: |
      ip address add 195.11.14.1/24 dev eth0
      ip link set no-such-link up
      echo the script goes on
  r2:
    extends: router
    tier: emulation
    memory: 192MiB
    networks: [right, {fast: 10.99.1.2}, {slow: 10.99.2.2}]
    routes:
      - {to: 195.11.14.0/24, via: 10.99.1.1, metric: 10}
      - {to: 195.11.14.0/24, via: 10.99.2.1, metric: 20}
    startup: ip address add 220.1.1.1/24 dev eth0
    command: httpd -f -p 23
    ready: 23
  pc1:
    networks: [left]
    startup: |
      ip address add 195.11.14.5/24 dev eth0
      ip route add default via 195.11.14.1
  pc2:
    networks: [right]
    startup: |
      ip address add 220.1.1.7/24 dev eth0
      ip route add default via 220.1.1.1
    command: httpd -f -p 80 -h /etc
    ready: {http: /hostname}
"""


def test_routers_on_bare_ethernets(home: Home, tmp_path: Path) -> None:
    lab = Lab(home, tmp_path, "triangle", PROFILE)
    try:
        done = lab.run("up", str(lab.file), timeout=400)
        assert done.returncode == 0, done.stderr
        assert "r1: start-up script, line 2: `ip link set no-such-link up` ended with" in done.stderr

        # Both kinds of router take the metrics, and the packets go where the smaller one says.
        for node, to in (("r1", "220.1.1.0/24"), ("r2", "195.11.14.0/24")):
            routes = [r.split() for r in lab.good("exec", node, "--", "ip", "route").splitlines()]
            kept = sorted((r[r.index("metric") + 1], r[r.index("dev") + 1]) for r in routes if r[0] == to)
            assert kept == [("10", "eth1"), ("20", "eth2")]
        path = lab.good("exec", "pc1", "--", "traceroute", "-n", "-m", "4", "220.1.1.7")
        assert "195.11.14.1" in path and "10.99.1.2" in path and "220.1.1.7 " in path.splitlines()[-1]
        for node in ("r1", "r2"):
            lab.good("exec", node, "--", "ip", "link", "set", "eth1", "down")
        path = lab.good("exec", "pc1", "--", "traceroute", "-n", "-m", "4", "220.1.1.7")
        assert "10.99.2.2" in path and "220.1.1.7 " in path.splitlines()[-1]

        # No host answers DNS here: names stand in /etc/hosts.
        assert "10.99.2.2" in lab.good("exec", "r1", "--", "grep", "r2", "/etc/hosts")
        # The way to the machine is its own: the lab's other nodes are not on it, and nothing is routed there.
        own = lab.good("exec", "r2", "--", "ip", "-4", "-o", "addr", "show", "dev", "mgmt0")
        assert "inet " in own
        assert "default" not in lab.good("exec", "r2", "--", "ip", "route")
        assert "mgmt0" not in lab.good("exec", "r1", "--", "ip", "link")
        assert "nothing to do" in lab.good("up", str(lab.file))
    finally:
        lab.good("down", "triangle")
