"""The report of a run: one HTML file that needs nothing else, Markdown, plots and data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.bench import export, extra, numbers, published, words
from labctl.bench.plots import Plot, all_plots
from labctl.bench.results import Results, suite_title
from labctl.data import data
from labctl.errors import LabError


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    html: Path
    markdown: Path


def write(source: Path, target: Path | None = None) -> Written:
    """Make the report of a run's folder, in it or in `target`.

    Raises UsageError for what is no run, HostCannot when libraries are missing, LabError for a full disk.
    """
    extra.need()
    results = Results(source)
    folder = target or (source if source.is_dir() else source.parent)
    plots = all_plots(results) if results.samples else []
    try:
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (folder / "plots" / f"{plot.name}.svg").write_text(plot.svg)
            (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png)
        html, markdown = folder / "report.html", folder / "report.md"
        html.write_text(page(results, plots), encoding="utf-8")
        markdown.write_text(text(results, plots), encoding="utf-8")
        export.write(results, folder)
    except OSError as error:
        raise LabError(
            f"cannot write the report to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from error
    return Written(folder, html, markdown)


def page(results: Results, plots: list[Plot]) -> str:
    """The HTML page (templates/bench.html.j2)."""
    return _rendered("bench.html.j2", results, plots, escape=True)


def text(results: Results, plots: list[Plot]) -> str:
    """The Markdown (templates/bench.md.j2)."""
    return _rendered("bench.md.j2", results, plots, escape=False)


def _rendered(template: str, results: Results, plots: list[Plot], *, escape: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(data("templates")),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("number", "interval", "ratio", "verdict", "span"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(
        results=results,
        places=list(results.places.values()),
        suites=results.suites(),
        suite_title=suite_title,
        summary=words.summary(results),
        marked=words.MARKED,
        plots={plot.name: plot for plot in plots},
        published=published.table(results),
        sources=published.SOURCES,
        host=_told(results.conditions),
        nodes={name: _told(told) for name, told in results.node_conditions.items()},
        versions=results.versions,
        citation=export.citation(results),
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(results.began)),
        profile=_profile(results),
    )


def _cell(value: str) -> str:
    """Text that can stand in a cell of a Markdown table."""
    return " ".join(value.replace("|", "\\|").split())


def _profile(results: Results) -> str:
    import json

    return json.dumps(json.loads(results.header.get("profile") or "{}"), indent=1, ensure_ascii=False)


_SIZES = ("memory_bytes", "memory_given", "sees_memory", "sees_memory_limit")


def _told(conditions: dict[str, Any]) -> dict[str, str]:
    """Conditions as words, in their order; empty ones are left out."""
    found = {}
    for key, value in conditions.items():
        if value in ("", None, [], {}, 0, 0.0) and not isinstance(value, bool):
            continue
        found[key.replace("_", " ")] = _word(key, value)
    return found


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _SIZES:
        return f"{value / (1 << 20):,.0f} MiB"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {word}" for name, word in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"{word:.2f}" if isinstance(word, float) else str(word) for word in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
