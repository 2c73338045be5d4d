"""The kernel keeps a group's sockets to one address: every way to another one is tried."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.linux import oneaddress
from labctl.linux.cgroups import Cgroup, Layout

pytestmark = pytest.mark.needs("root", "cgroup-bpf")

OWN = "127.0.0.7"  # an address of any host; others of 127.0.0.0/8 stand for the host's further ones

INSIDE = """
import json, os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
def bound(family, kind, address):
    with socket.socket(family, kind) as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            return error.errno
        return sock.getsockname()[0].removeprefix("::ffff:")
told = {}
for address in ("", "127.0.0.1", "127.0.0.7", "169.254.9.9", "::", "::1", "::ffff:127.0.0.7", "fe80::9"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    told[address] = [bound(family, kind, address) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
server = socket.create_server(("", 0))
with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client:
    told["connect"] = [client.getsockname()[0], client.getpeername()[0]]
with socket.socket(socket.AF_INET6) as client:
    client.connect(("::1", server.getsockname()[1]))
    told["connect6"] = [client.getsockname()[0], client.getpeername()[0]]
with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
    one.bind(("", 0))
    one.settimeout(5)
    other.sendto(b"x", ("127.0.0.1", one.getsockname()[1]))
    told["source"] = one.recvfrom(9)[1][0]
with socket.socket(socket.AF_INET6) as client:
    try:
        client.connect(("fe80::9", 9))
    except OSError as error:
        told["ipv6"] = error.errno
hidden = socket.socket()
hidden.listen()  # the kernel binds it by itself, to any address
told["hidden"] = hidden.getsockname()
print(json.dumps(told), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def group() -> Iterator[str]:
    found = Cgroup(f"/labctl-one-{os.getpid()}", Layout.detect())
    found.v1 = {}
    Path(found.v2).mkdir()
    yield found.v2
    found.remove()
    assert not Path(found.v2).exists()


def test_a_group_has_one_address_and_no_way_to_another(group: str) -> None:
    oneaddress.restrict(group, OWN)
    argv = [sys.executable, "-c", INSIDE, group]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout and inside.stdin
        told = json.loads(inside.stdout.readline())
        for address in ("", "127.0.0.1", OWN, "::", "::1", f"::ffff:{OWN}"):
            assert told[address] == [OWN, OWN], address
        for address in ("169.254.9.9", "fe80::9"):
            assert told[address] == [errno.EPERM, errno.EPERM], address
        assert told["connect"] == [OWN, OWN] and told["source"] == OWN
        assert told["connect6"] == [f"::ffff:{OWN}", f"::ffff:{OWN}"]
        assert told["ipv6"] == errno.EPERM
        address, port = told["hidden"]
        assert address == "0.0.0.0", "this socket passed no hook: only its packets are dropped"
        with socket.create_connection((OWN, port), timeout=5):
            pass
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.3)
        inside.stdin.close()
        assert inside.wait(5) == 0


def test_other_groups_are_left_alone(group: str) -> None:
    oneaddress.restrict(group, OWN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[0] == "127.0.0.1"
