"""Sizes, CPUs and times as people write them, and back.  Standard library only.

Every parser raises ValueError whose text a person can read ("must be a size such as 256MiB …").
"""

from __future__ import annotations

import re

# IEC 80000-13 for KiB…TiB; SI for kB…TB; a bare letter is binary, as in Docker, QEMU and Kubernetes' Ki.
_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{
        k: 1024**n
        for n, ks in enumerate(("k ki kib", "m mi mib", "g gi gib", "t ti tib"), 1)
        for k in ks.split()
    },
    **{k: 1000**n for n, k in enumerate(("kb", "mb", "gb", "tb"), 1)},
}
_NAMES = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", re.ASCII)
_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 30 * 86400.0


def parse_size(value: object) -> int:
    """A size in bytes from 256MiB, 1.5G, 512m or a plain number of bytes.

    K, M, G and T count by 1024 (as docker -m does), KB, MB, GB and TB by 1000.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < 2**63:
            return value
    elif isinstance(value, (str, float)) and not isinstance(value, bool):
        match = _SIZE.fullmatch(str(value).strip())
        if match and (factor := _UNITS.get(match[2].lower())):
            size: int = round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
            if size < 2**63:
                return size
    raise ValueError("must be a size such as 256MiB, 1.5G or 512m")


def format_size(size: int) -> str:
    """The shortest exact way to write a number of bytes: 268435456 → "256MiB"."""
    for factor, name in _NAMES:
        if size and size % factor == 0:
            return f"{size // factor}{name}"
    return str(size)


def parse_cpus(value: object) -> float:
    """A number of CPUs from 2, 0.5 or "500m" (thousandths, as in Kubernetes)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cpus = float(value) if -1 < value < 10**6 else -1.0
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,7}m", value.strip(), re.ASCII):
        cpus = int(value.strip()[:-1]) / 1000
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", value.strip(), re.ASCII):
        cpus = float(value)
    else:
        cpus = -1.0
    if not 0 <= cpus <= 4096:
        raise ValueError("must be a number of CPUs such as 2, 0.5 or 500m")
    return cpus


def parse_duration(value: object) -> float:
    """Seconds from 30, 0.5, "30s", "2m", "1h30m" or "200ms"; 30 days at most."""
    seconds = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if -1 < value < 10**9 else -1.0
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII):
            seconds = float(text)
        elif text and not _TIME.sub("", text).strip():
            seconds = round(sum(float(m[1]) * _SECONDS[m[2]] for m in _TIME.finditer(text)), 9)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("must be a time such as 30s, 2m, 1h30m or 200ms")
    return seconds


def format_duration(seconds: float) -> str:
    """The way to write a time: 90.0 → "1m30s", 0.2 → "200ms"; exact to the millisecond."""
    left = round(seconds * 1000)
    if not left:
        return "0s"
    text = ""
    for name, step in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, step)
        text += f"{count}{name}" if count else ""
    return text
