"""The half of `labctl.guest.inside` that runs in the virtual machine, next to the runtime.

Standard library only, any Python from 3.9 on.  `main` takes an operation; what it is told comes as JSON on
standard input (for exec, tree and logs as its second argument), its answer is JSON on standard output.
One process does all of one kind for all containers: to start Python costs an emulated machine a third of
a second.
"""

# Bare paths here, as in the runtime: importing pathlib costs an emulated machine a tenth of a second.
# ruff: noqa: PTH103, PTH104, PTH112, PTH118, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import os
import sys

from labctl.runtime import jsonio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from labctl.linux.cgroups import Layout
    from labctl.runtime.client import KeeperClient

ROOT = "/run/labctl/inside"  # on a tmpfs: what the containers are now is gone with a reboot
BASE = "/var/lib/labctl"
NO_CONTAINER = 254  # exit code for "the container can't be entered"; the reason is the answer's error
REASON = "labctl-inside: "  # how such a reason begins on standard error
_BLOCK = 1 << 16
_LAUNCH_SECONDS = 120.0
_POLL_SECONDS = 0.2


def _client() -> KeeperClient:
    from pathlib import Path

    from labctl.runtime.client import KeeperClient

    return KeeperClient(Path(ROOT))


def make(request: dict[str, Any]) -> dict[str, str]:
    """Start containers: their folders, networks, and the keeper's batch; name → error text."""
    from labctl.linux import netnode
    from labctl.linux.netnode import Nic, Node
    from labctl.runtime.client import Launch

    client = _client()
    there = client.states()
    items = [item for item in request["items"] if _is_wanted(there.get(item["name"]))]
    client.delete([item["name"] for item in items if item["name"] in there])
    nodes = []
    for item in items:
        _use_disk(item)
        net = dict(item["net"])
        net["nics"] = tuple(Nic(**dict(nic, addresses=tuple(nic["addresses"]))) for nic in net["nics"])
        net["routes"] = tuple((*route, 0)[:4] for route in net["routes"])  # metrics came later
        net["sysctls"] = tuple(tuple(pair) for pair in net["sysctls"])
        nodes.append(Node(**net))
    for path in {os.path.dirname(path) for node in nodes for path in (node.path, node.userns)} - {""}:
        os.makedirs(path, exist_ok=True)
    failures = {key: f"its network: {error}" for key, error in netnode.make_nodes(nodes).items()}
    ready = []
    for item in items:
        if item["name"] not in failures:
            try:
                _write(item)
                ready.append(Launch(item["name"], item["folder"]))
            except OSError as error:
                failures[item["name"]] = f"cannot write {error.filename or item['folder']}: {error.strerror}"
    failures.update(client.launch(ready, _LAUNCH_SECONDS) if ready else {})
    return {name: text for name, text in failures.items() if text}


def _is_wanted(state: Any) -> bool:
    return state is None or state.status == "stopped"


def _use_disk(item: dict[str, Any]) -> None:
    """Where the machine was given its image as a disk, that takes the place of the layers."""
    from labctl.linux import syscalls
    from labctl.runtime import spec

    serial = item["disk"]
    device = next((name for name in os.listdir("/sys/block") if _serial(name) == serial), "")
    if not device:
        return
    place = f"/run/labctl/images/{serial}"
    os.makedirs(place, exist_ok=True)
    if not os.path.ismount(place):
        syscalls.mount(f"/dev/{device}", place, "ext4", syscalls.MS_RDONLY | syscalls.MS_NODEV)
    config = jsonio.loads(item["config"])
    notes = config["annotations"]
    seeds = [path for path in jsonio.loads(notes[spec.LOWER]) if path.endswith("/seed")]
    notes[spec.LOWER] = jsonio.dumps([place, *seeds])
    item["config"] = jsonio.dumps(config)


def _serial(device: str) -> str:
    try:
        with open(f"/sys/block/{device}/serial") as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(item: dict[str, Any]) -> None:
    base = item["folder"]
    for part in ("etc", "log", "upper", "work", "seed"):
        os.makedirs(os.path.join(base, part), exist_ok=True)
    for path, text in item["files"].items():
        _text(os.path.join(base, "etc", os.path.basename(path)), text)
    _text(os.path.join(base, "config.json"), item["config"])


def _text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def update(request: dict[str, Any]) -> dict[str, str]:
    """Give a running container other limits; name → error text."""
    from labctl.runtime.errors import ContainerError

    try:
        _client().update(request["name"], request["limits"])
        _text(os.path.join(request["folder"], "config.json"), request["config"])
    except (ContainerError, OSError) as error:
        return {request["name"]: str(error)}
    return {}


def remove(request: dict[str, Any]) -> dict[str, str]:
    """End containers and remove all that is theirs; name → error text."""
    import shutil

    from labctl.linux import netnode
    from labctl.linux.netnode import Nic, Node

    items = {item["name"]: item for item in request["items"]}
    client = _client()
    failures = {name: text for name, text in client.delete(list(items)).items() if text}
    client.settle()  # whoever writes their logs is done with the folders
    nodes = [
        Node(
            key=name,
            path=item["net"]["path"],
            userns=item["net"]["userns"],
            nics=tuple(Nic(**dict(nic, addresses=())) for nic in item["net"]["nics"]),
        )
        for name, item in items.items()
        if name not in failures
    ]
    failures.update({key: str(error) for key, error in netnode.unmake_nodes(nodes).items()})
    for name, item in items.items():
        if name not in failures and os.path.lexists(item["folder"]):
            try:
                shutil.rmtree(item["folder"])
            except OSError as error:
                failures[name] = f"cannot remove {error.filename}: {error.strerror}"
    return failures


def ask(request: dict[str, Any]) -> dict[str, str]:
    """One try whether a container's port or URL answers, in its network namespace."""
    from labctl.guest import asking
    from labctl.linux import netns

    return {"reason": netns.run_in(request["netns"], lambda: asking.asked(request["question"]))}


def keep(request: dict[str, Any]) -> Any:
    """The keeper's operations: see labctl.runtime.command_keep."""
    operation = request["operation"]
    if operation == "states":
        return _states()
    client = _client()
    if operation == "stats":
        import dataclasses

        return {name: dataclasses.asdict(one) for name, one in client.stats(request["ids"]).items()}
    if operation == "stop":
        return client.stop(request["ids"], timeout=float(request["timeout"]))
    if operation == "pause":
        return client.pause(request["ids"])
    return client.resume(request["ids"])


def processes(request: dict[str, Any]) -> dict[str, Any]:
    """The processes of a container: see labctl.linux.proctable."""
    return {"processes": _client().processes(request["id"])}


def _state(name: str, layout: Layout) -> dict[str, Any]:
    """What a container is now, without the client's imports, which cost an emulated machine half a second.

    Raises NotFoundError.
    """
    from labctl.runtime import state

    store = state.Store(ROOT)
    document = store.read(name)
    now = state.status(store, document, layout)
    return {
        "status": now,
        "pid": 0 if now == "stopped" else int(document.get("pid") or 0),
        "exit_code": document.get("exit_code"),
        "bundle": document.get("bundle") or "",
    }


def _states() -> dict[str, dict[str, Any]]:
    from labctl.linux.cgroups import Layout
    from labctl.runtime.errors import NotFoundError
    from labctl.runtime.state import Store

    layout, found = Layout.detect(), {}
    for name in Store(ROOT).ids():
        try:
            found[name] = _state(name, layout)
        except NotFoundError:
            continue
        if found[name]["status"] == "stopped" and found[name]["exit_code"] is None:
            # Only the keeper knows, and says so when it is asked.
            found[name]["exit_code"] = _client().states()[name].exit_code
    return found


def xattrs(request: dict[str, Any]) -> dict[str, str]:
    """Set attributes of files, which busybox's tar does not know: rows of path, name and hex digits."""
    for path, name, value in request["rows"]:
        os.setxattr(os.path.join(request["folder"], path), name, bytes.fromhex(value), follow_symlinks=False)
    return {}


def seed(request: dict[str, Any], source: IO[bytes]) -> dict[str, str]:
    """Lay a tar out as the folder that lies over the image's layers; once in the container's life."""
    import shutil
    import tarfile

    place = request["folder"]
    if os.path.isdir(place):
        return {}
    fresh = place + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    with tarfile.open(fileobj=source, mode="r|") as tar:
        # Our own archive of the person's own files: links may point anywhere, as they do in an image.
        trusted: Any = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
        tar.extractall(fresh, numeric_owner=True, **trusted)
    os.rename(fresh, place)
    return {}


def execute(request: dict[str, Any]) -> int:
    """Run a command in a container: its exit code."""
    from labctl.runtime.errors import ContainerError
    from labctl.runtime.execute import exec_in

    _end_as_with_ctrl_c()
    try:
        state = _Named(request["id"])
        if state.status not in ("running", "created"):
            return _cannot(f"is {state.status}")
        return exec_in(
            state,
            request["argv"],
            env=request.get("env"),
            cwd=request.get("cwd"),
            user=request.get("user"),
            tty=bool(request.get("tty")),
            timeout=request.get("timeout"),
        )
    except TimeoutError:
        return 137
    except (ContainerError, OSError) as error:
        return _cannot(str(error))


def _end_as_with_ctrl_c() -> None:
    """Whoever wants the command to end (labctl was ended, or is gone) tells us alone: pass it on."""
    import _signal  # type: ignore[import-not-found]  # `signal` imports `enum`

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt({_signal.SIGTERM: "SIGTERM", _signal.SIGHUP: "SIGHUP"}.get(number, "SIGINT"))

    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, interrupt)


class _Named:
    """A container as `exec_in` wants it named, and what it is now."""

    def __init__(self, name: str) -> None:
        from labctl.linux.cgroups import Layout

        now = _state(name, Layout.detect())
        self.id = name
        self.root = ROOT
        self.status: str = now["status"]
        self.pid: int = now["pid"]
        self.bundle: str = now["bundle"]


def _cannot(text: str) -> int:
    sys.stderr.write(f"{REASON}{text}\n")
    return NO_CONTAINER


def tree(request: dict[str, Any]) -> int:
    """Look at, pack or unpack files as the container sees them: see labctl.guest.trees."""
    from labctl.guest import trees
    from labctl.runtime.errors import ContainerError

    try:
        state = _Named(request["id"])
    except ContainerError as error:
        return _cannot(str(error))
    if not state.pid:
        return _cannot(f"is {state.status}")
    return trees.main([str(state.pid), *request["words"]])


def logs(request: dict[str, Any]) -> int:
    """What a container's command wrote, as frames: see labctl.runtime.logbook.HEAD."""
    from labctl.runtime import logbook, logread
    from labctl.runtime.errors import ContainerError

    out = sys.stdout.buffer
    name = request["id"]
    try:
        now = _Named(name)
        _client().flush(start=now.status != "stopped")
    except ContainerError as error:
        return _cannot(str(error))
    streams = sum(logbook.STREAMS[stream] for stream in request["streams"])
    wanted = logread.Wanted(streams, request["tail"], request["since"], request["until"])
    frames = logread.read(
        os.path.join(now.bundle, "log"),
        wanted,
        follow=request["follow"],
        ended=lambda: _said_all(name),
        pause=_POLL_SECONDS,
    )
    for stream, at, data in frames:
        for start in range(0, len(data), _BLOCK):
            part = data[start : start + _BLOCK]
            out.write(logbook.HEAD.pack(at, len(part), stream) + part)
        if request["follow"]:
            out.flush()
    out.flush()
    return 0


def _said_all(name: str) -> bool:
    """Whether a container has ended, with its last words in the log."""
    from labctl.runtime.errors import NotFoundError

    try:
        if _Named(name).status != "stopped":
            return False
        _client().flush()
    except NotFoundError:
        pass
    return True


_ANSWERS = {
    "make": make,
    "update": update,
    "remove": remove,
    "keep": keep,
    "processes": processes,
    "xattrs": xattrs,
    "ask": ask,
}
_STREAMS = {"exec": execute, "tree": tree, "logs": logs}


def main(words: list[str]) -> int:
    """OPERATION [JSON].  Exit code 1 and {"error": TEXT} when it fails."""
    from labctl.runtime.errors import ContainerError

    operation, *rest = words
    if operation in _STREAMS:
        try:
            return _STREAMS[operation](jsonio.loads(rest[0]))
        except KeyboardInterrupt:
            return 130
    try:
        if operation == "seed":
            answer: Any = seed(jsonio.loads(rest[0]), sys.stdin.buffer)
        else:
            answer = _ANSWERS[operation](jsonio.loads(sys.stdin.read()))
        code = 0
    except (ContainerError, OSError, ValueError) as error:
        answer, code = {"error": str(error)}, 1
    sys.stdout.write(jsonio.dumps(answer) + "\n")
    return code
