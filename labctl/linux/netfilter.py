"""Reading nftables' tables and the comments on their rules from the kernel.  Standard library only.

Sources: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h; libnftnl's udata.h for the comments, which
are user data to the kernel (type, length, value; type 0 is the comment of a table or a rule).
Starting `nft` to ask the same costs 8 ms.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from labctl.linux.netlink import Netlink, NetlinkError, attributes, string

FAMILIES = {0: "unspec", 1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
INET = 1
_NETFILTER = 12  # NETLINK_NETFILTER
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GETTABLE, _GETRULE, _GETGEN = _SUBSYSTEM | 1, _SUBSYSTEM | 7, _SUBSYSTEM | 16
_GEN_ID = 1  # NFTA_GEN_ID
_NAME = 1  # NFTA_TABLE_NAME, NFTA_RULE_TABLE
_CHAIN, _USERDATA = 2, 7  # NFTA_RULE_CHAIN, NFTA_RULE_USERDATA
_ABSENT = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)


@dataclass(frozen=True)
class Rule:
    """A rule: where it stands, and its comment ("" for none)."""

    table: str
    chain: str
    comment: str


def tables() -> set[tuple[str, str]]:
    """(family, name) of every nft table in the calling thread's network namespace."""
    payloads = _dump("cannot list the nft tables", _GETTABLE, 0)
    return {
        (FAMILIES.get(payload[0], str(payload[0])), string(attributes(payload[4:]).get(_NAME, b"")))
        for payload in payloads
    }


def rules(family: int = INET) -> list[Rule]:
    """All rules of a family, in order."""
    found = []
    for payload in _dump("cannot list the nft rules", _GETRULE, family):
        attrs = attributes(payload[4:])
        table, chain = string(attrs.get(_NAME, b"")), string(attrs.get(_CHAIN, b""))
        found.append(Rule(table, chain, _comment(attrs.get(_USERDATA, b""))))
    return found


def generation() -> int:
    """The number of this network namespace's ruleset: every change of any rule gives it another one.

    0 where the kernel has no nftables.  Raises OSError.
    """
    try:
        with Netlink(_NETFILTER) as kernel:
            payload = kernel.ask("cannot ask for the nft generation", _GETGEN, struct.pack("=BBH", 0, 0, 0))
    except NetlinkError as error:
        if error.errno in _ABSENT:
            return 0
        raise
    return int(struct.unpack(">I", attributes(payload[4:])[_GEN_ID][:4])[0])


def _dump(what: str, kind: int, family: int) -> list[bytes]:
    body = struct.pack("=BBH", family, 0, 0)
    try:
        with Netlink(_NETFILTER) as kernel:
            return kernel.dump(what, kind, body)
    except OSError as error:
        if isinstance(error, NetlinkError) and error.errno not in _ABSENT:
            raise
        if error.errno in _ABSENT:
            return []  # this kernel has no nftables
        raise


def _comment(data: bytes) -> str:
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at], data[at + 1]
        if kind == 0:
            return string(data[at + 2 : at + 2 + size])
        at += 2 + size
    return ""
