"""Moments as people write them on the command line: "10m" ago, a date and time, seconds since the epoch."""

from __future__ import annotations

import time
from datetime import datetime

from labctl.errors import UsageError


def parse(text: str, option: str, now: float | None = None) -> float:
    """Seconds since the epoch; 0 for no text.  Times without a zone are this host's.  Raises UsageError."""
    if not text:
        return 0.0
    from labctl.profile.units import parse_duration

    plain = text.replace(".", "", 1)
    if plain.isdigit() and plain.isascii() and len(plain) >= 9:
        return float(text)
    if text[-1:].isalpha() and text[-1:] not in "Zz":
        try:
            return (time.time() if now is None else now) - parse_duration(text)
        except ValueError:
            pass
    else:
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    raise UsageError(
        f"{option} {text}: a time is expected", hint="10m (ago), 2026-01-31T09:30:00, or seconds since 1970"
    )


def show(at: float) -> str:
    """A moment on this host's clock, to the millisecond, with its zone (RFC 3339)."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")


def stamp(nanoseconds: int) -> str:
    """A moment to the nanosecond in UTC, as docker logs -t has it; "-" for 0, a moment that nobody knows."""
    if not nanoseconds:
        return "-"
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"
