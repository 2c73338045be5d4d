"""Names of images: "micro", "debian:bookworm", "localhost:5000/class/web:2", "…@sha256:…".

A path ("./web", "/srv/lab.tar", "../box/Containerfile") names what is built or read from there; in the store
it has a name of its own, which follows from the path.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from labctl.errors import UsageError
from labctl.image.digests import is_digest
from labctl.records import dataclass

DOCKER_HUB = "docker.io"
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Reference:
    """A parsed name.  `host` is empty for a short name, which Docker looks for on docker.io."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def familiar(self) -> str:
        """As people write it and as the store keeps it: no docker.io/library/, always with a tag."""
        name = f"{self.host}/{self.path}" if self.host else self.path
        if self.digest:
            return f"{name}@{self.digest}"
        return f"{name}:{self.tag}"

    @property
    def registry(self) -> str:
        """The registry's host[:port]."""
        return self.host or DOCKER_HUB

    @property
    def repository(self) -> str:
        """The path at the registry: "debian" is "library/debian" on docker.io."""
        if not self.host and "/" not in self.path:
            return f"library/{self.path}"
        return self.path

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return self.familiar


def is_path(text: str) -> bool:
    """Whether a name means a file or folder of this machine: it begins as no image's name can."""
    return text in (".", "..") or text.startswith(("/", "./", "../", "~/"))


def of_path(path: Path) -> Reference:
    """The name in the store of what comes from a path: local/NAME-HASH."""
    full = path.expanduser().absolute()
    plain = re.sub(r"[^a-z0-9]+", "-", full.name.lower()).strip("-")[:40].strip("-") or "root"
    return Reference("", f"local/{plain}-{hashlib.sha256(str(full).encode()).hexdigest()[:12]}", "latest")


def stored(text: str) -> Reference:
    """The name under which the store keeps what a name or a path means; raises UsageError."""
    return of_path(Path(text)) if is_path(text) else parse(text)


def remote(text: str) -> Reference:
    """A name that a registry can be asked for; raises UsageError, also for a path."""
    if is_path(text) or text.startswith("sha256:"):
        raise UsageError(f"{_shown(text)} is no name at a registry", hint="as in localhost:5000/class/web:1")
    return parse(text)


def parse(text: str) -> Reference:
    """Read a name as Docker does (distribution's reference grammar); raises UsageError."""
    rest, _, digest = text.partition("@")
    if "@" in text and not is_digest(digest):
        raise UsageError(
            f"image name {_shown(text)} has a bad digest",
            hint="it reads sha256: and 64 hex digits, or sha512: and 128",
        )
    host = ""
    first, slash, more = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.startswith("[")):
        host, rest = first, more
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, ""
    if host in (DOCKER_HUB, "index.docker.io"):
        host, path = "", path.removeprefix("library/")
    if host and not _HOST.fullmatch(host):
        raise UsageError(f"image name {_shown(text)} has a bad registry host")
    if len(path) > 255 or not path or not all(_PART.fullmatch(part) for part in path.split("/")):
        raise UsageError(
            f"{_shown(text)} is no image name",
            hint="lower-case letters, digits and . _ - between, as in micro or localhost:5000/class/web:1",
        )
    if colon and "/" not in text.rpartition(":")[2] and not _TAG.fullmatch(tag):
        raise UsageError(f"image name {_shown(text)} has a bad tag")
    return Reference(host, path, tag or ("" if digest else "latest"), digest)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
