"""Write the generated pages anew: docs/cli.md, docs/profile.md, docs/spectrum.svg.  `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

from labctl.cli import drawing, profiles, reference
from labctl.profile.reference import reference as profile_reference

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    (DOCS / "cli.md").write_text(reference.markdown())
    (DOCS / "profile.md").write_text(profile_reference())
    (DOCS / "spectrum.svg").write_text(drawing.svg(drawing.of_profile(profiles.load("spectrum", []))))
