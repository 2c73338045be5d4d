"""What of a build's folder is left out: .dockerignore, as the Dockerfile reference describes it.

Patterns as in Go's filepath.Match, and ** for any number of folders; the last one that matches decides,
and one with "!" takes back in.  A pattern that matches a folder matches all in it.
"""

from __future__ import annotations

import re
from pathlib import Path

from labctl.errors import UsageError, Where


class Ignore:
    """The rules of one file; with none, nothing is left out."""

    def __init__(self, lines: list[str], file: str = ".dockerignore") -> None:
        self.lines = list(lines)
        self.rules: list[tuple[bool, re.Pattern[str]]] = []
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix("\ufeff") if number == 1 else raw
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            takes_back = text.startswith("!")
            pattern = _clean(text.removeprefix("!").strip())
            if not pattern:
                continue
            try:
                self.rules.append((takes_back, compiled(pattern)))
            except re.error as error:
                raise UsageError(f"bad pattern {text}: {error}", where=Where(file, number)) from error
        self.takes_back = any(rule[0] for rule in self.rules)

    @classmethod
    def of(cls, context: Path, containerfile: Path) -> Ignore:
        """The rules for a build: CONTAINERFILE.dockerignore first, .containerignore, .dockerignore."""
        beside = containerfile.with_name(containerfile.name + ".dockerignore")
        for path in (beside, context / ".containerignore", context / ".dockerignore"):
            if path.is_file():
                return cls(path.read_text(errors="surrogateescape").splitlines(), str(path))
        return cls([])

    def __call__(self, path: str) -> bool:
        """Whether the path (relative, with slashes) is left out."""
        parts = path.split("/")
        prefixes = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        out = False
        for takes_back, pattern in self.rules:
            if out == takes_back and any(pattern.fullmatch(prefix) for prefix in prefixes):
                out = not takes_back
        return out


def _clean(pattern: str) -> str:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)


_CLASS = re.compile(r"\[(\^?(?:\\.|[^\\])(?:\\.|[^\]\\])*)\]", re.DOTALL)

_ODD = re.compile(r"\\(.)|([\[&|~])", re.DOTALL)


def _escaped(match: re.Match[str]) -> str:
    return re.escape(match[1] or match[2])


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of filepath.Match (with **) as a regular expression."""
    out, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
                out += "(?:.*/)?"
            else:
                out += ".*"
            continue
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            match = _CLASS.match(pattern, at)
            if not match:
                raise re.error("a [ is not closed")
            # As in Go, \ takes the next character for itself; what only Python's classes know means nothing.
            out += f"[{_ODD.sub(_escaped, match[1])}]"
            at = match.end() - 1
        elif char == "\\" and at + 1 < len(pattern):
            at += 1
            out += re.escape(pattern[at])
        else:
            out += re.escape(char)
        at += 1
    return re.compile(out, re.DOTALL)
