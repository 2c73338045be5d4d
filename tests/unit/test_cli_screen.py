"""Tables, figures, progress and pictures."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.cli import comparison, config, drawing, screen
from labctl.cli.names import Address, Names
from labctl.cli.nodes import split_place
from labctl.cli.progress import JsonLines, Lines, choose
from labctl.errors import ProfileError, UsageError
from labctl.events import NodePhase, Note, Progress, StepDone, StepFailed, StepStarted


def test_tables_align_wide_characters() -> None:
    lines = screen.table(["node", "state"], [("数据库", "ready"), ("web", "")]).splitlines()
    assert lines == ["NODE    STATE", "数据库  ready", "web     -"]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_a_table_has_a_line_a_row_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    assert len(screen.table(["a", "b"], rows).split("\n")) == len(rows) + 1
    assert all(char.isprintable() or char == "\n" for char in screen.table(["a", "b"], rows))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (236 * 2**20, "236 MiB"),
        (2**41, "2.0 TiB"),
        (None, "-"),
    ],
)
def test_sizes(value: int | None, text: str) -> None:
    assert screen.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "40 ms"), (2.31, "2.3 s"), (200, "3 min 20 s"), (5400, "1.5 h"), (172800, "2.0 d")],
)
def test_times(value: float, text: str) -> None:
    assert screen.seconds(value) == text


def test_documents_carry_the_schema_version(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Thing:
        path: Path
        names: frozenset[str]

    screen.document({"thing": Thing(Path("/x"), frozenset({"b", "a"}))})
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "thing": {"path": "/x", "names": ["a", "b"]},
    }


EVENTS = [
    StepStarted("shop", "make", "bridge", "lan"),
    StepDone("shop", "make", "bridge", "lan", seconds=0.004),
    NodePhase("shop", "web", "ready", "SSH answers"),
    StepFailed("shop", "make", "domain", "db", "db", error="no\x1b[2J room", hint="make room"),
    Note("shop", "by the way"),
    Note("shop", "mind this", level="warning"),
]


def drawn(**how: bool) -> list[str]:
    stream = io.StringIO()
    lines = Lines(stream, **how)
    for event in EVENTS:
        lines(event)
    return [line.partition("] ")[2] for line in stream.getvalue().splitlines()]


FAILED = "db: could not make domain db: no\\x1b[2J room (hint: make room)"


def test_plain_lines() -> None:
    assert drawn() == ["web: ready (SSH answers)", FAILED, "by the way", "warning: mind this"]
    assert drawn(quiet=True) == [FAILED, "warning: mind this"]
    assert drawn(verbose=True)[:2] == ["make bridge lan", "made bridge lan in 4 ms"]


def test_a_download_tells_its_start_and_its_end() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for done in range(101):
        lines(Progress("shop", "kernel", done, 100))
    assert [line.partition("] ")[2] for line in stream.getvalue().splitlines()] == [
        "kernel: 0 %",
        "kernel: 100 %",
    ]


def test_json_lines_are_whole_documents() -> None:
    stream = io.StringIO()
    for event in EVENTS:
        JsonLines(stream)(event)
    bodies = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [body["event"] for body in bodies] == [type(event).__name__ for event in EVENTS]
    assert all(body["schema_version"] == 1 and body["lab"] == "shop" and body["at"] > 0 for body in bodies)


def test_a_pipe_gets_plain_lines() -> None:
    assert choose("auto", io.StringIO()) == "plain"
    assert choose("json", io.StringIO()) == "json"


def test_the_live_picture_shows_nodes_and_failures() -> None:
    from rich.console import Console

    from labctl.cli.live import Picture

    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Picture(console=console) as picture:
        for event in EVENTS:
            picture(event)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ready" in text and "web" in text
    assert FAILED in text
    assert "\x1b[2J" not in text


PICTURE = drawing.Picture(
    "shop",
    (("lan", "10.1.0.0/24, NAT"), ("back", "")),
    (
        drawing.Box("web", "container", ("10.1.0.2", "base"), ("lan", "back"), state="ready"),
        drawing.Box("vm", "emulation", ("10.1.0.3",), ("lan",), state="running"),
        drawing.Box("inner", "container", ("10.1.0.4",), ("lan",), inside="vm"),
        drawing.Box("lone<&", "container", (), ()),
    ),
)


def test_a_lab_as_text() -> None:
    assert drawing.text(PICTURE) == (
        "shop\n"
        "├─ lan  10.1.0.0/24, NAT\n"
        "│  ├─ web  container  ready  10.1.0.2  base\n"
        "│  └─ vm   emulation  running  10.1.0.3\n"
        "│     └─ inner  container  10.1.0.4\n"
        "├─ back\n"
        "│  └─ web  container  ready  10.1.0.2  base\n"
        "└─ (no network)\n"
        "   └─ lone<&  container\n"
    )


def test_a_lab_as_mermaid() -> None:
    assert drawing.mermaid(PICTURE).splitlines() == [
        "flowchart TB",
        '  net_lan{{"lan<br/>10.1.0.0/24, NAT"}}',
        '  net_back{{"back"}}',
        '  node_web["web<br/>container<br/>ready<br/>10.1.0.2<br/>base"]',
        '  node_vm["vm<br/>emulation<br/>running<br/>10.1.0.3"]',
        '  subgraph in_vm["inside vm"]',
        '    node_inner["inner<br/>container<br/>10.1.0.4"]',
        "  end",
        '  node_lone_3c__26_["lone&lt;&amp;<br/>container"]',
        "  node_web --- net_lan",
        "  node_web --- net_back",
        "  node_vm --- net_lan",
        "  node_inner --- net_lan",
    ]


def test_a_lab_as_svg_is_xml_with_every_node_and_wire() -> None:
    root = ElementTree.fromstring(drawing.svg(PICTURE))
    space = "{http://www.w3.org/2000/svg}"
    told = {element.text for element in root.iter(f"{space}text")}
    assert {"web", "vm", "inner", "lone<&", "lan  10.1.0.0/24, NAT"} <= told
    assert len(list(root.iter(f"{space}line"))) == 4


ROWS = [
    SimpleNamespace(
        key="kernel",
        title="Kernel",
        meaning="Whose it is.",
        group="What runs",
        values={"a": "6.1", "b": "6.18"},
    ),
    SimpleNamespace(key="pid1", title="PID 1", meaning="", group="What runs", values={"a": "<init>"}),
]
FOUND = SimpleNamespace(lab="shop", nodes=["a", "b"], rows=ROWS)


def test_a_comparison_as_a_table() -> None:
    assert comparison.text(FOUND, 80).splitlines() == [
        "        A       B",
        "Kernel  6.1     6.18",
        "PID 1   <init>  -",
    ]


def test_a_comparison_is_split_where_it_does_not_fit() -> None:
    assert comparison.text(FOUND, 16).count("Kernel") == 2


def test_a_comparison_as_a_page_explains_and_escapes() -> None:
    page = comparison.page(FOUND)
    assert "Whose it is." in page and "&lt;init&gt;" in page and "<init>" not in page
    assert all(tier in page for tier in comparison.TIERS)
    assert "http" not in page.replace("http-equiv", "")


def test_the_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "labctl/config.yaml"
    file.parent.mkdir()
    file.write_text("libvirt: qemu:///session\nprogress: json\n")
    assert config.load() == config.Config("qemu:///session", "json")
    file.write_text("libvrit: x\nprogress: loud\n")
    with pytest.raises(ProfileError) as caught:
        config.load()
    assert [problem.hint for problem in caught.value.problems] == ["did you mean libvirt?", ""]
    file.write_text("a: [")
    with pytest.raises(UsageError, match=r"config\.yaml:1:5"):
        config.load()


def test_places_of_cp() -> None:
    known = Names({"shop": {"web": {}}})
    assert split_place("web:/etc", known) == (Address("shop", "web"), "/etc")
    assert split_place("shop/web:/etc", known) == (Address("shop", "web"), "/etc")
    assert split_place("./a:b", known) == (None, "./a:b")
    assert split_place("/tmp/x", known) == (None, "/tmp/x")
    assert split_place("-", known) == (None, "-")
    with pytest.raises(UsageError, match="has no node 'wbe'"):
        split_place("wbe:/etc", known)
