"""A comparison of nodes as a table for a terminal and as a page that explains itself."""

from __future__ import annotations

import shutil
import textwrap
from itertools import groupby
from typing import Any

from labctl.cli.screen import clean, table, width
from labctl.data import data

# What each tier is, for a reader who knows none of them.
TIERS = {
    "emulation": "A whole computer is simulated in software, CPU included. It asks nothing of the hardware, "
    "runs its own kernel, even of another architecture, and is the slowest.",
    "para": "The guest's kernel is changed to ask the hypervisor instead of touching hardware. "
    "Near the real hardware without help of the CPU, but not with any kernel.",
    "hardware": "The CPU itself runs the guest and traps what must be checked. An unchanged kernel "
    "of its own, near the speed of the host; the CPU must have VMX or SVM.",
    "container": "Processes of the host's own kernel, fenced in by namespaces and cgroups. "
    "Starts at once and costs next to nothing; the kernel is shared, so the fence is all there is.",
}

_CELL = 26  # columns of a cell; longer answers go on in the next line
_TITLE = 22


def text(found: Any, columns: int = 0) -> str:
    """The table for a terminal: a row an observation, a column a node.

    Long answers are wrapped, and where the nodes don't fit side by side they are split into several tables.
    """
    columns = columns or shutil.get_terminal_size((120, 24)).columns
    rows = [(row.title, *(str(row.values.get(node, "")) for node in found.nodes)) for row in found.rows]
    blocks = _blocks(rows, list(found.nodes), columns)
    parts = []
    for nodes in blocks:
        lines = []
        for row in rows:
            lines += _lines([row[0], *(row[1 + found.nodes.index(node)] for node in nodes)])
        parts.append(_unmarked(table(["", *nodes], lines)))
    return "\n\n".join(parts)


def legend(found: Any, columns: int = 0) -> str:
    """What the tiers and the rows mean, in words that need no knowledge."""
    columns = columns or shutil.get_terminal_size((120, 24)).columns
    tiers = [f"{tier} — {meaning}" for tier, meaning in TIERS.items()]
    rows = [f"{row.title} — {row.meaning}" for row in found.rows if row.meaning]
    lines = [clean(line) for line in [*tiers, "", *rows]]
    return "\n".join(textwrap.fill(line, columns, subsequent_indent="  ") for line in lines)


# Stands in the lower lines of a wrapped row until it is drawn, where an empty cell would become "-".
_HOLE = "\N{LIGHT SHADE}"


def _lines(row: list[str]) -> list[list[str]]:
    """A row as the lines of the table that it takes."""
    cells = [_wrapped(cell, _CELL if index else _TITLE) for index, cell in enumerate(row)]
    height = max(len(cell) for cell in cells)
    whole = []
    for line in range(height):
        whole.append([cell[line] if line < len(cell) else _HOLE for cell in cells])
    return whole


def _wrapped(cell: str, room: int) -> list[str]:
    """A cell's words in lines of `room` columns; a longer word is cut."""
    lines = [""]
    for word in clean(cell).split(" "):
        whole = f"{lines[-1]} {word}" if lines[-1] else word
        if width(whole) <= room:
            lines[-1] = whole
            continue
        if lines[-1]:
            lines.append("")
        while width(word) > room:
            cut = next(n for n in range(len(word), 0, -1) if n == 1 or width(word[:n]) <= room)
            lines[-1:] = [word[:cut], ""]
            word = word[cut:]
        lines[-1] = word
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _unmarked(drawn: str) -> str:
    return "\n".join(line.replace(_HOLE, " ").rstrip() for line in drawn.split("\n"))


def _blocks(rows: list[tuple[str, ...]], nodes: list[str], columns: int) -> list[list[str]]:
    """Consecutive nodes that fit beside each other; at least one a block."""
    first = min(_TITLE, max((width(row[0]) for row in rows), default=0))
    blocks: list[list[str]] = [[]]
    used = first
    for index, node in enumerate(nodes):
        cells = [min(_CELL, width(clean(row[1 + index]))) for row in rows]
        wide = 2 + max([width(node), *cells])
        if blocks[-1] and used + wide > columns:
            blocks.append([])
            used = first
        blocks[-1].append(node)
        used += wide
    return blocks


def page(found: Any) -> str:
    """The HTML page (templates/compare.html.j2): one file, nothing loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(data("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    groups = [
        (name, list(rows)) for name, rows in groupby(found.rows, key=lambda row: getattr(row, "group", ""))
    ]
    columns = {column.name: column for column in getattr(found, "columns", ())}
    tones = {row.key: getattr(row, "tones", {}) for row in found.rows}
    return environment.get_template("compare.html.j2").render(
        found=found, groups=groups, tiers=TIERS, columns=columns, tones=tones
    )
