"""Who listens on a port, from /proc alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from labctl.records import dataclass

_LISTEN, _UNCONNECTED = 0x0A, 0x07  # include/net/tcp_states.h; an unconnected UDP socket is in TCP_CLOSE


@dataclass(frozen=True)
class Listener:
    """A socket that waits on a port.  `pid` 0: its process can't be seen."""

    proto: str
    ip: str
    port: int
    pid: int
    command: str

    def __str__(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        who = f"{self.command} (pid {self.pid})" if self.pid else "a process that can't be seen from here"
        return f"{who} on {self.proto} {host}:{self.port}"


def port_holder(proto: str, ip: str, port: int) -> Listener | None:
    """Who stops us from listening on this port of this address ("" or a wildcard: of any), or None."""
    for there, number, inode in _sockets(proto):
        if number == port and _clash(ip, there):
            pid = _owner(inode)
            return Listener(proto, there, port, pid, _command(pid))
    return None


def _clash(wanted: str, there: str) -> bool:
    if wanted in ("", "0.0.0.0", "::"):
        # A v4-only wildcard doesn't mind v6 sockets, but a v6 wildcard is one of v4 too, as a rule.
        return not (wanted == "0.0.0.0" and ":" in there and there != "::")
    want, have = ip_address(wanted), ip_address(there)
    if have.is_unspecified:
        return have.version == want.version or have.version == 6
    return want == have


def _sockets(proto: str) -> Iterator[tuple[str, int, int]]:
    state = _LISTEN if proto == "tcp" else _UNCONNECTED
    for name in (proto, proto + "6"):
        try:
            lines = Path("/proc/thread-self/net", name).read_text().splitlines()[1:]
        except OSError:
            continue  # a kernel without IPv6
        for line in lines:
            words = line.split()
            if int(words[3], 16) == state:
                address, _, port = words[1].partition(":")
                yield _address(address), int(port, 16), int(words[9])


def _address(text: str) -> str:
    """/proc/net's hexadecimal: 32-bit words in the host's byte order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    found = ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return str(getattr(found, "ipv4_mapped", None) or found)


def _owner(inode: int) -> int:
    if not inode:
        return 0
    target = f"socket:[{inode}]"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if any(str(fd.readlink()) == target for fd in (entry / "fd").iterdir()):
                return int(entry.name)
        except OSError:
            continue  # it ended, or is another user's
    return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() if pid else ""
    except OSError:
        return ""
