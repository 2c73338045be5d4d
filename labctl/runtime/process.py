"""The last steps of any process in a container, its first one or one of `exec`: who it is, and execve."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports `enum`: 5 ms
import marshal
import os
import resource

from labctl.linux import capabilities, namespaces, seccomp
from labctl.linux import syscalls as sc
from labctl.runtime import check, spec, users
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from labctl.runtime.channel import Channel

    Config = dict[str, Any]

NOT_EXECUTABLE = 126
NOT_FOUND = 127
_HANDLED = (
    _signal.SIGPIPE,
    _signal.SIGXFSZ,
    _signal.SIGINT,
    _signal.SIGTERM,
    _signal.SIGHUP,
    _signal.SIGCHLD,
)
_filters: dict[bytes, bytes] = {}
_own: set[tuple[int, int]] = set()  # the interpreter that runs us: device and inode


def filter_of(config: Config) -> bytes:
    """The compiled filter of `linux.seccomp` (b"" = none); one compilation for equal ones."""
    profile = (config.get("linux") or {}).get("seccomp")
    if not profile:
        return b""
    key = marshal.dumps(profile, 2)  # later versions write equal things in several ways
    if key not in _filters:
        _filters[key] = seccomp.compile_filter(profile)
    return _filters[key]


def preload(config: Config) -> None:
    """Load the modules, and ask what will be needed, while /proc and our own files are still there.

    Raises ContainerError for a security module that this kernel hasn't got, ValueError for an unknown word.
    """
    process, linux = config.get("process") or {}, config.get("linux") or {}
    _own.add(_identity("/proc/self/exe"))
    if sets := process.get("capabilities"):
        nested = any(row.get("type") == "user" for row in linux.get("namespaces") or ())
        check.grantable(sets, capabilities.known() if nested else capabilities.held())
    if config.get("hooks"):
        import labctl.runtime.hooks
    if linux.get("personality") or process.get("scheduler") or process.get("ioPriority"):
        from labctl.linux import schedule

        schedule.check(process, linux)
    if profile := linux.get("seccomp"):
        seccomp.flag_bits(profile.get("flags") or ())
        if seccomp.notifies(profile):
            import labctl.runtime.listener  # noqa: F401
    if process.get("apparmorProfile") or process.get("selinuxLabel") or linux.get("mountLabel"):
        from labctl.runtime import lsm

        lsm.check(config)


_files: tuple[int, int] | None = None  # the limit of open files that programs get, where it was raised


def raise_own_files() -> None:
    """Let this process, but no program that it becomes, have as many open files as it may."""
    global _files
    _files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_files[1], _files[1]))


def raise_limits(pid: int, process: Config) -> None:
    """Raise hard limits of a process where it may not do so itself (it is in a user namespace).

    Raises SyscallError naming the limit: without CAP_SYS_RESOURCE a hard limit can't be raised.
    """
    for row in process.get("rlimits") or ():
        number = _limit_number(row["type"])
        _, hard = resource.prlimit(pid, number)
        wanted = _limit_value(row["hard"])
        if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
            try:
                resource.prlimit(pid, number, (min(_limit_value(row["soft"]), hard), wanted))
            except (OSError, ValueError) as error:
                number = getattr(error, "errno", None) or 1
                raise sc.SyscallError(
                    number, "setrlimit", f"{row['type']} to {row['hard']} (now {hard})"
                ) from error


def _limit_number(name: str) -> int:
    number = getattr(resource, name, None)
    if not name.startswith("RLIMIT_") or number is None:
        raise ContainerError(f"unknown rlimit {name!r}")
    return int(number)


def _limit_value(value: int) -> int:
    return resource.RLIM_INFINITY if value >= (1 << 63) or value < 0 else value


class Finisher:
    """Turns this forked Python into the container's process.

    `prepare` and `drop` do what can still be reported to whoever waits for "ready"; `become` never returns.
    """

    def __init__(self, process: Config, config: Config, program: bytes) -> None:
        self.process = process
        self.config = config
        self.program = program
        self.env: dict[str, str] = {}
        self.path = ""
        self.uid = self.gid = 0
        self.groups: list[int] = []
        self.by_name = False
        self.late_cwd = False
        self.loaded = False
        self.tied = False  # whether it is killed when the thread that started it ends

    def prepare(self) -> None:
        """Find the user, the folder and the program.  Raises ContainerError with code 126 or 127."""
        who = self.process.get("user") or {}
        asked = who.get("labctl") or ""
        if asked:
            self.uid, self.gid, self.groups, home = users.look_up(asked)
            self.groups += [gid for gid in who.get("additionalGids") or () if gid not in self.groups]
            self.by_name = True
        else:
            self.uid, self.gid = who.get("uid") or 0, who.get("gid") or 0
            self.groups = list(who.get("additionalGids") or ())
            home = ""
        for pair in self.process.get("env") or ():
            name, equals, value = pair.partition("=")
            if not equals or not name or "\0" in pair:
                raise ContainerError(f"invalid environment variable: {pair!r}")
            self.env[name] = value
        if not self.env.get("HOME"):  # an empty one counts as none, as in runc
            self.env["HOME"] = home or users.home_of(self.uid)
        self._enter_cwd()
        self.path = find_program(self.process["args"][0], self.env.get("PATH", ""))
        refuse_ourselves(self.path)

    def _enter_cwd(self) -> None:
        cwd = self.process.get("cwd") or "/"
        try:
            if not os.path.lexists(cwd):
                os.makedirs(cwd)
            os.chdir(cwd)
        except PermissionError:
            self.late_cwd = True
            return
        except OSError as error:
            raise ContainerError(f"chdir to cwd ({cwd!r}): {error.strerror}", code=NOT_EXECUTABLE) from error
        check_cwd()

    def own_stdio(self) -> None:
        """Give the descriptors 0 to 2 to the user, so that /dev/stdout can be opened again."""
        for fd in (0, 1, 2):
            try:
                info = os.fstat(fd)
                # /dev/null and a shared terminal are everybody's: they keep their owner.
                if info.st_uid != self.uid and not info.st_rdev:
                    os.fchown(fd, self.uid, -1)
            except OSError:
                continue  # not ours to give (a host's file, or closed)

    def listen(self, channel: Channel) -> None:
        """With SCMP_ACT_NOTIFY: load the filter now, while somebody is there who hands its listener over."""
        profile = (self.config.get("linux") or {}).get("seccomp") or {}
        if self.program and seccomp.notifies(profile):
            from labctl.runtime import listener

            if self.process.get("noNewPrivileges"):
                sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            listener.load_and_wait(self.program, profile.get("flags") or (), channel)
            self.loaded = True

    def drop(self) -> None:
        """Give up ids, capabilities and other rights: what can fail fails before the container is created.

        Raises OSError or ContainerError.
        """
        process = self.process
        self._schedule()
        umask = (process.get("user") or {}).get("umask")
        os.umask(0o022 if umask is None else umask)
        sets = self._capabilities()
        if process.get("noNewPrivileges"):
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        elif self.program:  # without no_new_privs a filter needs CAP_SYS_ADMIN, which goes below
            self._load()
        if sets is not None:
            capabilities.drop_bounding(sets[0])
        sc.prctl(sc.PR_SET_KEEPCAPS, 1)
        namespaces.set_groups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        sc.prctl(sc.PR_SET_KEEPCAPS, 0)
        if sets is not None:
            capabilities.apply(*sets[1:])
        if self.late_cwd:
            cwd = process.get("cwd") or "/"
            try:
                os.chdir(cwd)
            except OSError as error:
                raise ContainerError(
                    f"chdir to cwd ({cwd!r}): {error.strerror}", code=NOT_EXECUTABLE
                ) from error
            check_cwd()
        # Only now: a change of user would clear it (prctl(2)).
        sc.prctl(sc.PR_SET_PDEATHSIG, int(_signal.SIGKILL) if self.tied else 0)
        reset_signals()

    def become(self) -> None:
        """Limits, the filter and execve, after `drop`.  Raises OSError or ContainerError; never returns."""
        if _files:
            resource.setrlimit(resource.RLIMIT_NOFILE, _files)
        for row in self.process.get("rlimits") or ():
            value = (_limit_value(row["soft"]), _limit_value(row["hard"]))
            resource.setrlimit(_limit_number(row["type"]), value)
        if self.program and not self.loaded:
            self._load()
        refuse_ourselves(self.path)
        execute(self.path, self.process["args"], self.env)

    def _schedule(self) -> None:
        """What needs rights and is rarely asked for; its modules were loaded by `preload`."""
        process, domain = self.process, (self.config.get("linux") or {}).get("personality")
        if domain or process.get("scheduler") or process.get("ioPriority"):
            from labctl.linux import schedule

            if domain:
                schedule.set_personality(domain)
            if row := process.get("scheduler"):
                schedule.set_scheduler(row)
            if row := process.get("ioPriority"):
                schedule.set_io_priority(row)
        if process.get("apparmorProfile") or process.get("selinuxLabel"):
            from labctl.runtime import lsm

            lsm.confine(process)

    def _load(self) -> None:
        if self.loaded:
            return
        self.loaded = True
        profile = (self.config.get("linux") or {}).get("seccomp") or {}
        seccomp.load(self.program, profile.get("flags") or ())

    def _capabilities(self) -> tuple[int, int, int, int, int] | None:
        """(bounding, effective, permitted, inheritable, ambient), or None to leave them alone."""
        asked = self.process.get("capabilities")
        if asked is None:
            return None
        known = capabilities.known()
        kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
        masks = {kind: capabilities.mask(asked.get(kind) or ()) & known for kind in kinds}
        if self.by_name and self.uid:
            # As engines do for a user of the image who isn't root: none but the bound.
            masks["effective"] = masks["permitted"] = masks["ambient"]
        return tuple(masks[kind] for kind in kinds)  # type: ignore[return-value]


def check_cwd() -> None:
    """A working folder outside the root would be a way out of the container (CVE-2024-21626)."""
    try:
        here = os.getcwd()
    except OSError as error:
        raise ContainerError(
            "current working directory is outside of container mount namespace root"
        ) from error
    if not here.startswith("/"):
        raise ContainerError("current working directory is outside of container mount namespace root")


def reset_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and execve would pass that on."""
    for number in _HANDLED:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def find_program(name: str, path: str) -> str:
    """Where a program is, by the container's own PATH.  Raises ContainerError with code 126 or 127."""
    if "/" in name:
        candidates = [name]
    else:
        candidates = [f"{folder or '.'}/{name}" for folder in (path or "/bin:/usr/bin").split(":")]
    refused = ""
    for candidate in candidates:
        try:
            info = os.stat(candidate)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or f'exec: "{name}": {error.strerror}'.lower()
            continue
        if info.st_mode & 0o170000 == 0o100000 and info.st_mode & 0o111:
            return candidate
        refused = refused or f'exec: "{name}": permission denied'
    if refused:
        raise ContainerError(refused, code=NOT_EXECUTABLE)
    if "/" in name:
        raise ContainerError(f'exec: "{name}": stat {name}: no such file or directory', code=NOT_FOUND)
    raise ContainerError(f'exec: "{name}": executable file not found in $PATH', code=NOT_FOUND)


def _identity(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def refuse_ourselves(path: str) -> None:
    """Don't become the host's interpreter again, by /proc/self/exe or a link or script that leads there.

    It would run inside the container as a file that the container's root may open and overwrite
    (CVE-2019-5736).  Raises ContainerError with code 126.
    """
    for _ in range(5):  # as deep as the kernel follows "#!"
        try:
            if _identity(path) in _own:
                raise ContainerError(f'exec: "{path}" is the runtime itself', code=NOT_EXECUTABLE)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return  # not there or not to be read: execve says so, or it is no script
        try:
            head = os.read(fd, 256)
        finally:
            os.close(fd)
        words = head[2:].partition(b"\n")[0].split()
        if head[:2] != b"#!" or not words:
            return
        path = os.fsdecode(words[0])


def execute(path: str, argv: list[str], env: dict[str, str]) -> None:
    """execve(2).  Raises ContainerError with code 126 or 127."""
    try:
        os.execve(path, argv, env)
    except FileNotFoundError as error:  # the file is there: its interpreter isn't
        raise ContainerError(f"exec {path}: no such file or directory", code=NOT_FOUND) from error
    except OSError as error:
        raise ContainerError(f"exec {path}: {(error.strerror or '').lower()}", code=NOT_EXECUTABLE) from error


def default_process(config: Config) -> Config:
    """`process` of a configuration, with the user that the annotation names."""
    process: Config = dict(config.get("process") or {})
    named = (config.get("annotations") or {}).get(spec.USER)
    if named:
        process["user"] = {**(process.get("user") or {}), "labctl": named}
    return process


def keep_only(fds: set[int]) -> None:
    """Close every descriptor above 2 but these."""
    first = 3
    for fd in sorted(fd for fd in fds if fd > 2):
        if fd > first:
            sc.close_range(first, fd - 1)
        first = fd + 1
    sc.close_range(first)
