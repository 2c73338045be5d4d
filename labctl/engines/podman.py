"""podman: a container with a store of its own in its node's folder, so that podman's other containers never
see it, and removing the folder removes all that podman knows of it.

Each call runs in a mount namespace where that store is at /dev/shm: podman refuses a run folder whose name is
longer than 50 characters, and puts its locks there.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labctl.engines import calls
from labctl.engines.launch import LAUNCH, PLACE, TEMPLATE, for_libseccomp, identity
from labctl.engines.model import SECONDS, Box, Command, State, end_group
from labctl.errors import LabError, TimedOut
from labctl.linux import proc
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import spec
from labctl.runtime.errors import ContainerError

STORE = "podman"  # in the node's folder
_INSIDE = 'test -z "$0" || umount "$0" || exit 125; mount --bind "$1" /dev/shm && shift && exec "$@"'
_CONF = '[containers]\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
_STATE = "{{.State.Status}} {{.State.Pid}} {{.State.ExitCode}}"
_STATUS = {"running": "running", "paused": "paused", "exited": "stopped", "stopped": "stopped"}
_LIMITS = ("memory", "cpu")  # what `podman update` changes


class PodmanEngine:
    """podman(1) by its command line."""

    name = "podman"
    log_format = "k8s"

    def __init__(self) -> None:
        self._hide = calls.hidden()

    def version(self) -> str:
        """The end of "podman version 4.3.1"."""
        return calls.call([calls.program("podman"), "--version"], seconds=10.0).strip().rpartition(" ")[2]

    def _argv(self, box: Box, *words: str) -> list[str]:
        """A call in a mount namespace where the store is at its place."""
        own = [calls.program("unshare", "util-linux"), "--mount", "--propagation", "private", "--"]
        env = ["env", f"CONTAINERS_CONF={PLACE}/containers.conf"]
        store = str(Path(box.folder, STORE))
        return [*own, "sh", "-c", _INSIDE, self._hide, store, *env, *_podman(), *words]

    def _call(self, box: Box, *words: str) -> str:
        try:
            return calls.call(self._argv(box, *words))
        except TimedOut as error:
            raise TimedOut(f"podman {words[0]}: no answer within {SECONDS:g} s") from error
        except LabError as error:
            raise LabError(f"podman {words[0]}: {_said(error.message)}", hint=error.hint) from error

    def start(self, box: Box) -> None:
        """See `Engine.start`: `podman run --detach` on a root that is mounted for it alone."""
        config = json.loads(Path(box.folder, TEMPLATE).read_text())
        store = Path(box.folder, STORE)
        store.mkdir(mode=0o700, exist_ok=True)
        (store / "containers.conf").write_text(_CONF)
        if profile := config["linux"].get("seccomp"):
            rows = {**profile, "syscalls": for_libseccomp(profile["syscalls"])}
            (store / "seccomp.json").write_text(json.dumps(rows))
        errors = Path(box.folder, "engine.log")
        errors.unlink(missing_ok=True)
        argv = [*_podman(), "run", *run_words(config, box)]
        base = str(Path(__file__).resolve().parents[2])
        own = [sys.executable, "-I", "-S", "-c", LAUNCH, base, box.folder, str(errors), str(os.getpid())]
        with errors.open("ab") as said:
            try:
                done = subprocess.run(
                    [*own, self._hide, str(store), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    env={**os.environ, "CONTAINERS_CONF": f"{PLACE}/containers.conf"},
                    cwd=box.folder,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise TimedOut(f"podman did not start {box.id} within {SECONDS:g} s") from error
        if done.returncode:
            text = _said(calls.last_words(errors.read_text(errors="replace")))
            raise LabError(f"podman can't start {box.id}: {text or f'ended with {done.returncode}'}")

    def state(self, box: Box) -> State | None:
        """See `Engine.state`.  A process that is in none of its control groups any more has ended."""
        if not Path(box.folder, STORE, "id").exists():
            return None
        try:
            said = self._call(box, "container", "inspect", "--format", _STATE, box.id)
        except LabError as error:
            if "no such container" in error.message.lower():
                return None
            raise
        try:
            status, pid, code = said.split()
            found = State(_STATUS.get(status, status), int(pid), int(code))
        except ValueError as error:
            raise LabError(f"podman: its word on {box.id} can't be read: {said.strip()[:200]}") from error
        if found.status in ("running", "paused"):
            alive = found.pid in Cgroup(box.cgroup, Layout.detect()).procs()
            return State(found.status, found.pid) if alive else State("stopped")
        return State(found.status, 0, found.exit_code)

    def group(self, box: Box) -> str:
        """See `Engine.group`: below the node's own, where conmon's is too."""
        name = (proc.read(str(Path(box.folder, STORE, "id"))) or "").strip()
        return f"{box.cgroup}/libpod-{name}"

    def signal(self, box: Box, number: int) -> None:
        """See `Engine.signal`."""
        self._call(box, "kill", "--signal", str(number), box.id)

    def freeze(self, box: Box, on: bool) -> None:
        """See `Engine.freeze`."""
        found = self.state(box)
        if found is None or (found.status == "paused") is on:
            return
        self._call(box, "pause" if on else "unpause", box.id)

    def update(self, box: Box, resources: Mapping[str, Any]) -> bool:
        """See `Engine.update`: memory and CPU time; podman has no word for another limit of processes."""
        before = json.loads(Path(box.folder, TEMPLATE).read_text())["linux"].get("resources") or {}
        if any(resources.get(key) != before.get(key) for key in {*resources, *before} - {*_LIMITS}):
            return False
        self._call(box, "update", *limit_words({key: resources.get(key) for key in _LIMITS}), box.id)
        return True

    def command(
        self, box: Box, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, user: str, tty: bool
    ) -> Command:
        """See `Engine.command`: `podman exec`, which conmon serves; a configuration of its own marks it."""
        found = self.state(box)
        if found is None or found.status != "running":
            raise LabError(f"it is {found.status if found else 'not there'}")
        notes = json.loads(Path(box.folder, TEMPLATE).read_text()).get("annotations") or {}
        if "HOME" not in env:
            env = {**env, "HOME": _home(found.pid, user or notes.get(spec.USER, ""))}
        folder = Path(tempfile.mkdtemp(prefix="exec-", dir=Path(box.folder, STORE)))
        (folder / "containers.conf").write_text(_CONF)
        words = ["--interactive", *(["--tty"] if tty else [])]
        for name, value in env.items():
            words += ["--env", f"{name}={value}"]
        words += ["--workdir", cwd] if cwd else []
        words += ["--user", user] if user else []
        # In conmon's mount namespace the root is mounted, where podman looks users up.
        enter = [calls.program("nsenter", "util-linux"), f"--mount=/proc/{_parent(found.pid)}/ns/mnt", "--"]
        env_words = ["env", f"CONTAINERS_CONF={PLACE}/{folder.name}/containers.conf"]
        return Command((*enter, *env_words, *_podman(), "exec", *words, box.id, *argv), folder)

    def running(self, box: Box, command: Command) -> int:
        """See `Engine.running`: the child of the conmon that has the command's configuration."""
        mark = f"CONTAINERS_CONF={PLACE}/{command.folder.name}/containers.conf"
        pids = Cgroup(box.cgroup, Layout.detect()).procs()
        parents = {pid for pid in pids if mark in (proc.read(f"/proc/{pid}/environ") or "").split("\0")}
        return next((pid for pid in pids if _parent(pid) in parents and pid not in parents), 0)

    def delete(self, box: Box) -> None:
        """See `Engine.delete`: all in its control groups ends, conmon too, and the store goes.

        Nothing of podman is asked, so that it may have been killed at its work, or be gone.
        """
        for group in (self.group(box), box.cgroup):
            end_group(box.id, group, keep=group != box.cgroup)
        shutil.rmtree(Path(box.folder, STORE), ignore_errors=True)


def _podman() -> list[str]:
    """The program with the places of its store and no way to the host's."""
    places = {"root": "root", "runroot": "run", "tmpdir": "tmp", "network-config-dir": "net"}
    return [
        calls.program("podman"),
        *(f"--{option}={PLACE}/{name}" for option, name in places.items()),
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "--events-backend=none",
        f"--runtime-flag=root={PLACE}/runtime",
    ]


def _said(text: str) -> str:
    return text.removeprefix("Error: ")


def _home(pid: int, user: str) -> str:
    """The home folder of a user in a container.  Raises LabError when there is no such user."""
    try:
        return identity(f"/proc/{pid}/root", user or "0")[3]
    except ContainerError as error:
        raise LabError(str(error)) from error
    except OSError as error:
        raise LabError(f"its users can't be read: {error.strerror}") from error


def _parent(pid: int) -> int:
    """The number of a process's parent, proc_pid_stat(5); 0 when it has ended."""
    fields = (proc.read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def run_words(config: Mapping[str, Any], box: Box) -> list[str]:
    """`podman run`'s words for a configuration of labctl's (podman-run(1)).  Raises LabError."""
    process, linux = config["process"], config["linux"]
    notes = config.get("annotations") or {}
    netns = next((row.get("path") for row in linux["namespaces"] if row["type"] == "network"), "")
    words = [
        "--detach",
        f"--name={box.id}",
        f"--cidfile={PLACE}/id",
        f"--cgroup-parent={box.cgroup}",
        f"--network=ns:{netns}" if netns else "--network=none",
        "--no-hosts",
        "--passwd=false",
        *_ulimit_words(),
        "--log-driver=k8s-file",
        f"--log-opt=path={box.folder}/log/podman",
        f"--workdir={process.get('cwd') or '/'}",
        "--cap-drop=all",
        *(f"--cap-add={name}" for name in process["capabilities"]["bounding"]),
        f"--env-file={PLACE}/env",  # HOME, which podman leaves empty on a root that is no image of its own
        *(f"--env={pair}" for pair in process.get("env") or ()),
        *(f"--sysctl={name}={value}" for name, value in (linux.get("sysctl") or {}).items()),
        *limit_words(linux.get("resources") or {}),
        *_mount_words(config["mounts"]),
    ]
    words += [f"--hostname={config['hostname']}"] if config.get("hostname") else []
    words += [f"--user={notes[spec.USER]}"] if notes.get(spec.USER) else []
    words += [f"--stop-signal={notes[spec.STOP_SIGNAL]}"] if notes.get(spec.STOP_SIGNAL) else []
    words += ["--security-opt=no-new-privileges"] if process.get("noNewPrivileges") else []
    filtered = f"{PLACE}/seccomp.json" if linux.get("seccomp") else "unconfined"
    words += [f"--security-opt=seccomp={filtered}"]
    words += [] if linux.get("maskedPaths") else ["--security-opt=unmask=all"]
    words += [] if notes.get(spec.UPPER) else ["--read-only", "--read-only-tmpfs=false"]
    return [*words, "--rootfs", f"{box.folder}/rootfs", *process["args"]]


def _ulimit_words() -> Iterator[str]:
    """This host's own limits: podman would raise them, which takes CAP_SYS_RESOURCE.

    Its own limit of processes podman lowers to the kernel's highest pid (setrlimit(2): not to be undone).
    """
    pids = int(proc.read("/proc/sys/kernel/pid_max") or 32768)
    for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        limits = resource.getrlimit(which)
        if name == "nproc":
            limits = min(limits[0] % 2**63, pids), min(limits[1] % 2**63, pids)
        yield f"--ulimit={name}={limits[0]}:{limits[1]}"


def limit_words(resources: Mapping[str, Any]) -> list[str]:
    """Options for `linux.resources`: bytes, microseconds of CPU time a period, processes."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    pids = resources.get("pids") or {}
    given = {
        "memory": f"{memory['limit']}b" if memory.get("limit") else "",
        "memory-swap": f"{memory['swap']}b" if memory.get("swap") else "",
        "cpu-period": cpu.get("period"),
        "cpu-quota": cpu.get("quota"),
        "pids-limit": pids.get("limit"),
    }
    return [f"--{name}={value}" for name, value in given.items() if value]


def _mount_words(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Binds and tmpfs; the rest of a container's usual mounts is podman's own."""
    for row in rows:
        target, options = row["destination"], row.get("options") or ()
        if row["type"] == "bind":
            if bad := next((path for path in (row["source"], target) if "," in path or '"' in path), ""):
                raise LabError(f"podman takes no comma and no quote in the path of a mount: {bad}")
            mode = "true" if "ro" in options else "false"
            yield f"--mount=type=bind,src={row['source']},dst={target},ro={mode},bind-propagation=rprivate"
        elif row["type"] == "tmpfs" and target not in ("/dev", "/dev/shm"):
            yield f"--tmpfs={target}:{','.join(options)}"
