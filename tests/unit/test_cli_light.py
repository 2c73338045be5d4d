"""What is read without typer is what typer reads."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labctl.cli import light
from labctl.cli.main import GROUPS, VERBS

MODULES = {name: module for verbs in VERBS.values() for name, (module, _help) in verbs.items()}
PLAIN = sorted(MODULES.keys() - set(GROUPS))
SEEN: list[dict[str, Any]] = []


def verb_of(name: str) -> light.Verb:
    found: light.Verb = import_module(f"labctl.cli.{MODULES[name]}").app.verbs[name]
    return found


@cache
def recorder(name: str) -> Any:
    """The verb as typer makes it, with a function that only keeps what it is given."""
    verb = verb_of(name)

    def keep(**values: Any) -> None:
        SEEN.append(values)

    keep.__dict__["parameters"] = verb.function.parameters  # type: ignore[attr-defined]
    keep.__doc__ = verb.function.__doc__
    app = light.Typer(rich_markup_mode=None)
    app.command(name, **verb.settings)(keep)
    return app.group().commands[name]


def by_typer(name: str, words: list[str]) -> dict[str, Any] | None:
    """The values that typer finds, or None where it complains or shows help."""
    SEEN.clear()
    try:
        recorder(name).main(list(words), prog_name="labctl", standalone_mode=False)
    except Exception:  # noqa: BLE001 - whatever it complains of
        return None
    return SEEN[0] if SEEN else None


def words_of(name: str) -> st.SearchStrategy[list[str]]:
    """Command lines of a verb: its options, things that look like some, values and other words."""
    options = [word for p in light.parameters_of(verb_of(name).function) for word in p.said.names]
    value = st.sampled_from(["lab", "lab/node", "a=b", "3", "2.5", "-", "-1", "", "x y", "é", "1_0", "nan"])
    option = st.sampled_from([word for text in options for word in text.split("/")] + ["--", "--nope", "-qv"])
    joined = st.builds(lambda left, right: f"{left}={right}", option, value)
    return st.lists(st.one_of(value, value, option, joined), max_size=6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_values(name: str) -> None:
    answered = 0
    parameters = light.parameters_of(verb_of(name).function)
    needed = [p for p in parameters if p.default is ... and not isinstance(p.said, light.Option)]

    @settings(max_examples=60, deadline=None, database=None)
    @given(words_of(name))
    @example(["lab"] * len(needed))  # one that is surely answered: chance alone finds none in some runs
    def check(words: list[str]) -> None:
        nonlocal answered
        found = light.read(verb_of(name), words)
        if found is not None:
            answered += 1
            theirs = by_typer(name, words)
            assert theirs is not None, words
            assert repr(found) == repr(theirs), words

    check()
    assert answered


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("up", ["lab.yaml"]),
        (
            "up",
            ["-q", "lab.yaml", "--name", "mine", "-s", "nodes.web.memory=1", "-s", "a=b", "--wait=2"],
        ),
        ("down", ["lab", "-q"]),
        ("down", ["--all"]),
        ("ls", ["--json"]),
        ("status", []),
        ("exec", ["lab/web", "--", "ls", "-l", "--all"]),
        ("exec", ["-e", "A=b", "web", "ls", "-l"]),
        ("logs", ["web", "-f"]),
        ("init", ["mine.yaml"]),
    ],
)
def test_what_people_write_needs_no_typer(name: str, words: list[str]) -> None:
    found = light.read(verb_of(name), words)
    assert found is not None
    assert found == by_typer(name, words)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["lab.yaml", "--nope"], ["--wait", "soon", "lab.yaml"], ["a", "b"], [], ["-qv", "x"]],
)
def test_all_else_is_left_to_typer(words: list[str]) -> None:
    assert light.read(verb_of("up"), words) is None


def test_a_plain_command_line_loads_no_typer(tmp_path: Path) -> None:
    script = (
        "import atexit, sys\nfrom labctl.cli.main import main\nsys.argv = ['labctl', 'ls']\n"
        "atexit.register(lambda: print(sorted({'typer', 'pydantic', 'yaml'} & set(sys.modules))))\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env={"LABCTL_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_down_loads_needs_no_pydantic() -> None:
    script = (
        "import sys, labctl.tiers.container, labctl.tiers.management, labctl.resource.executor\n"
        "print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("False\n", "")
