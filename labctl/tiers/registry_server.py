"""A registry of one's own: Debian's docker-registry as a process of a lab.

Source: the distribution project's configuration reference, version 2.8.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from labctl.errors import HostCannot, LabError, TimedOut
from labctl.looks import ABSENT, PRESENT, Look, Owner, Presence, parse_mark
from labctl.network import listeners
from labctl.network.dns import MARK, end
from labctl.records import dataclass

_START = 20.0  # s to come up; takes about 0.1 s


@dataclass(frozen=True, kw_only=True)
class RegistryServer:
    """docker-registry on `host`:`port`; `data` is kept when it ends, `directory` is removed.

    `certificate` and `key` (paths) make it speak TLS; `htpasswd` (a file of bcrypt lines) asks for a login.
    """

    kind: ClassVar[str] = "registry"
    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    directory: str
    data: str
    host: str = "127.0.0.1"
    port: int = 5000
    certificate: str = ""
    key: str = ""
    htpasswd: str = ""

    @property
    def address(self) -> str:
        """host:port as a person types it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def _config(self) -> Path:
        return Path(self.directory, "config.json")

    def config_text(self) -> str:
        """The configuration: JSON, which is YAML too, so that no path needs quoting."""
        http: dict[str, object] = {"addr": self.address}
        if self.certificate:
            http["tls"] = {"certificate": self.certificate, "key": self.key}
        document: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": self.data}, "delete": {"enabled": True}},
            "http": http,
        }
        if self.htpasswd:
            document["auth"] = {"htpasswd": {"realm": "labctl", "path": self.htpasswd}}
        return json.dumps(document, indent=1) + "\n"

    def make(self) -> None:
        """Start it unless it runs as asked; returns when it answers.

        Raises HostCannot, LabError, TimedOut.
        """
        program = shutil.which("docker-registry") or shutil.which("registry")
        if program is None:
            raise HostCannot("docker-registry is not installed", hint="apt-get install docker-registry")
        if self.look().there:
            return
        self._end()
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        Path(self.data).mkdir(parents=True, exist_ok=True)
        self._config.write_text(self.config_text())
        log = Path(self.directory, "log")
        with log.open("wb") as out:
            server = subprocess.Popen(
                [program, "serve", str(self._config)],
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", MARK: self.owner.mark(self.kind, self.name)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + _START
        while not self._answers():
            if server.poll() is not None:
                raise LabError(self._why(log), hint=self._hint())
            if time.monotonic() > until:
                server.kill()
                server.wait()
                raise TimedOut(f"the registry did not answer within {_START:g} s; see {log}")
            time.sleep(0.02)
        if server.poll() is not None:  # another one answered in its place
            raise LabError(self._why(log), hint=self._hint())
        server.returncode = 0  # it outlives us; nobody is to wait for it

    def _answers(self) -> bool:
        import ssl

        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "::1" if self.host == "::" else self.host
        place = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own process
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            opener.open(f"{'https' if self.certificate else 'http'}://{place}/v2/", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 401
        except OSError:
            return False
        return True

    def _why(self, log: Path) -> str:
        said = ""
        for line in log.read_text(errors="replace").splitlines():
            said = line.rpartition('msg="')[2].partition('"')[0] or line or said
        return f"the registry did not start on {self.address}: {said.strip()[:300] or 'no word'}"

    def _hint(self) -> str:
        holder = listeners.port_holder("tcp", self.host, self.port)
        return f"the port is held by {holder}" if holder else ""

    def pid(self) -> int:
        """Its process, 0 when there is none."""
        mark = self.owner.mark(self.kind, self.name)
        return next((pid for pid, found in servers() if found == mark), 0)

    def look(self) -> Look:
        """PRESENT, STOPPED (files but no process), BROKEN (another configuration), ABSENT."""
        if not self.pid():
            return Look(Presence.STOPPED, "it is not running") if self._config.exists() else ABSENT
        try:
            same = self._config.read_text() == self.config_text()
        except OSError:
            same = False
        return PRESENT if same else Look(Presence.BROKEN, "it runs with another configuration")

    def _end(self) -> None:
        mark = self.owner.mark(self.kind, self.name)
        for pid, found in list(servers()):
            if found == mark:
                end_server(pid, mark)

    def unmake(self) -> None:
        """End it; what was pushed into it stays.  Absence is fine.  Raises TimedOut."""
        self._end()
        for name in ("config.json", "log"):
            Path(self.directory, name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            Path(self.directory).rmdir()


def end_server(pid: int, mark: str) -> None:
    """End that process when it still carries the mark.  Raises TimedOut."""
    end(pid, lambda number: (number, mark) in list(servers()))


def servers() -> Iterator[tuple[int, str]]:
    """(pid, mark) of every running registry with a mark of ours."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if b"registry" not in (entry / "cmdline").read_bytes().partition(b"\0")[0]:
                continue
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended, or is another user's
        for item in environment:
            key, _, value = os.fsdecode(item).partition("=")
            parsed = parse_mark(value) if key == MARK else None
            if parsed and parsed[1] == RegistryServer.kind:
                yield int(entry.name), value
