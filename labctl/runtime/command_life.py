"""labrun create, start, run, kill, delete."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import struct
import time

from labctl.linux import pidfds
from labctl.linux.cgroups import Layout
from labctl.runtime import actions, options, process, signals, spec, state
from labctl.runtime.errors import ContainerError, NotFoundError
from labctl.runtime.launch import Job, launch
from labctl.runtime.main import Context, one_name
from labctl.runtime.state import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CREATE = {
    "bundle": "text",
    "config": "text",
    "console-socket": "text",
    "pid-file": "text",
    "pidfd-socket": "text",
    "no-pivot": "flag",
    "no-new-keyring": "flag",
    "preserve-fds": "number",
}
_RUN = {**_CREATE, "detach": "flag", "keep": "flag", "no-subreaper": "flag"}
_SHORT = {"b": "bundle", "d": "detach", "f": "config"}
_FORWARDED = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT", "WINCH", "ALRM")


def _job(given: options.Options, id_: str, context: Context, *, wait: bool) -> Job:
    state.check_id(id_)
    job = Job(id_, given.text("bundle") or ".", stdio=(0, 1, 2))
    job.wait_for_start = wait
    job.all_groups = True
    job.by_systemd = context.by_systemd
    job.pivot = not given.flag("no_pivot")
    job.new_keyring = not given.flag("no_new_keyring")
    asked = given.number("preserve_fds") or 0
    for index in range(asked):
        if not _is_open(3 + index):
            raise ContainerError(f"please check that preserved-fd {index} (of {asked}) is present")
    listeners = _listeners(3 + asked)
    job.preserve = list(range(3, 3 + asked + listeners))
    job.loaded = spec.load(job.bundle, given.text("config") or "config.json")
    process_ = job.loaded[0].get("process")
    if process_ and os.environ.get("LISTEN_FDS"):
        # The first process is the one that they are for, and its pid is 1: sd_listen_fds(3).
        process_["env"] = [*(process_.get("env") or ()), f"LISTEN_FDS={listeners}", "LISTEN_PID=1"]
    return job


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _listeners(first: int) -> int:
    """How many of the sockets that LISTEN_FDS announces are there, from descriptor `first` on."""
    text = os.environ.get("LISTEN_FDS") or "0"
    count = 0
    while text.isdigit() and count < int(text) and _is_open(first + count):
        count += 1
    return count


def _check_terminal(job: Job, socket: str, *, detached: bool) -> bool:
    """Whether the process has a terminal; raises ContainerError when it has nowhere to go."""
    config = job.loaded[0] if job.loaded else {}
    wanted = bool((config.get("process") or {}).get("terminal"))
    if detached and wanted and not socket:
        raise ContainerError("cannot allocate tty if labrun will detach without setting console socket")
    if socket and not (wanted and detached):
        raise ContainerError("cannot use console socket if labrun will not detach or allocate tty")
    return wanted


def send_console(path: str, master: int) -> None:
    """Hand a terminal's master over the console socket, as runc's docs/terminals.md describes."""
    _send_descriptor(path, master, b"/dev/pts/ptmx", "console")


def send_pidfd(path: str, pidfd: int) -> None:
    """Hand a pidfd of the new process over --pidfd-socket; no path, nothing to do."""
    if path:
        _send_descriptor(path, pidfd, b"pidfd", "pidfd")


def _send_descriptor(path: str, fd: int, name: bytes, what: str) -> None:
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # sun_path holds 108 bytes, whatever the path's length.
        sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))
        sock.sendmsg([name], [rights])
    except OSError as error:
        raise ContainerError(f"{what} socket {path}: {error.strerror}") from error
    finally:
        sock.close()
        os.close(folder)


def write_pid(path: str, pid: int) -> None:
    """The pid file, whole or not at all."""
    if path:
        state.write_atomic(path, str(pid), 0o644)


def _launch(store: Store, job: Job, verb: str, given: options.Options) -> None:
    """Create or run one, its terminal and pid file included; on any failure nothing is left."""
    launch(store, [job], Layout.detect())
    if job.error:
        why = job.error
        if job.code in (process.NOT_FOUND, process.NOT_EXECUTABLE):
            why = f"unable to start container process: {why}"
        raise ContainerError(f"labrun {verb} failed: {why}")
    try:
        if job.console >= 0 and given.text("console_socket"):
            send_console(given.text("console_socket"), job.console)
            os.close(job.console)
            job.console = -1
        send_pidfd(given.text("pidfd_socket"), job.pidfd)
        write_pid(given.text("pid_file"), job.pid)
    except (ContainerError, OSError):
        actions.delete(store, [job.id], Layout.detect(), force=True)
        raise


def create(words: list[str], context: Context) -> int:
    """labrun create ID."""
    given = options.parse(words, _CREATE, _SHORT, anywhere=True)
    job = _job(given, one_name(given, "create"), context, wait=True)
    _check_terminal(job, given.text("console_socket"), detached=True)
    _launch(Store(context.root), job, "create", given)
    return 0


def start(words: list[str], context: Context) -> int:
    """labrun start ID: let the created process become its program."""
    given = options.parse(words, {}, anywhere=True)
    id_ = one_name(given, "start")
    store = Store(context.root)
    document = store.read(id_)
    now = state.status(store, document, None)
    if now == "stopped":
        raise ContainerError("cannot start a container that has stopped")
    if now != "created":
        raise ContainerError(f"cannot start an already {now} container")
    if not store.config(id_).get("process"):
        raise ContainerError("cannot start a container whose configuration has no process")
    path = f"{store.folder(id_)}/exec.fifo"
    fd = actions.open_process(document)
    fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(fifo, select.POLLIN)
        poll.register(fd, select.POLLIN)
        ready = [one for one, _ in poll.poll(10000)]
        if fifo not in ready:
            raise ContainerError(
                "container process is already dead" if ready else "container does not answer"
            )
        os.unlink(path)
        failed = _until_exec(fifo, bool((store.config(id_).get("hooks") or {}).get("startContainer")))
        if failed:
            raise ContainerError(f"unable to start container process: {failed}")
    finally:
        os.close(fifo)
        os.close(fd)
    document.update(status="running", started=time.time())
    store.write(id_, document)
    if rows := (store.config(id_).get("hooks") or {}).get("poststart"):
        from labctl.runtime import hooks

        hooks.run_all(rows, state.oci(document, "running"), "poststart", only_warn=True)
    return 0


def _until_exec(fifo: int, hooks: bool) -> str:
    """Wait until the process has become its program: "", or what went wrong before."""
    said = b""
    poll = select.poll()
    poll.register(fifo, select.POLLIN)
    while poll.poll(None if hooks else 10000):  # a hook's time is its own, and bounded by its timeout
        part = os.read(fifo, 4096)
        if not part:
            return said[1:].decode(errors="replace")
        said += part
    raise ContainerError("container does not answer")


def run(words: list[str], context: Context) -> int:
    """labrun run ID: create and start; without --detach its exit code, and nothing is left."""
    given = options.parse(words, _RUN, _SHORT, anywhere=True)
    id_ = one_name(given, "run")
    detached = given.flag("detach")
    job = _job(given, id_, context, wait=False)
    _check_terminal(job, given.text("console_socket"), detached=detached)
    store = Store(context.root)
    early: list[int] = []
    if not detached:
        forward_signals(early.append)  # one that comes before there is a container waits for it
    _launch(store, job, "run", given)
    if detached:
        return 0
    code = _foreground(job, early)
    actions.record_exit(store, id_, code)
    if not given.flag("keep"):
        failed = actions.delete(store, [id_], Layout.detect(), force=True)[id_]
        if failed:
            raise ContainerError(failed)
    return code


def _foreground(job: Job, early: list[int]) -> int:
    """Forward signals, those that came early first; join the terminal; wait: the exit code."""
    from labctl.runtime.child import ExecProcess

    running = ExecProcess(job.pid, job.pidfd, job.console)
    forward_signals(running.kill)
    for number in early:
        running.kill(number)
    if job.console >= 0:
        from labctl.runtime.terminal import relay

        return relay(running, 0, 1)
    return running.wait()


def forward_signals(send: Callable[[int], None]) -> None:
    """From now on what we are sent goes to the container."""
    for name in _FORWARDED:
        _signal.signal(signals.BY_NAME[name], lambda number, _frame: send(number))


def kill(words: list[str], context: Context) -> int:
    """labrun kill ID [SIGNAL]."""
    given = options.parse(words, {"all": "flag"}, {"a": "all"}, anywhere=True)
    id_ = one_name(given, "kill", most=2)
    word = given.words[1] if len(given.words) > 1 else "TERM"
    number = 0 if word == "0" else signals.parse(word)  # 0 only asks whether it runs: kill(2)
    actions.kill(Store(context.root), id_, number, Layout.detect(), everything=given.flag("all"))
    return 0


def delete(words: list[str], context: Context) -> int:
    """labrun delete ID."""
    given = options.parse(words, {"force": "flag", "regex": "flag"}, {"f": "force"}, anywhere=True)
    id_ = one_name(given, "delete")
    store = Store(context.root)
    force = given.flag("force")
    for name in _matching(store, id_) if given.flag("regex") else [id_]:
        _delete(store, name, force=force)
    return 0


def _matching(store: Store, pattern: str) -> list[str]:
    """The containers whose names a regular expression is found in (crun's --regex)."""
    import re

    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ContainerError(f"--regex {pattern!r}: {error}") from error
    return [name for name in store.ids() if search(name)]


def _delete(store: Store, id_: str, *, force: bool) -> None:
    try:
        document = store.read(id_)
    except NotFoundError:
        if force:
            return
        raise
    if not force and state.running_pid(document):
        # What was told to die a moment ago may: runc's users delete right after kill.
        fd = actions.open_process(document)
        if fd >= 0:
            pidfds.ended(fd, 0.1)
            os.close(fd)
    failed = actions.delete(store, [id_], Layout.detect(), force=force)[id_]
    if failed:
        raise ContainerError(failed)


COMMANDS = {"create": create, "start": start, "run": run, "kill": kill, "delete": delete}
