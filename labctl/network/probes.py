"""What the network of this host can do, found out by trying; each answer is "" or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labctl.errors import LabError
from labctl.linux import netlink, netns
from labctl.linux.netlink import Netlink
from labctl.network import tools


def why_no_nft() -> str:
    """Put a table with every kind of rule a lab needs into a namespace that is thrown away."""
    text = """table inet probe {
        chain nat { type nat hook postrouting priority 100; oifgroup != 1 ct status dnat masquerade; }
        chain input { type filter hook input priority 0
            th dport 53 fib daddr . iif type local accept
            reject with icmpx admin-prohibited comment "probe"
        }
        chain output { type nat hook output priority -100; tcp dport 1 dnat ip to 192.0.2.1:1; }
    }"""
    return _try(lambda: tools.run([tools.need("nft", "nftables"), "-f", "-"], text=text))


def why_no_netem() -> str:
    """Add a delay to a link of a namespace that is thrown away."""

    def delay() -> None:
        with Netlink() as kernel:
            kernel.do(netlink.add_bridge("probe"))
        tc = tools.need("tc", "iproute2")
        tools.run([tc, "qdisc", "add", "dev", "probe", "root", "netem", "delay", "1ms"])

    return _try(delay)


def br_netfilter() -> bool:
    """Whether bridged frames pass through iptables' FORWARD chain on this host."""
    try:
        return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except OSError:
        return False


def _try(work: Callable[[], object]) -> str:
    def inside() -> None:
        netns.unshare_net()
        work()

    try:
        netns.in_thread(inside)
    except (LabError, OSError) as error:
        hint = getattr(error, "hint", "")
        return f"{error} ({hint})" if hint else str(error)
    return ""
