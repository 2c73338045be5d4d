"""The libraries that only `labctl bench` uses: the extra `labctl[bench]`."""

from __future__ import annotations

from importlib.util import find_spec

from labctl.errors import HostCannot

WANTED = ("numpy", "scipy", "matplotlib", "pyarrow")


def need() -> None:
    """Raise HostCannot with pip's line when one of them is missing."""
    if missing := [name for name in WANTED if find_spec(name) is None]:
        raise HostCannot(
            f"labctl bench needs {', '.join(missing)}: labctl was installed without its extra `bench`",
            hint="pip install 'labctl[bench]', or `make setup-test` in a checkout",
        )
