"""Turning the host into a router while a lab needs one, and back.

`net.ipv4.ip_forward` and its kin belong to the host, not to a lab.  The value from before the first lab
that changed it is written into the nft table of every lab that relies on it: that record comes and goes
with the kernel's own state (a reboot wipes both), is put there in the same transaction as the rules, and
is seen by other labs and other LABCTL_HOMEs.  The last of them puts the value back.  Before that it is in a
note of the lab's own (former.py), which a flushed firewall doesn't take away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from labctl.errors import Busy
from labctl.linux.netlink import Netlink
from labctl.linux.netnode import sysctl_path, write_sysctl
from labctl.network import iptables, nft

V4 = "net/ipv4/ip_forward"
V6 = "net/ipv6/conf/all/forwarding"
_RTPROT_RA = 9
_UNICAST = 1
_INET6 = 10


@contextlib.contextmanager
def lock(timeout: float = 15.0) -> Iterator[None]:
    """One at a time among all labctls of this network namespace: flock(2) on the very sysctl at stake.

    Raises Busy after `timeout` seconds.
    """
    fd = os.open("/proc/sys/" + V4, os.O_RDONLY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise Busy(
                        f"another labctl has held the host's firewall for {timeout:g} s", hint="try again"
                    ) from error
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def read(key: str) -> str:
    """The value of a sysctl of the present network namespace; "" when this kernel hasn't got it."""
    try:
        return Path(sysctl_path(key)).read_text().strip()
    except FileNotFoundError:
        return ""


def _interfaces(version: int) -> list[str]:
    return sorted(p.name for p in Path(f"/proc/sys/net/ipv{version}/conf").iterdir())


def before(v4: bool, v6: bool, others: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What to remember: the sysctls that forwarding will change, with their values from before any lab."""
    known: dict[str, str] = {}
    for record in others:
        known.update(record)
    former: dict[str, str] = {}
    for wanted, switch, version in ((v4, V4, 4), (v6, V6, 6)):
        if not wanted:
            continue
        prefix = f"net/ipv{version}/"
        if switch in known:
            former.update({key: value for key, value in known.items() if key.startswith(prefix)})
        elif read(switch) == "0":
            former[switch] = "0"
            # The switch overwrites every interface's own value, both ways.
            for name in _interfaces(version):
                key = f"net/ipv{version}/conf/{name}/forwarding"
                if name not in ("all", "default") and read(key) == "1":
                    former[key] = "1"
            if version == 6:
                former.update(_advertised())
    return former


def _advertised() -> dict[str, str]:
    """accept_ra of the interfaces that learnt a default route from a router: a router drops those."""
    with Netlink() as kernel:
        names = {link.index: link.name for link in kernel.links()}
        learnt = {r.index for r in kernel.routes() if r.family == _INET6 and r.protocol == _RTPROT_RA}
    keys = [f"net/ipv6/conf/{names[index]}/accept_ra" for index in sorted(learnt) if index in names]
    return {key: "1" for key in keys if read(key) == "1"}


def enable(v4: bool, v6: bool, former: Mapping[str, str]) -> None:
    """Switch forwarding on; routes learnt from router advertisements are kept (accept_ra 2)."""
    for key in former:
        if key.endswith("/accept_ra"):
            write_sysctl(sysctl_path(key), "2", may_lack=True)
    for wanted, switch in ((v4, V4), (v6, V6)):
        if wanted and read(switch) == "0":
            write_sysctl(sysctl_path(switch), "1", may_lack=True)


def restore(former: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> None:
    """Put back what no other lab relies on any more.

    Left as it is when somebody else does address translation on this host by now: what was started
    after us (Docker, a libvirt network) found forwarding on and needs it.
    """
    held = {key for record in others for key in record}
    todo = {key: value for key, value in former.items() if key not in held}
    if todo and not iptables.masquerades(nft.text_of_all()):
        for key in sorted(todo, key=lambda key: key not in (V4, V6)):
            write_sysctl(sysctl_path(key), todo[key], may_lack=True)


def has_default6() -> bool:
    """Whether this host has a v6 way out."""
    with Netlink() as kernel:
        return any(
            r.family == _INET6 and r.destination == "default" and r.type == _UNICAST and r.index
            for r in kernel.routes()
        )
