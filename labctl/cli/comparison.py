"""A comparison of nodes as a table for a terminal and as a page that explains itself."""

from __future__ import annotations

import shutil
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


def text(found: Any, columns: int = 0) -> str:
    """The table for a terminal: a row an observation, a column a node.

    Where the nodes don't fit side by side they are split into several tables.
    """
    columns = columns or shutil.get_terminal_size((120, 24)).columns
    rows = [(row.title, *(str(row.values.get(node, "")) for node in found.nodes)) for row in found.rows]
    blocks = _blocks(rows, list(found.nodes), columns)
    parts = []
    for nodes in blocks:
        picked = [[row[0], *(row[1 + found.nodes.index(node)] for node in nodes)] for row in rows]
        parts.append(table(["", *nodes], picked).replace("\n-", "\n "))
    return "\n\n".join(parts)


def _blocks(rows: list[tuple[str, ...]], nodes: list[str], columns: int) -> list[list[str]]:
    """Consecutive nodes that fit beside each other; at least one a block."""
    first = max((width(row[0]) for row in rows), default=0)
    blocks: list[list[str]] = [[]]
    used = first
    for index, node in enumerate(nodes):
        wide = 2 + max([width(node), *(width(clean(row[1 + index])) for row in rows)])
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
    return environment.get_template("compare.html.j2").render(found=found, groups=groups, tiers=TIERS)
