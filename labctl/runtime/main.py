"""`labrun`: the OCI runtime's command line, with runc's options, messages and exit codes.

Every command's code is imported when it is asked for, and by no other.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from labctl.runtime import errors, options
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_GLOBAL = {
    "root": "text",
    "log": "text",
    "log-format": "text",
    "debug": "flag",
    "systemd-cgroup": "flag",
    "rootless": "text",
    "cgroup-manager": "text",
    "criu": "text",
    "version": "flag",
    "help": "flag",
}
# command: (module, what it says of itself)
_COMMANDS = {
    "create": ("life", "create a container"),
    "start": ("life", "execute the user defined process in a created container"),
    "run": ("life", "create and run a container"),
    "kill": ("life", "send a signal (default: SIGTERM) to the container's first process"),
    "delete": ("life", "delete any resources held by the container"),
    "exec": ("inside", "execute a new process inside the container"),
    "pause": ("inside", "suspend all processes inside the container"),
    "resume": ("inside", "resume all processes that have been paused"),
    "update": ("inside", "update the container's resource limits"),
    "state": ("show", "output the state of a container"),
    "list": ("show", "list the containers below the given root"),
    "ps": ("show", "list the processes inside a container"),
    "events": ("show", "print a container's figures and OOM notifications"),
    "features": ("show", "print what this runtime can do"),
    "spec": ("show", "write a starting config.json"),
    "checkpoint": ("show", "not supported: says so"),
    "restore": ("show", "not supported: says so"),
    "keep": ("keep", "a batch of containers with a keeper: JSON in, JSON out (labctl's own)"),
}
VERSION = "0.1.0"


class Context:
    """The global options, for the commands."""

    def __init__(self, root: str, log: str, log_format: str, debug: bool, by_systemd: bool = False) -> None:
        self.root = root
        self.log = log
        self.log_format = log_format
        self.debug = debug
        self.by_systemd = by_systemd


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.  1 for any error, 255 where `exec` can't, else the container's."""
    words = sys.argv[1:] if argv is None else list(argv)
    context = Context(_default_root(), "", "text", False)
    try:
        given = options.parse(words, _GLOBAL, {"v": "version", "h": "help"})
        context = _context(given)
        if context.log_format not in ("text", "json"):
            context.log_format = "text"
            raise ContainerError(f"unknown log-format {given.text('log_format')!r}")
        _prepare_log(context)
        if given.flag("version"):
            sys.stdout.write(f"labrun version {VERSION}\ncommit: v{VERSION}\nspec: 1.1.0\n")
            return 0
        if given.flag("help") or not given.words or given.words[0] in ("help", "h"):
            sys.stdout.write(_help())
            return 0
        name, *rest = given.words
        if name not in _COMMANDS:
            raise ContainerError(f"No help topic for {name!r}", code=3)
        if rest and rest[0] in ("--help", "-h"):
            sys.stdout.write(f"NAME:\n   labrun {name} - {_COMMANDS[name][1]}\n")
            return 0
        return _command(name, rest, context)
    except ContainerError as error:
        report(context, error.message)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # so that the interpreter's last flush is quiet
        return 1
    except (OSError, ValueError) as error:
        report(context, str(error))
        return 1


def _context(given: options.Options) -> Context:
    return Context(
        os.path.abspath(given.text("root") or _default_root()),
        given.text("log").removeprefix("file:"),  # as crun's users write it
        given.text("log_format") or "text",
        given.flag("debug"),
        given.flag("systemd_cgroup") or given.text("cgroup_manager") == "systemd",
    )


def _prepare_log(context: Context) -> None:
    """See that the log can be written before anything is done.  Raises ContainerError."""
    kind, colon, _ = context.log.partition(":")
    if colon and kind in ("journald", "syslog"):
        context.log = ""
        raise ContainerError(f"--log: {kind} is not supported: give a file")
    if path := context.log:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError as error:
            context.log = ""
            raise ContainerError(f"cannot write log {path}: {error.strerror}") from error
    errors.warn_with(lambda text: report(context, text, "warning"))
    if context.debug:
        errors.debug_with(lambda text: report(context, text, "debug"))


def _command(name: str, words: list[str], context: Context) -> int:
    module = _COMMANDS[name][0]
    if module == "life":
        from labctl.runtime import command_life

        return command_life.COMMANDS[name](words, context)
    if module == "inside":
        from labctl.runtime import command_inside

        return command_inside.COMMANDS[name](words, context)
    if module == "show":
        from labctl.runtime import command_show

        return command_show.COMMANDS[name](words, context)
    from labctl.runtime import command_keep

    return command_keep.keep(words, context)


def _default_root() -> str:
    """As runc: /run/…, or below XDG_RUNTIME_DIR for who isn't root."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/labrun" if os.geteuid() and runtime else "/run/labrun"


def report(context: Context, message: str, level: str = "error") -> None:
    """Say an error on stderr, and in the log file where one was asked for."""
    line = _line(context, message, level)
    if not context.log:
        os.write(2, line.encode("utf-8", "replace"))
        return
    try:
        fd = os.open(context.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.write(fd, line.encode("utf-8", "replace"))
        os.close(fd)
    except OSError as error:
        message = f"{message}\ncannot write log {context.log}: {error.strerror}"
    if level == "error":
        os.write(2, f"{message}\n".encode("utf-8", "replace"))


def _line(context: Context, message: str, level: str) -> str:
    from labctl.runtime import jsonio

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if context.log_format == "json":
        return jsonio.dumps({"level": level, "msg": message, "time": now}) + "\n"
    return f'time="{now}" level={level} msg={jsonio.dumps(message)}\n'


def _help() -> str:
    rows = "".join(f"   {name:10} {text}\n" for name, (_, text) in _COMMANDS.items())
    return (
        "NAME:\n   labrun - Open Container Initiative runtime of labctl\n\n"
        "USAGE:\n   labrun [global options] command [command options] [arguments...]\n\n"
        f"COMMANDS:\n{rows}\n"
        "GLOBAL OPTIONS:\n"
        "   --root value        folder for the containers' state (default: /run/labrun)\n"
        "   --log value         file for the log (default: stderr)\n"
        "   --log-format value  text or json (default: text)\n"
        "   --systemd-cgroup    let systemd make the cgroup; cgroupsPath is slice:prefix:name\n"
        "   --debug             say more\n"
        "   --version, -v       print the version\n"
    )


def one_name(given: options.Options, command: str, *, least: int = 1, most: int = 1) -> str:
    """The container's name among the arguments.  Raises ContainerError, worded as runc does."""
    count = len(given.words)
    if count < least or count > most:
        how = (
            f"exactly {least}"
            if least == most
            else f"a minimum of {least}"
            if count < least
            else f"at most {most}"
        )
        raise ContainerError(f'labrun: "{command}" requires {how} argument(s)')
    if not given.words[0]:
        raise ContainerError("container id cannot be empty")
    return given.words[0]


def program() -> NoReturn:
    """Be the process `labrun`: `main` without what an interpreter does for a longer life.

    A command makes little garbage, and every look for it would make the container's process, a copy of this
    one until its execve, pay for pages of its own.  At the end the kernel takes all back at once: the
    interpreter's own taking apart costs 4 ms.
    """
    gc.disable()
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk: what was asked for could not be said
        code = code or 1
    os._exit(code)


if __name__ == "__main__":
    program()
