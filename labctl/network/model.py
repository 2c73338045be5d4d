"""What the network's resources are described with: small frozen dataclasses of JSON types."""

from __future__ import annotations

from ipaddress import ip_address

from labctl.records import dataclass

# Every bridge of every lab is in this link group ("lab" in ASCII), so that one lab's nft rules can say
# "the bridge of any other lab" without knowing their names.
LAB_GROUP = 0x6C6162


@dataclass(frozen=True)
class Interface:
    """One interface of a node.

    `host_name` is the host's end of the veth (or the tap), at most 15 bytes; `name` the one inside;
    `bridge` the host's bridge it is a port of, "" for none; `addresses` like "10.1.2.3/24" and
    "fd00::3/64"; `up=False` leaves it down, its addresses set; `mtu` 0 is the kernel's default.
    """

    host_name: str
    name: str
    bridge: str
    mac: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    mtu: int = 0


@dataclass(frozen=True)
class NodeRoute:
    """A node's route to `destination` ("10.2.0.0/16" or "default") by a gateway, an interface or both.

    Of two to one destination the one with the smaller metric is taken; 0: the kernel's own choice.
    """

    destination: str
    gateway: str = ""
    interface: str = ""
    metric: int = 0


@dataclass(frozen=True)
class BridgeRule:
    """A bridge of the lab as its firewall sees it; subnets "" where the segment has none."""

    ifname: str
    subnet4: str = ""
    subnet6: str = ""
    internet: bool = False


@dataclass(frozen=True)
class PublishedPort:
    """A port of the host that leads to a node.

    `proto` is tcp or udp.  `host_ip` "" or "0.0.0.0" means every address of the host, "::" every v6
    one, a loopback address only this host.  The family is that of `node_ip`.
    """

    proto: str
    host_ip: str
    host_port: int
    node_ip: str
    node_port: int
    bridge: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return ip_address(self.node_ip).version

    @property
    def everywhere(self) -> bool:
        """Whether every address of the host is meant."""
        return self.host_ip in ("", "0.0.0.0", "::")

    @property
    def local_only(self) -> bool:
        """Whether only this host itself may use it."""
        return not self.everywhere and ip_address(self.host_ip).is_loopback


@dataclass(frozen=True)
class Listen:
    """An address of a bridge on which the lab's DNS server listens."""

    ifname: str
    ip: str
