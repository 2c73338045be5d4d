"""What people get wrong in a profile or on the command line: one clear message, exit code 2 (or 4 where it
is the host that can't), nothing made and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.home import Home
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = pytest.mark.needs(*CONTAINERS)

Since = Callable[[], list[str]]

# profile, exit code, words that the message has; "line" numbers are those of the text here.
BAD = {
    "malformed YAML": ("nodes:\n  a: {image: micro\n", 2, ["lab.yaml:2:6", "never closed"]),
    "a tab": ("nodes:\n\ta: {}\n", 2, ["lab.yaml:2:1", "tab"]),
    "empty": ("", 2, ["empty"]),
    "a list": ("- a\n- b\n", 2, ["map"]),
    "unknown key": ("nodes:\n  a: {imagee: micro}\n", 2, ["lab.yaml:2:7", "imagee", "image"]),
    "wrong type": ("nodes:\n  a: {cpus: many}\n", 2, ["lab.yaml:2", "cpus", "many"]),
    "two mistakes": ("nodes:\n  a: {cpus: many}\n  b: {memory: lots}\n", 2, ["2 mistakes", "many", "lots"]),
    "duplicate key": ("nodes:\n  a: {}\n  a: {}\n", 2, ["lab.yaml:3", "a"]),
    "duplicate address": (
        "networks: {n: {subnet: 10.9.0.0/24}}\nnodes:\n"
        "  a: {networks: {n: 10.9.0.5}}\n  b: {networks: {n: 10.9.0.5}}\n",
        2,
        ["lab.yaml:4", "10.9.0.5", "a"],
    ),
    "outside its subnet": (
        "networks: {n: {subnet: 10.9.0.0/24}}\nnodes:\n  a: {networks: {n: 10.8.0.5}}\n",
        2,
        ["lab.yaml:3", "10.8.0.5", "10.9.0.0/24"],
    ),
    "depends in a circle": (
        "nodes:\n  a: {depends_on: [b]}\n  b: {depends_on: [c]}\n  c: {depends_on: [a]}\n",
        2,
        ["depends_on", "a", "b", "c"],
    ),
    "unknown tier": ("nodes:\n  a: {tier: hardwear}\n", 2, ["lab.yaml:2", "hardwear", "hardware"]),
    "unknown image": ("nodes:\n  a: {image: mikro}\n", 2, ["mikro", "micro"]),
    "unknown network": ("networks: {lan: {}}\nnodes:\n  a: {networks: [lam]}\n", 2, ["lam", "lan"]),
    "unknown dependence": ("nodes:\n  web: {}\n  b: {depends_on: [wev]}\n", 2, ["wev", "web"]),
    "inside a container": ("nodes:\n  a: {}\n  b: {inside: a}\n", 2, ["lab.yaml:3", "inside", "a"]),
    "inside itself": ("nodes:\n  a: {inside: a}\n", 2, ["inside"]),
    "memory of 0": ("nodes:\n  a: {memory: 0}\n", 2, ["lab.yaml:2", "memory"]),
    "negative memory": ("nodes:\n  a: {memory: -1GiB}\n", 2, ["memory"]),
    "more memory than there is": ("nodes:\n  a: {image: micro, memory: 900GiB}\n", 4, ["a", "memory", "MiB"]),
    "more than any machine has": ("nodes:\n  a: {memory: 900TiB}\n", 2, ["lab.yaml:2", "900TiB"]),
    "no name": ("nodes: {a: {}}\n", 2, ["lab.yaml:1:1", "name is missing"]),
    "name of 300 characters": (f"nodes:\n  {'a' * 300}: {{}}\n", 2, ["lab.yaml:2", "63"]),
    "name with a slash": ("nodes:\n  a/b: {}\n", 2, ["lab.yaml:2:3", "a/b"]),
    "name with a quote": ('nodes:\n  "a\'b": {}\n', 2, ["lab.yaml:2:3"]),
    "name with a newline": ('nodes:\n  "a\\nb": {}\n', 2, ["lab.yaml:2:3"]),
    "name with XML": ('nodes:\n  "<a&b>": {}\n', 2, ["lab.yaml:2:3"]),
    "name with an escape": ('nodes:\n  "\\x1b[31ma": {}\n', 2, ["lab.yaml:2:3"]),
    "name of dots": ("nodes:\n  '..': {}\n", 2, ["lab.yaml:2:3"]),
    "paravirtualization of another architecture": (
        "nodes:\n  a: {tier: para, arch: aarch64}\n",
        4,
        ["a: para can't run here", "x86_64", "aarch64"],
    ),
    "more guests than their host has room for": (
        "nodes:\n  h: {tier: emulation, hypervisor: xen, memory: 512MiB}\n"
        "  g: {tier: para, inside: h}\n  k: {tier: para, inside: h}\n",
        4,
        ["h has 512 MiB", "2 machines", "nodes.h.memory"],
    ),
    "a guest in a machine without a hypervisor": (
        "nodes:\n  h: {tier: emulation}\n  g: {tier: para, inside: h}\n",
        2,
        ["lab.yaml:3", "h has no hypervisor", "hypervisor: xen"],
    ),
    "an emulated machine inside a machine": (
        "nodes:\n  h: {tier: emulation, hypervisor: xen}\n  g: {tier: emulation, inside: h}\n",
        2,
        ["lab.yaml:3", "g has tier emulation"],
    ),
    "a VM of unknown architecture": ("nodes:\n  a: {tier: emulation, arch: z80}\n", 2, ["z80"]),
    "a port twice": (
        "nodes:\n  a: {ports: ['8099:80']}\n  b: {ports: ['8099:80']}\n",
        2,
        ["lab.yaml:3", "8099", "a"],
    ),
    "a secret file that isn't there": (
        "secrets: {s: {file: nothing}}\nnodes: {a: {secrets: [s]}}\n",
        2,
        ["lab.yaml:1", "nothing"],
    ),
}


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    return Lab(home, tmp_path, "lab", "name: lab\nnodes: {a: {image: micro}}\n")


def named(text: str) -> str:
    """The profile with its name at the end, so that the numbers of lines are those above."""
    return text + "name: lab\n" if text.startswith(("nodes:", "networks:", "secrets:")) else text


def nothing_made(lab: Lab, since: Since) -> None:
    assert since() == []
    assert lab.labs() == []


def one_message(told: str) -> None:
    """One error, that fits a terminal, holds no control characters and says what it is."""
    assert told.count("labctl: error:") == 1
    assert len(told) < 2000
    assert all(char.isprintable() or char == "\n" for char in told), repr(told)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_profile_makes_nothing(lab: Lab, what: str, host_inventory: Since) -> None:
    text, code, words = BAD[what]
    lab.write(named(text) if what != "no name" else text)
    told = lab.up_fails(code)
    one_message(told)
    assert all(word in told for word in words), told
    if code == 2 and what != "unknown image":
        assert lab.fails(2, "validate", str(lab.file)), "validate says so too"
    nothing_made(lab, host_inventory)


def test_an_edit_that_is_wrong_leaves_the_lab_as_it_is(lab: Lab, host_inventory: Since) -> None:
    lab.up()
    began = lab.starts("a")
    for text, code, _words in (
        BAD["unknown key"],
        BAD["unknown image"],
        BAD["paravirtualization of another architecture"],
    ):
        lab.write(named(text))
        lab.up_fails(code)
    assert lab.states() == {"a": "ready"} and lab.starts("a") == began
    lab.down()
    nothing_made(lab, host_inventory)


@pytest.mark.parametrize("name", ["a/b", "a'b", "a\nb", "<lab>", "x" * 300, "", "..", "-x", "ä b"])
def test_a_bad_name_of_a_lab(lab: Lab, name: str, host_inventory: Since) -> None:
    told = lab.up_fails(2, f"--name={name}") if name else lab.fails(2, "down", "")
    one_message(told)
    nothing_made(lab, host_inventory)


def test_files_that_are_no_profile(lab: Lab, tmp_path: Path, host_inventory: Since) -> None:
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 100_000_000)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefghij", "bcdefghijk", strict=True):
        bomb += f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n"
    (tmp_path / "bomb.yaml").write_text(bomb)
    for path, word in (
        (tmp_path, "folder"),
        (tmp_path / "large.yaml", "large"),
        (tmp_path / "binary.yaml", "binary.yaml"),
        (tmp_path / "pipe.yaml", "regular"),
        (tmp_path / "loop.yaml", "loop.yaml"),
        (tmp_path / "bomb.yaml", "bomb.yaml"),
        (tmp_path / "nothing.yaml", "nothing.yaml"),
        ("spektrum", "spectrum"),
    ):
        told = lab.fails(2, "up", str(path), timeout=20)
        one_message(told)
        assert word in told, told
    nothing_made(lab, host_inventory)


def test_bad_words_on_the_command_line(lab: Lab, host_inventory: Since) -> None:
    for words in (
        ("up",),
        ("upp", str(lab.file)),
        ("up", str(lab.file), "--nam", "x"),
        ("up", str(lab.file), "-s", "nodes.a"),
        ("up", str(lab.file), "-s", "nodes.a.memry=1G"),
        ("up", str(lab.file), "--fallback", "magic"),
        ("up", str(lab.file), "--wait", "soon"),
        ("down",),
        ("down", "lab", "--all"),
        ("wait", "lab", "--for", "happiness"),
    ):
        told = lab.fails(2, *words)
        assert told.strip(), words
    for words in (("status", "nothing"), ("exec", "nothing/a", "--", "true"), ("stop", "nothing/a")):
        assert "nothing" in lab.fails(2, *words)
    nothing_made(lab, host_inventory)
