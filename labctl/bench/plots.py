"""The plots, as SVG for the page and as SVG and PNG files.  matplotlib without a screen.

Every place has a colour and a shape of its own, so that nothing depends on seeing colours; places that are
emulated or nested are drawn hollow and say so in the legend.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labctl.bench.model import Better
from labctl.bench.numbers import number
from labctl.bench.results import PlaceInfo, Results, Row, first_figures, suite_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own text colour; replaced in the SVG of the page
# Okabe and Ito's colours, told apart by most people who don't see all colours; those dark and light enough
# to stand out against white and against black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
SHAPES = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Plot:
    """One plot.  `about` is read aloud in place of the picture, so it says what the picture shows."""

    name: str
    title: str
    about: str
    svg: str  # for a file: black on white
    page: str  # for the page: its text colour, no background
    png: bytes


def all_plots(results: Results) -> list[Plot]:
    """Every plot that the run has figures for."""
    found: list[Plot] = []
    for suite in results.suites():
        found += _ratios(results, suite)
        found += _distributions(results, suite)
    return [*_heat(results), *found, *_starts(results), *_density(results)]


def _style(results: Results, place: PlaceInfo) -> dict[str, Any]:
    at = list(results.places).index(place.name)
    colour = COLOURS[at % len(COLOURS)]
    fill = "none" if place.mark else colour
    return {"marker": SHAPES[at % len(SHAPES)], "color": colour, "markerfacecolor": fill, "linestyle": "none"}


def _draw(
    name: str, title: str, about: str, width: float, height: float, paint: Callable[[Figure], None]
) -> Plot:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        text, image = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(image, format="png", dpi=130, facecolor="white")
    raw = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    raw = raw[raw.index("<svg") :]
    return Plot(name, title, about, _on_white(raw), _for_page(raw, name, title), image.getvalue())


def _on_white(svg: str) -> str:
    head, rest = svg.split(">", 1)
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>\n{white}{rest}'.replace(INK, "#000000")


def _for_page(svg: str, name: str, title: str) -> str:
    """Ids that are unique in the page, the page's text colour, and a title for those who don't see it."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    plain = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{plain}"', 1)


def _grid(axes: Axes, axis: str = "x") -> None:
    axes.grid(axis=axis, color=INK, alpha=0.15, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _log(axes: Axes, low: float, high: float) -> None:
    """A logarithmic scale whose ticks are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)
    wide = high / low > 30
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: number(float(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(text: str, limit: int = 46) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _ratios(results: Results, suite: str) -> list[Plot]:
    rows = [row for row in results.suites()[suite] if any(row.cost(name) for name in results.places)]
    if not rows:
        return []
    places = [p for p in results.places.values() if p.name != results.baseline]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends = [1.0]
        for at, place in enumerate(places):
            shift = (at - (len(places) - 1) / 2) * 0.18
            for line, row in enumerate(reversed(rows)):
                if not (cost := row.cost(place.name)):
                    continue
                ends += cost
                style = _style(results, place)
                label = place.label if place.label not in axes.get_legend_handles_labels()[1] else "_"
                axes.plot([cost[1], cost[2]], [line + shift] * 2, color=style["color"], linewidth=2)
                axes.plot([cost[0]], [line + shift], label=label, markersize=7, **style)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [_short(row.title) for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        _log(axes, min(ends), max(ends))
        _grid(axes)
        axes.set_xlabel(f"times the cost on {results.baseline} (1 = the same, right = worse)")
        figure.legend(loc="outside upper right", ncols=max(1, len(places)))

    title = f"{suite_title(suite)}: cost over {results.baseline}, with 95 % intervals"
    about = "; ".join(
        f"{row.title}: " + ", ".join(f"{p.label} {number(c[0])}×" for p in places if (c := row.cost(p.name)))
        for row in rows
    )
    return [_draw(f"ratio-{suite}", title, about, 8.2, 1.3 + 0.42 * len(rows), paint)]


def _distributions(results: Results, suite: str) -> list[Plot]:
    """All samples of a suite, each row over the baseline's median (or the first place's)."""
    rows = [
        row
        for row in first_figures(results.suites()[suite])
        if any(len(c.samples) > 1 for c in row.cells.values())
    ]
    if not rows:
        return []

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 1, squeeze=False)
        for axes, row in zip(grid[:, 0], rows, strict=True):
            _strip(results, axes, row)
        figure.supxlabel("every sample; hollow: emulated or nested; ×: outlier by Tukey's fences", fontsize=9)

    title = f"{suite_title(suite)}: all samples"
    about = f"Every sample of {len(rows)} benchmarks in {len(results.places)} places."
    height = 0.6 + sum(0.55 + 0.24 * sum(bool(c.samples) for c in row.cells.values()) for row in rows)
    return [_draw(f"samples-{suite}", title, about, 8.2, height, paint)]


def _strip(results: Results, axes: Axes, row: Row) -> None:
    shown = [
        (place, row.cells[place.name]) for place in results.places.values() if row.cells[place.name].samples
    ]
    everything = [value for _place, cell in shown for value in cell.samples]
    for at, (place, cell) in enumerate(reversed(shown)):
        style = _style(results, place)
        far = set(cell.summary.outliers) if cell.summary else set()
        near = [v for i, v in enumerate(cell.samples) if i not in far]
        axes.plot(near, [at] * len(near), markersize=5, alpha=0.75, **style)
        axes.plot(
            [cell.samples[i] for i in far],
            [at] * len(far),
            marker="x",
            color=style["color"],
            linestyle="none",
        )
        if cell.summary:
            axes.plot([cell.summary.median], [at], marker="|", markersize=13, color=INK, markeredgewidth=1.6)
    axes.set_yticks(range(len(shown)), [place.label for place, _cell in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    low, high = min(everything), max(everything)
    if low > 0 and high / low > 4:
        _log(axes, low, high)
    _grid(axes)
    axes.set_title(f"{_short(row.title, 70)}, {row.unit}", fontsize=9, loc="left")


def _starts(results: Results) -> list[Plot]:
    """How many starts were done after so many seconds (the empirical distribution)."""
    row = next((row for row in results.rows if row.key == "lifecycle.restart.start"), None)
    if row is None or not any(cell.samples for cell in row.cells.values()):
        return []

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends: list[float] = []
        for place in results.places.values():
            values = sorted(row.cells[place.name].samples)
            if not values:
                continue
            ends += values
            style = {**_style(results, place), "linestyle": "--" if place.mark else "-"}
            steps = [(i + 1) / len(values) for i in range(len(values))]
            axes.step(
                [values[0], *values], [0.0, *steps], where="post", label=place.label, markersize=5, **style
            )
        _log(axes, min(ends), max(ends))
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("seconds from the start until commands run")
        axes.set_ylabel("share of the starts")
        _grid(axes, "both")
        axes.legend(loc="lower right")

    about = "; ".join(
        f"{results.places[n].label}: median {number(c.summary.median)} s"
        for n, c in row.cells.items()
        if c.summary
    )
    return [_draw("starts", "Start until commands run, all starts", about, 7.2, 3.2, paint)]


def _density(results: Results) -> list[Plot]:
    row = next((row for row in results.rows if row.key == "cost.idle.density"), None)
    if row is None or not any(cell.summary for cell in row.cells.values()):
        return []
    shown = [(results.places[name], cell.summary) for name, cell in row.cells.items() if cell.summary]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for at, (place, found) in enumerate(reversed(shown)):
            colour = _style(results, place)["color"]
            axes.barh(
                at,
                found.median,
                color="none" if place.mark else colour,
                edgecolor=colour,
                linewidth=1.5,
                hatch="//" if place.mark else None,
                height=0.55,
            )
            axes.annotate(
                number(found.median),
                (found.median, at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(shown)), [place.label for place, _found in reversed(shown)])
        values = [found.median for _place, found in shown]
        _log(axes, min(1.0, *values), max(values) * 1.6)
        axes.set_xlabel("idle nodes that fit into 1 GiB of the host's memory (by PSS)")
        _grid(axes)

    about = "; ".join(f"{place.label}: {number(found.median)}" for place, found in shown)
    return [_draw("density", "Density: idle nodes in 1 GiB", about, 7.2, 1.2 + 0.5 * len(shown), paint)]


def _heat(results: Results) -> list[Plot]:
    """Place × suite: the geometric mean of the costs over the baseline's."""
    suites = [
        suite
        for suite, rows in results.suites().items()
        if any(r.cost(n) for r in rows for n in results.places)
    ]
    places = [p for p in results.places.values() if p.name != results.baseline]
    if not suites or not places:
        return []
    costs = [[results.suite_cost(suite, place.name) for suite in suites] for place in places]

    def paint(figure: Figure) -> None:
        from matplotlib.colors import LogNorm

        axes = figure.add_subplot()
        most = max([2.0, *(cost for line in costs for cost in line if cost)])
        norm = LogNorm(vmin=1 / most, vmax=most)
        for y, line in enumerate(costs):
            for x, cost in enumerate(line):
                if cost is None:
                    axes.text(x, y, "–", ha="center", va="center")
                    continue
                colour = _heat_colour(float(norm(cost)))
                axes.add_patch(_box(x, y, colour, bool(places[y].mark)))
                axes.text(x, y, f"{number(cost)}×", ha="center", va="center", color="#000000", fontsize=9)
        axes.set_xlim(-0.5, len(suites) - 0.5)
        axes.set_ylim(len(places) - 0.5, -0.5)
        axes.set_xticks(range(len(suites)), [suite_title(suite).replace(" ", "\n", 1) for suite in suites])
        axes.set_yticks(range(len(places)), [place.label for place in places])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    title = f"Cost over {results.baseline} by suite: geometric means (1 = the same, more is worse)"
    about = "; ".join(
        f"{place.label}: "
        + ", ".join(f"{suite_title(s)} {number(c)}×" for s, c in zip(suites, line, strict=True) if c)
        for place, line in zip(places, costs, strict=True)
    )
    return [_draw("heat", title, about, 1.8 + 1.0 * len(suites), 1.1 + 0.55 * len(places), paint)]


def _heat_colour(share: float) -> tuple[float, float, float]:
    """From blue (cheaper) over white (the same) to orange (dearer); light enough for black text."""
    share = min(1.0, max(0.0, share))
    end = (0.34, 0.71, 0.91) if share < 0.5 else (0.95, 0.62, 0.25)
    mix = abs(share - 0.5) * 2
    return (1 - mix * (1 - end[0]), 1 - mix * (1 - end[1]), 1 - mix * (1 - end[2]))


def _box(x: int, y: int, colour: tuple[float, float, float], marked: bool) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (x - 0.47, y - 0.45),
        0.94,
        0.9,
        facecolor=colour,
        edgecolor=INK,
        linewidth=1.2,
        linestyle=(0, (3, 2)) if marked else "solid",
    )


__all__ = ["Better", "Plot", "all_plots"]
