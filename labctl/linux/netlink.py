"""rtnetlink in the standard library: links, addresses and routes, many in one system call.

Sources: rtnetlink(7), netlink(7), and the kernel's include/uapi/linux/{netlink,rtnetlink,if_link,
if_addr,veth}.h.  A *request* is one message as bytes and the name of the object it is about; `Netlink.run`
sends up to 64 of them at once, because a system call for each is what makes other tools slow.

This file also travels into guests: Python 3.9, no imports but the standard library.
"""

from __future__ import annotations

import errno as errnos
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

_ERROR, _DONE = 2, 3
_F_REQUEST, _F_MULTI, _F_ACK, _F_DUMP_INTR = 1, 2, 4, 0x10
_F_REPLACE, _F_EXCL, _F_CREATE, _F_DUMP = 0x100, 0x200, 0x400, 0x300
_F_ACK_TLVS = 0x200
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26

# IFLA_*
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS, _GROUP, _NET_NS_FD, _EXT_MASK = (
    1, 3, 4, 5, 10, 18, 20, 27, 28, 29,
)  # fmt: skip
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_MCAST_SNOOPING = 1, 5, 23
_SKIP_STATS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE, _RTA_MULTIPATH = 1, 4, 5, 6, 15, 9
_RT_MAIN, _RTPROT_STATIC = 254, 4

IFF_UP = 1
IFF_RUNNING = 0x40  # operational: administratively up, with a carrier, and the kernel knows
_CHUNK = 64  # acknowledgements of one send must fit the socket's receive buffer
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_TIMEOUT = 20.0  # s; the kernel answers within the call unless another task holds the rtnl lock


class NetlinkError(OSError):
    """The kernel refused a request: `errno`, and the object and act in `what`."""

    def __init__(self, number: int, what: str, message: str = "") -> None:
        name = errnos.errorcode.get(number, str(number))
        self.what = what
        self.message = f"{what}: {message or os.strerror(number)} ({name})"
        super().__init__(number, self.message)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Request:
    """One message to the kernel.  `fine` holds the errnos that count as done."""

    what: str
    kind: int
    flags: int
    body: bytes
    fine: tuple[int, ...] = ()


@dataclass(frozen=True)
class Link:
    """A network interface as the kernel describes it; `master` and `link` are indices, 0 for none."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    master: int
    link: int
    alias: str
    kind: str
    group: int

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True)
class Address:
    """An address on an interface, as "10.0.0.1/24"; `scope` is 0 global, 253 link, 254 host."""

    index: int
    address: str
    scope: int
    flags: int


@dataclass(frozen=True)
class Route:
    """A route; `destination` is "default" or "10.0.0.0/24"; `gateway` may be empty."""

    destination: str
    gateway: str
    index: int
    table: int
    protocol: int
    metric: int
    type: int
    family: int


def _attr(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def _text(kind: int, text: str) -> bytes:
    return _attr(kind, text.encode() + b"\0")


def _u32(kind: int, number: int) -> bytes:
    return _attr(kind, struct.pack("=I", number))


def _mac(kind: int, text: str) -> bytes:
    return _attr(kind, bytes.fromhex(text.replace(":", "")))


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _common(mac: str, mtu: int) -> bytes:
    return (_mac(_ADDRESS, mac) if mac else b"") + (_u32(_MTU, mtu) if mtu else b"")


def add_bridge(name: str, *, mac: str = "", mtu: int = 0) -> Request:
    """A bridge that forwards at once: no STP, no delay, no multicast snooping (it has no querier)."""
    data = (
        _u32(_BR_FORWARD_DELAY, 0) + _u32(_BR_STP_STATE, 0) + _attr(_BR_MCAST_SNOOPING, struct.pack("=B", 0))
    )
    info = _attr(_LINKINFO, _text(_INFO_KIND, "bridge") + _attr(_INFO_DATA, data))
    body = _ifinfo() + _text(_IFNAME, name) + _common(mac, mtu) + info
    return Request(f"cannot create bridge {name}", _NEWLINK, _F_CREATE | _F_EXCL, body)


def add_veth(
    name: str, peer: str, netns_fd: int, *, mac: str = "", mtu: int = 0, master: int = 0, up: bool = True
) -> Request:
    """A veth pair; the peer (with `mac` and `mtu`) is born in the namespace of `netns_fd`, which costs
    a thirtieth of moving it there.  `master` is the index of the bridge that gets the host's end."""
    inner = _ifinfo() + _text(_IFNAME, peer) + _u32(_NET_NS_FD, netns_fd) + _common(mac, mtu)
    info = _attr(_LINKINFO, _text(_INFO_KIND, "veth") + _attr(_INFO_DATA, _attr(_VETH_PEER, inner)))
    flags = IFF_UP if up else 0
    body = _ifinfo(0, flags, IFF_UP) + _text(_IFNAME, name) + _common("", mtu) + info
    if master:
        body += _u32(_MASTER, master)
    return Request(f"cannot create veth {name} (peer {peer})", _NEWLINK, _F_CREATE | _F_EXCL, body)


def set_link(
    name: str,
    *,
    index: int = 0,
    up: bool | None = None,
    alias: str | None = None,
    mtu: int = 0,
    mac: str = "",
    master: int | None = None,
    group: int | None = None,
) -> Request:
    """Change what is given of a link, found by `index` or else by `name`; alias is cut at 255 bytes."""
    body = _ifinfo(index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    if not index:
        body += _text(_IFNAME, name)
    body += _common(mac, mtu)
    if alias is not None:
        body += _attr(_IFALIAS, alias.encode()[:255])
    if master is not None:
        body += _u32(_MASTER, master)
    if group is not None:
        body += _u32(_GROUP, group)
    return Request(f"cannot change link {name}", _SETLINK, 0, body)


def delete_link(name: str, *, index: int = 0) -> Request:
    """Delete a link; one that is not there is fine."""
    body = _ifinfo(index) + (b"" if index else _text(_IFNAME, name))
    return Request(f"cannot delete link {name}", _DELLINK, 0, body, (errnos.ENODEV,))


def delete_group(group: int) -> Request:
    """Delete all links of a group in one grace period (each alone would wait for its own)."""
    return Request(
        f"cannot delete link group {group}", _DELLINK, 0, _ifinfo() + _u32(_GROUP, group), (errnos.ENODEV,)
    )


def _address_body(index: int, text: str) -> bytes:
    face = ip_interface(text)
    raw, prefix = face.ip.packed, face.network.prefixlen
    family = socket.AF_INET if face.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBi", family, prefix, 0, 0, index)
    body += _attr(_IFA_LOCAL, raw) + _attr(_IFA_ADDRESS, raw)
    if face.version == 4 and prefix < 31:
        body += _attr(_IFA_BROADCAST, face.network.broadcast_address.packed)
    if face.version == 6:
        # Without duplicate address detection the address is usable at once instead of after a second.
        body += _u32(_IFA_FLAGS, _IFA_F_NODAD)
    return body


def add_address(index: int, text: str, name: str = "") -> Request:
    """Give an interface an address like "10.0.0.1/24"; one that is there already is fine."""
    what = f"cannot add address {text} to {name or index}"
    return Request(what, _NEWADDR, _F_CREATE | _F_REPLACE, _address_body(index, text), (errnos.EEXIST,))


def delete_address(index: int, text: str, name: str = "") -> Request:
    """Take an address away; absence is fine."""
    what = f"cannot delete address {text} from {name or index}"
    return Request(what, _DELADDR, 0, _address_body(index, text), (errnos.EADDRNOTAVAIL, errnos.ENODEV))


def add_route(
    destination: str, gateway: str = "", index: int = 0, name: str = "", metric: int = 0
) -> Request:
    """Add a route: `destination` is "default" or a network, `gateway` an address, `index` an interface.

    Of routes to one destination the one with the smallest `metric` is taken; 0: the kernel's own choice.
    """
    v6 = ":" in (gateway if destination == "default" else destination)
    network = None if destination == "default" else ip_network(destination, strict=False)
    family = socket.AF_INET6 if v6 else socket.AF_INET
    scope = 0 if gateway or v6 else 253
    prefix = network.prefixlen if network else 0
    body = struct.pack("=BBBBBBBBI", family, prefix, 0, 0, _RT_MAIN, _RTPROT_STATIC, scope, 1, 0)
    if network:
        body += _attr(_RTA_DST, network.network_address.packed)
    if gateway:
        body += _attr(_RTA_GATEWAY, ip_address(gateway).packed)
    if index:
        body += _u32(_RTA_OIF, index)
    if metric:
        body += _u32(_RTA_PRIORITY, metric)
    via = f" via {gateway}" if gateway else ""
    dev = f" dev {name or index}" if index else ""
    return Request(
        f"cannot add route {destination}{via}{dev}", _NEWROUTE, _F_CREATE | _F_EXCL, body, (errnos.EEXIST,)
    )


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, by their types without flags."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def string(raw: bytes) -> str:
    """A zero-terminated text."""
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(attrs: dict[int, bytes], kind: int, default: int = 0) -> int:
    raw = attrs.get(kind)
    return int(struct.unpack("=I", raw)[0]) if raw and len(raw) == 4 else default


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        size, kind, flags, seq, _ = struct.unpack_from("=IHHII", data, at)
        if size < 16:
            break
        yield kind, flags, seq, data[at + 16 : at + size]
        at += (size + 3) & ~3


def _refusal(flags: int, payload: bytes, what: str) -> NetlinkError:
    number = -struct.unpack_from("=i", payload)[0]
    message = ""
    if flags & _F_ACK_TLVS:
        # The original header follows the error; with NETLINK_CAP_ACK without its payload.
        message = string(attributes(payload[20:]).get(1, b""))
    return NetlinkError(number, what, message)


class Netlink:
    """An rtnetlink socket of the calling thread's network namespace; usable as a context manager.

    Not to be shared by threads.  Every call is bounded by 20 s (TimeoutError beyond).  `protocol` is 0,
    NETLINK_ROUTE, or another family's number (see netfilter.py).
    """

    def __init__(self, protocol: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.settimeout(_TIMEOUT)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._seq = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Send all requests, in order; the answer to each: None, or why the kernel refused it.

        A refusal doesn't stop the ones that follow.
        """
        answers: list[NetlinkError | None] = []
        for start in range(0, len(requests), _CHUNK):
            answers += self._exchange(requests[start : start + _CHUNK])
        return answers

    def do(self, *requests: Request) -> None:
        """Send all requests and raise the first refusal."""
        for answer in self.run(requests):
            if answer is not None:
                raise answer

    def _exchange(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        first = self._seq + 1
        out = bytearray()
        for request in requests:
            self._seq += 1
            flags = request.flags | _F_REQUEST | _F_ACK
            out += struct.pack("=IHHII", 16 + len(request.body), request.kind, flags, self._seq, 0)
            out += request.body + bytes(-len(request.body) % 4)
        self._socket.send(out)
        answers: list[NetlinkError | None] = [None] * len(requests)
        left = set(range(first, self._seq + 1))
        while left:
            for kind, flags, seq, payload in _messages(self._socket.recv(1 << 17)):
                if kind != _ERROR or seq not in left:
                    continue
                left.discard(seq)
                request = requests[seq - first]
                number = -struct.unpack_from("=i", payload)[0]
                if number and number not in request.fine:
                    answers[seq - first] = _refusal(flags, payload, request.what)
        return answers

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """The payloads of all answers to a dump request.  Raises NetlinkError beginning with `what`."""
        for _ in range(20):
            found, whole = self._dump_once(what, kind, body)
            if whole:
                return found
        raise NetlinkError(errnos.EAGAIN, what, "the list kept changing while it was read")

    def _dump_once(self, what: str, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._seq += 1
        head = struct.pack("=IHHII", 16 + len(body), kind, _F_REQUEST | _F_DUMP, self._seq, 0)
        self._socket.send(head + body)
        found: list[bytes] = []
        whole = True
        while True:
            for got, flags, seq, payload in _messages(self._socket.recv(1 << 17)):
                if seq != self._seq:
                    continue
                if flags & _F_DUMP_INTR:
                    whole = False
                if got == _DONE:
                    return found, whole
                if got == _ERROR:
                    raise _refusal(flags, payload, what)
                found.append(payload)

    def ask(self, what: str, kind: int, body: bytes) -> bytes:
        """The payload of the one answer to a request.  Raises NetlinkError beginning with `what`."""
        self._seq += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, _F_REQUEST, self._seq, 0) + body)
        while True:
            for got, flags, seq, payload in _messages(self._socket.recv(1 << 17)):
                if seq == self._seq and got == _ERROR:
                    raise _refusal(flags, payload, what)
                if seq == self._seq:
                    return payload

    def links(self) -> list[Link]:
        """All links of the namespace."""
        body = _ifinfo() + _u32(_EXT_MASK, _SKIP_STATS)
        return [_link(payload) for payload in self.dump("cannot list links", _GETLINK, body)]

    def addresses(self) -> list[Address]:
        """All addresses, v4 and v6."""
        found = []
        for payload in self.dump("cannot list addresses", _GETADDR, bytes(8)):
            _, prefix, flags, scope, index = struct.unpack_from("=BBBBi", payload)
            attrs = attributes(payload[8:])
            raw = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS)
            if raw:
                text = f"{ip_address(raw)}/{prefix}"
                found.append(Address(index, text, scope, _number(attrs, _IFA_FLAGS, flags)))
        return found

    def routes(self) -> list[Route]:
        """All routes of all tables, v4 and v6; of a multipath route the first hop."""
        payloads = self.dump("cannot list routes", _GETROUTE, bytes(12))
        return [_route(payload) for payload in payloads]


def _link(payload: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    attrs = attributes(payload[16:])
    info = attributes(attrs.get(_LINKINFO, b""))
    return Link(
        index=index,
        name=string(attrs.get(_IFNAME, b"")),
        flags=flags,
        mtu=_number(attrs, _MTU),
        mac=attrs.get(_ADDRESS, b"").hex(":"),
        master=_number(attrs, _MASTER),
        link=_number(attrs, _LINK),
        alias=string(attrs.get(_IFALIAS, b"")),
        kind=string(info.get(_INFO_KIND, b"")),
        group=_number(attrs, _GROUP),
    )


def _route(payload: bytes) -> Route:
    family, prefix, _, _, table, protocol, _, kind, _ = struct.unpack_from("=BBBBBBBBI", payload)
    attrs = attributes(payload[12:])
    hop = attrs.get(_RTA_MULTIPATH, b"")
    index = _number(attrs, _RTA_OIF)
    gateway = attrs.get(_RTA_GATEWAY)
    if len(hop) >= 8:
        index = index or struct.unpack_from("=i", hop, 4)[0]
        gateway = gateway or attributes(hop[8 : struct.unpack_from("=H", hop)[0]]).get(_RTA_GATEWAY)
    destination = attrs.get(_RTA_DST)
    return Route(
        destination=f"{ip_address(destination)}/{prefix}" if destination and prefix else "default",
        gateway=str(ip_address(gateway)) if gateway else "",
        index=index,
        table=_number(attrs, _RTA_TABLE, table),
        protocol=protocol,
        metric=_number(attrs, _RTA_PRIORITY),
        type=kind,
        family=family,
    )


def by_name(links: Iterable[Link]) -> dict[str, Link]:
    """The links by their names."""
    return {link.name: link for link in links}
