"""The way into a virtual machine that runs containers of its own: the runtime, layers, calls.

All goes over the machine's SSH connection.  What is there already is not sent again: the runtime by the
digest of its text, each image layer by its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from labctl.errors import HostCannot, LabError
from labctl.guest.inside_driver import BASE
from labctl.guest.ssh import BUSYBOX, SshMachine

RUNTIME = f"{BASE}/runtime"
LAYERS = f"{BASE}/layers"
_PROGRAM = (
    "import sys, _signal\n"
    "_signal.signal(_signal.SIGINT, _signal.SIG_DFL)\n"
    "if sys.version_info < (3, 9): sys.exit('it has Python ' + sys.version.split()[0] + ', 3.9 is needed')\n"
    "sys.path.insert(0, sys.argv.pop(1))\n"
    "from labctl.guest.inside_driver import main\n"
    "sys.exit(main(sys.argv[1:]))"
)
_CALL_SECONDS = 180.0
_PUSH_SECONDS = 1800.0
_NO_PYTHON = 3
# The runtime in use, what is there of the given paths, and all disks' serials; exit code 3 without Python.
_ASK = f"""
command -v python3 >/dev/null || exit {_NO_PYTHON}
{BUSYBOX} readlink "$1" || echo
shift
for path; do [ -d "$path" ] && echo "$path"; done
for file in /sys/block/*/serial; do read -r serial <"$file"; echo "$serial"; done 2>/dev/null
:
"""
# A machine that has no runtime yet has no containers either.
_CALL = """
[ -d "$1" ] && command -v python3 >/dev/null || { echo "{}"; exit 0; }
shift
exec "$@"
"""
# A tar becomes a folder; written to the disk before it gets its name, since machines lose their power.
_UNPACK = f"""
b={BUSYBOX} d=$1
umask 022
$b rm -rf "$d".new.* && $b mkdir -p "$d.new.$$" && $b tar -x -p --numeric-owner -f - -C "$d.new.$$" || exit 1
echo "$d.new.$$"
"""
_NAME = f"""
b={BUSYBOX}
$b chmod 755 "$1" && $b sync && $b mv "$1" "$2"
"""
_CURRENT = f"""
b={BUSYBOX}
$b ln -s "$1" "$2.$$" && $b mv -T "$2.$$" "$2"
"""

_pushing: dict[str, threading.Lock] = {}
_pushing_lock = threading.Lock()


@cache
def runtime_tar() -> tuple[str, bytes]:
    """(digest, tar) of all that runs in the machine: the runtime, the driver and what they stand on."""
    from labctl.runtime import archive

    base = Path(archive.__file__).resolve().parents[1]
    files = {f"labctl/{room}": base / room for room in ("__init__.py", "guest/__init__.py")}
    for name in ("inside_driver.py", "trees.py", "asking.py"):
        files[f"labctl/guest/{name}"] = base / "guest" / name
    for room in ("linux", "runtime"):
        files |= {f"labctl/{room}/{path.name}": path for path in sorted((base / room).glob("*.py"))}
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, path in files.items():
            data = path.read_bytes()
            digest.update(name.encode() + b"\0" + data + b"\0")
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1_000_000_000
            tar.addfile(info, io.BytesIO(data))
    return digest.hexdigest()[:16], buffer.getvalue()


class Link:
    """Calls into one machine.  Safe in many threads."""

    def __init__(self, ssh: SshMachine) -> None:
        self.ssh = ssh
        self.where = ssh.endpoint.where

    def words(self, operation: str, *rest: str) -> list[str]:
        """The command line, in the machine, of one operation of the driver."""
        return ["python3", "-I", "-S", "-c", _PROGRAM, f"{RUNTIME}/current", operation, *rest]

    def call(self, operation: str, request: dict[str, Any], timeout: float = _CALL_SECONDS) -> Any:
        """One operation with its answer, {} where nothing was ever made.  Raises LabError, TimedOut."""
        argv = ["sh", "-c", _CALL, "sh", f"{RUNTIME}/current", *self.words(operation)]
        done = self.ssh.run(
            argv, input=json.dumps(request).encode(), user="0", cwd="/", own_tools=True, timeout=timeout
        )
        return self._answer(operation, done.code, done.stdout, done.stderr)

    def _answer(self, operation: str, code: int, out: bytes, err: bytes) -> Any:
        try:
            answer = json.loads(out)
        except ValueError:
            said = err.decode("utf-8", "replace").strip().splitlines()
            why = said[-1] if said else f"it ended with {code}"
            raise LabError(f"{self.where}: cannot {operation} containers: {why}") from None
        if code:
            raise LabError(f"{self.where}: {answer.get('error', code)}")
        return answer

    def prepare(self, images: Mapping[str, Sequence[str]]) -> None:
        """Bring the runtime and images in, as far as they aren't there.

        `images` are their layers (folders of this host) by the serial that a disk with the image has
        (`disk_serial`): of an image that the machine was given as a disk no layer is sent.
        Raises HostCannot without Python in the machine, LabError.
        """
        with _pushing_lock:
            lock = _pushing.setdefault(self.ssh.endpoint.host_key, threading.Lock())
        with lock:
            digest, tar = runtime_tar()
            home, current = f"{RUNTIME}/{digest}", f"{RUNTIME}/current"
            wanted = {layer_place(layer): layer for layers in images.values() for layer in layers}
            used, there = self._ask([current, home, *wanted])
            if home not in there:
                self._push(home, io.BytesIO(tar))
            if used != digest:
                self._shell(_CURRENT, digest, current)
            needed = {layer for serial, layers in images.items() if serial not in there for layer in layers}
            for place, layer in wanted.items():
                if layer in needed and place not in there:
                    self._push_layer(layer, place)

    def _ask(self, paths: Sequence[str]) -> tuple[str, set[str]]:
        done = self.ssh.run(
            ["sh", "-c", _ASK, "sh", *paths], user="0", cwd="/", own_tools=True, timeout=_CALL_SECONDS
        )
        if done.code == _NO_PYTHON:
            raise HostCannot(
                f"{self.where} has no Python 3, which runs the containers inside it",
                hint=f"give {self.where} an image with Python 3, such as base",
            )
        if done.code:
            raise LabError(f"{self.where}: {done.errors.strip() or f'its shell ended with {done.code}'}")
        used, *there = done.text.splitlines()
        return used, set(there)

    def _shell(self, script: str, *words: str) -> None:
        argv = ["sh", "-c", script, "sh", *words]
        done = self.ssh.run(argv, user="0", cwd="/", own_tools=True, timeout=_CALL_SECONDS)
        if done.code:
            raise LabError(f"{self.where}: {done.errors.strip() or f'its shell ended with {done.code}'}")

    def _push(self, place: str, source: IO[bytes], rows: Sequence[tuple[str, str, str]] = ()) -> None:
        out, errors = io.BytesIO(), io.BytesIO()
        code = self.ssh.exec(
            ["sh", "-c", _UNPACK, "sh", place],
            stdin=source,
            stdout=out,
            stderr=errors,
            user="0",
            cwd="/",
            own_tools=True,
            timeout=_PUSH_SECONDS,
        )
        if code:
            said = errors.getvalue().decode("utf-8", "replace").strip().splitlines()
            raise LabError(
                f"{self.where}: cannot unpack {place}: {said[-1] if said else code}",
                hint=f"is its disk full? (labctl exec {self.where} -- df -h /)",
            )
        fresh = out.getvalue().decode().strip()
        if rows:
            self.call("xattrs", {"folder": fresh, "rows": rows})
        self._shell(_NAME, fresh, place)

    def _push_layer(self, layer: str, place: str) -> None:
        rows = xattrs_of(layer)
        argv = ["tar", "-c", "-f", "-", "--format=gnu", "--numeric-owner", "-C", layer, "."]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            self._push(place, process.stdout, rows)
            if process.wait(60):
                raise LabError(f"cannot read the image layer {layer}: tar ended with {process.returncode}")
        finally:
            process.stdout.close()
            process.kill()
            process.wait(60)

    def seed(self, folder: str, archive: str) -> None:
        """Lay a tar of this host out as the container's seed.  Raises LabError."""
        out, errors = io.BytesIO(), io.BytesIO()
        argv = self.words("seed", json.dumps({"folder": folder}))
        with Path(archive).open("rb") as source:
            code = self.ssh.exec(
                argv, stdin=source, stdout=out, stderr=errors, user="0", cwd="/", timeout=_PUSH_SECONDS
            )
        self._answer("seed", code, out.getvalue(), errors.getvalue())


def disk_serial(digest: str) -> str:
    """The serial of a disk that holds an image ("sha256:…"); virtio keeps 20 bytes of one."""
    return f"lab{digest.rpartition(':')[2][:17]}"


def layer_place(layer: str) -> str:
    """Where a layer, unpacked on this host in a folder named by its digest, lies in a machine."""
    return f"{LAYERS}/{Path(layer).name}"


def xattrs_of(folder: str) -> list[tuple[str, str, str]]:
    """The extended attributes below a folder: (relative path, name, value in hex digits).

    Among them file capabilities, and overlayfs's own mark of a folder that hides those below.
    """
    rows: list[tuple[str, str, str]] = []
    for base, folders, files in os.walk(folder):
        for path in (base, *(f"{base}/{name}" for name in (*files, *folders))):
            if path == base and base != folder:
                continue
            for name in os.listxattr(path, follow_symlinks=False):
                if name.startswith(("trusted.overlay.", "user.", "security.capability")):
                    value = os.getxattr(path, name, follow_symlinks=False).hex()
                    rows.append((os.path.relpath(path, folder), name, value))
    return rows
