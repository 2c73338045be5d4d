"""One more process in a running container: all its namespaces, its cgroup, its rights and its filter."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import time

from labctl.linux import capabilities, cgroups, namespaces, pidfds
from labctl.linux import syscalls as sc
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import process, signals, sources, state
from labctl.runtime.channel import Channel
from labctl.runtime.child import GRACE_SECONDS, ExecProcess
from labctl.runtime.errors import ContainerError
from labctl.runtime.init import open_slave
from labctl.runtime.process import Finisher
from labctl.runtime.state import Store
from labctl.runtime.terminal import relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    class HasState(Protocol):
        """What names a container: labctl.runtime.client.ContainerState does."""

        @property
        def id(self) -> str: ...
        @property
        def root(self) -> str: ...


_START_SECONDS = 30.0


class Target:
    """Where to go: a container, or a bare pid whose namespaces, cgroup and capabilities are taken."""

    def __init__(self, pid: int, config: dict[str, Any], group: Cgroup | None, kinds: list[str]) -> None:
        self.pid = pid
        self.config = config
        self.group = group
        self.kinds = kinds
        self.first = (0, 0)  # uid and gid to begin with
        self.exact = False  # whether the control group was asked for, and no other will do
        self.state: dict[str, Any] = {}
        self.scope = ""  # the unit of an ordinary user's manager that its group belongs to

    @classmethod
    def of_container(
        cls, root: str, id_: str, layout: Layout | None = None, *, ignore_paused: bool = False
    ) -> Target:
        """Raises ContainerError when it doesn't run."""
        store = Store(root)
        document = store.read(id_)
        where = layout or Layout.detect()
        now = state.status(store, document, where)
        if now not in ("running", "created") and not (now == "paused" and ignore_paused):
            raise ContainerError(f"cannot exec in a {now} container")
        config = store.config(id_)
        group = state.cgroup_of(document, where) if document.get("cgroup") else None
        found = cls(document["pid"], config, group, list(sources.namespace_paths(config)))
        found.state = state.oci(document, now)
        if namespaces.ORDINARY:
            found.scope = document.get("scope") or ""
        return found

    def below(self, asked: Sequence[str]) -> None:
        """Go to groups below the container's: `exec --cgroup PATH`, on v1 "CONTROLLER[,…]:PATH" as well."""
        for text in asked:
            names, colon, path = text.rpartition(":")
            inner = path.strip("/")
            if ".." in inner.split("/"):
                raise ContainerError(f"bad sub cgroup path: {path!r} leaves the container's control group")
            if self.group is None:
                raise ContainerError("--cgroup: the container has no control group of its own")
            self.group = self.group.below(inner, names.split(",") if colon else ())
            self.exact = True

    @classmethod
    def of_pid(cls, pid: int) -> Target:
        """The namespaces in which `pid` differs from us; its cgroup if it has one of its own."""
        kinds = []
        for kind in namespaces.FILES:
            try:
                if namespaces.identity(pid, kind) != namespaces.identity(os.getpid(), kind):
                    kinds.append(kind)
            except OSError as error:
                raise ContainerError(f"process {pid} does not exist") from error
        sets = capabilities.of_process(pid)
        names = {kind: capabilities.names(sets[kind]) for kind in ("bounding", "effective", "permitted")}
        layout = Layout.detect()
        groups = {path for path in groups_of(pid) if path != "/"}
        group = Cgroup(groups.pop(), layout) if len(groups) == 1 else None
        return cls(pid, {"process": {"capabilities": names, "noNewPrivileges": True}}, group, kinds)


def groups_of(pid: int) -> list[str]:
    """The cgroup paths of a process."""
    return list(cgroups.of_process(pid).values())


def build_process(
    config: Mapping[str, Any],
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    groups: Sequence[int] = (),
    caps: Sequence[str] = (),
    privileged: bool = False,
) -> dict[str, Any]:
    """`process` for an exec: the container's own, with these changes.  `caps` are further capabilities."""
    found = process.default_process(dict(config))
    found["args"] = list(argv)
    if env:
        old = [pair for pair in found.get("env") or () if pair.partition("=")[0] not in env]
        found["env"] = [*old, *(f"{name}={value}" for name, value in env.items())]
    if cwd is not None:
        found["cwd"] = cwd
    if user is not None:
        found["user"] = {"labctl": user, "umask": (found.get("user") or {}).get("umask")}
        # HOME belongs to the user, and is looked up anew unless it was asked for.
        if not (env and "HOME" in env):
            found["env"] = [pair for pair in found.get("env") or () if not pair.startswith("HOME=")]
    if groups:
        found["user"] = {**(found.get("user") or {}), "additionalGids": list(groups)}
    if privileged:
        every = capabilities.names(capabilities.known())
        found["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), every)
        found["noNewPrivileges"] = False
    elif caps:
        held = dict(found.get("capabilities") or {})
        for kind in ("bounding", "effective", "permitted"):
            held[kind] = capabilities.names(capabilities.mask([*(held.get(kind) or ()), *caps]))
        found["capabilities"] = held
    return found


def spawn_in(
    target: Target,
    spec_process: dict[str, Any],
    *,
    tty: bool = False,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    preserve: Sequence[int] = (),
    filtered: bool = True,
    tied: bool = False,
    finisher: Finisher | None = None,
) -> ExecProcess:
    """Start a process.  Raises ContainerError (code 126 or 127 when the program can't be run) or OSError.

    Two forks: the first enters the namespaces, the second is in the pid namespace and, by CLONE_PARENT, our
    child.  Safe in a program with threads.  `tied`: it is killed when the calling thread ends, however that
    comes about.  `finisher`: what it becomes, in place of the program.
    """
    process.preload({**target.config, "process": spec_process, "hooks": None})
    program = process.filter_of(target.config) if filtered else b""
    finisher = finisher or Finisher(spec_process, target.config, program)
    finisher.program, finisher.tied = program, tied
    ours, theirs = Channel.pair()
    entrance = sc.pidfd_open(target.pid)
    flags = 0
    for kind in target.kinds:
        flags |= namespaces.FLAGS[kind]
    middle = os.fork()
    if middle == 0:
        stdio = (stdin, stdout, stderr)
        _middle(target, finisher, theirs, entrance, flags, stdio, tty, list(preserve))
    theirs.close()
    os.close(entrance)
    pid, master, wanted_listener = 0, -1, 0
    failure: ContainerError | None = None
    try:
        # To the very end: an error may come before the pid, and an unreaped child would keep the
        # container's pid namespace, and so its first process, from ever ending.
        while True:
            message, fds = ours.receive(_START_SECONDS)
            if message is None:
                break
            if "error" in message:
                failure = ContainerError(message["error"], code=message.get("code", 1))
            pid = message.get("pid", pid)
            if message.get("console"):
                master = fds[0]
            wanted_listener = message.get("listener") or wanted_listener
            if wanted_listener and pid:  # the pid comes on its own, perhaps later
                _hand_over(target, ours, pid, wanted_listener)
                wanted_listener = 0
        if failure is not None:
            raise failure
        if not pid:
            raise ContainerError("the process that enters the container died")
    except (ContainerError, OSError, TimeoutError):
        if pid:
            os.waitpid(pid, 0)
        if master >= 0:
            os.close(master)
        raise
    finally:
        os.waitpid(middle, 0)
        ours.close()
    return ExecProcess(pid, sc.pidfd_open(pid), master)


def _hand_over(target: Target, channel: Channel, pid: int, number: int) -> None:
    """Give the container's seccomp agent the listener of this process, which waits for our word."""
    from labctl.runtime import listener

    pidfd = sc.pidfd_open(pid)
    try:
        listener.hand_over(pidfd, number, target.config["linux"]["seccomp"], pid, target.state)
        channel.send({"go": True})
    except (OSError, ContainerError):
        pidfds.send(pidfd, 9)  # its own calls may wait for the agent for ever
        raise
    finally:
        os.close(pidfd)


def _middle(
    target: Target,
    finisher: Finisher,
    channel: Channel,
    entrance: int,
    flags: int,
    stdio: tuple[int, int, int],
    tty: bool,
    preserve: list[int],
) -> None:
    """Enter cgroup and namespaces, fork, say the pid.  Never returns."""
    try:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # until execve nothing in the container may look into this process
        # Away from numbers that the process is to have.
        sock = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, 3 + len(preserve))
        entrance = fcntl.fcntl(entrance, fcntl.F_DUPFD_CLOEXEC, 3 + len(preserve))
        channel = Channel.of_fd(sock)
        process.keep_only({sock, entrance, *stdio, *preserve})
        if "mount" not in target.kinds:
            # Nothing but its root keeps such a container from the host's files: take the same one.
            os.chdir(f"/proc/{target.pid}/root")
        groups = _join(target)
        target.first = namespaces.first_ids(target.pid)  # the container's /proc is not to be believed
        if flags:  # a chroot has none of its own
            sc.setns(entrance, flags, f"namespaces of process {target.pid}")
        if "mount" not in target.kinds:
            os.chroot(".")
        pid = _clone_into(groups)
        if pid == 0:
            _inside(finisher, channel, stdio, tty, preserve, target.first)
        channel.send({"pid": pid})
    except (OSError, ContainerError) as error:
        channel.send({"error": str(error)})
    finally:
        os._exit(0)


def _join(target: Target) -> list[int]:
    """Enter the control groups, or on v2 open those to be born in, the first that takes us.

    Raises ContainerError, worded as runc does.
    """
    group = target.group
    if group is None:
        return []
    if target.scope and not target.exact:
        from labctl.runtime import scope

        scope.join(target.scope, os.getpid())
        return []
    try:
        if group.v1:
            group.attach(0)
            return []
        folders = [group.v2]
        if not target.exact:
            # v2 lets no process into a group that hands controllers on: then where the first one is.
            folders.append(group.layout.v2 + cgroups.of_process(target.pid).get("", group.path))
        return [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for folder in folders]
    except OSError as error:
        raise _not_added(error) from error


def _clone_into(groups: list[int]) -> int:
    for group in groups[:-1]:
        try:
            return sc.clone(sc.CLONE_PARENT, cgroup=group)[0]
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                raise _not_added(error) from error
    try:
        return sc.clone(sc.CLONE_PARENT, cgroup=groups[-1] if groups else -1)[0]
    except OSError as error:
        raise _not_added(error) from error


def _not_added(error: OSError) -> ContainerError:
    return ContainerError(f"error adding pid {os.getpid()} to cgroups: {str(error).lower()}")


def _inside(
    finisher: Finisher,
    channel: Channel,
    stdio: tuple[int, int, int],
    tty: bool,
    preserve: list[int],
    first: tuple[int, int],
) -> None:
    """The new process: becomes the program.  Never returns."""
    code = 1
    try:
        namespaces.become(*first)
        os.setsid()
        if tty:
            master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            slave = open_slave(master)
            channel.send({"console": True}, [master])
            os.close(master)
            stdio = (slave, slave, slave)
        for fd, number in _spread(stdio):
            os.dup2(fd, number)
        if tty:
            fcntl.ioctl(0, sc.TIOCSCTTY, 0)
        finisher.prepare()
        finisher.listen(channel)
        finisher.drop()
        for fd in preserve:
            os.set_inheritable(fd, True)
        sc.close_range(3 + len(preserve), cloexec=True)
        finisher.become()
    except ContainerError as error:
        code = error.code
        channel.send({"error": error.message, "code": code})
    except (OSError, ValueError, KeyError, TypeError) as error:
        channel.send({"error": str(error), "code": code})
    finally:
        os._exit(code)


def _spread(stdio: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(descriptor, number) such that no dup2 overwrites one that is needed later."""
    safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in stdio]
    return [(fd, number) for number, fd in enumerate(safe)]


def exec_in(
    container: HasState | int,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    tty: bool = False,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    caps: Sequence[str] = (),
    privileged: bool = False,
    timeout: float | None = None,
) -> int:
    """Run a command in a container and return its exit code: 128 + n for a signal, 126 and 127 as a shell.

    `container` is a ContainerState or a pid; `user` "name[:group]" or numbers; without `tty` the process gets
    the three descriptors themselves; with it a terminal, joined to stdin and stdout.  A program that can't be
    run is said on `stderr`.  After `timeout` seconds it is killed, and TimeoutError raised.  A Ctrl-C is
    passed on to it, and KeyboardInterrupt raised; when we are killed, it is too.
    Raises ContainerError when the container can't be entered.
    """
    target = Target.of_pid(container) if isinstance(container, int) else _target(container)
    wanted = build_process(target.config, argv, env=env, cwd=cwd, user=user, caps=caps, privileged=privileged)
    try:
        running = spawn_in(
            *(target, wanted),
            tty=tty,
            filtered=not privileged,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tied=True,
        )
    except ContainerError as error:
        if error.code in (process.NOT_EXECUTABLE, process.NOT_FOUND):
            os.write(stderr, f"{error.message}\n".encode())
            return error.code
        raise
    _running.add(running)
    try:
        if tty:
            return relay(running, stdin, stdout, timeout)
        return running.wait(timeout)
    except TimeoutError:
        running.end(signals.BY_NAME["KILL"])
        raise
    except KeyboardInterrupt as error:
        running.end(_number_of(error))
        raise
    finally:
        _running.discard(running)
        running.close()


# Commands that threads of ours wait for: only the main thread hears of a Ctrl-C.
_running: set[ExecProcess] = set()


@atexit.register
def _end_running() -> None:
    left = list(_running)
    for one in left:
        one.signal_group(signals.BY_NAME["INT"])
    end = time.monotonic() + GRACE_SECONDS
    for one in left:
        if one.pidfd >= 0 and not pidfds.ended(one.pidfd, max(0.0, end - time.monotonic())):
            one.signal_group(signals.BY_NAME["KILL"])


def _number_of(error: KeyboardInterrupt) -> int:
    """The signal that an interruption stands for: labctl's handlers name it, Python's own is for SIGINT."""
    return signals.BY_NAME.get(str(error).removeprefix("SIG"), signals.BY_NAME["INT"])


def _target(container: HasState) -> Target:
    return Target.of_container(container.root, container.id)
