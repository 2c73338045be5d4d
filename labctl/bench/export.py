"""The figures as data: every sample and every summary as CSV, JSON and Parquet, and a citation of the run."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

from labctl.bench.results import Results

SAMPLE_FIELDS = (
    *(
        "run",
        "suite",
        "task",
        "figure",
        "unit",
        "better",
        "place",
        "tier",
        "accelerator",
        "emulated",
        "nested",
    ),
    *("turn", "value", "seconds", "at", "load"),
)
RESULT_FIELDS = (
    *("run", "suite", "task", "figure", "title", "unit", "better", "place", "tier", "emulated", "nested"),
    *("count", "median", "low", "high", "minimum", "maximum", "p95", "p99", "outliers"),
    *("ratio", "ratio_low", "ratio_high", "p", "effect", "verdict", "reason"),
)


def samples(results: Results) -> list[dict[str, Any]]:
    """One record a figure of a measured run."""
    units = {
        (t["key"], f["name"]): (f["unit"], f["better"], t["suite"])
        for t in results.tasks.values()
        for f in t["figures"]
    }
    found = []
    for line in results.samples:
        place = results.places[line["place"]]
        for name, value in line["values"].items():
            unit, better, suite = units.get((line["task"], name), ("", "neither", ""))
            found.append(
                {
                    "run": results.header["id"],
                    "suite": suite,
                    "task": line["task"],
                    "figure": name,
                    "unit": unit,
                    "better": better,
                    "place": place.name,
                    "tier": place.tier,
                    "accelerator": place.accelerator,
                    "emulated": place.emulated,
                    "nested": place.nested,
                    "turn": line["turn"],
                    "value": float(value),
                    "seconds": float(line["seconds"]),
                    "at": float(line["at"]),
                    "load": float(line.get("load", 0.0)),
                }
            )
    return found


def summaries(results: Results) -> list[dict[str, Any]]:
    """One record a figure and place; fields without a value are None."""
    found = []
    for row in results.rows:
        for name, cell in row.cells.items():
            place, s, r = results.places[name], cell.summary, cell.ratio
            found.append(
                {
                    "run": results.header["id"],
                    "suite": row.suite,
                    "task": row.task,
                    "figure": row.name,
                    "title": row.title,
                    "unit": row.unit,
                    "better": str(row.better),
                    "place": name,
                    "tier": place.tier,
                    "emulated": place.emulated,
                    "nested": place.nested,
                    "count": len(cell.samples),
                    "median": s.median if s else None,
                    "low": s.low if s else None,
                    "high": s.high if s else None,
                    "minimum": s.minimum if s else None,
                    "maximum": s.maximum if s else None,
                    "p95": s.p95 if s else None,
                    "p99": s.p99 if s else None,
                    "outliers": len(s.outliers) if s else None,
                    "ratio": r.ratio if r else None,
                    "ratio_low": r.low if r else None,
                    "ratio_high": r.high if r else None,
                    "p": r.p if r else None,
                    "effect": r.effect if r else None,
                    "verdict": str(r.verdict) if r else None,
                    "reason": cell.reason,
                }
            )
    return found


def as_csv(fields: tuple[str, ...], records: list[dict[str, Any]]) -> str:
    """RFC 4180, with a head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def citation(results: Results) -> str:
    """A BibTeX entry of the run."""
    host = results.conditions
    when = time.gmtime(results.began)
    note = f"run {results.header['id']}, {len(results.samples)} samples, labctl {results.header['labctl']}"
    processor = str(host.get("cpu_model", "unknown processor"))
    title = f"Benchmark of the lab {results.header['lab']} on {processor}"
    safe = "".join(c if c not in "{}\\%&#$_" else " " for c in title)
    return (
        f"@misc{{labctl-bench-{results.header['id']},\n"
        f"  title        = {{{safe}}},\n"
        f"  howpublished = {{labctl bench, suites {', '.join(results.header['suites'])}}},\n"
        f"  note         = {{{note}}},\n"
        f"  year         = {{{when.tm_year}}},\n"
        f"  month        = {{{when.tm_mon}}}\n}}\n"
    )


def write(results: Results, folder: Path) -> None:
    """Write all data files into a folder that is there.  Raises OSError."""
    taken, summed = samples(results), summaries(results)
    (folder / "samples.csv").write_text(as_csv(SAMPLE_FIELDS, taken))
    (folder / "results.csv").write_text(as_csv(RESULT_FIELDS, summed))
    document = {
        "schema_version": 1,
        "run": {key: value for key, value in results.header.items() if key != "profile"},
        "conditions": {
            "host": results.conditions,
            "nodes": results.node_conditions,
            "versions": results.versions,
        },
        "drift": results.drift.sentence,
        "results": summed,
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (folder / "citation.bib").write_text(citation(results))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(taken), folder / "samples.parquet")
