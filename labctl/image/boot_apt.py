"""Debian packages of any architecture, downloaded and unpacked without touching the host's dpkg.

An apt root of labctl's own: its own lists, its own (empty) dpkg status, `APT::Architecture` set to the
one wanted (apt.conf(5)).  The sources are the host's, as far as they are Debian's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from labctl.errors import HostCannot, LabError, NoRoom
from labctl.home import free_bytes
from labctl.image.boot_files import fresh_file, locked, run
from labctl.records import dataclass

LISTS_BYTES = 64 << 20  # while they are fetched and unpacked
LISTS_HOURS = 24.0
UPDATE_SECONDS = 300.0
DOWNLOAD_SECONDS = 900.0
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OFFLINE = "check the network, or the apt sources in /etc/apt; what is in the cache already works without"


@dataclass(frozen=True)
class AptRoot:
    """Where packages of Debian architecture `arch` (amd64, arm64…) come from; `root` holds the lists."""

    root: Path
    arch: str

    @classmethod
    def at(cls, cache: Path, arch: str) -> AptRoot:
        """The root for one architecture below labctl's cache folder."""
        return cls(cache / "boot" / "apt" / arch, arch)

    def update(self, *, hours: float = LISTS_HOURS) -> None:
        """Fetch the package lists unless those here are younger than `hours`.

        Raises HostCannot when the archive can't be reached or doesn't have the architecture.
        """
        stamp = self.root / "updated"
        with locked(self.root / "lock"):
            if stamp.exists() and time.time() - stamp.stat().st_mtime < hours * 3600:
                return
            for folder in ("lists/partial", "archives/partial", "etc/preferences.d"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            # On a disk that is too small apt tries again and again, for minutes.
            if (free := free_bytes(self.root)) < LISTS_BYTES:
                raise NoRoom(
                    f"Debian's package lists need about {LISTS_BYTES >> 20} MiB, and the disk of {self.root}"
                    f" has {free >> 20} MiB free",
                    hint="make room there (labctl image prune), or move labctl with LABCTL_HOME",
                )
            (self.root / "status").touch()
            with fresh_file(self.root / "debian.sources") as work:
                work.write_text(debian_sources())
            self._update()
            stamp.touch()

    def _update(self) -> None:
        try:
            argv = self._apt("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
            run(argv, timeout=UPDATE_SECONDS, what="fetch package lists", package="apt")
        except HostCannot:
            raise
        except LabError as error:
            if re.search(
                rf"binary-{self.arch}\b.*(404|Not Found)|doesn't support architecture", error.message
            ):
                raise HostCannot(
                    f"this Debian release has no architecture {self.arch}",
                    hint="use a host with a newer Debian release (riscv64 came with Debian 13)",
                ) from error
            raise HostCannot(f"no package lists for {self.arch}: {error.message}", hint=_OFFLINE) from error
        if not any(self._packages()):
            raise HostCannot(
                f"this Debian release has no architecture {self.arch}",
                hint="use a host with a newer Debian release (riscv64 came with Debian 13)",
            )

    def _packages(self) -> Iterator[Path]:
        return (self.root / "lists").glob(f"*_binary-{self.arch}_Packages*")

    def resolve(self, package: str) -> str:
        """Follow a meta package such as linux-image-cloud-amd64 to the newest real kernel package."""
        argv = self._apt("apt-cache", "depends", "--no-recommends", package)
        try:
            text = run(argv, timeout=60, what=f"look {package} up", package="apt")
        except HostCannot:
            raise
        except LabError as error:
            raise HostCannot(
                f"Debian has no package {package} for {self.arch}", hint="choose another kernel"
            ) from error
        found: list[str] = re.findall(r"^\s*Depends: (linux-image-\S+)$", text, re.MULTILINE)
        return found[0] if found else package

    def version(self, package: str) -> str:
        """The version that a download would fetch; raises HostCannot when there is none."""
        found = self.known(package)
        if not found:
            raise HostCannot(f"Debian has no package {package} for {self.arch}", hint=_OFFLINE)
        return found

    def known(self, package: str) -> str:
        """The version that a download would fetch, "" when there is no such package."""
        return self._show(package).get("Version", "")

    def depends(self, package: str) -> list[str]:
        """The first alternative of each of the package's Depends and Pre-Depends, without versions."""
        record = self._show(package)
        text = ", ".join(record[key] for key in ("Pre-Depends", "Depends") if record.get(key))
        names = [re.split(r"[\s|(:]", part.strip(), maxsplit=1)[0] for part in text.split(",")]
        return [name for name in names if name]

    def _show(self, package: str) -> dict[str, str]:
        argv = self._apt("apt-cache", "show", "--no-all-versions", package)
        try:
            text = run(argv, timeout=60, what=f"look {package} up", package="apt")
        except HostCannot:
            raise
        except LabError:
            return {}  # apt-cache fails for an unknown name, which the caller says in better words
        return dict(line.split(": ", 1) for line in text.splitlines() if re.match(r"[A-Z][\w-]*: ", line))

    def download(self, packages: Sequence[str], dest: Path) -> list[Path]:
        """Download packages into `dest`, checked by apt against the signed lists; returns the .deb files."""
        before = set(dest.glob("*.deb"))
        # `download` writes to the working directory, so apt is started there.
        argv = ["env", "-C", str(dest), *self._apt("apt-get", "-q", "download", *packages)]
        try:
            run(argv, timeout=DOWNLOAD_SECONDS, what=f"download {' '.join(packages)}", package="apt")
        except HostCannot:
            raise
        except LabError as error:
            raise HostCannot(error.message, hint=_OFFLINE) from error
        return sorted(set(dest.glob("*.deb")) - before)

    def _apt(self, program: str, *words: str) -> list[str]:
        options = {
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "root",  # without it apt warns about folders that _apt can't enter
            "APT::Get::List-Cleanup": "1",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
            "Dir::State": str(self.root),
            "Dir::State::lists": str(self.root / "lists"),
            "Dir::State::status": str(self.root / "status"),
            "Dir::Cache": str(self.root),
            "Dir::Cache::archives": str(self.root / "archives"),
            # Docker's Debian images turn this file off, which makes each look-up take a second.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourcelist": str(self.root / "debian.sources"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": str(self.root / "etc/preferences.d"),
            "Dir::Etc::preferences": "/dev/null",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return [program, *flags, *words]


def debian_sources(etc: Path = Path("/etc")) -> str:
    """The host's Debian sources as deb822 (sources.list(5)), without any limit to an architecture."""
    stanzas = [*_deb822(etc), *_one_line(etc)]
    if not stanzas:
        match = re.search(r"^VERSION_CODENAME=(\w+)", _text(etc / "os-release"), re.MULTILINE)
        suite = match[1] if match else "stable"
        stanzas = [
            _stanza("http://deb.debian.org/debian", f"{suite} {suite}-updates", KEYRING),
            _stanza("http://deb.debian.org/debian-security", f"{suite}-security", KEYRING),
        ]
    return "\n\n".join(dict.fromkeys(stanzas)) + "\n"


def _stanza(uri: str, suites: str, key: str) -> str:
    signed = f"\nSigned-By: {key}" if key else ""
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main{signed}"


def _deb822(etc: Path) -> Iterator[str]:
    for path in sorted((etc / "apt/sources.list.d").glob("*.sources")):
        for block in re.split(r"\n\s*\n", _text(path)):
            lines = [line for line in block.splitlines() if not line.startswith("#")]
            fields = dict(re.findall(r"^([\w-]+):\s*(.*)$", "\n".join(lines), re.MULTILINE))
            if fields.get("Enabled", "yes") == "no" or "deb" not in fields.get("Types", "").split():
                continue
            if _is_debian(fields.get("URIs", "")) and "main" in fields.get("Components", "").split():
                yield _stanza(fields["URIs"], fields.get("Suites", ""), fields.get("Signed-By", ""))


def _one_line(etc: Path) -> Iterator[str]:
    for path in [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*.list"))]:
        for line in _text(path).splitlines():
            match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)$", line.split("#")[0].strip())
            if match and _is_debian(match[2]) and "main" in match[4].split():
                signed = re.search(r"signed-by=(\S+)", match[1] or "")
                yield _stanza(match[2], match[3], signed[1] if signed else "")


def _is_debian(uri: str) -> bool:
    """Whether a source is a mirror of Debian itself, not somebody's own packages."""
    return bool(re.search(r"/debian(-security)?/?$|/archive/debian(-security)?/", uri.split(" ")[0]))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
