"""Cloud images: downloads that go on where they broke off, are checked against a list, and are kept."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from labctl.data import data
from labctl.errors import HostCannot, LabError, UsageError, Where
from labctl.events import Emit, Note, Progress, silent
from labctl.image.locks import locked
from labctl.image.model import BadImage
from labctl.records import dataclass

TRIES = 5
SECONDS = 30.0  # without a byte
_SUMS_BYTES = 4 << 20
_CHUNK = 1 << 20
_KINDS = {32: "md5", 40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}
_LOST = (ConnectionError, TimeoutError, http.client.HTTPException)


@dataclass(frozen=True)
class CloudImage:
    """A disk in the net.  `sums` is the URL of the checksums; `digest` KIND:HEX, where it is known."""

    name: str
    url: str
    sums: str = ""
    arch: str = ""
    about: str = ""
    digest: str = ""

    @property
    def file(self) -> str:
        """The name of its file."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])


def catalog() -> dict[str, CloudImage]:
    """The images of images/catalog.yaml, by name.  Raises UsageError when it is malformed."""
    import yaml

    path = data("images", "catalog.yaml")
    try:
        document = yaml.safe_load(path.read_text())
        return {name: CloudImage(name=name, **fields) for name, fields in document.items()}
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UsageError(f"unusable catalog: {error}", where=Where(str(path))) from error


def named(text: str, *, sums: str = "", digest: str = "") -> CloudImage:
    """What a person means: a name of the catalog, or a URL with its checksums.  Raises UsageError."""
    if digest and not (
        (match := re.fullmatch(r"(sha256|sha512):([0-9a-fA-F]+)", digest))
        and _KINDS.get(len(match[2])) == match[1]
    ):
        raise UsageError(f"{digest} is no checksum", hint="as in sha256:… or sha512:…")
    if "://" in text:
        if not re.match(r"https?://[^/]+/.*[^/]$", text):
            raise UsageError(f"{text} is no URL of a file")
        if not sums and not digest:
            raise UsageError(f"{text}: what must it be?", hint="--sums URL of a checksum list, or --checksum")
        return CloudImage("", text, sums, digest=digest.lower())
    known = catalog()
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}; or a URL"
        raise UsageError(f"the catalog has no cloud image {text}", hint=hint)
    return known[text]


def fetch(cache: Path, image: CloudImage, emit: Emit = silent) -> Path:
    """The disk in the cache, downloaded where it isn't there as the checksums have it now.

    Without a network, one that was downloaded before is good.  Raises HostCannot when the server can't be
    reached, BadImage when what it sends is not what the list says, LabError.
    """
    key = hashlib.sha256(image.url.encode()).hexdigest()[:12]
    folder = cache / "cloud" / key
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", timeout=3600, what=f"the download of {image.file}"):
        kept = folder / image.file
        noted = folder / ".digest"
        try:
            wanted = image.digest or _listed(image)
        except HostCannot as error:
            if kept.exists():
                emit(Note("", f"{error.message}; the {image.file} of the cache is used", "warning"))
                return kept
            raise
        if kept.exists() and noted.exists() and noted.read_text() == wanted:
            return kept
        part = folder / f".{wanted.partition(':')[2][:24]}.part"
        for old in folder.glob(".*.part"):
            if old != part:
                old.unlink()
        _download(image, part, emit)
        found = _digest(part, wanted.partition(":")[0])
        if found != wanted:
            part.unlink()
            raise BadImage(
                f"{image.url} is not what its checksums say: {found}",
                hint="try again; if it stays so, the mirror's copy is damaged or being changed",
            )
        noted.unlink(missing_ok=True)
        part.replace(kept)
        noted.write_text(wanted)
        return kept


def kept(cache: Path, image: CloudImage) -> Path | None:
    """The disk as it was downloaded last, without asking the network; None when it wasn't."""
    path = cache / "cloud" / hashlib.sha256(image.url.encode()).hexdigest()[:12] / image.file
    return path if path.exists() else None


def _listed(image: CloudImage) -> str:
    text = _small(image.sums)
    lone = re.fullmatch(r"\s*([0-9a-fA-F]{32,128})\s*", text)
    digest = lone[1] if lone else ""
    for line in text.splitlines():
        if match := re.fullmatch(r"([0-9a-fA-F]{40,128})\s+[*]?(?:\./)?(.+)", line.strip()):
            digest = match[1] if match[2] == image.file else digest
        elif (match := re.fullmatch(r"SHA\d+ \((.+)\) = ([0-9a-fA-F]+)", line.strip())) and match[
            1
        ] == image.file:
            digest = match[2]
    kind = _KINDS.get(len(digest), "")
    if kind not in ("sha256", "sha512"):
        raise BadImage(f"{image.sums} has no SHA-256 or SHA-512 of {image.file}")
    return f"{kind}:{digest.lower()}"


def _small(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            blob = answer.read(_SUMS_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise _refused(url, error) from error
    except (*_LOST, urllib.error.URLError, OSError) as error:
        raise _unreached(url, error) from error
    if len(blob) > _SUMS_BYTES:
        raise BadImage(f"{url} is no list of checksums: it has more than {_SUMS_BYTES} bytes")
    return str(blob.decode(errors="replace"))


def _download(image: CloudImage, part: Path, emit: Emit) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(image, part, before, emit)
            return
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and before:
                    return  # all of it was there; the digest decides
                if error.code not in (408, 429, 500, 502, 503, 504):
                    raise _refused(image.url, error) from error
            failures += 1
            last: Any = error
        except (*_LOST, urllib.error.URLError) as error:
            there = part.stat().st_size if part.exists() else 0
            failures = 1 if there > before else failures + 1
            last = error
        if failures >= TRIES:
            raise _unreached(image.url, last)
        time.sleep(min(0.2 * 3**failures, 10))


def _receive(image: CloudImage, part: Path, start: int, emit: Emit) -> None:
    headers = {"User-Agent": "labctl", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(image.url, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer, part.open("ab") as out:
        if start and answer.status != 206:
            out.truncate(0)
            start = 0
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else 0
        done, told = start, 0.0
        while chunk := answer.read(_CHUNK):
            try:
                out.write(chunk)
            except OSError as error:
                raise LabError(f"cannot write {part}: {error.strerror}") from error
            done += len(chunk)
            if time.monotonic() - told > 0.2 or done == total:
                told = time.monotonic()
                emit(Progress("", f"download {image.file}", done, total))
        if total and done < total:
            raise ConnectionError("the connection was closed early")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def _refused(url: str, error: urllib.error.HTTPError) -> LabError:
    return LabError(f"{url}: {error.code} {error.reason}", hint="the file may have moved: name its URL")


def _unreached(url: str, error: object) -> HostCannot:
    host = urllib.parse.urlsplit(url).netloc
    return HostCannot(
        f"cannot reach {host}: {getattr(error, 'reason', error)}",
        hint="check the network and proxies (HTTPS_PROXY); what is in the cache works without",
    )
