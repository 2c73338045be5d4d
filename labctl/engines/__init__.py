"""Container engines of other makes, each driven through its own tool: what lets a lab compare them with ours.

A driver has the shape of `labctl.engines.model.Engine`.  The network namespace, the folder and the image's
layers are labctl's; what runs the container is the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labctl.errors import LabError

if TYPE_CHECKING:
    from labctl.engines.model import Engine

OCI = ("runc", "crun")
NAMES = (*OCI, "podman")


def engine(name: str) -> Engine:
    """The driver of an engine.  Raises LabError for a name that this version doesn't know."""
    if name in OCI:
        from labctl.engines.oci import OciEngine

        return OciEngine(name)
    if name == "podman":
        from labctl.engines.podman import PodmanEngine

        return PodmanEngine()
    raise LabError(f"unknown engine {name!r}", hint=f"one of {', '.join(NAMES)}")
