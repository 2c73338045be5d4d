"""The one door to labctl.lab: imported when a verb runs, told where and how to work."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from labctl.cli.session import Session


def lab_room() -> Any:
    """The module that does it all."""
    return import_module("labctl.lab.api")


def options(session: Session, **more: object) -> Any:
    """labctl.lab.model.Options for this call."""
    from labctl.lab.model import Options

    return Options(home=session.home, libvirt=session.uri, **more)  # type: ignore[arg-type]
