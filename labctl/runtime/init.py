"""The container's first process between clone and execve: it finishes its own world from the inside."""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

from labctl.linux import namespaces
from labctl.linux import syscalls as sc
from labctl.runtime import sources
from labctl.runtime.channel import Channel
from labctl.runtime.errors import ContainerError
from labctl.runtime.process import Finisher, default_process, keep_only
from labctl.runtime.rootfs import RootBuilder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Config = dict[str, Any]


class Plan:
    """What the process is to become, all known before the clone.

    `stdio` are its descriptors 0, 1, 2; `fifo` an O_PATH descriptor to wait on before execve, or -1,
    and `started` its writing end from then on;
    `terminal` makes a pseudo terminal and sends its master; `preserve` further descriptors 3 … to keep;
    `joined` are the namespace types that are entered by path;
    `pivot` is off for a root on a ramdisk (--no-pivot), `new_keyring` for --no-new-keyring.
    """

    __slots__ = (
        "config",
        "fifo",
        "joined",
        "new_keyring",
        "pivot",
        "preserve",
        "program",
        "started",
        "stdio",
        "terminal",
        "userns",
    )

    def __init__(self, config: Config, program: bytes, stdio: tuple[int, int, int]) -> None:
        self.config = config
        self.program = program
        self.stdio = stdio
        self.fifo = -1
        self.started = -1
        self.pivot = True
        self.new_keyring = True
        self.terminal = bool((config.get("process") or {}).get("terminal"))
        self.preserve: list[int] = []
        spaces = sources.namespace_paths(config)
        self.joined = {kind for kind, path in spaces.items() if path}
        self.userns = "user" in spaces


def run(plan: Plan, channel: Channel) -> None:
    """Never returns: becomes the container's process, or reports over the channel and ends with 1."""
    code = 1
    try:
        _run(plan, channel)
    except ContainerError as error:
        code = error.code
        _report(plan, channel, error.message, error.code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        # KeyError and TypeError: a config.json that lacks what the spec requires, found only here.
        text = str(error) if isinstance(error, (OSError, ValueError)) else f"config.json: {error!r}"
        _report(plan, channel, text, 1)
    finally:
        os._exit(code)


def _report(plan: Plan, channel: Channel, text: str, code: int) -> None:
    """To whoever waits: the launch, or after `create` whoever called `start`."""
    if plan.started >= 0:
        os.write(plan.started, text.encode("utf-8", "replace")[:4000])
    else:
        channel.send({"error": text, "code": code})


def _run(plan: Plan, channel: Channel) -> None:
    sc.prctl(sc.PR_SET_PDEATHSIG, 9)
    if not namespaces.ORDINARY:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # until execve nothing in the container may look into this process
    keep_only({channel.fileno(), plan.fifo, *plan.stdio, *plan.preserve})
    message, fds = channel.receive()
    if message is None or "go" not in message:
        os._exit(1)  # the parent is gone before anything was promised
    # Only now for an ordinary user's: until it has its ids its parent must reach its files in /proc.
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    # From here on the container lives without its parent.
    sc.prctl(sc.PR_SET_PDEATHSIG, 0)
    spaces = sources.namespace_paths(plan.config)
    if "mount" in plan.joined:
        sources.join_mounts(spaces["mount"])
    if plan.userns:
        namespaces.become(*namespaces.first_ids("self"))
    os.setsid()
    if "cgroup" in spaces and not spaces["cgroup"]:
        sc.unshare(sc.CLONE_NEWCGROUP)
    if plan.new_keyring:
        _new_keyring()
    descriptors = -1
    if plan.fifo >= 0:  # the container may have no /proc, and its user no right to a path on the host
        descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _world(plan, channel, message, fds)
    finisher = Finisher(default_process(plan.config), plan.config, plan.program)
    if plan.config.get("process"):  # else `start` refuses, as the spec has it
        finisher.prepare()
        finisher.own_stdio()
        finisher.listen(channel)
        finisher.drop()
    if plan.fifo >= 0:
        channel.send({"ready": True})
        _wait_for_start(plan, descriptors)
    _hooks(plan, message["state"], "startContainer", "created")
    _keep_for_exec(plan, channel)
    finisher.become()


def _hooks(plan: Plan, oci: Config, kind: str, status: str) -> None:
    """Hooks that run in the container's namespaces see its pid there."""
    rows = (plan.config.get("hooks") or {}).get(kind)
    if rows:
        from labctl.runtime.hooks import run_all

        notes = plan.config.get("annotations")
        seen = {**oci, "status": status, "pid": os.getpid(), **({"annotations": notes} if notes else {})}
        run_all(rows, seen, kind)


def _new_keyring() -> None:
    try:
        sc.join_session_keyring()
    except OSError as error:
        if error.errno not in (1, 38, 122):  # EPERM, ENOSYS, EDQUOT: no keyring, nothing to leak
            raise


def _world(plan: Plan, channel: Channel, message: Config, fds: list[int]) -> None:
    """Mounts, names, sysctls, terminal."""
    config = plan.config
    spaces = sources.namespace_paths(config)
    stdio = plan.stdio
    # Of the host's proc, where the container's image can't put anything in the way.
    sysctl = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if "mount" in spaces:
        bundle, groups = message["state"]["bundle"], message["cgroups"]
        nodes: list[int] = []
        if namespaces.ORDINARY:  # the right to mount is only in here
            root, sysfs = sources.make_root(config, bundle, None, -1), -1
            binds = sources.make_binds(config, bundle, -1)
        else:
            root, sysfs = fds[0], fds[1] if message["sysfs"] else -1
            binds = fds[2 if message["sysfs"] else 1 : len(fds) - message["nodes"]]
            nodes = fds[len(fds) - message["nodes"] :]
        builder = RootBuilder(
            *(config, root, binds, sysfs, groups),
            userns=plan.userns,
            nodes=nodes,
            late=sources.late(config, bundle),
            get=lambda index, place: _late_bind(channel, config, bundle, index, place),
        )
        builder.build(bundle)
        _hooks(plan, message["state"], "createContainer", "creating")
        builder.enter(pivot=plan.pivot)
    else:
        os.chroot(os.path.join(message["state"]["bundle"], config["root"]["path"]))
        os.chdir("/")
    if "uts" in spaces:
        if config.get("hostname"):
            sc.sethostname(config["hostname"])
        if config.get("domainname"):
            sc.setdomainname(config["domainname"])
    for name, value in ((config.get("linux") or {}).get("sysctl") or {}).items():
        if not (sources.is_net(name) and "network" in plan.joined):
            sources.write_sysctl(name, value, sysctl)
    if "network" in spaces and "network" not in plan.joined:
        _loopback_up()
        if plan.userns:
            for name, value in sources.net_sysctls(config).items():
                sources.write_sysctl(name, value, sysctl)
    os.close(sysctl)
    if plan.terminal:
        stdio = _terminal(plan, channel)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    if plan.terminal:
        fcntl.ioctl(0, sc.TIOCSCTTY, 0)
    if "mount" in spaces:
        builder.protect()


def _late_bind(channel: Channel, config: Config, bundle: str, index: int, place: str) -> int:
    """A bind mount of something in the container's root: our parent has the right to it, as a rule."""
    if namespaces.ORDINARY:
        return sources.make_bind(config, bundle, config["mounts"][index], -1, place)
    channel.send({"bind": index, "place": place})
    message, fds = channel.receive()
    if message is None or not fds:
        raise ContainerError((message or {}).get("error") or "no bind mount came")
    return fds[0]


def _loopback_up() -> None:
    """Bring lo up in a new network namespace: SIOCSIFFLAGS, netdevice(7)."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    fcntl.ioctl(sock.fileno(), 0x8914, struct.pack("16sh22x", b"lo", 1))
    sock.close()


def _terminal(plan: Plan, channel: Channel) -> tuple[int, int, int]:
    """A pseudo terminal of the container's own devpts; its master goes to the parent."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    slave = open_slave(master)
    size = (plan.config.get("process") or {}).get("consoleSize")
    if size:
        fcntl.ioctl(slave, sc.TIOCSWINSZ, struct.pack("4H", size["height"], size["width"], 0, 0))
    if os.path.isdir("/dev/pts"):
        name = os.readlink(f"/proc/self/fd/{slave}") if os.path.exists("/proc/self/fd") else ""
        if name.startswith("/dev/pts/"):
            os.close(os.open("/dev/console", os.O_CREAT | os.O_WRONLY | os.O_NOCTTY | os.O_NOFOLLOW, 0o666))
            sc.mount(name, "/dev/console", None, sc.MS_BIND)
    channel.send({"console": True}, [master])
    os.close(master)
    return slave, slave, slave


def open_slave(master: int) -> int:
    """Unlock and open the other side of a pseudo terminal (TIOCSPTLCK, TIOCGPTPEER)."""
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))
    slave: int = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return slave


def _wait_for_start(plan: Plan, descriptors: int) -> None:
    """Block until `start` opens the other end of the fifo; opening by descriptor needs no path to it.

    It stays open until execve: what goes wrong before is written to it, and its end means that all is well.
    """
    plan.started = os.open(str(plan.fifo), os.O_WRONLY | os.O_CLOEXEC, dir_fd=descriptors)
    os.write(plan.started, b"0")
    for fd in (plan.fifo, descriptors):
        os.close(fd)


def _keep_for_exec(plan: Plan, channel: Channel) -> None:
    """Descriptors from 3 on are those asked for, and nothing else survives execve."""
    for fd in plan.preserve:
        os.set_inheritable(fd, True)
    first = 3 + len(plan.preserve)
    sc.close_range(first, cloexec=True)
    os.set_inheritable(channel.fileno(), False)
