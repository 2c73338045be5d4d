"""A dropbear of the test's own on the loopback address, where /root and /run are ours too."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from labctl.data import data
from labctl.guest.ssh_connection import Endpoint, banner_up

# The same layout as in a machine of labctl's: root's shell hands every command to templates/init/exec.
_SCRIPT = r"""
mount -t tmpfs -o mode=700 none /root
mkdir -m 700 /root/.ssh
cp "$1/user.pub" /root/.ssh/authorized_keys
if [ "$3" = labctl ]; then
    mount -t tmpfs -o mode=755 none /run
    mkdir -p /run/labctl/bin /run/labctl/boot /run/labctl/lib /run/labctl/log /run/labctl/cfg
    cp "$(command -v busybox)" "$(command -v setpriv)" /run/labctl/bin/
    cp "$4" /run/labctl/boot/exec
    ln -s /lib64/ld-linux-x86-64.so.2 /run/labctl/lib/ld.so
    printf '#!/bin/sh\nexec /run/labctl/bin/busybox sh /run/labctl/boot/exec "$2"\n' > /run/labctl/shell
    chmod 755 /run/labctl/shell
    sed 's,^root:.*,root:x:0:0:root:/root:/run/labctl/shell,' /etc/passwd > /run/passwd
    mount --bind /run/passwd /etc/passwd
    echo /run/labctl/shell > /run/shells
    mount --bind /run/shells /etc/shells
    printf 'first\nsecond\nthird\n' > /run/labctl/log/stdout
    printf 'trouble\n' > /run/labctl/log/stderr
fi
exec dropbear -F -E -m -s -r "$1/host" -p "127.0.0.1:$2" -P "$1/pid"
"""


def make_key(path: Path) -> str:
    """Write an OpenSSH private key; returns the public one."""
    key = Ed25519PrivateKey.generate()
    kinds = serialization
    path.write_bytes(key.private_bytes(kinds.Encoding.PEM, kinds.PrivateFormat.OpenSSH, kinds.NoEncryption()))
    path.chmod(0o600)
    return key.public_key().public_bytes(kinds.Encoding.OpenSSH, kinds.PublicFormat.OpenSSH).decode()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def ssh_server(folder: Path, protocol: str) -> Iterator[Endpoint]:
    """Serve until the block ends."""
    (folder / "user.pub").write_text(make_key(folder / "user") + "\n")
    made = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host")],
        capture_output=True,
        text=True,
        timeout=10,
    )
    public = next(line for line in made.stdout.splitlines() if line.startswith("ssh-"))
    port = free_port()
    words = [str(folder), str(port), protocol, str(data("templates", "init", "exec"))]
    with (folder / "log").open("wb") as log:
        argv = ["unshare", "--mount", "sh", "-ec", _SCRIPT, "sh", *words]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while not banner_up("127.0.0.1", port, 1):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield Endpoint(
            host="127.0.0.1", port=port, key_file=str(folder / "user"), host_key=public, node="lab/node"
        )
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
