"""Who we are at a registry: the files that docker and podman keep, credential helpers, bearer tokens."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labctl.records import dataclass

HELPER_SECONDS = 30.0


@dataclass(frozen=True)
class Credentials:
    """Name and password, or (with an empty name) an identity token for OAuth2."""

    user: str
    secret: str

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


@dataclass(frozen=True)
class Challenge:
    """What a 401 asks for: `scheme` basic or bearer, with its parameters (RFC 7235)."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> list[Challenge]:
    """Read WWW-Authenticate."""
    found = []
    for match in re.finditer(
        r"(Basic|Bearer)\s+((?:[A-Za-z_-]+=(?:\"[^\"]*\"|[^\s,]+)\s*,?\s*)*)", header, re.I
    ):
        pairs = re.findall(r"([A-Za-z_-]+)=(?:\"([^\"]*)\"|([^\s,]+))", match[2])
        found.append(
            Challenge(match[1].lower(), {key.lower(): quoted or plain for key, quoted, plain in pairs})
        )
    return found


def credentials(registry: str, environ: Mapping[str, str] | None = None) -> Credentials | None:
    """What the files of docker and podman say about a registry; None when nothing does."""
    env = os.environ if environ is None else environ
    for document in _documents(env):
        helpers = document.get("credHelpers")
        helper = helpers.get(registry) if isinstance(helpers, dict) else None
        if found := _stored(document, registry):
            return found
        helper = helper or document.get("credsStore")
        if isinstance(helper, str) and (asked := _ask(helper, registry)):
            return asked
    return None


def _documents(env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    home = Path(env.get("HOME") or "~").expanduser()
    docker = Path(env.get("DOCKER_CONFIG") or home / ".docker")
    places = [docker / "config.json", home / ".config/containers/auth.json"]
    if runtime := env.get("XDG_RUNTIME_DIR"):
        places.insert(0, Path(runtime) / "containers/auth.json")
    if given := env.get("REGISTRY_AUTH_FILE"):
        places.insert(0, Path(given))
    for path in places:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(document, dict):
            yield document


def _stored(document: Mapping[str, Any], registry: str) -> Credentials | None:
    auths = document.get("auths")
    if not isinstance(auths, dict):
        return None
    for key, entry in auths.items():
        host = re.sub(r"^https?://", "", str(key)).split("/")[0]
        same = host == registry or (
            registry == "docker.io" and host in ("index.docker.io", "registry-1.docker.io")
        )
        if not same or not isinstance(entry, dict):
            continue
        if token := entry.get("identitytoken"):
            return Credentials("", str(token))
        try:
            user, colon, secret = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
        except ValueError:
            continue
        if colon:
            return Credentials(user, secret.rstrip("\0"))
    return None


def _ask(helper: str, registry: str) -> Credentials | None:
    """docker-credential-NAME get (docker-credential-helpers' protocol)."""
    program = shutil.which(f"docker-credential-{helper}")
    if program is None or not re.fullmatch(r"[\w.-]+", helper):
        return None
    where = "https://index.docker.io/v1/" if registry == "docker.io" else registry
    try:
        done = subprocess.run(
            [program, "get"], input=where, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    user, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    if not secret:
        return None
    return Credentials("" if user == "<token>" else user, secret)
