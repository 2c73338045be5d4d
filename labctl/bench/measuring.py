"""One task in its places: prepared, run once at a time, cleaned up; with the server or neighbour it needs."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from labctl.bench import reading
from labctl.bench.faults import Failed, NotHere
from labctl.bench.model import Benchmark, Better, Folder, Route, filled
from labctl.bench.places import DATA, Place
from labctl.bench.site import Site, peer_of
from labctl.bench.tasktypes import Task
from labctl.errors import LabError
from labctl.guest.machine import NOT_FOUND, Completed

_HELPER_SECONDS = 3600.0  # a server or neighbour is never meant to live longer
_CALL_SECONDS = 30.0
_STOP_TRIES = 50
_LISTENING = "0A"  # proc_net_tcp(5)


@dataclass
class Taken:
    """What one run gave."""

    values: dict[str, float]
    seconds: float  # of wall time, on the host's clock
    output: str = ""


@dataclass
class _Helper:
    """A server or a neighbour: a process group in a place, started by a thread of ours."""

    place: Place
    script: str
    name: str
    thread: threading.Thread | None = None
    ended: list[Completed | LabError] = field(default_factory=list)

    @property
    def file(self) -> str:
        return f"{DATA}/{self.name}.pid"

    def start(self) -> None:
        """Start it in a session of its own, so that all of it can be killed by one number."""
        inner = f"echo $$ > {self.file}; {self.script}"
        # --wait is util-linux's, not busybox's; without it a session leader's setsid does not wait.
        wait = "setsid -w true 2>/dev/null && wait=-w || wait="
        begin = f"exec setsid $wait sh -c {shlex.quote(inner)}"
        argv = ["sh", "-c", f"mkdir -p {DATA}; {_kill(self.file)}; {wait}; {begin}"]

        def work() -> None:
            try:
                self.ended.append(self.place.machine.run(argv, timeout=_HELPER_SECONDS))
            except LabError as error:
                self.ended.append(error)

        self.thread = threading.Thread(target=work, name=f"bench-{self.name}", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Kill all of it.  Fine when it has ended; a place full of processes is asked again."""
        for _ in range(_STOP_TRIES):
            with suppress(LabError):
                if self.place.shell(f"{_kill(self.file)}; test ! -e {self.file}", _CALL_SECONDS).code == 0:
                    break
            time.sleep(0.2)
        if self.thread:
            self.thread.join(timeout=10)

    def why(self) -> str:
        """What it said when it ended by itself; "" while it runs."""
        if not self.ended:
            return ""
        last = self.ended[-1]
        if isinstance(last, LabError):
            return last.message
        said = (last.errors or last.text).strip().splitlines()[-1:]
        return f"it ended with {last.code}" + (f": {said[0][:200]}" if said else "")


def _kill(file: str) -> str:
    """Shell that kills the group whose number is in the file, if there is one.  dash knows no `--` here."""
    return f'if test -s {file}; then kill -KILL "-$(cat {file})" 2>/dev/null; rm -f {file}; fi'


class Measuring:
    """A task while it runs.  `prepare` and `finish` once in each place, `measure` for each run."""

    def __init__(self, site: Site, task: Task) -> None:
        self._site, self._task = site, task
        self._servers: dict[str, _Helper] = {}

    def prepare(self, place: Place) -> None:
        """Make a place ready.  Raises NotHere when the task has no meaning there, LabError when it fails."""
        spec = self._task.spec
        if spec is None:
            return
        if spec.folder is Folder.VOLUME and not place.volume:
            raise NotHere("it has no volume (`volumes` in the profile)")
        data = self._data(place)
        done = place.shell(f"mkdir -p {data}", _CALL_SECONDS)
        if done.code == 0 and spec.prepare:
            done = place.shell(spec.prepare, spec.limit, self._words(place))
        if done.code:
            raise Failed(f"its preparation ended with {done.code}", done.text + done.errors)
        if spec.beside and peer_of(self._site, place) is None:
            raise NotHere("no node is there to be the neighbour (label `bench: peer`)")
        if spec.serve:
            self._serve(place, spec)

    def finish(self, place: Place) -> None:
        """Clean up in a place, as far as it can be done."""
        spec = self._task.spec
        if spec is None:
            return
        if helper := self._servers.pop(place.name, None):
            helper.stop()
        if spec.cleanup:
            with suppress(LabError):
                place.shell(spec.cleanup, _CALL_SECONDS, self._words(place))

    def measure(self, place: Place) -> Taken:
        """One run.  Raises Failed, Unreadable, TimedOut, LabError (the node can't be reached)."""
        self._await_server(place)
        began = time.perf_counter()
        if self._task.function is not None:
            return Taken(self._task.function(self._site, place), time.perf_counter() - began)
        spec = self._task.spec
        assert spec is not None
        if not spec.beside:
            return self._once(place, spec)
        alone = self._once(place, spec)
        with_it = self._beside(place, spec)
        shares = {name: _share(spec, name, alone.values, with_it.values) for name in spec.metrics}
        return Taken(shares, time.perf_counter() - began, alone.output + with_it.output)

    def _once(self, place: Place, spec: Benchmark) -> Taken:
        runner, words = place, self._words(place)
        if spec.route is Route.HOST:
            assert self._site.host is not None
            runner = self._site.host
        if isinstance(spec.command, str):
            argv = ["sh", "-c", filled(spec.command, words)]
        else:
            argv = [filled(word, words) for word in spec.command]
        began = time.perf_counter()
        done = runner.machine.run(argv, timeout=spec.limit)
        took = time.perf_counter() - began
        output = done.text + (f"\n[stderr]\n{done.errors}" if done.errors.strip() else "")
        if done.code:
            raise Failed(_ending(self._task, done), output)
        try:
            return Taken(reading.figures(spec, done.text, took), took, output)
        except LabError as error:
            raise Failed(error.message, output) from error

    def _beside(self, place: Place, spec: Benchmark) -> Taken:
        peer = peer_of(self._site, place)
        if peer is None:
            raise NotHere("no node is there to be the neighbour")
        words = {**self._words(peer), "seconds": f"{self._task.seconds:g}"}
        helper = _Helper(peer, filled(spec.beside, words), "neighbour")
        helper.start()
        try:
            there = f"test -s {helper.file}"
            _until(lambda: peer.shell(there, _CALL_SECONDS).code == 0, helper, "the neighbour")
            taken = self._once(place, spec)
            if why := helper.why():
                raise Failed(f"the neighbour {peer.name} was gone before the run ended: {why}", taken.output)
            return taken
        finally:
            helper.stop()

    def _serve(self, place: Place, spec: Benchmark) -> None:
        if spec.route is Route.HOST:
            if self._site.host is None:
                raise NotHere("it is measured from the bare host, and there is none (--baseline none)")
            server = place
        else:
            peer = peer_of(self._site, place)
            if peer is None:
                raise NotHere("no node is there to be the other end (label `bench: peer`)")
            server = peer
        if not server.addresses:
            raise NotHere(f"{server.name} has no address")
        helper = _Helper(server, filled(spec.serve, self._words(place)), f"server-{place.name}")
        # One server for all that share a peer.
        shared = next((h for h in self._servers.values() if h.place.name == server.name), None)
        self._servers[place.name] = shared or helper
        if shared:
            return
        helper.start()
        self._await_server(place)

    def _await_server(self, place: Place) -> None:
        """Return when the place's server listens: iperf3's does not for a moment after each test."""
        helper, spec = self._servers.get(place.name), self._task.spec
        if helper and spec:
            _until(lambda: _listens(helper.place, spec.port), helper, "the server in")

    def _data(self, place: Place) -> str:
        spec = self._task.spec
        return place.volume if spec and spec.folder is Folder.VOLUME else DATA

    def _words(self, place: Place) -> dict[str, str]:
        spec = self._task.spec
        words = place.words(self._task.seconds, data=self._data(place))
        if spec and spec.serve:
            server = place if spec.route is Route.HOST else peer_of(self._site, place)
            words["address"] = server.addresses[0] if server and server.addresses else ""
            words["port"] = str(spec.port)
        return words


def _ending(task: Task, done: Completed) -> str:
    if done.code == NOT_FOUND:
        return f"{task.tool or 'a program'} was not found in the image"
    said = (done.errors or done.text).strip().splitlines()[-1:]
    return f"it ended with {done.code}" + (f": {said[0][:200]}" if said else "")


def _share(spec: Benchmark, name: str, alone: dict[str, float], beside: dict[str, float]) -> float:
    """What is left of the speed, whichever way the figure is good."""
    first, second = alone[name], beside[name]
    if spec.metrics[name].better is Better.LOWER:
        first, second = second, first
    if not first:
        raise Failed(f"{name} is 0, so that no share of it can be told")
    return second / first


def _listens(place: Place, port: int) -> bool:
    """Whether something listens on the port; asked without a connection, which iperf3 takes for a test."""
    told = place.shell("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", _CALL_SECONDS).text
    rows = [line.split() for line in told.splitlines()]
    return any(len(row) > 3 and row[1].endswith(f":{port:04X}") and row[3] == _LISTENING for row in rows)


def _until(holds: Callable[[], bool], helper: _Helper, what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(LabError):  # a place full of processes
            if holds():
                return
        if (why := helper.why()) or time.monotonic() > deadline:
            helper.stop()
            raise Failed(f"{what} {helper.place.name} did not start: {why or f'not in {seconds:g} s'}")
        time.sleep(0.05)
