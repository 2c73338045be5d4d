"""The HTTP side of a registry: one method a call of the distribution specification.

Retries with back-off what may go well later (lost connections, 429, 5xx); follows a bounded number of
redirects and keeps its Authorization from other hosts; asks for a token at most once a request.  How the
connection is made is the business of `transport`.
"""

from __future__ import annotations

import email.utils
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import IO, Any

from labctl.errors import LabError
from labctl.image.blobs import MAX_DOCUMENT, parse_json
from labctl.image.digests import hashed, is_digest
from labctl.image.model import INDEX, INDEXES, MANIFEST, MANIFESTS, BadImage
from labctl.image.registry.auth import Challenge, challenges, credentials
from labctl.image.registry.transport import LOST, Transport
from labctl.records import dataclass

ACCEPT = ", ".join([INDEX, MANIFEST, *sorted(INDEXES - {INDEX}), *sorted(MANIFESTS - {MANIFEST})])
TRIES = 5
LONGEST_PAUSE = 20.0
CERTIFICATE = 495  # as nginx counts it: no use in trying again
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class RegistryError(LabError):
    """A registry refused, or could not be reached.  `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.wait = 0.0  # seconds that the registry asks to wait before the next try


@dataclass(frozen=True)
class Fetched:
    """A manifest or index as the registry has it."""

    data: bytes
    media_type: str
    digest: str


class Client:
    """One registry.  Safe for use by several threads."""

    def __init__(self, registry: str, *, insecure: bool = False, ca: str = "") -> None:
        self.registry = registry
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        self.transport = Transport(registry, host, insecure=insecure, ca=ca)
        self._credentials = credentials(registry)
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def base(self) -> str:
        """The registry's URL."""
        return self.transport.base

    # -- what can be asked ------------------------------------------------------------------------

    def manifest(self, repository: str, wanted: str) -> Fetched:
        """The manifest or index of a tag or digest, checked by digest.  Raises RegistryError, BadImage."""
        path = f"/v2/{repository}/manifests/{wanted}"
        data, headers = self.document(path, repository, {"Accept": ACCEPT})
        media = headers.get("Content-Type", "").partition(";")[0].strip()
        claimed = headers.get("Docker-Content-Digest", "")
        asked = wanted if is_digest(wanted) else ""
        digest = hashed(data, asked)
        for said in (asked, claimed):
            if is_digest(said) and said != (found := hashed(data, said)):
                raise BadImage(f"{self.registry} sent {found} for {repository}@{said}")
        document = parse_json(data, f"the manifest of {repository}")
        if isinstance(document, dict) and isinstance(document.get("mediaType"), str):
            media = document["mediaType"]
        return Fetched(data, media, digest)

    def document(
        self, path: str, repository: str, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """A small document and the headers of the answer; asked again when the line breaks within."""
        for left in reversed(range(TRIES)):
            with self.call("GET", path, repository, headers=headers) as answer:
                try:
                    return _read(answer), answer.headers
                except RegistryError:
                    if not left:
                        raise
            time.sleep(0.2 * 3 ** (TRIES - 1 - left))
        raise AssertionError("unreachable")

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

    def start_upload(self, repository: str, mount: str = "", source: str = "") -> tuple[str, int]:
        """Begin an upload: its URL, or "" when the blob was mounted from the repository `source`; and the
        least bytes that the registry wants in each piece but the last (0: any).
        """
        query = f"?mount={mount}&from={urllib.parse.quote(source, safe='')}" if mount and source else ""
        path = f"/v2/{repository}/blobs/uploads/{query}"
        try:
            answer = self.call("POST", path, repository, data=b"", push=True, also=source if mount else "")
        except RegistryError as error:
            if not query or error.status not in (400, 401, 403, 404, 405):
                raise
            return self.start_upload(repository)  # we may not take from there: send it
        with answer:
            least = answer.headers.get("OCI-Chunk-Min-Length", "")
            if answer.status == 201:
                return "", 0
            return self._location(answer), int(least) if least.isdigit() else 0

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
            data, headers = self.document(path, repository)
            document = parse_json(data, "the list of tags")
            link = headers.get("Link", "")
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
                if not left or error.status not in _AGAIN | {0} or error.wait > LONGEST_PAUSE:
                    raise
                time.sleep(max(pause, error.wait))
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
            request.remove_header("Content-type") if data == b"" else None
            token = self._tokens.get(rights, "")
            if token and urllib.parse.urlsplit(url).netloc == own:
                request.add_unredirected_header("Authorization", token)
            try:
                answer = self.transport.open(request)
                self.transport.settled = True
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 400 and self.transport.turned_to_tls():
                        own, url = self._moved(url)
                        continue
                    self.transport.settled = True
                    if error.code in (301, 302, 303, 307, 308) and hops < 8:
                        hops += 1
                        url = self._redirected(url, error.headers.get("Location", ""))
                        continue
                    if error.code == 401 and not asked and urllib.parse.urlsplit(url).netloc == own:
                        asked = True
                        if self._authorize(error.headers.get_all("WWW-Authenticate") or [], rights):
                            continue
                    raise self._refused(method, url, error) from None
            except (*LOST, urllib.error.URLError, OSError) as error:
                if self.transport.turned_to_tls():
                    own, url = self._moved(url)
                    continue
                raise self._unreached(error) from error

    def _moved(self, url: str) -> tuple[str, str]:
        """After the change to TLS: the registry's host and port, and the URL there."""
        parts = urllib.parse.urlsplit(self.base)
        return parts.netloc, urllib.parse.urlsplit(url)._replace(scheme=parts.scheme).geturl()

    def _unreached(self, error: BaseException) -> RegistryError:
        reason = getattr(error, "reason", error)
        hint = "check the name, the network and proxies; --insecure for a registry without TLS"
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            folder = f"/etc/docker/certs.d/{self.registry}"
            hint = f"put its authority into {folder}/ca.crt, or name it with --ca FILE"
        status = CERTIFICATE if "CERTIFICATE_VERIFY_FAILED" in str(reason) else 0
        return RegistryError(f"cannot reach {self.registry}: {reason}", hint=hint, status=status)

    def _redirected(self, url: str, location: str) -> str:
        target = urllib.parse.urljoin(url, location)
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or (self.base.startswith("https:") and scheme == "http"):
            raise RegistryError(
                f"{self.registry} leads from {url} to {target}, which is not safe to follow", status=400
            )
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
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, *LOST):
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
        refused.wait = _pause(error.headers.get("Retry-After", ""))
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
            raise RegistryError(
                f"{self.registry} wants a token from {realm}, which is not safe to ask", status=400
            )
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
            with self.transport.open(request) as answer:
                document = parse_json(_read(answer), "the token")
        except urllib.error.HTTPError as error:
            with error:
                raise RegistryError(
                    f"{self.registry} refuses a token: {error.code} {error.reason}",
                    hint=f"log in first: docker login {self.registry}",
                    status=error.code,
                ) from None
        except (*LOST, urllib.error.URLError, OSError) as error:
            raise RegistryError(f"cannot reach {realm}: {getattr(error, 'reason', error)}") from error
        token = document.get("token") or document.get("access_token") if isinstance(document, dict) else ""
        if not token:
            raise RegistryError(f"{realm} sent no token", status=401)
        return f"Bearer {token}"


def _pause(text: str) -> float:
    """Retry-After in seconds: a number, or a date (RFC 9110, 10.2.3)."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _read(answer: IO[bytes]) -> bytes:
    """A document of bounded size."""
    try:
        data = answer.read(MAX_DOCUMENT + 1)
    except (*LOST, OSError) as error:
        raise RegistryError(f"the connection broke: {error}") from error
    if getattr(answer, "length", None) and len(data) <= MAX_DOCUMENT:
        raise RegistryError("the connection broke in the middle of a document")
    if len(data) > MAX_DOCUMENT:
        raise BadImage(f"the registry sent a document of more than {MAX_DOCUMENT} bytes")
    return data
