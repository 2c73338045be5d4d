"""The profiles of networking that come with labctl: each is up, its checks hold, and it stands what a course
does to it: a link that goes down, a router that restarts, a server that stops."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labctl.home import Home
from labctl.image.recipe import data
from tests.e2e.labs import CONTAINERS, Lab, until

pytestmark = [pytest.mark.long, pytest.mark.needs(*CONTAINERS)]


def test_the_profiles_of_networking(home: Home, tmp_path: Path) -> None:
    labs = {
        name: Lab(home, tmp_path, name, data("profiles", f"{name}.yaml").read_text())
        for name in ("routing", "fabric", "dns", "firewall", "load-balancer")
    }
    balancer, port = (
        labs["load-balancer"],
        "nodes.lb.ports[0].host_port=0",
    )  # another run may have the profile's
    try:
        balancer.up("-s", port)  # alone: both of its images are made here, where the cache has none
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda lab: lab.up(), [lab for lab in labs.values() if lab is not balancer]))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda lab: lab.good("check", lab.name), labs.values()))

        # A link that goes down: OSPF finds the other way; a router that starts again has its links as new.
        routing = labs["routing"]
        routing.sh("r1", "ip link set p13 down")
        trace = "traceroute -n -q 1 -w 1 -m 6 10.1.3.10"
        until(lambda: "3  10.0.23.2 " in routing.sh("h1", trace), "the way round by r2")
        routing.good("restart", "routing/r1")
        routing.good("check", "routing")

        # A spine that stops: its leaves have one way less to each rack, and still one.
        fabric = labs["fabric"]
        fabric.good("stop", "fabric/spine1")
        assert fabric.code("leaf1", "ping -c 1 -W 1 10.91.1.1") == 1, "a router that is off answers nothing"
        ways = "ip route show 10.20.3.0/24"
        until(lambda: "via 10.92.1.1 dev" in fabric.sh("leaf1", ways), "the way by spine1 is gone", 30)
        fabric.sh("h1", "ping -c 1 -W 2 10.20.3.10")

        # A server that stops is left out.
        balancer.good("stop", "load-balancer/web-2")
        asked = "for i in 1 2 3 4 5 6; do curl -s http://lb/; done | sort | uniq -c"
        until(
            lambda: balancer.sh("client", asked).split() == ["3", "web-1", "3", "web-3"], "web-2 is left out"
        )
    finally:
        balancer.run("down", "--all")
    assert balancer.labs() == []
