"""labrun exec, pause, resume, update."""

from __future__ import annotations

import sys

from labctl.linux.cgroups import Layout
from labctl.runtime import actions, check, jsonio, options, state
from labctl.runtime.errors import ContainerError
from labctl.runtime.main import Context, one_name
from labctl.runtime.state import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EXEC = {
    "console-socket": "text",
    "cwd": "text",
    "env": "list",
    "tty": "flag",
    "user": "text",
    "additional-gids": "list",
    "process": "text",
    "detach": "flag",
    "pid-file": "text",
    "pidfd-socket": "text",
    "process-label": "text",
    "apparmor": "text",
    "no-new-privs": "flag",
    "cap": "list",
    "preserve-fds": "number",
    "cgroup": "list",
    "ignore-paused": "flag",
}
_EXEC_SHORT = {
    "e": "env",
    "t": "tty",
    "u": "user",
    "g": "additional-gids",
    "p": "process",
    "d": "detach",
    "c": "cap",
}
_UPDATE = {
    "resources": "text",
    "blkio-weight": "number",
    "kernel-memory": "text",
    "kernel-memory-tcp": "text",
    "cpu-idle": "number",
    "cpu-burst": "number",
    "l3-cache-schema": "text",
    "mem-bw-schema": "text",
    "cpu-period": "number",
    "cpu-quota": "number",
    "cpu-share": "number",
    "cpu-rt-period": "number",
    "cpu-rt-runtime": "number",
    "cpuset-cpus": "text",
    "cpuset-mems": "text",
    "memory": "text",
    "memory-reservation": "text",
    "memory-swap": "text",
    "pids-limit": "number",
}
EXEC_FAILED = 255
_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _process(given: options.Options, config: dict[str, Any]) -> dict[str, Any]:
    """What to run: from a file, or from the arguments on top of the container's own process."""
    from labctl.runtime import execute

    if path := given.text("process"):
        try:
            with open(path, encoding="utf-8") as file:
                found: dict[str, Any] = jsonio.loads(file.read())
        except (OSError, ValueError) as error:
            raise ContainerError(f"process file {path}: {error}") from error
        check.process(found, f"process file {path}")
        return found
    argv = given.words[1:]
    if not argv:
        raise ContainerError("process args cannot be empty")
    env = dict(pair.partition("=")[::2] for pair in given.many("env"))
    found = execute.build_process(
        config,
        argv,
        env=env or None,
        cwd=given.text("cwd") or None,
        user=given.text("user") or None,
        groups=[_gid(text) for text in given.many("additional_gids")],
        caps=check.known_capabilities(given.many("cap"), "--cap"),
    )
    if given.flag("no_new_privs"):
        found["noNewPrivileges"] = True
    return found


def _gid(text: str) -> int:
    if not text.isdigit():
        raise ContainerError(f'invalid value "{text}" for flag -additional-gids: not a number')
    return int(text)


def exec_(words: list[str], context: Context) -> int:
    """labrun exec ID COMMAND…: the command's exit code, 255 when it can't be run."""
    given = options.parse(words, _EXEC, _EXEC_SHORT)
    if not given.words:
        raise ContainerError('labrun: "exec" requires a minimum of 1 argument(s)')
    try:
        return _exec(given, context)
    except ContainerError as error:
        raise ContainerError(f"exec failed: {error.message}", code=EXEC_FAILED) from error
    except (OSError, ValueError) as error:
        raise ContainerError(f"exec failed: {error}", code=EXEC_FAILED) from error


def _exec(given: options.Options, context: Context) -> int:
    from labctl.runtime import command_life, execute, process

    id_ = given.words[0]
    paused = given.flag("ignore_paused")
    target = execute.Target.of_container(context.root, id_, ignore_paused=paused)
    target.below(given.many("cgroup"))
    wanted = _process(given, target.config)
    for key, option in (("apparmorProfile", "apparmor"), ("selinuxLabel", "process_label")):
        if given.text(option):
            wanted[key] = given.text(option)
    tty = given.flag("tty") or bool(wanted.get("terminal"))
    detached, socket = given.flag("detach"), given.text("console_socket")
    if detached and tty and not socket:
        raise ContainerError("cannot allocate tty if labrun will detach without setting console socket")
    preserve = list(range(3, 3 + (given.number("preserve_fds") or 0)))
    try:
        running = execute.spawn_in(target, wanted, tty=tty, preserve=preserve)
    except ContainerError as error:
        if error.code in (process.NOT_FOUND, process.NOT_EXECUTABLE):
            raise ContainerError(f"unable to start container process: {error.message}") from error
        raise
    if socket and running.master >= 0:
        command_life.send_console(socket, running.master)
        running.close()
    command_life.send_pidfd(given.text("pidfd_socket"), running.pidfd)
    command_life.write_pid(given.text("pid_file"), running.pid)
    if detached:
        return 0
    command_life.forward_signals(running.kill)
    if running.master >= 0:
        from labctl.runtime.terminal import relay

        return relay(running, 0, 1)
    return running.wait()


def pause(words: list[str], context: Context) -> int:
    """labrun pause ID."""
    given = options.parse(words, {}, anywhere=True)
    actions.freeze(Store(context.root), one_name(given, "pause"), Layout.detect(), True)
    return 0


def resume(words: list[str], context: Context) -> int:
    """labrun resume ID."""
    given = options.parse(words, {}, anywhere=True)
    actions.freeze(Store(context.root), one_name(given, "resume"), Layout.detect(), False)
    return 0


def size(text: str) -> int:
    """Bytes from "512", "64m", "1g", "-1".  Raises ContainerError."""
    digits = text.rstrip("bBkKmMgGtT")
    suffix = text[len(digits) :].lower().rstrip("b")
    try:
        return int(digits) * _SUFFIXES[suffix]
    except (ValueError, KeyError):
        raise ContainerError(f"invalid size: {text!r}") from None


def _resources(given: options.Options) -> dict[str, Any]:
    if path := given.text("resources"):
        try:
            text = sys.stdin.read() if path == "-" else open(path, encoding="utf-8").read()  # noqa: SIM115
            found: dict[str, Any] = jsonio.loads(text)
            check.shape(found, check.RESOURCES, f"resources {path}")
            return found
        except (OSError, ValueError) as error:
            raise ContainerError(f"resources {path}: {error}") from error
    for name in ("l3_cache_schema", "mem_bw_schema"):
        if given.text(name):
            raise ContainerError(f"--{name.replace('_', '-')}: Intel RDT is not supported")
    memory = {
        "limit": "memory",
        "reservation": "memory_reservation",
        "swap": "memory_swap",
        "kernel": "kernel_memory",
        "kernelTCP": "kernel_memory_tcp",
    }
    cpu = {
        "period": "cpu_period",
        "quota": "cpu_quota",
        "shares": "cpu_share",
        "idle": "cpu_idle",
        "burst": "cpu_burst",
        "realtimePeriod": "cpu_rt_period",
        "realtimeRuntime": "cpu_rt_runtime",
    }
    rows: dict[str, Any] = {
        "memory": {key: size(given.text(name)) for key, name in memory.items() if given.text(name)},
        "cpu": {key: given.number(name) for key, name in cpu.items() if given.number(name) is not None},
    }
    for key, name in (("cpus", "cpuset_cpus"), ("mems", "cpuset_mems")):
        if given.text(name):
            rows["cpu"][key] = given.text(name)
    if (limit := given.number("pids_limit")) is not None:
        rows["pids"] = {"limit": limit}
    if weight := given.number("blkio_weight"):
        rows["blockIO"] = {"weight": weight}
    return {key: value for key, value in rows.items() if value}


def update(words: list[str], context: Context) -> int:
    """labrun update ID."""
    given = options.parse(words, _UPDATE, {"r": "resources"}, anywhere=True)
    id_ = one_name(given, "update")
    store = Store(context.root)
    state.check_id(id_)
    actions.update(store, id_, _resources(given), Layout.detect())
    return 0


COMMANDS = {"exec": exec_, "pause": pause, "resume": resume, "update": update}
