"""The schema, the starter and the reference agree with the loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from labctl.data import data
from labctl.profile import json_schema, load_text, starter
from labctl.profile.reference import reference
from labctl.profile.schema import EXAMPLES
from labctl.profile.source import shipped

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def every(at: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field's schema, with its path."""
    if isinstance(at, dict):
        for name, field in at.get("properties", {}).items():
            if isinstance(field, dict):
                yield f"{path}.{name}", field
        for key, child in at.items():
            yield from every(child, f"{path}/{key}")
    elif isinstance(at, list):
        for child in at:
            yield from every(child, path)


def test_it_is_a_schema_of_2020_12() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["additionalProperties"] is False


def test_every_field_says_what_it_is() -> None:
    silent = [path for path, field in every(SCHEMA) if not field.get("description")]
    assert silent == []


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_are_valid(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load(data("profiles", f"{name}.yaml").read_text()))


def test_the_starter_is_valid() -> None:
    VALIDATOR.validate(yaml.safe_load(starter("my-lab")))
    profile = load_text(starter("my-lab"))
    assert profile.name == "my-lab"
    assert profile.checks
    with pytest.raises(ValueError, match="in it"):
        starter("no/good")


EXAMPLE_CASES = [
    (name, field, example)
    for name, fields in EXAMPLES.items()
    for field, examples in fields.items()
    for example in examples
]


@pytest.mark.parametrize(("name", "field", "example"), EXAMPLE_CASES)
def test_what_the_schema_shows_the_loader_takes(
    name: str, field: str, example: object, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "index.html").write_text("hi")
    lan, wan = {"subnet": "10.1.0.0/24"}, {"subnet": ["10.2.0.0/24", "fd00::/64"]}
    document: dict[str, Any] = {
        "name": "t",
        "networks": {"lan": lan, "wan": wan},
        "nodes": {"a": {}, "db": {}},
        "checks": [{"node": "a", "command": "true"}],
    }
    at = {"Node": document["nodes"]["a"], "Network": {}, "Check": document["checks"][0]}[name]
    at[field] = example
    if field == "disks":
        at["tier"] = "emulation"
    if name == "Network":
        document = {"name": "t", "networks": {"n": at}, "nodes": {"a": None}}
    VALIDATOR.validate(document)
    load_text(yaml.safe_dump(document), folder=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{name: t, nodes: {a: {tier: emulaton}}}",
        "{name: t, nodes: {a: {memroy: 1}}}",
        "{name: t, nodes: {a/b: }}",
        "{name: a b, nodes: [a]}",
        "{nodes: [a]}",
        "{name: t, nodes: {a: {memory: 12 elephants}}}",
        "{name: t, nodes: {a: {networks: {lan: {adress: 10.0.0.1}}}}}",
        "{name: t, nodes: {a: {depends_on: {b: redy}}}}",
        "{name: t, nodes: {a: {ports: [x]}}}",
        "{name: t, nodes: {a: {name: b}}}",
        "{name: t, checks: [{node: a}]}",
        "{name: t, checks: [{node: a, command: x, expect: {regex: x}}]}",
    ],
)
def test_an_editor_sees_these_mistakes(text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def test_the_reference_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "profile.md"
    assert page.read_text() == reference(), "run python -m labctl.profile.reference > docs/profile.md"
