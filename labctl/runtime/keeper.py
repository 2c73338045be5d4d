"""The keeper: one small process per lab that is the parent of the lab's containers.

It forks a whole batch from a small memory image, reaps, and writes exit codes down.  It holds nothing that a
container needs: output goes to one more process for all of them (labctl.runtime.collector), state is on disk,
so that its death costs nothing but the exit codes of containers that end before the next keeper adopts them
(and from Linux 6.15 on not even those of running ones: a pidfd tells).  Single-threaded, standard library
only, run as `python -I -S`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import fcntl
import gc
import os
import select
import sys
import time

from labctl.linux import pidfds
from labctl.linux import syscalls as sc
from labctl.linux.cgroups import Layout
from labctl.runtime import actions, collector, ends, jsonio, logbook, process, spec, state
from labctl.runtime.channel import Channel
from labctl.runtime.errors import ContainerError
from labctl.runtime.launch import Job, launch
from labctl.runtime.state import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "keeper.sock"
LOCK = "keeper.lock"
_IDLE = 10.0  # seconds between looks at whether the root folder is still there
_SETUP_SECONDS = 10.0  # seconds that a container's setting up may take after its parent's death
_FLUSH_SECONDS = 5.0  # seconds that the collector may take to write down what is in the pipes
_STATUS_WAIT = 10.0  # seconds that an orphan's own reaper may take to reap it


def address(root: str) -> tuple[str, int]:
    """(name, descriptor to close): a short name of the socket, since sun_path holds 108 bytes."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{SOCKET}", fd


class Keeper:
    """The loop."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.store = Store(root)
        self.layout = Layout.detect()
        self.children: dict[int, str] = {}  # pid → id, our own
        self.adopted: dict[int, str] = {}  # pidfd → id, of an earlier keeper
        self.dying: dict[int, tuple[str, float]] = {}  # pidfd → id, when to give up asking for the status
        self.poll = select.poll()
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self.wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ended = False
        self.watch = ends.Watch(self.store, self.layout)
        self.pipes: dict[str, dict[str, int]] = {}  # id → its output's pipes, by the stream's name
        self.collector = 0  # its pid
        self.channel: Channel | None = None

    def listen(self) -> None:
        """Take the socket's place; the lock says that nobody else uses it."""
        name, fd = address(self.root)
        try:
            os.unlink(name)
        except FileNotFoundError:
            os.stat(fd)  # a fresh root
        before = os.umask(0o077)
        self.listener.bind(name)
        os.umask(before)
        os.close(fd)
        self.listener.listen(16)
        self.poll.register(self.listener.fileno(), select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)

    def adopt(self) -> None:
        """Hold the containers of a keeper that died, and note those that ended meanwhile."""
        for id_ in self.store.ids():
            document = self.store.read(id_)
            fd = actions.open_process(document)
            if fd < 0:
                if document.get("status") != "stopped" and document.get("boot_id"):
                    self._over(id_, None)
                continue
            if document.get("status") == "creating":
                if not _becomes(document, fd):
                    os.close(fd)
                    self._over(id_, None)
                    continue
                document.update(status="running", started=document.get("created"))
                self.store.write(id_, document)
            self.adopted[fd] = id_
            self.poll.register(fd, select.POLLIN)
            self.watch.begin(id_)
            self._adopt_pipes(id_, document)

    def _over(self, id_: str, code: int | None) -> None:
        """A container has ended."""
        if actions.record_exit(self.store, id_, code):
            self.watch.end(id_, code)
        else:
            self.watch.forget(id_)
        for fd in self.pipes.pop(id_, {}).values():
            os.close(fd)

    def _adopt_pipes(self, id_: str, document: dict[str, Any]) -> None:
        """Find its output's pipes again, with whoever still writes to them.

        One that an older labctl started has none, and writes its log by itself.
        """
        wanted = {f"pipe:[{number}]": name for name, number in (document.get("pipes") or {}).items()}
        for pid in state.processes(self.store, document, self.layout) if wanted else ():
            folder = f"/proc/{pid}/fd"
            try:
                for entry in os.listdir(folder):
                    name = wanted.get(os.readlink(f"{folder}/{entry}"))
                    pipes = self.pipes.setdefault(id_, {})
                    if name and name not in pipes:
                        pipes[name] = os.open(f"{folder}/{entry}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue  # it has ended

    def run(self) -> None:
        """Serve until told to end, or until the lab's folder is gone."""
        gc.collect()
        gc.freeze()  # what children share with us stays shared
        self._collect(list(self.pipes))
        while not self.ended:
            pause = 0.05 if self.dying else _IDLE
            ready = [fd for fd, _ in self.poll.poll(int(pause * 1000))]
            for fd in ready:
                if fd == self.listener.fileno():
                    self._serve()
                elif fd == self.wake:
                    self.reap()
                elif fd in self.adopted:
                    self.poll.unregister(fd)
                    self.dying[fd] = (self.adopted.pop(fd), time.monotonic() + _STATUS_WAIT)
            self._ask_dying()
            if not ready:
                if not os.path.isdir(self.root):
                    break
                self.watch.look()

    def reap(self) -> None:
        """Collect all children that have ended."""
        if pidfds.ended(self.wake):  # any descriptor that can be read
            os.read(self.wake, 4096)
        while self.children or self.collector:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.children.clear()
                return
            if pid == 0:
                return
            id_ = self.children.pop(pid, None)
            if id_ is not None:
                self._over(id_, pidfds.exit_code(status))
            elif pid == self.collector:
                self._lose_collector()
                self._collect(list(self.pipes))

    def _lose_collector(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.collector, self.channel = 0, None

    def _collect(self, ids: list[str]) -> None:
        """Have the output of these containers written down."""
        if self.ended or not any(id_ in self.pipes for id_ in ids):
            return
        if not self.channel:
            ids = list(self.pipes)
            self.collector, self.channel = collector.start(self.root)
        for id_ in ids:
            pipes = self.pipes.get(id_) or {}
            notes = self.store.read(id_).get("annotations") or {} if pipes else {}
            if path := notes.get(spec.LOG_STDOUT) or notes.get(spec.LOG_STDERR):
                message = {
                    "folder": os.path.dirname(path),
                    "streams": [logbook.STREAMS[name] for name in pipes],
                    "max_size": int(notes.get(spec.LOG_MAX_SIZE) or logbook.MAX_SIZE),
                    "max_files": int(notes.get(spec.LOG_MAX_FILES) or logbook.MAX_FILES),
                }
                try:
                    self.channel.send(message, list(pipes.values()))
                except OSError:
                    return  # it has died: its end is heard of, and another one starts

    def _flush(self) -> bool:
        """See that what the containers have said so far is written down; False when that isn't known."""
        self.reap()
        self._ask_dying()
        for _ in range(2):  # once more when the collector has died
            if not self.channel:
                return True
            try:
                self.channel.send({"flush": True})
                answer, _ = self.channel.receive(_FLUSH_SECONDS)
            except TimeoutError:
                return False
            except OSError:
                answer = None
            if answer:
                return True
            os.waitpid(self.collector, 0)
            self._lose_collector()
            self._collect(list(self.pipes))
        return False

    def _ask_dying(self) -> None:
        for fd, (id_, until) in list(self.dying.items()):
            status = pidfds.wait_status(fd)
            if status is None and time.monotonic() < until:
                continue
            self._over(id_, None if status is None else pidfds.exit_code(status))
            del self.dying[fd]
            os.close(fd)

    def _serve(self) -> None:
        connection = self._accept()
        if connection is None:
            return
        try:
            connection.settimeout(5.0)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            request = jsonio.loads(b"".join(parts).decode())
            try:
                answer = self._answer(request)
            except (OSError, ContainerError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            connection.sendall(jsonio.dumps(answer).encode())
        except (OSError, ValueError) as error:
            # A client that went away or talks nonsense harms nobody else.
            os.write(2, f"keeper: {error}\n".encode())
        finally:
            connection.close()

    def _accept(self) -> _socket.socket | None:
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return None  # gone before we came to it
        os.set_inheritable(fd, False)
        return _socket.socket(fileno=fd)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "launch":
            return {"errors": self.launch(request["items"], float(request["timeout"]))}
        if operation == "reap":
            self.reap()
            self._ask_dying()
            return {}
        if operation == "flush":
            return {"flushed": self._flush()}
        if operation == "close":
            self.reap()
            left = [id_ for id_ in self.store.ids() if state.running_pid(self.store.read(id_))]
            self.ended = not left
            if self.ended and self.collector:
                self._end_collector()
            return {"left": left}
        return {"pid": os.getpid()}

    def _end_collector(self) -> None:
        """It ends by itself, since it has nobody left."""
        for pipes in self.pipes.values():
            for fd in pipes.values():
                os.close(fd)
        pid, self.pipes = self.collector, {}
        self._lose_collector()
        fd = sc.pidfd_open(pid)
        if not pidfds.ended(fd, _FLUSH_SECONDS):
            pidfds.send(fd, 9)
        os.waitpid(pid, 0)
        os.close(fd)

    def launch(self, items: list[list[str]], timeout: float) -> dict[str, str]:
        """id → error ("" = runs).  One that runs already is fine; one that has ended is started anew."""
        errors: dict[str, str] = {}
        jobs: list[Job] = []
        for id_, bundle in items:
            try:
                document = self.store.read(id_)
            except ContainerError:
                document = {}
            if document and state.running_pid(document):
                errors[id_] = ""
                continue
            if document:
                self.reap()
                failed = actions.delete(self.store, [id_], self.layout, force=True)[id_]
                if failed:
                    errors[id_] = failed
                    continue
            jobs.append(Job(id_, bundle))
            jobs[-1].collected = True
        launch(self.store, jobs, self.layout, timeout=timeout)
        for job in jobs:
            errors[job.id] = job.error
            if not job.error:
                self.children[job.pid] = job.id
                self.pipes[job.id] = job.pipes
                os.close(job.pidfd)
                self.watch.begin(job.id)
        self._collect([job.id for job in jobs if job.pipes and not job.error])
        self.reap()
        return errors


def _becomes(document: dict[str, Any], pidfd: int) -> bool:
    """Wait for a process whose parent died while it was being made: it becomes its program, or ends.

    One that had not been told to go ends at once; one that hangs in its own setting up is killed.
    """
    end = time.monotonic() + _SETUP_SECONDS
    while not state.has_become(document):
        if pidfds.ended(pidfd, 0.002):
            return False
        if time.monotonic() > end:
            pidfds.send(pidfd, 9)
    return True


def main(root: str, parent: int = 0) -> None:
    """Become the keeper of `root`, unless there is one.  The process called ends once the socket listens.

    Until then it ends with its `parent`: a `down` after a killed `up` must find it, or there must be none.
    """
    sc.prctl(sc.PR_SET_PDEATHSIG, 9)
    if parent and os.getppid() != parent:
        return
    os.makedirs(root, mode=0o711, exist_ok=True)
    lock = os.open(f"{root}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    process.raise_own_files()  # two for each container
    keeper = Keeper(root)
    keeper.adopt()
    keeper.listen()
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(f"{root}/keeper.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for target, fd in ((0, null), (1, log), (2, log)):
        os.dup2(fd, target)
    os.close(null)
    os.close(log)
    sc.prctl(sc.PR_SET_DUMPABLE, 1)
    keeper.run()


if __name__ == "__main__":
    main(sys.argv[1])
