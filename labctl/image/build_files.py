"""COPY and ADD: what they mean; the copying itself is done by `build_child`."""

from __future__ import annotations

import email.utils
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import LabError
from labctl.image.beneath import Beneath
from labctl.image.build_cache import content, key_of
from labctl.image.build_child import Refused, matches
from labctl.image.build_state import Stage
from labctl.image.containerfile import Instruction
from labctl.image.expand import BadWord, expand_raw
from labctl.image.ignore import Ignore
from labctl.image.model import BadImage

if TYPE_CHECKING:
    from labctl.image.build import _Builder

_TAR_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
DOWNLOAD_SECONDS = 60.0
MAX_DOWNLOAD = 16 << 30


class Files:
    """Where a build's files come from: its folder without what is ignored, stages, images, the network."""

    def __init__(self, builder: _Builder, context: Path, ignore: Ignore) -> None:
        self.builder, self.context, self.ignore = builder, context, ignore

    def copy(self, stage: Stage, step: Instruction) -> None:
        """Carry out COPY or ADD as one layer."""
        sources, target, documents = self._words(stage, step)
        base = stage.config.working_dir or "/"
        full = os.path.normpath(os.path.join(base, target))  # noqa: PTH118
        if (target.endswith(("/", "/.")) or target == ".") and full != "/":
            full += "/"
        words: dict[str, Any] = {
            "do": "copy",
            "target": full,
            "chown": stage.word(step, step.flags.get("chown", "")),
            "mode": self._mode(stage, step),
            "ignore": [],
            "keep_owner": False,
            "as_folder": len(sources) + len(documents) > 1 and full.endswith("/"),
        }
        if len(sources) + len(documents) > 1 and not full.endswith("/"):
            raise step.wrong(f"several files go to {target}, so it must end with a /")
        jobs, marks = self._jobs(stage, step, sources, words)
        key = key_of(stage.key, step.name, words, marks, [vars(document) for document in documents])

        def work(upper: Path) -> None:
            for job in jobs:
                self.builder.child(stage, step, upper, job)
            if documents:
                aside = upper.parent / "documents"
                aside.mkdir()
                for name, text in ((one.name, one.text) for one in documents):
                    (aside / name).write_text(self._text(stage, step, name, text, documents))
                    (aside / name).chmod(0o644)
                names = [document.name for document in documents]
                job = {**words, "sources": names, "from_root": str(aside)}
                self.builder.child(stage, step, upper, job)

        self.builder.layer(stage, step, key, work)

    def _text(self, stage: Stage, step: Instruction, name: str, text: str, documents: Any) -> str:
        wanted = next(document for document in documents if document.name == name)
        try:
            return expand_raw(text, stage.values, step.escape) if wanted.expand else text
        except BadWord as error:
            raise step.wrong(str(error)) from None

    def _words(self, stage: Stage, step: Instruction) -> tuple[list[str], str, tuple[Any, ...]]:
        words = stage.words(step)
        documents = step.heredocs
        if documents:
            words = [word for word in words if not re.match(r"<<-?", word)]
        if len(words) + len(documents) < 2 or not words:
            raise step.wrong("needs at least one source and a destination")
        return words[:-1], words[-1], documents

    def _mode(self, stage: Stage, step: Instruction) -> int | None:
        text = stage.word(step, step.flags.get("chmod", ""))
        if not text:
            return None
        if not re.fullmatch(r"[0-7]{3,4}", text):
            raise step.wrong(f"--chmod={text} is no octal mode")
        return int(text, 8)

    def _jobs(
        self, stage: Stage, step: Instruction, sources: list[str], words: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """What to do, and what decides its result."""
        if "from" in step.flags:
            layers, key = self.other(stage, step, step.flags["from"])
            unpacked = [str(path) for path in self.builder.store.layers.stack(layers)]
            # In an image, ".." of its root is the root.
            inside = [os.path.normpath(f"/{source}") for source in sources]
            job = {**words, "sources": inside, "from_layers": unpacked, "keep_owner": True}
            return [job] if sources else [], [key, inside]
        jobs: list[dict[str, Any]] = []
        marks: list[Any] = []
        plain: list[str] = []
        for source in sources:
            if step.name == "ADD" and re.match(r"(git@|git://|ssh://|https?://\S+\.git(#|$))", source):
                raise step.wrong(f"{source}: git repositories are not fetched", "clone it, then COPY")
            if step.name == "ADD" and re.match(r"https?://", source):
                job, mark = self._download(stage, step, source, words)
                jobs.append(job)
                marks.append(mark)
                continue
            # The kernel would look behind links for "..", the reference takes it away first.
            name = os.path.normpath(source.lstrip("/") or ".")
            found = self.found(step, [name]) if step.name == "ADD" else []
            archives = [path for path in found if self._is_archive(path)]
            for path in archives:
                archive = str(self.context / path)
                jobs.append({"do": "extract", "target": words["target"], "archive": archive})
                marks.append(content(self.context, [path], Ignore([])))
            plain += [path for path in found if path not in archives] if archives else [name]
        if plain:
            rules = self.ignore.lines
            jobs.append({**words, "sources": plain, "from_root": str(self.context), "ignore": rules})
            marks.append([plain, content(self.context, self.found(step, plain), self.ignore)])
        return jobs, marks

    def found(self, step: Instruction, sources: list[str]) -> list[str]:
        """The paths in the build's folder that the sources mean; raises UsageError."""
        try:
            with Beneath(self.context) as root:
                return [path for source in sources for path in matches(root, source, self.ignore)]
        except (Refused, BadImage) as error:
            raise step.wrong(str(error), f"the build's folder is {self.context}") from None
        except OSError as error:
            raise step.wrong(f"cannot read {self.context}: {error.strerror}") from None

    def _is_archive(self, name: str) -> bool:
        """Whether a file of the build's folder is a tar, packed or not, told by its content."""
        path = self.context / name
        if not path.is_file() or path.is_symlink():
            return False
        with path.open("rb") as file:
            head = file.read(512)
        return head[257:262] == b"ustar" or (head.startswith(_TAR_MAGIC) and _is_packed_tar(path))

    def other(self, stage: Stage, step: Instruction, text: str) -> tuple[list[Any], str]:
        """The layers of the stage or image of that name, and a key of what is in them."""
        name = stage.word(step, text)
        other = self.builder.find_stage(name, stage.text.index)
        if other is not None:
            built = self.builder.stage(other)
            return built.layers, built.key
        if name.isdigit() or name.lower() == stage.text.name:
            raise step.wrong(f"there is no earlier stage {name}")
        return self.builder.image_layers(name, step)

    def _download(
        self, stage: Stage, step: Instruction, url: str, words: dict[str, Any]
    ) -> tuple[dict[str, Any], Any]:
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
        if words["target"].endswith("/") and not name:
            raise step.wrong(f"{url} has no file name, so the destination needs one")
        store = self.builder.store
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as answer:
                blob = store.blobs.put(_body(answer), digest=step.flags.get("checksum", ""))
                changed = _seconds(answer.headers.get("Last-Modified", ""))
        except BadImage as error:
            raise step.wrong(f"{url} is not what --checksum says: {error.message}") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise LabError(f"ADD: cannot download {url}: {error}", where=step.where) from error
        mode = 0o600 if words["mode"] is None else words["mode"]
        target = words["target"] + name if words["target"].endswith("/") else words["target"]
        path = store.blobs.path(blob.digest)
        job = {
            **words,
            "mode": mode,
            "target": target,
            "sources": [path.name],
            "from_root": str(path.parent),
            "as_folder": False,
            "time": changed,
        }
        return job, [blob.digest, changed]


def _body(answer: Any) -> Iterator[bytes]:
    """All of an answer.  Raises IncompleteRead when it ends early, which read(size) keeps to itself."""
    while chunk := answer.read(1 << 20):
        yield chunk
    if left := getattr(answer, "length", None):
        raise http.client.IncompleteRead(b"", left)


def _seconds(date: str) -> int | None:
    """When a file at a URL changed, in seconds since 1970; None when the server does not say."""
    try:
        return int(email.utils.parsedate_to_datetime(date).timestamp())
    except (TypeError, ValueError):
        return None


def _is_packed_tar(path: Path) -> bool:
    from labctl.errors import HostCannot
    from labctl.image.streams import plain

    try:
        with path.open("rb") as file, plain(file) as chunks:
            head = b""
            for chunk in chunks:
                head += chunk
                if len(head) >= 512:
                    break
            return head[257:262] == b"ustar"
    except (BadImage, HostCannot):
        return False
