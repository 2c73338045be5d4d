"""Packages and all they need, from Debian's archive, as onto an empty system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from labctl.errors import HostCannot, LabError
from labctl.image.boot_apt import DOWNLOAD_SECONDS, AptRoot, debian_sources
from labctl.image.boot_files import run
from labctl.image.locks import locked
from labctl.image.recipe import host_release as host_release
from labctl.image.unpack import unpack
from labctl.records import dataclass

#: What of the host's apt configuration is about the way to the archive, not about the host.
_WAY = re.compile(
    r"(Acquire::(?:https?|ftp)(?:::[\w.:-]+)*::(?:Proxy|Proxy-Auto-Detect|Timeout|CaInfo|Verify-Peer|Verify-Host)"
    r"|Acquire::(?:https?|ftp)::(?:Proxy|Proxy-Auto-Detect)(?:::[\w.-]+)?"
    r"|Acquire::(?:Check-Valid-Until|Check-Date|Retries|ForceIPv4|ForceIPv6)) \"(.*)\";"
)


@dataclass(frozen=True)
class Deb:
    """One package as downloaded."""

    name: str
    version: str
    path: Path


class Packages(AptRoot):
    """An apt root that also works out what packages need."""

    def fetch(self, names: Sequence[str], *, fresh: bool = False) -> list[Deb]:
        """The packages and all they depend on, downloaded once and kept, by name.

        `fresh` asks for new package lists first.  Raises HostCannot.
        """
        self.update(**({"hours": 0.0} if fresh else {}))
        with locked(self.root / "install.lock", what=f"the packages of {self.arch}"):
            try:
                return self._fetch(names)
            except HostCannot:
                if fresh:
                    raise
        # The lists may be older than what the mirror still has.
        return self.fetch(names, fresh=True)

    def _fetch(self, names: Sequence[str]) -> list[Deb]:
        options = ["-o", "Debug::NoLocking=1", "--no-install-recommends", "-y", "-q", "install", *names]
        try:
            plan = run(self._apt("apt-get", "-s", *options), timeout=60, what="plan packages", package="apt")
            wanted = re.findall(r"^Inst (\S+) \((\S+)", plan, re.MULTILINE)
            found = self._found(wanted)
            if len(found) < len(wanted):
                (self.root / "archives" / "partial").mkdir(parents=True, exist_ok=True)
                argv = self._apt("apt-get", "--download-only", *options)
                run(argv, timeout=DOWNLOAD_SECONDS, what=f"download {' '.join(names)}", package="apt")
                found = self._found(wanted)
        except HostCannot:
            raise
        except LabError as error:
            raise HostCannot(
                error.message, hint="check the network, or the apt sources in /etc/apt"
            ) from error
        if len(found) < len(wanted):
            missing = {name for name, _ in wanted} - {deb.name for deb in found}
            raise HostCannot(f"apt did not bring {', '.join(sorted(missing))}")
        return found

    def _found(self, wanted: Sequence[tuple[str, str]]) -> list[Deb]:
        debs = []
        for name, version in sorted(wanted):
            plain = name.partition(":")[0]
            for arch in (self.arch, "all"):
                path = self.root / "archives" / f"{plain}_{version.replace(':', '%3a')}_{arch}.deb"
                if path.is_file():
                    debs.append(Deb(plain, version, path))
                    break
        return debs


def unpack_deb(deb: Path, dest: Path) -> None:
    """Lay a package's files over the folder, through the links to folders that are there (as dpkg does)."""
    argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise HostCannot("dpkg-deb is not installed", hint="apt-get install dpkg") from None
    assert process.stdout and process.stderr
    with process:
        try:
            unpack(process.stdout, dest, keep_directory_links=True)
            process.stdout.read()
        finally:
            process.stdout.close()
            words = process.stderr.read(2000).decode(errors="replace").strip()
    if process.returncode:
        raise LabError(f"cannot unpack {deb.name}: {words}")


def apt_options() -> dict[str, str]:
    """The host's apt settings about proxies and checks, for an apt that doesn't read the host's files."""
    try:
        text = run(["apt-config", "dump"], timeout=30, what="read the apt settings", package="apt")
    except HostCannot:
        return {}
    return {match[1]: match[2] for match in map(_WAY.fullmatch, text.splitlines()) if match}


def sources_for(release: str, host_release: str) -> str:
    """Debian's sources for a release: the host's own, or its mirror with the suites of another release."""
    text = debian_sources()
    if release == host_release:
        return text
    changed = []
    for stanza in text.strip().split("\n\n"):
        lines = []
        for line in stanza.splitlines():
            if line.startswith("Suites:"):
                suites = [
                    word.replace(host_release, release) for word in line.split()[1:] if host_release in word
                ]
                line = f"Suites: {' '.join(suites)}" if suites else ""
            lines.append(line)
        if "" not in lines:
            changed.append("\n".join(lines))
    if not changed:
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        changed = [
            f"Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {release} {release}-updates\n"
            f"Components: main\nSigned-By: {key}"
        ]
    return "\n\n".join(changed) + "\n"


# Without an uptodate /proc a program would look for its processes under the host's numbers.
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def streamed(
    argv: Sequence[str], line: Callable[[str], None], *, timeout: float, env: dict[str, str]
) -> list[str]:
    """Run a program, hand on each line that it writes, and return the last 30; raises LabError.

    Its whole process group is ended when it takes longer than `timeout` seconds or we are interrupted.  It is
    the first process of a PID namespace: when we are killed, the kernel ends it and all that it started, also
    what would have gone on without it (unshare(1), --kill-child).  What it mounts is in a mount namespace of
    its own and goes with it.
    """
    import signal
    import threading

    if shutil.which(argv[0]) is None:
        raise HostCannot(f"{argv[0]} is not installed", hint=f"apt-get install {argv[0]}")
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_ALONE, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise HostCannot(f"{error.filename} is not installed", hint="apt-get install util-linux") from None
    assert process.stdout
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill_group(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, stop)
    timer.start()
    last: list[str] = []
    try:
        for text in process.stdout:
            last = [*last[-29:], text.rstrip()]
            line(text.rstrip())
        process.wait()
    except BaseException:
        # mmdebstrap cleans up on SIGTERM; give it the time.
        _kill_group(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid, signal.SIGKILL)
            process.wait()
        raise
    finally:
        timer.cancel()
        process.stdout.close()
    if late.is_set():
        raise LabError(f"{argv[0]} took longer than {timeout:.0f} s")
    if process.returncode:
        words = "\n".join(text for text in last if text)[-2000:]
        raise LabError(f"{argv[0]} failed with {process.returncode}:\n{words}")
    return last


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
