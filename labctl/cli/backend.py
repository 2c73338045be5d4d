"""How labctl.lab is told where and how to work."""

from __future__ import annotations

from typing import Any

from labctl.cli.session import Session
from labctl.lab.model import Options


def options(session: Session, **more: Any) -> Options:
    """The options for this call: the session's home and libvirt, and what the verb adds."""
    return Options(home=session.home, libvirt=session.uri, **more)


def planning(session: Session, *, fallback: str, nested: str, **more: Any) -> Options:
    """The same for a verb that plans: what its command line leaves open is as the configuration says
    (for `nested`, where the profile leaves it open as well)."""
    return options(
        session,
        fallback=fallback or session.fallback,
        nested=nested,
        usual_nested=session.nested,
        **more,
    )
