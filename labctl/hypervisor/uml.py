"""A User Mode Linux machine as a resource: a kernel that runs as a program of this host.

Its network cards are taps that labctl opens, puts on their bridges and hands over as open files, so that they
are gone with the program, whatever ends it.  The program has a PID namespace: each process of the guest is a
process of the host, and all of them end with it.  Files in the node's folder: uml.json (pid and
start time), uml/m/mconsole (its management console), console.log.  It carries the owner's mark in its
environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import ClassVar, Self

from labctl.errors import Foreign, HostCannot, LabError
from labctl.hypervisor import figures, mconsole, panic, processes
from labctl.hypervisor.figures import Figures
from labctl.hypervisor.private import end_processes, start_time
from labctl.linux import netlink, traffic
from labctl.linux.netlink import Netlink
from labctl.looks import ABSENT, Look, Outlook, Owner, Presence, Way
from labctl.records import dataclass

# linux/if_tun.h
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_TUN_EXCL = 0x400454CA, 0x0002, 0x1000, 0x8000
END_SECONDS = 10.0
_POLL_SECONDS = 0.05
_CONSOLE_SECONDS = 5.0
_PAUSED = "uml.paused"
# The first program of the PID namespace.  A kernel that panics sends itself SIGABRT until it ends (arch/um,
# os_dump_core), which the first program of a namespace never hears (pid_namespaces(7)).
_KEEPER = ("sh", "-c", 'ulimit -c 0; "$@"; exit $?', "sh")


@dataclass(frozen=True, kw_only=True)
class UmlNic:
    """A network card: a tap of the host on a bridge."""

    bridge: str
    ifname: str
    mac: str
    mtu: int = 0


@dataclass(frozen=True, kw_only=True)
class UmlMachine:
    """One User Mode Linux."""

    kind: ClassVar[str] = "uml"
    gate: ClassVar[str] = "boot"
    cost: ClassVar[float] = 10.0
    restarts: ClassVar[bool] = True  # its disk is a resource of its own
    stands_on: ClassVar[frozenset[str]] = frozenset({"vmdisk", "disk"})

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    folder: str  # the node's; the files named above lie in it
    kernel: str  # the program
    initrd: str
    memory_bytes: int
    disk: str  # written by User Mode Linux: what differs from `backing`
    backing: str
    config: str
    nics: tuple[UmlNic, ...] = ()

    @property
    def mark(self) -> str:
        """The owner's mark on the program and on its taps."""
        return self.owner.mark(self.kind, self.name)

    @property
    def console_log(self) -> Path:
        """What its kernel and init print."""
        return Path(self.folder, "console.log")

    @property
    def management(self) -> Path:
        """The socket of its management console."""
        return Path(self.folder, "uml", "m", "mconsole")

    def pid(self) -> int:
        """The host's pid of its first program; 0 when it does not run.

        By the record of pid and start time, and by the mark when there is none: a labctl that was killed may
        not have written it.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            raw = json.loads(Path(self.folder, "uml.json").read_text())
            if raw["pid"] and start_time(int(raw["pid"])) == raw["start"]:
                return int(raw["pid"])
        return min((pid for pid, mark in processes.marked().items() if mark == self.mark), default=0)

    def make(self) -> None:
        """Start it unless it runs.  Raises Foreign, HostCannot without root's rights, LabError."""
        if self.pid():
            return
        folder = Path(self.folder)
        try:
            shutil.rmtree(folder / "uml", ignore_errors=True)  # a pid file in it would bar the start
            (folder / "uml").mkdir(parents=True)
            (folder / _PAUSED).unlink(missing_ok=True)
        except OSError as error:
            raise LabError(f"cannot write {folder}: {error.strerror}", hint="is the disk full?") from error
        with _taps(self) as taps, self.console_log.open("ab") as log:
            words = ["unshare", "--pid", "--fork", "--kill-child", "--", *_KEEPER, *self.command(taps)]
            try:
                running = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env={"PATH": "/usr/bin:/bin", "HOME": "/", "LABCTL_MARK": self.mark},
                    start_new_session=True,
                    pass_fds=taps,
                )
            except OSError as error:
                raise HostCannot(f"{self.name}: unshare can't be run: {error.strerror}") from error
        record = {"pid": running.pid, "start": start_time(running.pid)}
        fresh = folder / "uml.json.new"
        fresh.write_text(json.dumps(record))
        fresh.replace(folder / "uml.json")
        _children.append(running)

    def command(self, taps: Sequence[int]) -> list[str]:
        """The kernel's command line (Documentation/virt/uml/user_mode_linux_howto_v2.rst).

        Paths are relative to the node's folder where they become sockets, whose names are short.
        """
        words = [self.kernel, f"mem={self.memory_bytes >> 20}M", "umid=m", "uml_dir=uml/"]
        # c: no lock on the files.  A read lock on the image's disk is one on all of it, and keeps QEMU, which
        # has the same disk below its own machines', from opening it; that no two write to ours we see to.
        words += [f"initrd={self.initrd}", f"ubd0c={self.disk},{self.backing}", f"ubd1r={self.config}"]
        for index, (nic, tap) in enumerate(zip(self.nics, taps, strict=True)):
            # vec=0: single reads and writes, since a tap is no socket.
            mtu = f",mtu={nic.mtu}" if nic.mtu else ""
            words.append(f"vec{index}:transport=fd,fd={tap},vec=0,mac={nic.mac}{mtu}")
        # The first console is the log; the second is what `labctl console` opens.
        return [*words, "con=null", "con0=null,fd:1", "con1=pts", "quiet", "panic=-1", "net.ifnames=0"]

    def look(self) -> Look:
        """Running, paused, stopped, broken (its kernel panicked) or absent."""
        folder = Path(self.folder)
        if self.pid():
            return Look(Presence.PRESENT, "paused" if (folder / _PAUSED).exists() else "running")
        if not (folder / "uml.json").exists():
            return ABSENT
        if died := panic.last_words(str(self.console_log)):
            return Look(Presence.BROKEN, f"its kernel panicked: {died}")
        return Look(Presence.STOPPED, "shut off")

    def outlook(self, old: UmlMachine, look: Look | None) -> Outlook:
        """It is started anew for whatever differs."""
        return Outlook(Way.RESTART, "restart needed, its disk is kept")

    def rest(self) -> None:
        """Wait for it to end, which it was asked for, and end it after END_SECONDS."""
        self.stop(END_SECONDS, lambda: None)

    def unmake(self) -> None:
        """End it and all its processes; its taps go with it.  Raises TimedOut."""
        while pid := self.pid():
            end_processes({pid}, 0.1)
        _reap()
        for path in (Path(self.folder, "uml.json"), Path(self.folder, _PAUSED)):
            path.unlink(missing_ok=True)
        shutil.rmtree(Path(self.folder, "uml"), ignore_errors=True)

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Unmake many."""
        failures: dict[str, LabError] = {}
        for item in items:
            try:
                item.unmake()
            except LabError as error:
                failures[item.name] = error
        return failures

    def stop(self, timeout: float, graceful: Callable[[], object]) -> None:
        """Ask it to end by `graceful`, and end it after `timeout` seconds.  Raises TimedOut."""
        if timeout > 0 and self.look().detail == "running":
            with contextlib.suppress(LabError):
                graceful()
                end = monotonic() + timeout
                while self.pid() and monotonic() < end:
                    _reap()
                    sleep(_POLL_SECONDS)
        while pid := self.pid():
            end_processes({pid}, 0.1)
        _reap()

    def pause(self) -> None:
        """Let its kernel rest; paused already is fine."""
        marker = Path(self.folder, _PAUSED)
        if not marker.exists():
            marker.touch()
            mconsole.ask(self.management, "stop")

    def resume(self) -> None:
        """Let it go on; running already is fine."""
        marker = Path(self.folder, _PAUSED)
        if marker.exists():
            mconsole.ask(self.management, "go")
            marker.unlink(missing_ok=True)

    def terminal(self) -> str:
        """The pseudo-terminal of its second console.  Raises LabError when it does not run.

        When the last visitor left, it was hung up; the guest then opens another one within a second.
        """
        if not self.pid():
            raise LabError(f"{self.name} is not running", hint="labctl start")
        end = monotonic() + _CONSOLE_SECONDS
        while not (said := mconsole.ask(self.management, "config con1")).startswith("pts:"):
            if monotonic() > end:
                raise LabError(f"{self.name} has no console yet", hint="try again when it is up")
            sleep(_POLL_SECONDS)
        return said.removeprefix("pts:")

    def figures(self) -> Figures:
        """What it uses: the sum of its processes on this host, and the traffic of its taps."""
        pid = self.pid()
        if not pid:
            return Figures("stopped")
        pids = processes.descendants(pid)
        blocks = traffic.of_processes(pids)
        net = [figures.tap(nic.ifname) for nic in self.nics]
        return Figures(
            "paused" if Path(self.folder, _PAUSED).exists() else "running",
            cpu_ns=sum(processes.cpu_ns(one) for one in pids),
            memory_bytes=self.memory(),
            memory_limit_bytes=self.memory_bytes,
            net_received_bytes=sum(received for received, _ in net),
            net_sent_bytes=sum(sent for _, sent in net),
            block_read_bytes=blocks[0] if blocks else None,
            block_written_bytes=blocks[1] if blocks else None,
        )

    def memory(self) -> int:
        """The memory that its processes have on this host, in bytes, shared pages counted in part."""
        pid = self.pid()
        if not pid:
            return 0
        return sum(processes.pss(one) for one in processes.descendants(pid))


# Programs that this process started: kept so that their end is waited for and no zombie stays.
_children: list[subprocess.Popen[bytes]] = []


def _reap() -> None:
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)


@contextlib.contextmanager
def _taps(machine: UmlMachine) -> Iterator[tuple[int, ...]]:
    """The taps of a machine as open files, each on its bridge and marked; closed here afterwards."""
    opened: list[int] = []
    try:
        for nic in machine.nics:
            opened.append(_open_tap(nic.ifname))
        with Netlink() as kernel:
            links = netlink.by_name(kernel.links())
            for nic in machine.nics:
                if nic.bridge not in links:
                    raise LabError(f"{machine.name}: there is no bridge {nic.bridge}", hint="labctl up")
                bridge = links[nic.bridge].index
                kernel.do(
                    netlink.set_link(nic.ifname, alias=machine.mark, mtu=nic.mtu, master=bridge, up=True)
                )
        yield tuple(opened)
    except OSError as error:
        raise LabError(f"{machine.name}: {error}") from error
    finally:
        for fd in opened:
            os.close(fd)


def _open_tap(name: str) -> int:
    """A new tap.  Raises Foreign when there is one of that name, HostCannot without the right to make one."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostCannot(f"/dev/net/tun can't be opened: {error.strerror}", hint="modprobe tun") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        if isinstance(error, PermissionError):
            raise HostCannot(f"no right to make the network device {name}", hint="run as root") from error
        raise Foreign(f"the network device {name} can't be made: {error.strerror}") from error
    return fd
