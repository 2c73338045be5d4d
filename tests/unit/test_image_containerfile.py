"""The format of a Containerfile, its variables and its ignore file; examples from the Dockerfile reference."""

# ruff: noqa: E501 - tables of scripts and of what they print read better whole

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import UsageError
from labctl.image import refs
from labctl.image.containerfile import parse
from labctl.image.expand import BadWord, expand, expand_words
from labctl.image.ignore import Ignore


def test_lines_comments_continuations() -> None:
    steps = parse(
        '# comment\n\nFROM a AS b\n  # indented\nrun echo one \\\n  # between\n\n   && echo two\nCMD ["x", "y"]\n',
        "F",
    )
    assert [(step.name, step.line) for step in steps] == [("FROM", 3), ("RUN", 5), ("CMD", 9)]
    assert steps[1].rest == "echo one    && echo two"
    assert steps[2].words == ("x", "y")


def test_escape_directive() -> None:
    steps = parse("# escape=`\nFROM x\nCOPY a `\n b c:\\\n", "F")
    assert steps[1].rest == "a  b c:\\" and steps[1].escape == "`"
    assert (
        parse("# comment\n# escape=`\nFROM x\\\n y", "F")[0].escape == "\\"
    )  # too late: a comment came first


def test_heredocs() -> None:
    text = (
        "FROM x\nRUN <<EOF sh\nA=1\nEOF\nCOPY <<-'one' <<two /d/\n\tkeep $x\n\tone\nb\ntwo\nRUN cat <<<here\n"
    )
    steps = parse(text, "F")
    assert steps[1].heredocs[0].text == "A=1\n"
    one, two = steps[2].heredocs
    assert (one.name, one.text, one.expand) == ("one", "keep $x\n", False)
    assert (two.name, two.text, two.expand) == ("two", "b\n", True)
    assert steps[3].heredocs == ()


def test_what_only_looks_like_a_heredoc() -> None:
    for line in (
        "echo $((1<<2))",
        "echo $((1 << 2))",
        'echo "<<EOF"',
        "grep '<<X' f",
        "cat <<<word",
        "echo it's <<x",
    ):
        (step,) = parse(f"FROM x\nRUN {line}\n", "F")[1:]
        assert (step.rest, step.heredocs) == (line, ()), line
    (step,) = parse("FROM x\nRUN cat 3<<A <<-'B' >f; x\n1\nA\n\t2\n\tB\n", "F")[1:]
    assert [document.text for document in step.heredocs] == ["1\n", "2\n"]


def test_odd_lines() -> None:
    """Each as Docker's parser takes it."""
    text = (
        "\ufeff# syntax=docker/dockerfile:1\n#escape = `\nfrom\tx `\n# between\n  as b\nEntryPoint\nCMD\n"
        'RUN [ "a" , `\n "b" ]\nCMD ["a"] b\nCMD []\nCMD ["\\ud800"]\nenv a=1 `\n\n#c\n b=2\nRUN x `'
    )
    steps = [(step.name, step.rest, step.words) for step in parse(text, "F")]
    assert steps == [
        ("FROM", "x   as b", None),
        ("ENTRYPOINT", "", None),
        ("CMD", "", None),
        ("RUN", '[ "a" ,  "b" ]', ("a", "b")),
        ("CMD", '["a"] b', None),
        ("CMD", "[]", ()),
        ("CMD", '["\\ud800"]', ("\ufffd",)),
        ("ENV", "a=1  b=2", None),
        ("RUN", "x", None),
    ]


def test_flags() -> None:
    step = parse("FROM x\nCOPY --from=b --chown=1:2 --chmod=644 a b\n", "F")[1]
    assert step.flags == {"from": "b", "chown": "1:2", "chmod": "644"} and step.rest == "a b"
    assert parse("FROM x\nCMD --x y\n", "F")[1].rest == "--x y"
    step = parse("FROM x\nCOPY --chown='a b' --from=\"x\" -- --odd b\n", "F")[1]
    assert step.flags == {"from": "x", "chown": "a b"} and step.rest == "--odd b"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 0, "no instruction"),
        ("FROM x\nRNU y\n", 2, "unknown instruction"),
        ("FROM x\nRUN <<EOF\nnever\n", 2, "does not end"),
        ("FROM x\n\nCOPY --nope=1 a b\n", 3, "no flag"),
        ("FROM x\nCOPY --from a b\n", 2, "needs a value"),
        ("FROM x\nRUN\n", 2, "needs something"),
        ("# escape=x\nFROM x\n", 1, "escape must be"),
    ],
)
def test_mistakes_have_a_place(text: str, line: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(text, "F")
    assert caught.value.where and (caught.value.where.file, caught.value.where.line) == ("F", line)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${foo}_x", "bar_x"), ("$foo-$empty-$none", "bar--"), (r"\$foo", "$foo"), (r"\${foo}", "${foo}"),
        ("${none:-word}", "word"), ("${empty:-word}", "word"), ("${empty-word}", ""), ("${foo:-word}", "bar"),
        ("${foo:+word}", "word"), ("${none:+word}", ""), ("${empty+word}", "word"), ("${none:-${foo}x}", "barx"),
        ("'$foo'", "$foo"), ('"$foo"', "bar"), ("\"a'$foo'\"", "a'bar'"), (r'"\"$foo\""', '"bar"'), ("$", "$"),
        ("${path#*/}", "b/c"), ("${path##*/}", "c"), ("${path%/*}", "a/b"), ("${path%%/*}", "a"),
        ("${path/\\//-}", "a-b/c"), ("${path//\\//-}", "a-b-c"), ("a\\b", "ab"), ("$foo$foo", "barbar"),
        ("a$10b$$c", "abc"), ("${foo:+${none:-in}}", "in"), ('${none:-"q u"}', "q u"), ("\\$x$", "$x$"),
    ],
)  # fmt: skip
def test_expand(text: str, result: str) -> None:
    assert expand(text, {"foo": "bar", "empty": "", "path": "a/b/c"}) == result


@pytest.mark.parametrize("text", ["${foo", "'open", '"open', "${}", "${none:?say}", "${foo!x}"])
def test_bad_words(text: str) -> None:
    with pytest.raises(BadWord):
        expand(text, {"foo": "bar"})


def test_words() -> None:
    assert expand_words("a 'b c' \"d e\" f\\ g $none h", {}) == ["a", "b c", "d e", "f g", "h"]


@given(st.text(max_size=40))
def test_expand_never_fails_otherwise(text: str) -> None:
    try:
        expand(text, {"a": "b"})
        expand_words(text, {"a": "b"})
    except BadWord:
        pass


@given(st.text(max_size=120))
def test_parse_never_fails_otherwise(text: str) -> None:
    with suppress(UsageError):
        parse("FROM x\n" + text, "F")


def test_classes_of_characters_are_those_of_go() -> None:
    for pattern, hits, misses in (
        ("arr[[]0].txt", ["arr[0].txt"], ["arr0].txt"]),
        ("[^a-c]x", ["dx", "^x"], ["ax", "x"]),
        ("[!a]", ["!", "a"], ["b"]),
        (r"[\]\-]", ["]", "-"], ["\\"]),
        ("[a&&b]", ["&", "a"], ["c"]),
    ):
        ignore = Ignore([pattern])
        assert [name for name in hits if not ignore(name)] == [], pattern
        assert [name for name in misses if ignore(name)] == [], pattern


def test_ignore() -> None:
    assert Ignore(["\ufeffa", " b ", " # c", "!./x/../b"])("a")
    ignore = Ignore(["# c", "*/temp*", "*/*/deep", "temp?", "**/*.pyc", "docs", "!docs/README*", "/top", ""])
    out = [
        "a/temp",
        "a/temporary.txt",
        "a/temp/x",
        "a/b/deep/y",
        "tempa",
        "x.pyc",
        "a/b/c.pyc",
        "docs/a",
        "top",
    ]
    kept = ["temp", "a/b/temp", "a/deep", "tempab", "docs/README.md", "a/top", "a.py"]
    assert [path for path in out if not ignore(path)] == []
    assert [path for path in kept if ignore(path)] == []


@pytest.mark.parametrize(
    ("text", "familiar", "registry", "repository"),
    [
        ("micro", "micro:latest", "docker.io", "library/micro"),
        ("docker.io/library/debian:12", "debian:12", "docker.io", "library/debian"),
        ("localhost:5000/x/y:tag", "localhost:5000/x/y:tag", "localhost:5000", "x/y"),
        ("me/app", "me/app:latest", "docker.io", "me/app"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000", "a"),
    ],
)
def test_references(text: str, familiar: str, registry: str, repository: str) -> None:
    ref = refs.parse(text)
    assert (ref.familiar, ref.registry, ref.repository) == (familiar, registry, repository)
    assert refs.parse(ref.familiar) == ref


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a//b", "a:", "x" * 300, "a b", "a@sha256:12", "../x", "a:b:c", "-a"]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(UsageError):
        refs.parse(text)
