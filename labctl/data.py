"""Where the files that travel with labctl are: templates, profiles, image recipes."""

from __future__ import annotations

from pathlib import Path


def data(*parts: str) -> Path:
    """The path of a file shipped with labctl, e.g. data("templates", "domain.xml.j2").

    In a wheel they lie in labctl/_data; in a checkout at the top of the repository.
    """
    package = Path(__file__).parent
    shipped = package / "_data"
    return (shipped if shipped.is_dir() else package.parent).joinpath(*parts)
