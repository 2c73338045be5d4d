"""A lab as a picture: text, Mermaid or SVG.  Pure: data in, text out."""

from __future__ import annotations

import os
import re
from typing import Any
from xml.sax.saxutils import escape

from labctl.cli.screen import clean, width
from labctl.records import dataclass
from labctl.tiers.record import EMULATED_CPU


@dataclass(frozen=True)
class Box:
    """A node: what stands in its box, and which networks it is on, in order."""

    name: str
    tier: str
    lines: tuple[str, ...]
    networks: tuple[str, ...]
    inside: str = ""
    state: str = ""


@dataclass(frozen=True)
class Picture:
    """A lab: networks as (name, remark), and nodes."""

    title: str
    networks: tuple[tuple[str, str], ...]
    boxes: tuple[Box, ...]

    def within(self, host: str) -> list[Box]:
        """The nodes inside a node; "" for those on the host."""
        return [box for box in self.boxes if box.inside == host]


def of_status(status: Any) -> Picture:
    """From labctl.lab.model.LabStatus: a lab that is there."""
    networks = []
    for net in status.networks:
        remark = ", ".join(filter(None, (net.subnet4, net.subnet6, "NAT" if net.internet else "")))
        networks.append((net.name, remark))
    boxes = [
        Box(
            node.name,
            node.tier,
            tuple(filter(None, (", ".join(node.addresses), node.image))),
            tuple(interface.network for interface in node.interfaces),
            node.inside,
            node.state,
        )
        for node in status.nodes
    ]
    return Picture(status.lab, tuple(networks), tuple(boxes))


def of_profile(profile: Any) -> Picture:
    """From labctl.profile.Profile: a lab that is only described."""
    networks = []
    for name, net in profile.networks.items():
        remark = ", ".join(filter(None, (net.subnet, net.subnet6, "NAT" if net.internet else "")))
        networks.append((name, remark))
    boxes = [
        Box(
            node.name,
            _described(node),
            (node.image,),
            tuple(attachment.network for attachment in node.networks),
            node.inside,
        )
        for node in profile.nodes.values()
    ]
    return Picture(profile.name, tuple(networks), tuple(boxes))


def _described(node: Any) -> str:
    """The tier as it will be called: see NodeRecord.label."""
    foreign = node.arch and node.arch != os.uname().machine and not node.inside
    return f"{node.tier}{EMULATED_CPU if foreign and node.tier == 'container' else ''}"


# -- text ---------------------------------------------------------------------------------------------


def text(picture: Picture) -> str:
    """A tree: networks, the nodes on each, and what runs inside them."""
    lines = [clean(picture.title)]
    groups = [(f"{name}  {remark}".rstrip(), _members(picture, name)) for name, remark in picture.networks]
    alone = [box for box in picture.within("") if not box.networks]
    if alone:
        groups.append(("(no network)", alone))
    for index, (head, members) in enumerate(groups):
        last = index == len(groups) - 1
        lines.append(("└─ " if last else "├─ ") + clean(head))
        lines += _branch(picture, members, "   " if last else "│  ")
    return "\n".join(lines) + "\n"


def _members(picture: Picture, network: str) -> list[Box]:
    return [box for box in picture.within("") if network in box.networks]


def _branch(picture: Picture, boxes: list[Box], indent: str) -> list[str]:
    lines = []
    wide = max((width(box.name) for box in boxes), default=0)
    for index, box in enumerate(boxes):
        last = index == len(boxes) - 1
        name = box.name + " " * (wide - width(box.name))
        words = "  ".join(filter(None, (box.tier, box.state, *box.lines)))
        lines.append(indent + ("└─ " if last else "├─ ") + clean(f"{name}  {words}"))
        lines += _branch(picture, picture.within(box.name), indent + ("   " if last else "│  "))
    return lines


# -- Mermaid ------------------------------------------------------------------------------------------


def mermaid(picture: Picture) -> str:
    """A flowchart, for Markdown pages that draw Mermaid."""
    lines = ["flowchart TB"]
    for name, remark in picture.networks:
        lines.append(f"  {_id('net', name)}{{{{{_quoted(name, remark)}}}}}")
    for box in picture.within(""):
        lines += _mermaid_box(picture, box, "  ")
    for box in picture.boxes:
        lines += [f"  {_id('node', box.name)} --- {_id('net', network)}" for network in box.networks]
    return "\n".join(lines) + "\n"


def _mermaid_box(picture: Picture, box: Box, indent: str) -> list[str]:
    label = _quoted(box.name, box.tier, *([box.state] if box.state else []), *box.lines)
    lines = [f"{indent}{_id('node', box.name)}[{label}]"]
    inner = picture.within(box.name)
    if inner:
        lines.append(f"{indent}subgraph {_id('in', box.name)}[{_quoted(f'inside {box.name}')}]")
        for child in inner:
            lines += _mermaid_box(picture, child, indent + "  ")
        lines.append(f"{indent}end")
    return lines


def _id(kind: str, name: str) -> str:
    """An identifier Mermaid takes; other characters become their code, so that no two names meet."""
    return f"{kind}_" + re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}_", name)


def _quoted(*lines: str) -> str:
    told = [line.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;") for line in lines if line]
    return '"' + "<br/>".join(clean(line) for line in told) + '"'


# -- SVG ----------------------------------------------------------------------------------------------

COLOURS = {"emulation": "#8250df", "para": "#bf8700", "hardware": "#0969da", "container": "#1a7f37"}
GREY = "#57606a"
INK = "#1f2328"
WIDE, HIGH, GAP, BAR = 190, 84, 24, 46


def svg(picture: Picture) -> str:
    """A drawing: nodes in a row, networks as bars below, a line where a node is on a network."""
    columns, left = [], GAP
    for box in picture.within(""):
        inner = picture.within(box.name)
        wide = max(WIDE, GAP + len(inner) * (WIDE + GAP)) if inner else WIDE
        columns.append((box, left, wide, inner))
        left += wide + GAP
    total = max(left, 320)
    top = 56
    high = HIGH + (HIGH + GAP if any(inner for *_rest, inner in columns) else 0)
    bars = {name: top + high + GAP + index * BAR for index, (name, _remark) in enumerate(picture.networks)}
    bottom = top + high + GAP + len(bars) * BAR + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{bottom}" '
        f'viewBox="0 0 {total} {bottom}" role="img" font-family="sans-serif" font-size="13">',
        f"<title>{_xml(picture.title)}</title>",
        f'<rect width="{total}" height="{bottom}" fill="#ffffff"/>',
        f'<text x="{GAP}" y="34" font-size="18" font-weight="bold" fill="{INK}">{_xml(picture.title)}</text>',
    ]
    for name, remark in picture.networks:
        parts += _bar(name, remark, bars[name], total)
    for box, x, wide, inner in columns:
        parts += _wires(box, x + 20, top + (high if inner else HIGH), bars)
        parts += _drawn(box, x, top, wide, high if inner else HIGH)
        for index, child in enumerate(inner):
            at = x + GAP + index * (WIDE + GAP)
            parts += _wires(child, at + 40, top + HIGH + HIGH, bars)
            parts += _drawn(child, at, top + HIGH, WIDE, HIGH)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(name: str, remark: str, y: int, total: int) -> list[str]:
    return [
        f'<rect x="{GAP}" y="{y}" width="{total - 2 * GAP}" height="26" rx="4" '
        f'fill="#eaeef2" stroke="{GREY}"/>',
        f'<text x="{total - GAP - 10}" y="{y + 17}" text-anchor="end" fill="{INK}">'
        f"{_xml(f'{name}  {remark}'.strip())}</text>",
    ]


def _wires(box: Box, x: int, y: int, bars: dict[str, int]) -> list[str]:
    lines = []
    for index, network in enumerate(box.networks):
        if network in bars:
            at = x + index * 14
            lines.append(
                f'<line x1="{at}" y1="{y}" x2="{at}" y2="{bars[network]}" stroke="{GREY}" stroke-width="2"/>'
                f'<circle cx="{at}" cy="{bars[network]}" r="4" fill="{GREY}"/>'
            )
    return lines


def _drawn(box: Box, x: int, y: int, wide: int, high: int) -> list[str]:
    colour = COLOURS.get(box.tier.removesuffix(EMULATED_CPU).split(" ")[-1], GREY)
    dash = ' stroke-dasharray="5 4"' if box.state in ("skipped", "failed", "stopped") else ""
    lines = [
        f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="#ffffff" stroke="{colour}" '
        f'stroke-width="2"{dash}/>',
        f'<text x="{x + 12}" y="{y + 22}" font-weight="bold" fill="{colour}">{_xml(box.name)}</text>',
    ]
    told = [" · ".join(filter(None, (box.tier, box.state))), *box.lines][:3]
    for index, line in enumerate(told):
        lines.append(
            f'<text x="{x + 12}" y="{y + 40 + 16 * index}" font-size="12" fill="{GREY}">{_xml(line)}</text>'
        )
    return lines


def _xml(line: str) -> str:
    return escape(clean(line))
