"""A Containerfile (Dockerfile) → its instructions, as the Dockerfile reference describes the format.

Lines, continuations, comments, parser directives, here-documents and flags; what an instruction means is
the business of `build`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field

from labctl.errors import UsageError, Where
from labctl.image.expand import BadWord, split
from labctl.records import dataclass

KNOWN = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})
_WITH_FLAGS = {
    "FROM": {"platform"},
    "COPY": {"from", "chown", "chmod", "link"},
    "ADD": {"chown", "chmod", "checksum", "link"},
    "RUN": {"network", "mount", "security"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
}
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*$")
# Behind a word's beginning: "1<<2" in a shell's arithmetic and what stands in quotes are no here-documents.
_HEREDOC = re.compile(r"\d*<<(-?)(?:'([^'\s]+)'|\"([^\"\s]+)\"|([A-Za-z0-9_.-]+))")
#: What Docker's classic builder takes without anything behind it.
_MAY_BE_BARE = frozenset({"CMD", "ENTRYPOINT"})


@dataclass(frozen=True)
class Heredoc:
    """A here-document: `expand` unless its word was quoted."""

    name: str
    text: str
    expand: bool
    strip: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction: `rest` is the text behind name and flags, `words` is set for the JSON form."""

    name: str
    rest: str
    line: int
    file: str
    flags: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] | None = None
    heredocs: tuple[Heredoc, ...] = ()
    escape: str = "\\"

    @property
    def where(self) -> Where:
        """The place to name in an error."""
        return Where(self.file, self.line)

    def wrong(self, message: str, hint: str = "") -> UsageError:
        """The error for this instruction."""
        return UsageError(f"{self.name}: {message}", hint=hint, where=self.where)

    @property
    def text(self) -> str:
        """As one line, for history and messages."""
        flags = "".join(
            f"--{key}={value} " if value else f"--{key} "
            for key, values in self.flags.items()
            for value in values.split("\n")
        )
        return f"{self.name} {flags}{self.rest}".strip()


def parse(text: str, file: str) -> list[Instruction]:
    """Read a Containerfile; raises UsageError with file and line."""
    # Not splitlines(): a form feed or a line separator of Unicode ends no line of a Containerfile.
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    escape, start = _directives(lines, file)
    found: list[Instruction] = []
    at = start
    while at < len(lines):
        stripped = lines[at].strip()
        if not stripped or stripped.startswith("#"):
            at += 1
            continue
        number = at + 1
        logical, at = _logical(lines, at, escape)
        if not logical.strip():
            continue
        name = logical.split(None, 1)[0].upper()
        heredocs: tuple[Heredoc, ...] = ()
        if name in _WITH_HEREDOCS and "<<" in logical and not _is_json(logical):
            heredocs, at = _heredocs(lines, at, logical, file, number, escape)
        found.append(instruction(logical, number, file, escape, heredocs))
    if not found:
        raise UsageError("there is no instruction in it", where=Where(file))
    return found


def instruction(
    logical: str, line: int, file: str, escape: str = "\\", heredocs: tuple[Heredoc, ...] = ()
) -> Instruction:
    """One logical line as an instruction; raises UsageError."""
    word, _, rest = logical.strip().partition(" ") if " " in logical.strip() else (logical.strip(), "", "")
    match = re.match(r"(\S+)\s*(.*)$", logical.strip(), re.DOTALL)
    if match:
        word, rest = match[1], match[2]
    name = word.upper()
    where = Where(file, line)
    if name not in KNOWN:
        raise UsageError(f"unknown instruction {word[:40]}", where=where, hint=_near(name))
    rest, flags = _flags(name, rest, where)
    if not rest and name not in _MAY_BE_BARE:
        raise UsageError(f"{name} needs something behind it", where=where)
    return Instruction(name, rest, line, file, flags, _json_words(name, rest, where), heredocs, escape)


def _near(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, KNOWN, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _directives(lines: list[str], file: str) -> tuple[str, int]:
    """The escape character and the first line behind the parser directives."""
    escape, at = "\\", 0
    for at, line in enumerate(lines):
        match = _DIRECTIVE.match(line.strip())
        if not match or match[1].lower() not in ("escape", "syntax", "check"):
            break
        if match[1].lower() == "escape":
            if match[2] not in ("\\", "`"):
                raise UsageError(f"escape must be \\ or `, not {match[2]}", where=Where(file, at + 1))
            escape = match[2]
    return escape, at


def _logical(lines: list[str], at: int, escape: str) -> tuple[str, int]:
    """The line that starts at index `at`, with what it goes on to; comments and empty lines between go."""
    parts: list[str] = []
    goes_on = re.compile(re.escape(escape) + r"[ \t]*$")
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        match = goes_on.search(line)
        if not match:
            parts.append(line)
            break
        parts.append(line[: match.start()])
    return "".join(parts).strip() if len(parts) > 1 else parts[0].strip(), at


def _heredocs(
    lines: list[str], at: int, logical: str, file: str, number: int, escape: str
) -> tuple[tuple[Heredoc, ...], int]:
    found = []
    for match in _heredoc_words(logical, escape):
        word = match[2] or match[3] or match[4]
        strip = bool(match[1])
        body = []
        while True:
            if at >= len(lines):
                raise UsageError(f"here-document {word} does not end", where=Where(file, number))
            line = lines[at].lstrip("\t") if strip else lines[at]
            at += 1
            if line == word:
                break
            body.append(line + "\n")
        found.append(Heredoc(word, "".join(body), expand=bool(match[4]), strip=strip))
    return tuple(found), at


def _heredoc_words(logical: str, escape: str) -> list[re.Match[str]]:
    try:
        words = split(logical, escape)
    except BadWord:
        return []  # an open quote: the shell's business
    return [match for word in words if (match := _HEREDOC.match(word))]


def _flags(name: str, rest: str, where: Where) -> tuple[str, dict[str, str]]:
    flags: dict[str, str] = {}
    known = _WITH_FLAGS.get(name, set())
    while known and (match := _FLAG.match(rest)):
        rest = rest[match.end() :]
        if match[0].strip() == "--":
            break
        flag, value = match[1], None if match[2] is None else _unquoted(match[2])
        if flag not in known:
            hint = f"known here: {', '.join('--' + flag for flag in sorted(known))}"
            raise UsageError(f"{name} knows no flag --{flag}", where=where, hint=hint)
        if flag in flags and flag != "mount":
            raise UsageError(f"{name} has --{flag} twice", where=where)
        if value is None and flag != "link":
            raise UsageError(f"{name} --{flag} needs a value", where=where)
        # --mount may come again and again; its values are kept a line each.
        flags[flag] = f"{flags[flag]}\n{value}" if flag in flags else value or ""
    return rest, flags


# "--" alone ends the flags; quotes in a value may hold white space.
_FLAG = re.compile(r"""--(?:([A-Za-z-]+)(?:=((?:[^\s'"]|'[^']*'|"[^"]*")*))?)?(?:\s+|$)""")


def _unquoted(text: str) -> str:
    return re.sub(r"""'([^']*)'|"([^"]*)\"""", lambda match: match[1] or match[2] or "", text)


def _is_json(logical: str) -> bool:
    return bool(re.match(r"\S+\s+(--\S+\s+)*\[", logical.strip())) and logical.strip().endswith("]")


def _json_words(name: str, rest: str, where: Where) -> tuple[str, ...] | None:
    """The words when the text is a JSON list; what is no JSON is the shell form (as Docker has it)."""
    if not rest.startswith("["):
        return None
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    if not isinstance(words, list):
        return None
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"{name}: the words of the JSON form must be in double quotes", where=where)
    # Half of a pair of surrogates ("\\ud800") is no character, and becomes what Go's JSON makes of it.
    return tuple(word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in words)
