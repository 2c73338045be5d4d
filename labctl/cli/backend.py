"""How labctl.lab is told where and how to work."""

from __future__ import annotations

from typing import Any

from labctl.cli.session import Session
from labctl.lab.model import Options


def options(session: Session, **more: Any) -> Options:
    """The options for this call: the session's home and libvirt, and what the verb adds."""
    return Options(home=session.home, libvirt=session.uri, **more)
