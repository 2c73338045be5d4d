"""Our OCI runtime.  The names below load on first use, so that a cold `labrun` pays for none of them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from labctl.runtime.archive import runtime_zip as runtime_zip
    from labctl.runtime.client import (
        ContainerState as ContainerState,
    )
    from labctl.runtime.client import (
        ContainerStats as ContainerStats,
    )
    from labctl.runtime.client import (
        KeeperClient as KeeperClient,
    )
    from labctl.runtime.client import (
        Launch as Launch,
    )
    from labctl.runtime.client import (
        find_marked as find_marked,
    )
    from labctl.runtime.errors import ContainerError as ContainerError
    from labctl.runtime.errors import NotFoundError as NotFoundError
    from labctl.runtime.execute import exec_in as exec_in

_PLACES = {
    "runtime_zip": "archive",
    "ContainerState": "client",
    "ContainerStats": "client",
    "KeeperClient": "client",
    "Launch": "client",
    "find_marked": "client",
    "ContainerError": "errors",
    "NotFoundError": "errors",
    "exec_in": "execute",
}


def __getattr__(name: str) -> object:
    """PEP 562."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
