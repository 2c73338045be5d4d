"""Signals by name, without the `signal` module (it imports `enum`: 5 ms in a cold process)."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from labctl.runtime.errors import ContainerError

BY_NAME: dict[str, int] = {
    name[3:]: int(getattr(_signal, name))
    for name in dir(_signal)
    if name.startswith("SIG") and not name.startswith("SIG_") and name not in ("SIGRTMIN", "SIGRTMAX")
}
_RTMIN, _RTMAX = 34, 64  # as the kernel's users count them: glibc keeps the first two for itself


def parse(text: str) -> int:
    """ "TERM", "SIGTERM", "15", "RTMIN+3" as a number.  Raises ContainerError."""
    name = str(text).strip().upper()
    if name.isdigit() and 0 < int(name) <= _RTMAX:
        return int(name)
    name = name[3:] if name.startswith("SIG") else name
    if name in BY_NAME:
        return BY_NAME[name]
    if name.startswith("RTMIN"):
        rest = name[5:].lstrip("+")
        if not rest or (rest.isdigit() and _RTMIN + int(rest) <= _RTMAX):
            return _RTMIN + int(rest or 0)
    raise ContainerError(f"unknown signal {str(text)!r}")
