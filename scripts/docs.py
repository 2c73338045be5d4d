"""Write the generated pages anew: docs/cli.md from the command line.  `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

from labctl.cli.reference import markdown

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    (DOCS / "cli.md").write_text(markdown())
