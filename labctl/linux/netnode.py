"""The network of nodes: a namespace each, its veths into bridges, addresses, routes and sysctls.

Used by `network/` on the host and by `guestnet` inside a virtual machine: standard library only, Python 3.9.

A namespace is bind-mounted last, when everything in it is as described.  So a kill in the middle leaves
no namespace, and its links die with it; what is mounted is whole.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from labctl.linux import netlink, netns
from labctl.linux.netlink import Link, Netlink, NetlinkError, Request


@dataclass(frozen=True)
class Nic:
    """One interface of a node: `name` inside, `host_name` outside, there a port of `master` (or of none).

    `alias` is written on the host's end; a link of that name with another alias is never touched.
    `mtu` 0 leaves the kernel's; an interface that isn't `up` has its addresses nevertheless.
    """

    host_name: str
    name: str
    master: str
    mac: str
    addresses: tuple[str, ...]
    up: bool
    mtu: int
    alias: str


@dataclass(frozen=True)
class Node:
    """A node's whole network.  `path` is where its namespace is kept; "" gateways mean none.

    `routes` are (destination, gateway or "", interface or "", metric or 0).  Of `sysctls` only those of
    `net.` are applied: those that name one of the node's interfaces once it is there, all others before.
    """

    key: str
    path: str
    nics: tuple[Nic, ...]
    gateway4: str = ""
    gateway6: str = ""
    routes: tuple[tuple[str, str, str, int], ...] = ()
    ipv6: bool = True
    sysctls: tuple[tuple[str, str], ...] = ()
    netns_fd: int = -1  # a ready namespace to use instead of a new one
    userns: str = ""  # where to keep a new user namespace that owns the network; "" = the caller's owns it
    id_base: int = 0  # ids 0..id_count-1 in it are those from here on outside
    id_count: int = 65536


_AT_ONCE = 32  # namespaces begun together: each holds a process and two descriptors


def sysctl_path(key: str, interfaces: Sequence[str] = ()) -> str:
    """The file of a sysctl written with dots or slashes; interface names with dots are understood.

    Raises ValueError when the key isn't one of `net.` or leads out of /proc/sys.
    """
    parts = key.split("/") if "/" in key else _split(key, interfaces)
    if parts[0] != "net" or len(parts) < 3 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a sysctl of the network: {key}")
    return "/proc/sys/" + "/".join(parts)


def _split(key: str, interfaces: Sequence[str]) -> list[str]:
    for name in interfaces:
        for word in (f".conf.{name}.", f".neigh.{name}."):
            head, found, tail = key.partition(word)
            if found:
                return [*head.split("."), word.split(".")[1], name, *tail.split(".")]
    return key.split(".")


def write_sysctl(path: str, value: str, *, may_lack: bool = False) -> None:
    """Write a sysctl in the calling thread's network namespace.

    Raises OSError naming the file; `may_lack` passes over one that this kernel hasn't got.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError:
        if not may_lack:
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"cannot set {path} to {value!r}: {os.strerror(error.errno or 0)}"
        ) from error


def make_nodes(nodes: Sequence[Node]) -> dict[str, OSError]:
    """Make the networks of all nodes; what failed, by node key.  A node that fails leaves nothing.

    Those already whole are left as they are; what a killed run left is made anew.  A host name taken by
    a link that isn't ours is a failure with errno EEXIST that tells the holder's alias.
    """
    return netns.in_thread(lambda: _make_all(nodes)) if nodes else {}


def _make_all(nodes: Sequence[Node]) -> dict[str, OSError]:
    failures: dict[str, OSError] = {}
    with Netlink() as host:
        links = netlink.by_name(host.links())
        names = {link.index: link.name for link in links.values()}
        todo = []
        for node in nodes:
            if faults(node, links, names) == "":
                continue
            holder = _holder(node, links)
            if holder is None:
                todo.append(node)
            else:
                failures[node.key] = holder
        _clear(host, todo, links)
        for start in range(0, len(todo), _AT_ONCE):
            batch = todo[start : start + _AT_ONCE]
            # The kernel makes the namespaces of all while we wait for the first.
            begun = {node.key: netns.Owned() for node in batch if node.userns and node.netns_fd < 0}
            for node in batch:
                try:
                    _make_one(host, node, links, begun.get(node.key))
                except (OSError, ValueError) as error:
                    failures[node.key] = error if isinstance(error, OSError) else OSError(22, str(error))
                    _clear(host, [node], netlink.by_name(host.links()))
                finally:
                    if node.key in begun:
                        begun[node.key].end()
        _wait_for_carrier(host, [node for node in todo if node.key not in failures])
    return failures


def _wait_for_carrier(host: Netlink, nodes: Sequence[Node]) -> None:
    """Wait until frames pass: the kernel learns of a carrier in a work queue of its own (linkwatch).

    A frame sent before is lost, and a lost ARP request costs a second.  Bounded by that second.
    """
    awaited = {nic.host_name for node in nodes for nic in node.nics if nic.up}
    awaited |= {nic.master for node in nodes for nic in node.nics if nic.up and nic.master}
    until = time.monotonic() + 1.0
    while awaited and time.monotonic() < until:
        links = [link for link in host.links() if link.name in awaited]
        # A bridge that is down never runs, and neither do its ports' frames: nothing to wait for.
        if all(link.flags & netlink.IFF_RUNNING or not link.up for link in links):
            return
        time.sleep(0.001)


def _holder(node: Node, links: dict[str, Link]) -> OSError | None:
    for nic in node.nics:
        link = links.get(nic.host_name)
        if link is not None and link.alias != nic.alias:
            who = f"alias {link.alias!r}" if link.alias else f"a {link.kind or 'plain'} link without our mark"
            return NetlinkError(17, f"cannot create {nic.host_name}", f"the name is taken by {who}")
    return None


def faults(node: Node, links: dict[str, Link], names: dict[int, str]) -> str:
    """What is wrong with a node's network as the host sees it; "" when nothing, "absent" when not there.

    `links` are the host's by name, `names` the names by index.
    """
    ours = [nic for nic in node.nics if nic.host_name in links and links[nic.host_name].alias == nic.alias]
    if not netns.is_bound(node.path):
        if ours:
            return f"link {ours[0].host_name} is there, its namespace is not"
        return "absent"
    if node.userns and not netns.is_bound(node.userns):
        return "the user namespace that owns it is not there"
    for nic in node.nics:
        link = links.get(nic.host_name)
        if link is None:
            return f"link {nic.host_name} is missing"
        if link.alias != nic.alias:
            return f"link {nic.host_name} is somebody else's"
        if names.get(link.master, "") != nic.master:
            return f"link {nic.host_name} is not a port of {nic.master or 'no bridge'}"
        if not link.up:
            return f"link {nic.host_name} is down"
    return ""


def _make_one(host: Netlink, node: Node, links: dict[str, Link], begun: netns.Owned | None) -> None:
    if node.netns_fd >= 0:
        netns.enter_fd(node.netns_fd)
    elif begun is not None:
        netns.unbind(node.userns)
        owned = begun.keep(node.userns, node.id_base, node.id_count)
        try:
            netns.enter_fd(owned)
        finally:
            os.close(owned)
    else:
        netns.unshare_net()
    own = [nic.name for nic in node.nics]
    early, late = _sysctls(node, own)
    _families(node)
    for path, value in early:
        write_sysctl(path, value)
    fd = netns.current_fd()
    try:
        host.do(*_pairs(node, links, fd))
    finally:
        os.close(fd)
    with Netlink() as inside:
        indices = {link.name: link.index for link in inside.links()}
        for path, value in late:
            write_sysctl(path, value)
        inside.do(*_inside(node, indices))
    netns.bind(node.path)


def extend_node(node: Node, had: int) -> None:
    """Give a network that stands the interfaces of `node` after the first `had`; what a killed run left of
    them is made anew.

    Raises OSError; errno EEXIST where a name is taken by a link that isn't ours.
    """
    netns.in_thread(lambda: _extend(node, had))


def _extend(node: Node, had: int) -> None:
    more = replace(node, nics=node.nics[had:], routes=(), gateway4="", gateway6="")
    with Netlink() as host:
        links = netlink.by_name(host.links())
        if (holder := _holder(more, links)) is not None:
            raise holder
        left = [links[nic.host_name] for nic in more.nics if nic.host_name in links]
        delete_links(host, left, {link.group for link in links.values()})
        fd = os.open(node.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.do(*_pairs(more, links, fd))
            netns.enter_fd(fd)
        finally:
            os.close(fd)
        with Netlink() as inside:
            inside.do(*_inside(more, {link.name: link.index for link in inside.links()}))
        _wait_for_carrier(host, [more])


def _sysctls(node: Node, own: list[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    early: list[tuple[str, str]] = []
    late: list[tuple[str, str]] = []
    for key, value in node.sysctls:
        if key.startswith(("net.", "net/")):
            path = sysctl_path(key, own)
            named = any(f"/conf/{name}/" in path or f"/neigh/{name}/" in path for name in own)
            (late if named else early).append((path, value))
    return early, late


def _families(node: Node) -> None:
    base = "/proc/sys/net/ipv6/conf/"
    if node.ipv6:
        # Link-local addresses are usable at once: labctl gives every interface a MAC of its own.
        write_sysctl(base + "default/accept_dad", "0", may_lack=True)
    else:
        write_sysctl(base + "all/disable_ipv6", "1", may_lack=True)
        write_sysctl(base + "default/disable_ipv6", "1", may_lack=True)


def _pairs(node: Node, links: dict[str, Link], fd: int) -> list[Request]:
    requests: list[Request] = []
    for nic in node.nics:
        master = 0
        if nic.master:
            bridge = links.get(nic.master)
            if bridge is None:
                raise NetlinkError(19, f"cannot create veth {nic.host_name}", f"no bridge {nic.master}")
            master = bridge.index
        requests.append(
            netlink.add_veth(nic.host_name, nic.name, fd, mac=nic.mac, mtu=nic.mtu, master=master)
        )
        requests.append(netlink.set_link(nic.host_name, alias=nic.alias))
    return requests


def _inside(node: Node, indices: dict[str, int]) -> list[Request]:
    requests = [netlink.set_link("lo", index=indices.get("lo", 1), up=True)]
    for nic in node.nics:
        index = indices[nic.name]
        if nic.up:
            requests.append(netlink.set_link(nic.name, index=index, up=True))
        for address in nic.addresses:
            if node.ipv6 or ":" not in address:
                requests.append(netlink.add_address(index, address, nic.name))
    for destination, gateway, name, metric in node.routes:
        if name and name not in indices:
            raise ValueError(f"route to {destination}: no interface {name}")
        requests.append(netlink.add_route(destination, gateway, indices.get(name, 0), name, metric))
    if node.gateway4:
        requests.append(netlink.add_route("default", node.gateway4))
    if node.gateway6 and node.ipv6:
        requests.append(netlink.add_route("default", node.gateway6))
    return requests


def look_nodes(nodes: Sequence[Node]) -> dict[str, str]:
    """What is wrong with each node's network, by key: see `faults`."""
    with Netlink() as host:
        links = netlink.by_name(host.links())
    names = {link.index: link.name for link in links.values()}
    return {node.key: faults(node, links, names) for node in nodes}


def unmake_nodes(nodes: Sequence[Node]) -> dict[str, OSError]:
    """Delete the links and namespaces of all nodes; what failed, by node key.  Absence is fine.

    When it returns, the links are gone: the host's ends are deleted by name, since the kernel takes a
    namespace down whenever it likes.
    """
    failures: dict[str, OSError] = {}
    with Netlink() as host:
        links = netlink.by_name(host.links())
        failures.update(_clear(host, nodes, links))
    return failures


def _clear(host: Netlink, nodes: Sequence[Node], links: dict[str, Link]) -> dict[str, OSError]:
    doomed = [
        links[nic.host_name]
        for node in nodes
        for nic in node.nics
        if nic.host_name in links and links[nic.host_name].alias == nic.alias
    ]
    delete_links(host, doomed, {link.group for link in links.values()})
    failures: dict[str, OSError] = {}
    for node in nodes:
        try:
            netns.unbind(node.path)
            if node.userns:
                netns.unbind(node.userns)
        except OSError as error:
            failures[node.key] = error
    return failures


def delete_links(host: Netlink, doomed: Sequence[Link], groups: set[int]) -> None:
    """Delete links in one grace period, by way of a link group that none of `groups` (all in use) is."""
    if len(doomed) < 2:
        host.do(*(netlink.delete_link(link.name, index=link.index) for link in doomed))
        return
    group = 0
    while group in groups or not group:
        group = int.from_bytes(os.urandom(4), "big") | 1 << 30
    # A link that vanished meanwhile answers ENODEV, and is what we want.
    for answer in host.run([netlink.set_link(link.name, index=link.index, group=group) for link in doomed]):
        if answer is not None and answer.errno != 19:
            raise answer
    host.do(netlink.delete_group(group))


def serve() -> None:
    """Make the networks told as JSON on stdin and answer with the failures: a small process of its own.

    Forking a small process for each user namespace takes 0.2 ms, forking labctl itself 2 ms; and a process
    with threads can't make one at all (user_namespaces(7)).  It dies with the thread that started it.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        return
    told = sys.stdin.read()
    if not told:
        return  # started ahead, and not needed
    nodes = [
        Node(
            **{
                **row,
                "nics": tuple(Nic(**{**nic, "addresses": tuple(nic["addresses"])}) for nic in row["nics"]),
                "routes": tuple((to, via, dev, metric) for to, via, dev, metric in row["routes"]),
                "sysctls": tuple((key, value) for key, value in row["sysctls"]),
            }
        )
        for row in json.loads(told)
    ]
    failures = make_nodes(nodes)
    told = {key: [error.errno or 5, error.strerror or str(error)] for key, error in failures.items()}
    json.dump(told, sys.stdout)


_ahead: list[subprocess.Popen[bytes]] = []


def start_ahead() -> None:
    """Start the process that `make_owned_nodes` will need while there is something else to do.

    It dies with the thread that calls this.
    """
    if not _ahead:
        _ahead.append(_server())


def _server() -> subprocess.Popen[bytes]:
    base = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = "import sys; sys.path.insert(0, sys.argv[1]); from labctl.linux import netnode; netnode.serve()"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, base], stdin=pipe, stdout=pipe, stderr=pipe
    )


def make_owned_nodes(nodes: Sequence[Node], timeout: float = 60.0) -> dict[str, OSError]:
    """As `make_nodes`, for nodes with user namespaces, by way of `serve` in a process of its own.

    Raises OSError when that can't be started or takes longer than `timeout` seconds.
    """
    told = json.dumps([asdict(node) for node in nodes]).encode()
    server = _ahead.pop() if _ahead else _server()
    if server.poll() is not None:  # the thread that started it is gone
        server = _server()
    with server:
        try:
            out, err = server.communicate(told, timeout + 0.1 * len(nodes))
        except subprocess.TimeoutExpired:
            server.kill()
            raise OSError(110, f"the networks of {len(nodes)} nodes took more than {timeout:g} s") from None
        except BaseException:
            server.kill()
            raise
    if server.returncode:
        said = err.decode(errors="replace").strip().splitlines() or [f"exit code {server.returncode}"]
        raise OSError(5, f"the networks of {len(nodes)} nodes were not made: {said[-1]}")
    return {key: OSError(number, text) for key, (number, text) in json.loads(out).items()}
