"""Variables and quotes in a Containerfile, as the Dockerfile reference has them ("Environment replacement").

$name, ${name}, ${name:-word} ${name:+word} ${name:?word} and the same without the colon,
${name#pattern} ${name##pattern} ${name%pattern} ${name%%pattern} ${name/pattern/text} ${name//pattern/text};
single quotes keep everything, the escape character keeps the next one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping


class BadWord(ValueError):
    """A word that can't be read: an open quote, a bad ${…}, or ${name:?word} with no value."""


def expand(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """The text with variables replaced and quotes taken away.  Raises BadWord."""
    return _Expander(text, values, escape).run()


def expand_words(text: str, values: Mapping[str, str], escape: str = "\\") -> list[str]:
    """Split at white space outside of quotes, each word expanded; empty ones are dropped."""
    return [made for word in split(text, escape) if (made := expand(word, values, escape))]


def expand_raw(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """Only variables replaced, quotes kept: for here-documents."""
    return _Expander(text, values, escape, quotes=False).run()


def split(text: str, escape: str = "\\") -> list[str]:
    """Split at white space that is neither quoted nor escaped; quotes stay.  Raises BadWord."""
    words: list[str] = []
    word, quote, at = "", "", 0
    inside = False
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            inside = True
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
            word += char
        elif char in "'\"":
            quote = char
            inside = True
            word += char
        elif char.isspace():
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            inside = True
            word += char
        at += 1
    if quote:
        raise BadWord(f"a {quote} is not closed")
    return [*words, word] if inside else words


class _Expander:
    def __init__(self, text: str, values: Mapping[str, str], escape: str, *, quotes: bool = True) -> None:
        self.text, self.values, self.escape, self.quotes = text, values, escape, quotes
        self.at = 0

    def run(self, stop: str = "") -> str:
        """Up to the end, or to the character `stop`, which is consumed."""
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if stop and char == stop:
                self.at += 1
                return "".join(out)
            if char == "'" and self.quotes:
                out.append(self._single())
            elif char == '"' and self.quotes:
                out.append(self._double())
            elif char == "$":
                out.append(self._dollar())
            elif char == self.escape:
                out.append(self._escaped())
            else:
                out.append(char)
                self.at += 1
        if stop:
            raise BadWord(f"a {stop} is missing")
        return "".join(out)

    def _escaped(self) -> str:
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if not self.quotes and following not in ("$", self.escape):
            return self.escape + following
        return following or self.escape

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise BadWord("a ' is not closed")
        inner = self.text[self.at + 1 : end]
        self.at = end + 1
        return inner

    def _double(self) -> str:
        out: list[str] = []
        self.at += 1
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return "".join(out)
            if char == "$":
                out.append(self._dollar())
            elif char == self.escape:
                following = self.text[self.at + 1 : self.at + 2]
                out.append(following if following in ('"', "$", self.escape) else char + following)
                self.at += 2
            else:
                out.append(char)
                self.at += 1
        raise BadWord('a " is not closed')

    def _dollar(self) -> str:
        self.at += 1
        if self.text[self.at : self.at + 1] == "{":
            return self._braced()
        match = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]").match(self.text, self.at)
        if not match:
            return "$"
        self.at = match.end()
        return self.values.get(match[0], "")

    def _braced(self) -> str:
        match = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*|[0-9]+)").match(self.text, self.at)
        if not match:
            raise BadWord(f"bad ${{…}} at {self.text[self.at - 1 : self.at + 20]!r}")
        name = match[1]
        self.at = match.end()
        value = self.values.get(name)
        way = re.compile(r"\}|:[-+?]|[-+?]|##?|%%?|//?").match(self.text, self.at)
        if not way:
            raise BadWord(f"bad way to use ${{{name}…}}")
        self.at = way.end()
        if way[0] == "}":
            return value or ""
        if way[0] in ("/", "//"):
            pattern = self.run("/")
            return _replaced(value or "", pattern, self.run("}"), way[0] == "//")
        word = self.run("}")
        return _applied(name, value, way[0], word)


def _applied(name: str, value: str | None, way: str, word: str) -> str:
    if way[0] in "#%":
        return _trimmed(value or "", way, word)
    there = bool(value) if way[0] == ":" else value is not None
    kind = way[-1]
    if kind == "-":
        return (value or "") if there else word
    if kind == "+":
        return word if there else ""
    if not there:
        raise BadWord(f"{name}: {word or 'not set'}")
    return value or ""


def _trimmed(value: str, way: str, pattern: str) -> str:
    cuts = range(len(value) + 1)
    longest = len(way) == 2
    if way[0] == "#":
        for cut in reversed(cuts) if longest else cuts:
            if fnmatch.fnmatchcase(value[:cut], pattern):
                return value[cut:]
    else:
        for cut in cuts if longest else reversed(cuts):
            if fnmatch.fnmatchcase(value[cut:], pattern):
                return value[:cut]
    return value


def _replaced(value: str, pattern: str, text: str, everywhere: bool) -> str:
    regex = re.compile(fnmatch.translate(pattern).replace(r"\Z", "").replace(r"\z", ""))
    return regex.sub(lambda _: text, value, count=0 if everywhere else 1)
