"""What a lab says to its keeper, and what it can do without one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.linux import pidfds
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import actions, collector, keeper, state
from labctl.runtime.errors import ContainerError, NotFoundError
from labctl.runtime.state import Store

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from labctl.runtime.keeper import main; "
    "main(sys.argv[2], int(sys.argv[3]))"
)
_START_SECONDS = 10.0


@dataclass(frozen=True)
class Launch:
    """One container to start: its id, and the bundle (a folder with config.json)."""

    id: str
    bundle: str


@dataclass(frozen=True)
class ContainerState:
    """What a container is now.

    `status` is creating, created, running, paused or stopped; `exit_code` None while it runs, and for one
    that ended while no keeper was there to see it; times are seconds since the epoch.
    """

    id: str
    status: str
    pid: int
    exit_code: int | None
    created: float
    started: float | None
    finished: float | None
    bundle: str
    root: str  # the store's root: with the id all that exec_in needs
    cgroup: str


@dataclass(frozen=True)
class ContainerStats:
    """Figures of one container; None where this machine doesn't count it."""

    memory_bytes: int | None
    memory_peak_bytes: int | None
    memory_limit_bytes: int | None
    cpu_ns: int | None
    pids: int | None
    oom_kills: int | None
    net_received_bytes: int | None
    net_sent_bytes: int | None
    block_read_bytes: int | None
    block_written_bytes: int | None


# The same figures as `actions.figures` calls them, in the order of the fields.
_FIGURES = (
    "memory",
    "memory_peak",
    "memory_limit",
    "cpu_ns",
    "pids",
    "oom_kills",
    "net_received",
    "net_sent",
    "block_read",
    "block_written",
)


class KeeperGone(ContainerError):
    """The keeper died while it worked; what it had started goes on."""


def state_of(root: str | Path, id_: str, layout: Layout | None = None) -> ContainerState:
    """The state of one container.  Raises NotFoundError."""
    store = Store(str(root))
    document = store.read(id_)
    now = state.status(store, document, layout or Layout.detect())
    return ContainerState(
        id=id_,
        status=now,
        pid=0 if now == "stopped" else int(document.get("pid") or 0),
        exit_code=document.get("exit_code"),
        created=float(document.get("created") or 0.0),
        started=document.get("started"),
        finished=document.get("finished"),
        bundle=document.get("bundle") or "",
        root=str(root),
        cgroup=document.get("cgroup") or "",
    )


class KeeperClient:
    """All containers of one lab.  Safe to make anywhere: it starts a keeper only to launch."""

    def __init__(self, root: Path) -> None:
        self.root = str(Path(root).absolute())
        self.store = Store(self.root)
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Where this machine's cgroups are."""
        if self._layout is None:
            self._layout = Layout.detect()
        return self._layout

    # -- talking to the keeper

    def _connect(self) -> socket.socket | None:
        """A connection, or None when no keeper listens."""
        try:
            name, fd = keeper.address(self.root)
        except FileNotFoundError:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_START_SECONDS)
            sock.connect(name)
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        finally:
            os.close(fd)

    def _start(self) -> None:
        """Start a keeper; returns when it listens (or another one does).  Raises ContainerError."""
        base = Path(__file__).resolve().parents[2]
        python = sys.executable or "/usr/bin/python3"
        command = [python, "-I", "-S", "-c", _START, str(base), self.root, str(os.getpid())]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                timeout=_START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ContainerError(f"keeper of {self.root} not up after {_START_SECONDS:g} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ContainerError(
                f"keeper of {self.root} failed to start: {said[-1] if said else done.returncode}"
            )

    def _ask(self, request: dict[str, Any], timeout: float, *, start: bool = False) -> dict[str, Any] | None:
        """The answer, or None when there is no keeper and none was to be started.  Raises KeeperGone."""
        sock = self._connect()
        if sock is None:
            if not start:
                return None
            end = time.monotonic() + _START_SECONDS
            while sock is None:
                if time.monotonic() > end:
                    raise ContainerError(f"keeper of {self.root} does not answer")
                # Again and again: a child of a keeper that was killed holds its lock for a moment.
                self._start()
                sock = self._connect()
                if sock is None:
                    time.sleep(0.01)
        with contextlib.closing(sock):
            sock.settimeout(timeout)
            try:
                sock.sendall(json.dumps(request).encode())
                sock.shutdown(socket.SHUT_WR)
                parts = []
                while part := sock.recv(65536):
                    parts.append(part)
            except (BrokenPipeError, ConnectionResetError):
                parts = []
            except OSError as error:  # before Python 3.10 a socket's timeout is no TimeoutError
                raise ContainerError(f"keeper of {self.root}, waited {timeout:g} s: {error}") from error
        if not parts:
            raise KeeperGone(f"the keeper of {self.root} died while it worked")
        answer: dict[str, Any] = json.loads(b"".join(parts))
        if "error" in answer:
            raise ContainerError(f"keeper: {answer['error']}")
        return answer

    # -- what needs a keeper

    def launch(self, items: Sequence[Launch], timeout: float = 60.0) -> dict[str, str]:
        """Start containers in one batch: id → error text ("" = it runs).

        One that runs already is fine; one that has ended is started anew with its upper layer as it is.  A
        keeper that dies meanwhile is replaced, twice.  Raises ContainerError when there can be none.
        """
        rows = [[item.id, str(Path(item.bundle).absolute())] for item in items]
        request = {"op": "launch", "items": rows, "timeout": timeout}
        for left in (2, 1, 0):
            try:
                answer = self._ask(request, timeout + 15.0, start=True) or {}
                break
            except KeeperGone:
                if not left:
                    raise
        errors: dict[str, str] = answer["errors"]
        return errors

    def start(self) -> None:
        """Have a keeper, before there is anything to launch.  Raises ContainerError."""
        self._ask({"op": "ping"}, _START_SECONDS, start=True)

    def flush(self, *, start: bool = False) -> None:
        """See that what the containers have said so far is in their logs.

        Without a keeper that is soon so by itself, unless the collector was killed as well: `start` has a
        keeper started then.  Raises ContainerError when none starts.
        """
        with contextlib.suppress(KeeperGone):
            self._ask({"op": "flush"}, 15.0, start=start)

    def close(self) -> None:
        """End the keeper and who collects for it, unless a container still runs; neither is fine.

        Returns when they have ended.
        """
        pid = self.keeper_pid()
        fd = pidfds.open_pid(pid) if pid else -1
        if fd < 0:
            if not any(state.running_pid(self.store.read(id_)) for id_ in self.store.ids()):
                self._end_collector()
            return
        try:
            with contextlib.suppress(KeeperGone):
                answer = self._ask({"op": "close"}, 10.0)
                if answer and answer["left"]:
                    return
            pidfds.ended(fd, 5.0)
        finally:
            os.close(fd)

    def settle(self) -> None:
        """After containers were removed: see that nobody writes in their folders any more."""
        with contextlib.suppress(ContainerError):
            if self._ask({"op": "flush"}, 15.0) is not None:
                return
        # Without a keeper nobody can be asked.  Another collector goes on with those that are left.
        self._end_collector()
        if any(state.running_pid(self.store.read(id_)) for id_ in self.store.ids()):
            self.start()

    def _end_collector(self) -> None:
        fd = collector.open_process(self.root)
        if fd >= 0:
            try:
                pidfds.send(fd, 15)
                if not pidfds.ended(fd, 2.0):
                    pidfds.send(fd, 9)
                    pidfds.ended(fd, 5.0)
            finally:
                os.close(fd)

    def keeper_pid(self) -> int:
        """The keeper's pid, 0 when there is none."""
        try:
            answer = self._ask({"op": "ping"}, 10.0)
        except KeeperGone:
            return 0
        return int(answer["pid"]) if answer else 0

    # -- what doesn't

    def states(self) -> dict[str, ContainerState]:
        """id → state, from the state folders and the kernel; starts nothing."""
        found = self._states()
        if any(one.status == "stopped" and one.exit_code is None for one in found.values()):
            with contextlib.suppress(KeeperGone):
                if self._ask({"op": "reap"}, 10.0) is not None:
                    found = self._states()
        return found

    def _states(self) -> dict[str, ContainerState]:
        found = {}
        for id_ in self.store.ids():
            with contextlib.suppress(NotFoundError):
                found[id_] = state_of(self.root, id_, self.layout)
        return found

    def signs(self, id_: str) -> tuple[int, tuple[str, ...], tuple[str, ...]] | None:
        """What says that a container runs: (pid, its state's files, the files that say whether it is frozen).

        None for one that doesn't.
        """
        try:
            document = self.store.read(id_)
        except NotFoundError:
            return None
        if document.get("status") != "running" or state.status(self.store, document) != "running":
            return None
        folder, path = self.store.folder(id_), document["cgroup"]
        frozen = [f"{self.layout.v2}{path}/cgroup.freeze"] if self.layout.v2 else []
        if "freezer" in self.layout.v1:
            frozen.append(f"{self.layout.v1['freezer']}{path}/freezer.state")
        return int(document["pid"]), (f"{folder}/state.json", f"{folder}/exec.fifo"), tuple(frozen)

    def stop(self, ids: Iterable[str], *, signal: int | None = None, timeout: float = 10.0) -> dict[str, str]:
        """Ask to end (the configured stop signal), then SIGKILL the whole cgroup: id → error text.

        A first process without a handler for the signal is killed at once: the kernel would drop it.
        """
        return actions.stop(self.store, ids, self.layout, signal=signal, timeout=timeout)

    def kill(self, id_: str, signal: int) -> None:
        """Send a signal to the first process.  Raises ContainerError."""
        actions.kill(self.store, id_, signal, self.layout)

    def pause(self, ids: Iterable[str]) -> dict[str, str]:
        """Freeze: id → error text."""
        return self._each(ids, lambda id_: actions.freeze(self.store, id_, self.layout, True))

    def resume(self, ids: Iterable[str]) -> dict[str, str]:
        """Thaw: id → error text."""
        return self._each(ids, lambda id_: actions.freeze(self.store, id_, self.layout, False))

    def _each(self, ids: Iterable[str], action: Any) -> dict[str, str]:
        errors = {}
        for id_ in ids:
            try:
                action(id_)
                errors[id_] = ""
            except (ContainerError, OSError) as error:
                errors[id_] = str(error)
        return errors

    def wait(self, id_: str, timeout: float) -> int:
        """The exit code (128 + signal), once it has ended.  Raises TimeoutError, NotFoundError.

        Raises ContainerError when it ended unseen, so that nobody knows its code.
        """
        end = time.monotonic() + timeout
        fd = actions.open_process(self.store.read(id_))
        try:
            if fd >= 0 and not pidfds.ended(fd, timeout):
                raise TimeoutError(f"container {id_} still runs after {timeout:g} s")
            grace = time.monotonic() + 5.0
            while True:
                one = self.states().get(id_)
                if one is None:
                    raise NotFoundError(id_)
                if one.exit_code is not None:
                    return one.exit_code
                status = pidfds.wait_status(fd) if fd >= 0 else None
                if status is not None:
                    return pidfds.exit_code(status)
                if fd < 0 or time.monotonic() > max(grace, end):
                    raise ContainerError(f"container {id_} ended unseen: its exit code is not known")
                time.sleep(0.01)
        finally:
            if fd >= 0:
                os.close(fd)

    def delete(self, ids: Iterable[str]) -> dict[str, str]:
        """Kill, remove cgroup and state: id → error text; an absent one is fine."""
        return actions.delete(self.store, ids, self.layout, force=True)

    def update(self, id_: str, resources: dict[str, Any]) -> None:
        """Change limits in place (`spec.resources`).  Raises ContainerError."""
        actions.update(self.store, id_, resources, self.layout)

    def stats(self, ids: Iterable[str]) -> dict[str, ContainerStats]:
        """id → figures; one that doesn't exist is left out."""
        found = {}
        for id_ in ids:
            with contextlib.suppress(NotFoundError):
                row = actions.figures(self.store, id_, self.layout)
                found[id_] = ContainerStats(*(row.get(key) for key in _FIGURES))
        return found

    def processes(self, id_: str) -> list[dict[str, Any]]:
        """Its processes as it sees them (labctl.linux.proctable).  Raises NotFoundError."""
        return actions.process_table(self.store, id_, self.layout)


@dataclass(frozen=True)
class Found:
    """A control group that carries our mark: its path is /labctl/INSTANCE/LAB/NODE."""

    instance: str
    lab: str
    node: str
    cgroup: str
    pids: tuple[int, ...]

    def remove(self, timeout: float = 10.0) -> None:
        """Kill what is in it and remove it.  Raises TimeoutError."""
        group = Cgroup(self.cgroup, Layout.detect())
        if group.frozen():
            group.freeze(False)
        group.remove(timeout)
        group.remove_empty_parents()


def find_marked(instance: str | None = None) -> list[Found]:
    """Every container's control group of this instance (None: of all), found by its path alone."""
    layout = Layout.detect()
    found: dict[str, Found] = {}
    for root in {layout.v2, *layout.v1.values()} - {""}:
        for path in sorted(Path(root, "labctl").glob("*/*/*")):
            if not path.is_dir():
                continue
            owner, lab, node = path.parts[-3:]
            if instance is None or owner == instance:
                name = f"/labctl/{owner}/{lab}/{node}"
                pids = tuple(Cgroup(name, layout).procs())
                found[name] = Found(owner, lab, node, name, pids)
    return list(found.values())
