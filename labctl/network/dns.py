"""Names of a lab: one dnsmasq that answers on the lab's bridges and nowhere else.

Source: dnsmasq(8), version 2.90 and newer.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar

from labctl.errors import LabError, TimedOut
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, Signs, parse_mark
from labctl.network import listeners, tools
from labctl.network.model import Listen
from labctl.records import dataclass

MARK = "LABCTL_MARK"  # the environment variable that carries the ownership mark
_START = 10.0  # s to come up; takes 10 ms
_END = 5.0  # s to end on SIGTERM, before SIGKILL


@dataclass(frozen=True, kw_only=True)
class Dns:
    """The DNS server of a lab.

    `directory` holds its configuration, hosts file, pid and log, and is removed with it.  `hosts` maps a
    name to its addresses, comma-separated; each is known as NAME and NAME.DOMAIN.  With `internet` all
    other names are asked of the host's own resolvers; without, they don't exist (NXDOMAIN).
    """

    kind: ClassVar[str] = "dns"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    directory: str
    listen: tuple[Listen, ...] = ()
    hosts: dict[str, str] = field(default_factory=dict)
    domain: str = "lab"
    internet: bool = False

    @property
    def mark(self) -> str:
        """The ownership mark, in the server's environment."""
        return self.owner.mark(self.kind, self.name)

    @property
    def _base(self) -> Path:
        return Path(self.directory)

    @property
    def _config(self) -> Path:
        return self._base / "dnsmasq.conf"

    def config_text(self) -> str:
        """The configuration file.

        dnsmasq reads the hosts file as an unprivileged user.  Where that user may not pass through the
        folders above it (a LABCTL_HOME in somebody's home), the names are in the configuration itself,
        which is read with full rights, and a change of names restarts the server.
        """
        lines = [
            f"# {self.mark}",
            "keep-in-foreground",
            "bind-interfaces",
            "except-interface=lo",
            *(f"listen-address={listen.ip}" for listen in self.listen),
            "port=53",
            "user=nobody",
            "group=nogroup",
            f"pid-file={self._base / 'dnsmasq.pid'}",
            "no-hosts",
            *([f"addn-hosts={self._base / 'hosts'}"] if self._reachable() else self._records()),
            f"domain={self.domain}",
            f"local=/{self.domain}/",
            "local=//",
            "localise-queries",
            "local-ttl=0",
            "bogus-priv",
        ]
        if not self.internet:
            # NXDOMAIN, where the lack of any server would be REFUSED.
            lines += ["no-resolv", "address=/#/"]
        return "\n".join(lines) + "\n"

    def _reachable(self) -> bool:
        try:
            return all(folder.stat().st_mode & 0o001 for folder in self._base.parents if folder.exists())
        except OSError:
            return False

    def _records(self) -> list[str]:
        return [
            f"host-record={name}.{self.domain},{name},{address.strip()}"
            for name, addresses in sorted(self.hosts.items())
            for address in addresses.split(",")
            if address
        ]

    def hosts_text(self) -> str:
        """The hosts file: every address with the short and the long name."""
        lines = []
        for name, addresses in sorted(self.hosts.items()):
            for address in addresses.split(","):
                if address:
                    lines.append(f"{ip_address(address.strip())} {name}.{self.domain} {name}")
        return "\n".join(lines) + "\n"

    def make(self) -> None:
        """Start it, or bring ours up to date.  Raises HostCannot, LabError with dnsmasq's own words."""
        program = tools.need("dnsmasq", "dnsmasq-base")
        pid = self.pid()
        if pid and self._read(self._config) == self.config_text():
            if self._read(self._base / "hosts") != self.hosts_text():
                self._write_hosts()
                self._signal(pid, signal.SIGHUP)
            return
        if pid:
            self._end(pid)
        self._base.mkdir(parents=True, exist_ok=True)
        self._base.chmod(0o755)
        self._write(self._config, self.config_text())
        self._write_hosts()
        (self._base / "dnsmasq.pid").unlink(missing_ok=True)
        self._start(program)

    def _start(self, program: str) -> None:
        log = self._base / "dnsmasq.log"
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", MARK: self.mark}
        with log.open("wb") as out:
            server = subprocess.Popen(
                [program, f"--conf-file={self._config}"],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + _START
        # The pid file comes after the sockets are bound and the rights are dropped.
        while not self._read(self._base / "dnsmasq.pid").strip():
            if server.poll() is not None:
                raise LabError(self._why(log, server.returncode), hint=self._hint())
            if time.monotonic() > until:
                server.kill()
                server.wait()
                raise TimedOut(f"dnsmasq was not up within {_START:g} s; see {log}")
            time.sleep(0.002)
        # It outlives us.  The handle is left without waiting; unmake reaps it if it is still our child.
        server.returncode = 0

    def _why(self, log: Path, code: int) -> str:
        lines = self._read(log).strip().splitlines()
        said = lines[-1].removeprefix("dnsmasq: ").strip() if lines else f"exit code {code}"
        return f"cannot start the lab's DNS server: {said}"

    def _hint(self) -> str:
        for listen in self.listen:
            for proto in ("udp", "tcp"):
                holder = listeners.port_holder(proto, listen.ip, 53)
                if holder:
                    return f"port 53 is held by {holder}; let it listen on its own addresses only"
        return ""

    def pid(self) -> int:
        """The process of this very server, 0 when there is none.  Never somebody else's."""
        said = self._read(self._base / "dnsmasq.pid").strip()
        if said.isdigit() and self._is_ours(int(said)):
            return int(said)
        return next((pid for pid, _ in servers(self.mark) if self._is_ours(pid)), 0)

    def _is_ours(self, pid: int) -> bool:
        return f"--conf-file={self._config}" in _cmdline(pid)

    def look(self) -> Look:
        """PRESENT, STOPPED (files but no process), BROKEN (another configuration), ABSENT."""
        pid = self.pid()
        if not pid:
            return Look(Presence.STOPPED, "dnsmasq is not running") if self._config.exists() else ABSENT
        if self._read(self._config) != self.config_text():
            return Look(Presence.BROKEN, "dnsmasq runs with another configuration")
        if self._read(self._base / "hosts") != self.hosts_text():
            return Look(Presence.BROKEN, "dnsmasq knows other names")
        return PRESENT

    def signs(self) -> Signs | None:
        """The process and its files, and the rights on the folders above, which decide what it may read."""
        pid = self.pid()
        if not pid or self._read(self._base / "dnsmasq.pid").strip() != str(pid):
            return None
        files = tuple(str(self._base / name) for name in ("dnsmasq.conf", "hosts", "dnsmasq.pid"))
        return Signs(processes=(pid,), files=files, places=tuple(str(f) for f in self._base.parents))

    def change(self, old: Dns) -> bool:
        """Other names take effect at once (SIGHUP); other addresses or domains restart it."""
        if (old.directory, old.owner, old.name) != (self.directory, self.owner, self.name):
            return False
        self.make()
        return True

    def unmake(self) -> None:
        """End it and remove its folder; absence is fine; returns when the process is gone."""
        while pid := self.pid():
            self._end(pid)
        # All of it, also a file whose writer was killed before it had its name.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._base)

    def _end(self, pid: int) -> None:
        end(pid, self._is_ours)

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _write_hosts(self) -> None:
        self._write(self._base / "hosts", self.hosts_text())

    @staticmethod
    def _write(path: Path, text: str) -> None:
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.replace(path)

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""


def _cmdline(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []  # a zombie's is empty as well: it is gone


def end(pid: int, ours: Callable[[int], bool]) -> None:
    """End a process that `ours(pid)` says is ours: SIGTERM, then SIGKILL; returns when it is gone.

    The pidfd is opened before the question, so that a reused number is never hit.  Raises TimedOut.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not ours(pid):
            return
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
            if ended.poll(_END * 1000):
                break
        else:
            raise TimedOut(f"process {pid} (dnsmasq) did not end within {_END:g} s of SIGKILL")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(fd)


def servers(mark: str = "") -> Iterator[tuple[int, str]]:
    """(pid, mark) of every running dnsmasq with a mark of ours, or with this mark."""
    for entry in Path("/proc").iterdir():
        # Asked once: the process may end between two questions.
        argv = _cmdline(int(entry.name)) if entry.name.isdigit() else []
        if not argv or not argv[0].endswith("dnsmasq"):
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for item in environment:
            key, _, value = item.decode(errors="replace").partition("=")
            if key == MARK and parse_mark(value) and mark in ("", value):
                yield int(entry.name), value
