"""From a bundle to a running process, for one container or for many in one batch.

Order, and why: the state is on disk before anything exists; every process is cloned and waits; all are
attached to their cgroups back to back (one grace period for all); their pids are on disk; only then does each
get its root and the word to go.  A parent that dies before that word leaves processes that end by themselves;
one that dies after it leaves containers that run, named on disk.
"""

from __future__ import annotations

import os
import select
import time

from labctl.linux import cgroups, namespaces, pidfds, proc
from labctl.linux import syscalls as sc
from labctl.linux.cgroups import Layout
from labctl.linux.mounts import OverlayMaker
from labctl.runtime import init, process, sources, spec, state
from labctl.runtime.channel import Channel
from labctl.runtime.errors import ContainerError, debug
from labctl.runtime.groups import Place
from labctl.runtime.state import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_PARENT_ENTERS = ("network", "ipc", "uts", "time", "cgroup", "pid")
_EXPECTED = (OSError, ContainerError, ValueError, KeyError, TypeError)


class Job:
    """One container on its way.  `error` is empty as long as all is well."""

    def __init__(self, id_: str, bundle: str, *, stdio: tuple[int, int, int] | None = None) -> None:
        self.id = id_
        self.bundle = os.path.abspath(bundle)
        self.stdio = stdio
        self.loaded: tuple[dict[str, Any], str] | None = None  # when its config.json has been read already
        self.collected = False  # whether somebody reads its output, by `pipes`: stream → descriptor
        self.pipes: dict[str, int] = {}
        self.wait_for_start = False
        self.preserve: list[int] = []
        self.all_groups = False
        self.by_systemd = False
        self.new_keyring = True
        self.pivot = True
        self.error = ""
        self.code = 1
        self.config: dict[str, Any] = {}
        self.document: dict[str, Any] = {}
        self.place: Place | None = None
        self.channel: Channel | None = None
        self.pid = 0
        self.pidfd = -1
        self.console = -1
        self.declared = False
        self._middle = 0
        self._plan: init.Plan | None = None
        self._open: list[int] = []

    @property
    def plan(self) -> init.Plan:
        """What the process is to become; known once the job is declared."""
        if self._plan is None:
            raise ContainerError(f"container {self.id} is not declared yet")
        return self._plan

    def declare(self, store: Store, layout: Layout) -> None:
        """Write down the intent; then its cgroup, limits, and open files."""
        self.config, text = self.loaded or spec.load(self.bundle)
        if not self.config.get("process") and not self.wait_for_start:
            raise ContainerError(f"{self.bundle}/config.json: process is missing")
        process.preload(self.config)
        if namespaces.ORDINARY:
            from labctl.runtime import rootless

            rootless.check(self.config)
        notes = dict(self.config.get("annotations") or {})
        place = Place(self.config, self.id, layout, everywhere=self.all_groups, by_systemd=self.by_systemd)
        self.document = state.new_document(self.id, self.bundle, notes)
        place.describe(self.document)
        if os.path.exists(f"{store.folder(self.id)}/state.json"):
            raise ContainerError(f"container with id exists: {self.id}")
        program = process.filter_of(self.config)
        if self.all_groups:
            place.refuse_taken()
        debug(f"container {self.id}: bundle {self.bundle}, cgroup {self.document['cgroup']}")
        store.create(self.id, self.document, text)
        self.declared = True
        self.place = place
        place.make()
        self._plan = init.Plan(self.config, program, self._stdio(notes))
        self._plan.preserve = self.preserve
        self._plan.pivot, self._plan.new_keyring = self.pivot, self.new_keyring
        if self.wait_for_start:
            self._make_fifo(store)

    def _owner(self) -> tuple[int, int]:
        return namespaces.owner_outside(*spec.id_maps(self.config))

    def _stdio(self, notes: dict[str, str]) -> tuple[int, int, int]:
        """The pipes to who collects its output, the files that it appends to by itself, or what was given."""
        fds = list(self.stdio or (-1, -1, -1))
        for index, (name, key) in enumerate((("stdout", spec.LOG_STDOUT), ("stderr", spec.LOG_STDERR)), 1):
            if path := notes.get(key):
                fds[index] = self._pipe(name) if self.collected else self._log(path)
        for index, fd in enumerate(fds):
            if fd < 0:
                fds[index] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                self._open.append(fds[index])
        return fds[0], fds[1], fds[2]

    def _log(self, path: str) -> int:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.fchown(fd, *self._owner())
        self._open.append(fd)
        return fd

    def _pipe(self, name: str) -> int:
        """A pipe, open for both: it lasts as long as anybody has it, and breaks for nobody.

        Its number is written down: whoever has lost it finds it with the container's processes.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.pipes[name] = fd = os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_CLOEXEC)
        os.close(reader)
        os.close(writer)
        os.fchown(fd, *self._owner())
        self.document.setdefault("pipes", {})[name] = os.fstat(fd).st_ino
        return fd

    def _make_fifo(self, store: Store) -> None:
        path = f"{store.folder(self.id)}/exec.fifo"
        os.mkfifo(path, 0o622)
        os.chmod(path, 0o622)
        os.chown(path, *self._owner())
        self.plan.fifo = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._open.append(self.plan.fifo)

    def spawn(self, others: Iterable[Job]) -> None:
        """Clone the process into its namespaces; it waits there for the word."""
        self.channel, child = Channel.pair()
        spaces = sources.namespace_paths(self.config)
        flags = 0
        offsets = (self.config.get("linux") or {}).get("timeOffsets") or {}
        for kind, path in spaces.items():
            # A process enters its cgroup before it hides the rest; clocks are shifted before the clone.
            if not path and kind != "cgroup" and not (kind == "time" and offsets):
                flags |= namespaces.FLAGS[kind]
        try:
            if spaces.get("user"):
                self._begin_middle(spaces, flags, child, offsets)
            else:
                with _Entered(spaces, offsets):
                    self.pid, self.pidfd = sc.clone(flags)
                    if self.pid == 0:  # inside the block: its end, the way back, is the parent's alone
                        init.run(self.plan, child)
        finally:
            child.close()

    def spawned(self) -> None:
        """Learn which process it is: those that come by way of another are made meanwhile, all at once."""
        if self._middle:
            self._end_middle()
        self.document["start_ticks"] = proc.start_ticks(self.pid)
        self.document["start_stack"] = proc.start_stack(self.pid)

    def _begin_middle(
        self, spaces: dict[str, str], flags: int, child: Channel, offsets: dict[str, Any]
    ) -> None:
        """A user namespace by path: a process in between enters it, and the container is our child still."""
        self._middle = os.fork()
        if self._middle == 0:
            try:
                user = os.open(spaces["user"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                entered = _Entered(spaces, offsets)
                if namespaces.ORDINARY:  # the right to the others is in there
                    sc.setns(user, sc.CLONE_NEWUSER, spaces["user"])
                entered.enter()
                if spaces.get("mount"):
                    raise ContainerError("a mount namespace by path can't go with a user namespace by path")
                if not namespaces.ORDINARY:
                    sc.setns(user, sc.CLONE_NEWUSER, spaces["user"])
                pid, _ = sc.clone(flags & ~sc.CLONE_NEWUSER | sc.CLONE_PARENT)
                if pid == 0:
                    init.run(self.plan, child)
                child.send({"pid": pid})
            except _EXPECTED as error:
                child.send({"error": str(error)})
            finally:
                os._exit(0)

    def _end_middle(self) -> None:
        assert self.channel is not None
        try:
            message, _ = self.channel.receive(30.0)
        finally:
            middle, self._middle = self._middle, 0
            os.waitpid(middle, 0)
        if message is None or "pid" not in message:
            raise ContainerError((message or {}).get("error") or "the process in between died")
        self.pid = message["pid"]
        self.pidfd = sc.pidfd_open(self.pid)

    def name_it(self, store: Store) -> None:
        """Id maps, limits that need our rights, and the pid on disk."""
        spaces = sources.namespace_paths(self.config)
        if spaces.get("user") == "":
            if namespaces.ORDINARY:
                from labctl.runtime.rootless import write_maps
            else:
                from labctl.linux.namespaces import write_maps
            write_maps(self.pid, *spec.id_maps(self.config))
        wanted = self.config.get("process") or {}
        process.raise_limits(self.pid, wanted)
        score = wanted.get("oomScoreAdj")
        if score is not None:
            cgroups.write(f"/proc/{self.pid}/oom_score_adj", str(score))
        self.document["pid"] = self.pid
        store.write(self.id, self.document)
        debug(f"container {self.id}: process {self.pid} waits in its namespaces and cgroups")

    def go(self, maker: OverlayMaker | None, store: Store) -> None:
        """Make its root and its binds, hand them over, and give the word."""
        assert self.channel is not None
        fds: list[int] = []
        made: list[int] = []
        userns = -1
        try:
            spaces = sources.namespace_paths(self.config)
            sysfs = -1
            if "user" in spaces and not namespaces.ORDINARY:
                userns = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            if not namespaces.ORDINARY:
                sysfs = sources.inside_network(self.config, userns)
            if "mount" in spaces and not namespaces.ORDINARY:
                fds.append(sources.make_root(self.config, self.bundle, maker, userns))
                if sysfs >= 0:
                    fds.append(sysfs)
                fds += sources.make_binds(self.config, self.bundle, userns)
                if userns >= 0 and self.config["linux"].get("devices") and not namespaces.nested():
                    made = sources.make_devices(self.config, _scratch(store))
                    fds += made
            oci = state.oci({**self.document, "annotations": {}}, "creating")  # it has its annotations
            group = self.place.group if self.place is not None else None
            groups = group.by_name() if group is not None else {}
            word = {"go": True, "sysfs": sysfs >= 0, "nodes": len(made), "state": oci, "cgroups": groups}
            self.channel.send(word, fds)
            debug(f"container {self.id}: process {self.pid} makes its root and goes on")
        finally:
            for fd in [*fds, *([userns] if userns >= 0 else [])]:
                os.close(fd)

    def close(self) -> None:
        """Close what only the launch needed; the pidfd and the console stay."""
        for fd in (*self._open, *(self.pipes.values() if self.error else ())):
            os.close(fd)
        self._open = []
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class _Entered:
    """In the namespaces given by path, and back: for what a clone is to inherit."""

    def __init__(self, spaces: dict[str, str], offsets: dict[str, Any]) -> None:
        self.paths = {kind: spaces[kind] for kind in _PARENT_ENTERS if spaces.get(kind)}
        self.offsets = offsets if spaces.get("time") == "" else {}
        self.home: dict[str, int] = {}

    def enter(self) -> None:
        """Enter them all."""
        for kind, path in self.paths.items():
            own = "pid_for_children" if kind == "pid" else namespaces.FILES[kind]
            self.home[kind] = os.open(f"/proc/self/ns/{own}", os.O_RDONLY | os.O_CLOEXEC)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would hold us for ever
            try:
                sc.setns(fd, namespaces.FLAGS[kind], path)
            finally:
                os.close(fd)
        if self.offsets:
            from labctl.linux import schedule

            self.home["time"] = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
            sc.unshare(sc.CLONE_NEWTIME)
            schedule.write_time_offsets(self.offsets)

    def __enter__(self) -> None:
        try:
            self.enter()
        except (OSError, ValueError):
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        for kind, fd in self.home.items():
            sc.setns(fd, namespaces.FLAGS[kind], f"the first {kind} namespace")
            os.close(fd)
        self.home = {}


def launch(store: Store, jobs: list[Job], layout: Layout, *, timeout: float = 60.0) -> None:
    """Create (with `wait_for_start`) or start all jobs.  A failed one has `error` and leaves nothing behind.

    Only in a single-threaded process: it changes its namespaces for moments.
    """
    alive = list(jobs)

    def each(step: Callable[[Job], None]) -> None:
        for job in list(alive):
            try:
                step(job)
            except _EXPECTED as error:
                text = f"config.json: {error!r}" if isinstance(error, (KeyError, TypeError)) else str(error)
                _failed(job, text, getattr(error, "code", 1))
                alive.remove(job)

    each(lambda job: job.declare(store, layout))
    each(lambda job: job.spawn(alive))
    each(lambda job: job.spawned())
    each(_attach)
    each(lambda job: job.name_it(store))
    each(lambda job: _parent_hooks(job, "prestart", "createRuntime"))
    if any(sources.overlay_of(job.config)[0] for job in alive):
        with OverlayMaker(_scratch(store)) as maker:
            each(lambda job: job.go(maker, store))
    else:
        each(lambda job: job.go(None, store))
    for job in _collect(alive, timeout):
        job.document["status"] = "created" if job.wait_for_start else "running"
        if not job.wait_for_start:
            job.document["started"] = time.time()
        try:
            store.write(job.id, job.document)
            if not job.wait_for_start:
                _parent_hooks(job, "poststart")
        except (OSError, ContainerError) as error:
            _failed(job, str(error), 1)
    for job in jobs:
        job.close()
        if job.error:
            undo(store, job)


def _attach(job: Job) -> None:
    assert job.place is not None
    job.place.enter(job.pid)
    job.place.describe(job.document)


def _parent_hooks(job: Job, *kinds: str) -> None:
    for kind in kinds:
        rows = (job.config.get("hooks") or {}).get(kind)
        if rows:
            from labctl.runtime import hooks

            late = kind == "poststart"
            now = state.oci(job.document, "running" if late else "creating")
            hooks.run_all(rows, now, kind, only_warn=late)


def _scratch(store: Store) -> str:
    """A folder to mount on, in a mount namespace that nobody else sees."""
    path = f"{store.root}/.scratch"
    os.makedirs(path, exist_ok=True)
    return path


def _failed(job: Job, error: str, code: int) -> None:
    job.error = error or "failed"
    job.code = code


def _collect(jobs: list[Job], timeout: float) -> list[Job]:
    """Wait until each has become its program, is ready for start, or has failed."""
    end = time.monotonic() + timeout
    waiting = {job.channel.fileno(): job for job in jobs if job.channel is not None}
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    good = []
    while waiting:
        left = end - time.monotonic()
        events = poll.poll(int(left * 1000)) if left > 0 else []
        if not events:
            for job in waiting.values():
                _failed(job, f"container did not start within {timeout:g} s", 1)
            break
        for fd, _ in events:
            job = waiting[fd]
            assert job.channel is not None
            message, fds = job.channel.receive()
            if message and message.get("console"):
                job.console = fds[0]
                continue
            if message and "bind" in message:
                _bind_inside(job, message["bind"], message["place"])
                continue
            if message and message.get("listener"):
                _hand_over(job, message["listener"])
                continue
            del waiting[fd]
            poll.unregister(fd)
            if job.error:
                continue
            if message and "error" in message:
                _failed(job, message["error"], message.get("code", 1))
            elif message is None and _died(job):
                _failed(job, "container process died during its start", 1)
            else:
                good.append(job)
    return good


def _bind_inside(job: Job, index: int, place: str) -> None:
    """Make a bind mount of what is mounted in the container already: in its mount namespace, for a moment."""
    assert job.channel is not None
    fds: list[int] = []
    try:
        for name in ("/proc/self/ns/mnt", f"/proc/{job.pid}/ns/mnt", f"/proc/{job.pid}/ns/user", "."):
            fds.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        home, there, userns, here = fds
        sc.setns(there, sc.CLONE_NEWNS, "the container's mount namespace")
        try:
            mount = job.config["mounts"][index]
            fds.append(sources.make_bind(job.config, job.bundle, mount, userns, place))
        finally:
            sc.setns(home, sc.CLONE_NEWNS, "the first mount namespace")
            os.fchdir(here)
        job.channel.send({"bind": index}, fds[4:])
    except _EXPECTED as error:
        job.channel.send({"error": str(error)})
    finally:
        for fd in fds:
            os.close(fd)


def _hand_over(job: Job, number: int) -> None:
    """Give the seccomp agent its descriptor; the process waits, and is told how it went."""
    from labctl.runtime import listener

    assert job.channel is not None
    profile = job.config["linux"]["seccomp"]
    try:
        listener.hand_over(job.pidfd, number, profile, job.pid, state.oci(job.document, "creating"))
        job.channel.send({"go": True})
    except (OSError, ContainerError) as error:
        _failed(job, str(error), 1)
        pidfds.send(job.pidfd, 9)  # its own calls may wait for the agent for ever


def _died(job: Job) -> bool:
    """Whether the end of the channel was a death by signal before execve (execve closes it as well).

    A program that has ended already did start.
    """
    if not pidfds.ended(job.pidfd):
        return False
    info = os.waitid(os.P_PIDFD, job.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    # Our own code ends with a message or by a signal; SIGKILL is what the kernel's OOM killer sends.
    return info is not None and info.si_code != os.CLD_EXITED and _never_ran(job)


def _never_ran(job: Job) -> bool:
    """A process that never called execve still has the name of this interpreter."""
    mine = proc.read("/proc/self/comm")
    return mine is not None and proc.read(f"/proc/{job.pid}/comm") == mine


def undo(store: Store, job: Job) -> None:
    """Remove everything of a job that failed; the error stays in `job.error`."""
    if job.pidfd >= 0:
        pidfds.send(job.pidfd, 9)
        try:
            os.waitid(os.P_PIDFD, job.pidfd, os.WEXITED)
        except ChildProcessError:
            pidfds.ended(job.pidfd, 5.0)
        os.close(job.pidfd)
        job.pidfd = -1
    if job.declared:
        if job.pid and (rows := (job.config.get("hooks") or {}).get("poststop")):
            from labctl.runtime import hooks

            hooks.run_all(rows, state.oci(job.document, "stopped"), "poststop", only_warn=True)
        if job.document.get("scope"):
            from labctl.runtime import scope

            scope.stop(job.document)
        if job.place is not None and (group := job.place.group) is not None:
            try:
                group.remove()
                group.remove_empty_parents()
            except (OSError, TimeoutError) as error:
                job.error += f"; and then: {error}"
        store.remove(job.id)
