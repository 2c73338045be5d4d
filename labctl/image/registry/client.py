"""The HTTP side of a registry: one method a call of the distribution specification.

Retries with back-off what may go well later (lost connections, 429, 5xx); follows a bounded number of
redirects and keeps its Authorization from other hosts; asks for a token at most once a request.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from labctl.errors import LabError
from labctl.image.blobs import MAX_DOCUMENT, parse_json
from labctl.image.model import INDEX, INDEXES, MANIFEST, MANIFESTS, BadImage
from labctl.image.registry.auth import Challenge, challenges, credentials

ACCEPT = ", ".join([INDEX, MANIFEST, *sorted(INDEXES - {INDEX}), *sorted(MANIFESTS - {MANIFEST})])
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5
LONGEST_PAUSE = 20.0
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LOST = (ConnectionError, TimeoutError, http.client.HTTPException, socket.timeout)


class RegistryError(LabError):
    """A registry refused, or could not be reached.  `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True)
class Fetched:
    """A manifest or index as the registry has it."""

    data: bytes
    media_type: str
    digest: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Redirects are followed by hand: their number and what they may carry are ours to say."""


class Client:
    """One registry.  Safe for use by several threads."""

    def __init__(self, registry: str, *, insecure: bool = False) -> None:
        self.registry = registry
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        scheme = "http" if insecure or is_loopback(registry) else "https"
        self.base = f"{scheme}://{host}"
        self._credentials = credentials(registry)
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()
        handlers: list[Any] = [_NoRedirect()]
        if scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=_tls(registry)))
        if is_loopback(registry):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    # -- what can be asked ------------------------------------------------------------------------

    def manifest(self, repository: str, wanted: str) -> Fetched:
        """The manifest or index of a tag or digest, checked by digest.  Raises RegistryError, BadImage."""
        with self.call(
            "GET", f"/v2/{repository}/manifests/{wanted}", repository, headers={"Accept": ACCEPT}
        ) as answer:
            data = _read(answer)
            media = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            claimed = answer.headers.get("Docker-Content-Digest", "")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for said in (wanted if wanted.startswith("sha256:") else "", claimed):
            if said.startswith("sha256:") and said != digest:
                raise BadImage(f"{self.registry} sent {digest} for {repository}@{said}")
        document = parse_json(data, f"the manifest of {repository}")
        if isinstance(document, dict) and isinstance(document.get("mediaType"), str):
            media = document["mediaType"]
        return Fetched(data, media, digest)

    def blob(self, repository: str, digest: str, start: int = 0) -> Any:
        """An open answer with the blob from byte `start` on (status 206), or all of it (200)."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self.call("GET", f"/v2/{repository}/blobs/{digest}", repository, headers=headers)

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the registry has it in that repository."""
        try:
            self.call("HEAD", f"/v2/{repository}/blobs/{digest}", repository, push=True).close()
        except RegistryError as error:
            if error.status == 404:
                return False
            raise
        return True

    def start_upload(self, repository: str, mount: str = "", source: str = "") -> str:
        """Begin an upload; returns its URL, or "" when the blob was mounted from the repository `source`."""
        query = f"?mount={mount}&from={urllib.parse.quote(source, safe='')}" if mount and source else ""
        path = f"/v2/{repository}/blobs/uploads/{query}"
        with self.call("POST", path, repository, data=b"", push=True, also=source) as answer:
            if answer.status == 201:
                return ""
            return self._location(answer)

    def upload(self, repository: str, url: str, data: bytes, start: int) -> str:
        """Send one piece; returns the URL for the next."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + len(data) - 1}",
        }
        with self.call("PATCH", url, repository, data=data, headers=headers, push=True, tries=1) as answer:
            return self._location(answer)

    def upload_offset(self, repository: str, url: str) -> tuple[str, int]:
        """Where an interrupted upload stands: (URL to go on with, bytes received)."""
        with self.call("GET", url, repository, push=True) as answer:
            last = answer.headers.get("Range", "").rpartition("-")[2]
            return self._location(answer) or url, int(last) + 1 if last.isdigit() and int(last) else 0

    def finish_upload(self, repository: str, url: str, digest: str) -> None:
        """Close an upload; the registry checks the digest."""
        query = "&" if "?" in url else "?"
        whole = f"{url}{query}digest={urllib.parse.quote(digest, safe='')}"
        self.call("PUT", whole, repository, data=b"", push=True).close()

    def put_manifest(self, repository: str, wanted: str, data: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest."""
        headers = {"Content-Type": media_type}
        self.call(
            "PUT", f"/v2/{repository}/manifests/{wanted}", repository, data=data, headers=headers, push=True
        ).close()

    def tags(self, repository: str) -> list[str]:
        """All tags, also from a registry that gives them in pages (Link header)."""
        found: list[str] = []
        path = f"/v2/{repository}/tags/list"
        for _ in range(1000):
            with self.call("GET", path, repository) as answer:
                document = parse_json(_read(answer), "the list of tags")
                link = answer.headers.get("Link", "")
            found += [str(tag) for tag in document.get("tags") or []] if isinstance(document, dict) else []
            if 'rel="next"' not in link or "<" not in link:
                break
            path = urllib.parse.urljoin(self.base + path, link[link.find("<") + 1 : link.find(">")])
        return sorted(set(found))

    def delete(self, repository: str, digest: str) -> None:
        """Delete a manifest."""
        self.call(
            "DELETE", f"/v2/{repository}/manifests/{digest}", repository, push=True, scope="delete"
        ).close()

    # -- one request ------------------------------------------------------------------------------

    def call(
        self, method: str, path: str, repository: str, *, data: bytes | None = None,
        headers: Mapping[str, str] | None = None, push: bool = False, also: str = "", scope: str = "",
        tries: int = TRIES,
    ) -> Any:  # fmt: skip
        """Send it until there is an answer; returns that, open.  Raises RegistryError for 4xx and 5xx."""
        url = path if "://" in path else self.base + path
        rights = f"repository:{repository}:{scope or ('pull,push' if push else 'pull')}"
        if also:
            rights += f" repository:{also}:pull"
        pause = 0.2
        for left in reversed(range(tries)):
            try:
                return self._once(method, url, rights, data, dict(headers or {}))
            except RegistryError as error:
                wait = getattr(error, "wait", 0.0)
                if not left or error.status not in _AGAIN | {0} or wait > LONGEST_PAUSE:
                    raise
                time.sleep(max(pause, wait))
                pause = min(pause * 3, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _once(self, method: str, url: str, rights: str, data: bytes | None, headers: dict[str, str]) -> Any:
        asked = False
        hops = 0
        own = urllib.parse.urlsplit(self.base).netloc
        while True:
            request = urllib.request.Request(
                url, data=data, headers={**headers, "User-Agent": "labctl"}, method=method
            )
            token = self._tokens.get(rights, "")
            if token and urllib.parse.urlsplit(url).netloc == own:
                request.add_unredirected_header("Authorization", token)
            try:
                return self._opener.open(request, timeout=TIMEOUT)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in (301, 302, 303, 307, 308) and hops < 8:
                        hops += 1
                        url = self._redirected(url, error.headers.get("Location", ""))
                        continue
                    if error.code == 401 and not asked and urllib.parse.urlsplit(url).netloc == own:
                        asked = True
                        if self._authorize(error.headers.get_all("WWW-Authenticate") or [], rights):
                            continue
                    raise self._refused(method, url, error) from None
            except (*_LOST, urllib.error.URLError, OSError) as error:
                reason = getattr(error, "reason", error)
                raise RegistryError(
                    f"cannot reach {self.registry}: {reason}",
                    hint="check the name, the network and proxies; --insecure for a registry without TLS",
                ) from error

    def _redirected(self, url: str, location: str) -> str:
        target = urllib.parse.urljoin(url, location)
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or (self.base.startswith("https:") and scheme == "http"):
            raise RegistryError(f"{self.registry} leads from {url} to {target}, which is not safe to follow")
        return target

    def _location(self, answer: Any) -> str:
        location = answer.headers.get("Location", "")
        return urllib.parse.urljoin(answer.url, location) if location else ""

    def _refused(self, method: str, url: str, error: urllib.error.HTTPError) -> RegistryError:
        if error.code in (301, 302, 303, 307, 308):
            return RegistryError(f"{self.registry} redirects in circles", status=400)
        try:
            said = json.loads(error.read(65536))["errors"][0]
            words = f"{said.get('code', '')}: {said.get('message', '')}".strip(": ")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, *_LOST):
            words = error.reason
        hint = {
            401: f"log in first: docker login {self.registry}, or write ~/.docker/config.json",
            403: f"your account may not do this at {self.registry}",
            404: "check the name and the tag",
            405: "the registry does not allow it",
            429: "the registry limits requests; wait, or log in",
        }.get(error.code, "")
        path = urllib.parse.urlsplit(url).path
        refused = RegistryError(
            f"{self.registry}: {method} {path}: {error.code} {words}", hint=hint, status=error.code
        )
        after = error.headers.get("Retry-After", "")
        refused.wait = float(after) if after.isdigit() else 0.0  # type: ignore[attr-defined]
        return refused

    # -- who we are -------------------------------------------------------------------------------

    def _authorize(self, headers: list[str], rights: str) -> bool:
        """Get what a 401 asks for; whether it is worth another try."""
        for challenge in [one for header in headers for one in challenges(header)]:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                token = self._token(challenge, rights)
            elif challenge.scheme == "basic" and self._credentials:
                token = self._credentials.basic
            else:
                continue
            with self._lock:
                self._tokens[rights] = token
            return True
        return False

    def _token(self, challenge: Challenge, rights: str) -> str:
        """A token from the realm (distribution's token specification; OAuth2 for an identity token)."""
        realm = challenge.parameters["realm"]
        parts = urllib.parse.urlsplit(realm)
        if parts.scheme != "https" and not (parts.scheme == "http" and self.base.startswith("http:")):
            raise RegistryError(f"{self.registry} wants a token from {realm}, which is not safe to ask")
        fields = [("service", challenge.parameters.get("service", ""))]
        fields += [("scope", scope) for scope in rights.split(" ")]
        headers = {"User-Agent": "labctl"}
        who = self._credentials
        if who and not who.user:
            form = [
                *fields,
                ("grant_type", "refresh_token"),
                ("refresh_token", who.secret),
                ("client_id", "labctl"),
            ]
            request = urllib.request.Request(
                realm, data=urllib.parse.urlencode(form).encode(), headers=headers
            )
        else:
            if who:
                headers["Authorization"] = who.basic
            query = urllib.parse.urlencode([field for field in fields if field[1]])
            request = urllib.request.Request(f"{realm}{'&' if parts.query else '?'}{query}", headers=headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                document = parse_json(_read(answer), "the token")
        except urllib.error.HTTPError as error:
            with error:
                raise RegistryError(
                    f"{self.registry} refuses a token: {error.code} {error.reason}",
                    hint=f"log in first: docker login {self.registry}",
                    status=error.code,
                ) from None
        except (*_LOST, urllib.error.URLError, OSError) as error:
            raise RegistryError(f"cannot reach {realm}: {getattr(error, 'reason', error)}") from error
        token = document.get("token") or document.get("access_token") if isinstance(document, dict) else ""
        if not token:
            raise RegistryError(f"{realm} sent no token", status=401)
        return f"Bearer {token}"


def is_loopback(registry: str) -> bool:
    """Whether the registry is on this machine, so that plain HTTP is allowed."""
    host = registry.rpartition(":")[0] if registry.rpartition(":")[2].isdigit() else registry
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(registry: str) -> ssl.SSLContext:
    """The system's certificates, and the registry's own as docker and podman keep it."""
    context = ssl.create_default_context()
    for folder in ("/etc/docker/certs.d", "/etc/containers/certs.d"):
        for path in sorted((Path(folder) / registry).glob("*.crt")):
            context.load_verify_locations(path)
    return context


def _read(answer: IO[bytes]) -> bytes:
    """A document of bounded size."""
    try:
        data = answer.read(MAX_DOCUMENT + 1)
    except (*_LOST, OSError) as error:
        raise RegistryError(f"the connection broke: {error}") from error
    if len(data) > MAX_DOCUMENT:
        raise BadImage(f"the registry sent a document of more than {MAX_DOCUMENT} bytes")
    return data
