"""Reading YAML strictly: places, duplicate keys, bounds, and scalars that stay what people see."""

from __future__ import annotations

import pytest

from labctl.errors import ProfileError
from labctl.profile.yamlread import MOST_ITEMS, read_yaml


def refused(text: str) -> list[str]:
    """Everything that reading says about a text, as FILE:LINE:COLUMN lines."""
    with pytest.raises(ProfileError) as caught:
        read_yaml(text, "f")
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def test_every_piece_knows_its_place() -> None:
    tree = read_yaml("a:\n  - b: 1\n    c.d: two\n", "f")
    item, depth = tree.find(("a", 0, "c.d"))
    assert depth == 3
    assert (item.line, item.column, item.key_line, item.key_column) == (3, 10, 3, 5)
    assert item.path == 'a[0]."c.d"'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("0644", "0644"),
        ("0", 0),
        ("-5", -5),
        ("1.50", 1.5),
        ("1e3", "1e3"),
        ("02:00:00:00:00:01", "02:00:00:00:00:01"),
        ("22:22", "22:22"),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("=", "="),
        ("9" * 30, "9" * 30),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert read_yaml(f"k: {text}\n", "f").plain() == {"k": value}


def test_keys_are_always_text() -> None:
    keys = read_yaml("on: 1\nno: 2\n5: 3\n02:00:00:00:00:01: 4\nnull: 5\n", "f").map
    assert list(keys) == ["on", "no", "5", "02:00:00:00:00:01", "null"]


def test_windows_files_read_the_same() -> None:
    assert read_yaml("\ufeffa: 1\r\nb: 2\r\n", "f").plain() == {"a": 1, "b": 2}


def test_all_duplicate_keys_are_named_with_where_the_first_is() -> None:
    assert refused("a: 1\nb: {c: 1, c: 2}\na: 2\n") == [
        'f:2:11: b.c: the key "c" is written twice (it is already on line 2)',
        'f:3:1: a: the key "a" is written twice (it is already on line 1)',
    ]


def test_merge_keys() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  b: 0\n  <<: [*x, *y]\n"
    assert read_yaml(text, "f").map["z"].plain() == {"b": 0, "a": 1, "c": 2}
    assert refused("a:\n  <<: 5\n") == ["f:2:3: a: << wants a map, or a list of maps (write <<: *name)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1", "f:2:1: a tab where YAML wants spaces (indent with spaces)"),
        ("a: 'x\n", "f:1:4: a quote is opened and never closed"),
        ("a: [1,2", "f:1:4: a [ is opened and never closed (write [a, b])"),
        ("a: b: c", "f:1:5: a ':' where no key can be (indent like its neighbours, or quote the text)"),
        ("a:\n  b: 1\n c: 2", "f:3:2: something is not indented like its neighbours"),
        ("a: @x", "f:1:4: text can't begin with @ (put the text in quotes)"),
        ("a: *x", "f:1:4: a: *x names no anchor (&x) above"),
        ("a: &a [*a]", "f:1:8: a[0]: *a contains itself"),
        ("a: 1\n---\nb: 1", "f:2:1: a second document (---) in one file; a profile is one document"),
        ("[a]: 1", "f:1:1: a key must be plain text"),
        ("a: \x00", "f:1:4: the character U+0000 can't stand in YAML"),
        ("a: \x1b[31m", "f:1:4: the character U+001B can't stand in YAML"),
    ],
)
def test_mistakes_in_plain_words(text: str, message: str) -> None:
    assert refused(text) == [message]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['true']", "!x 1", "!!binary aGk=", "!!set {a}"]
)
def test_tags_that_do_things_are_refused(tag: str) -> None:
    (message,) = refused(f"a: {tag}")
    assert "is not allowed" in message


def test_a_billion_laughs_end() -> None:
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    laughs += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    (message,) = refused(laughs)
    assert f"more than {MOST_ITEMS} values" in message


@pytest.mark.parametrize(
    "text", ["[" * 900_000, "{a: " * 200_000, "- " * 400_000, "a:\n" + " " * 100 + "- - " * 50_000]
)
def test_a_deep_hole_has_a_floor(text: str) -> None:
    (message,) = refused(text)
    assert message.startswith("f:")
