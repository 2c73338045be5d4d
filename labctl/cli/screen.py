"""How answers look: JSON documents with a schema version, and plain tables."""

from __future__ import annotations

import dataclasses
import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1  # of every document that --json prints; grows when a field goes or changes its meaning


def plain(value: object) -> Any:
    """A value as JSON types: dataclasses and pydantic models become objects, sets become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value


def document(content: Mapping[str, object]) -> None:
    """Print one JSON document on stdout, with its schema version first."""
    whole = {"schema_version": SCHEMA_VERSION, **plain(content)}
    print(json.dumps(whole, indent=2, ensure_ascii=False), flush=True)


def line(text: str = "") -> None:
    """Print a line of the answer."""
    print(text)


def width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def clean(text: str) -> str:
    """Text that can't move the cursor: control characters become their escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under heads, columns two blanks apart, no lines; "" cells show as "-"."""
    cells = [[clean(str(cell)) if cell not in ("", None) else "-" for cell in row] for row in rows]
    whole = [[head.upper() for head in heads], *cells]
    widths = [max(width(row[column]) for row in whole) for column in range(len(heads))]
    lines = []
    for row in whole:
        padded = [cell + " " * (wide - width(cell)) for cell, wide in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes as people write them: 236 MiB."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def seconds(value: float | None) -> str:
    """A time as people read it: 40 ms, 2.3 s, 3 min 20 s, 5 h, 2 d."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    return f"{value / 3600:.1f} h" if value < 86400 else f"{value / 86400:.1f} d"


def on_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()
