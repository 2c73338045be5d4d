"""The instructions that change only the configuration: each a function of stage and instruction."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

from labctl.image.build_state import Stage, with_variables
from labctl.image.containerfile import Instruction, instruction
from labctl.image.expand import BadWord, expand, split


def pairs(stage: Stage, step: Instruction) -> dict[str, str]:
    """name=value name2="value 2", or the old form `name value`.  Values see what was set before the line."""
    try:
        words = split(step.rest, step.escape)
        if words and "=" not in words[0]:
            name, _, value = step.rest.partition(words[0])[2].partition(" ")
            text = (name + value).strip()
            if not text:
                raise step.wrong("needs name=value")
            return {words[0]: expand(text, stage.values, step.escape)}
        found = {}
        for word in words:
            raw, equals, value = word.partition("=")
            name = expand(raw, stage.values, step.escape)
            if not equals or not name:
                raise step.wrong(f"{word} is not name=value")
            found[name] = expand(value, stage.values, step.escape)
        return found
    except BadWord as error:
        raise step.wrong(str(error)) from None


def env(stage: Stage, step: Instruction) -> None:
    """ENV."""
    stage.change(env=with_variables(stage.config.env, pairs(stage, step)))


def label(stage: Stage, step: Instruction) -> None:
    """LABEL."""
    stage.change(labels={**stage.config.labels, **pairs(stage, step)})


def maintainer(stage: Stage, step: Instruction) -> None:
    """MAINTAINER: the image's author; out of use, since LABEL maintainer=… says the same."""
    stage.change(author=step.rest)


def user(stage: Stage, step: Instruction) -> None:
    """USER: whoever that is, a RUN will tell; a name that is empty is root again (both as Docker has it)."""
    stage.change(user=stage.word(step, step.rest))


def expose(stage: Stage, step: Instruction) -> None:
    """EXPOSE: ports and ranges, tcp unless said otherwise; a port of the host before them means nothing."""
    ports = set(stage.config.exposed_ports)
    # A variable may hold several ports (docker's dispatchers expand this one instruction to words).
    for word in " ".join(stage.words(step)).split():
        match = _PORTS.fullmatch(word)
        first, last = _range(match[2]) if match else (1, 0)
        outer = _range(match[1]) if match and match[1] else (first, first)
        fits = outer[0] == outer[1] or first == last or outer[1] - outer[0] == last - first
        if not match or not 0 < first <= last <= 65535 or not fits:
            raise step.wrong(f"{word} is no port", "as in 80, 53/udp or 8000-8010")
        ports.update(f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1))
    stage.change(exposed_ports=tuple(sorted(ports)))


# [[address:]host ports:]ports[/protocol], as go-connections' nat.ParsePortSpec reads it.
_PORTS = re.compile(
    r"(?:(?:(?:[0-9.]*|\[[0-9a-f:]+\]):)?(\d+(?:-\d+)?)?:)?(\d+(?:-\d+)?)(?:/(tcp|udp|sctp))?", re.IGNORECASE
)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def volume(stage: Stage, step: Instruction) -> None:
    """VOLUME."""
    paths = [path for path in stage.words(step) if path]
    if not paths:
        raise step.wrong("needs a path")
    stage.change(volumes=tuple(sorted({*stage.config.volumes, *paths})))


def stopsignal(stage: Stage, step: Instruction) -> None:
    """STOPSIGNAL: a name or a number, kept as it is written."""
    name = stage.word(step, step.rest)
    full = name.upper() if name.isdigit() or name.upper().startswith("SIG") else f"SIG{name.upper()}"
    known = (full.isdigit() and 0 < int(full) < 65) or full in signal.Signals.__members__
    if not known and not re.fullmatch(r"SIGRTM(IN|AX)([+-]\d+)?", full):
        raise step.wrong(f"{step.rest} is no signal")
    stage.change(stop_signal=name)


def shell(stage: Stage, step: Instruction) -> None:
    """SHELL: the JSON form only."""
    if not step.words:
        raise step.wrong("needs the JSON form", 'SHELL ["/bin/sh", "-c"]')
    stage.change(shell=step.words)


def command(stage: Stage, step: Instruction) -> tuple[str, ...]:
    """The words of RUN, CMD and ENTRYPOINT: as they are, or for the shell."""
    return step.words if step.words is not None else (*stage.shell, step.rest)


def cmd(stage: Stage, step: Instruction) -> None:
    """CMD; a bare one is the shell alone, as Docker has it."""
    words = command(stage, step) if step.rest else stage.shell
    stage.cmd_set = stage.cmd_set or bool(step.rest and words)
    stage.change(cmd=words)


def entrypoint(stage: Stage, step: Instruction) -> None:
    """ENTRYPOINT: an argument list that came with the base image belongs to another entry point.

    A bare one takes the base's away.
    """
    words = command(stage, step) if step.rest else ()
    stage.change(entrypoint=words, cmd=stage.config.cmd if stage.cmd_set else ())


def onbuild(stage: Stage, step: Instruction) -> None:
    """ONBUILD: kept for whoever builds on this image."""
    inner = instruction(step.rest, step.line, step.file, step.escape)
    if inner.name in ("ONBUILD", "FROM", "MAINTAINER"):
        raise step.wrong(f"{inner.name} can't be kept for later")
    stage.change(onbuild=(*stage.config.onbuild, step.rest))


_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


def healthcheck(stage: Stage, step: Instruction) -> None:
    """HEALTHCHECK NONE, or HEALTHCHECK [options] CMD …; times in nanoseconds, as the format has them."""
    kind, rest = [*step.rest.split(None, 1), ""][:2]
    if kind.upper() == "NONE":
        if rest.strip():
            raise step.wrong("NONE stands alone")
        stage.change(healthcheck={"Test": ["NONE"]})
        return
    if kind.upper() != "CMD" or not rest.strip():
        raise step.wrong("needs CMD and a command, or NONE")
    inner = instruction(f"CMD {rest.strip()}", step.line, step.file, step.escape)
    if inner.words == ():
        raise step.wrong("needs a command behind CMD")
    test = ["CMD", *inner.words] if inner.words is not None else ["CMD-SHELL", rest.strip()]
    check: dict[str, Any] = {"Test": test}
    for flag, name in _TIMES.items():
        if flag in step.flags:
            check[name] = _duration(step, step.flags[flag])
    if "retries" in step.flags:
        if not step.flags["retries"].isdigit():
            raise step.wrong("--retries must be a number")
        check["Retries"] = int(step.flags["retries"])
    stage.change(healthcheck=check)


def _duration(step: Instruction, text: str) -> int:
    """In ns.  As Go's time.ParseDuration: 30s, 1.5h, 1m30s, +5s, 0."""
    plain = text.removeprefix("+")
    parts = re.findall(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", plain)
    if plain not in ("", "0") and "".join(number + unit for number, unit in parts) != plain:
        raise step.wrong(f"{text} is no time", "as in 30s or 1m30s")
    found = int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < found < 10**6:
        raise step.wrong(f"{text} is less than 1ms")
    return found


CONFIG_STEPS: dict[str, Callable[[Stage, Instruction], None]] = {
    "ENV": env,
    "LABEL": label,
    "MAINTAINER": maintainer,
    "USER": user,
    "EXPOSE": expose,
    "VOLUME": volume,
    "STOPSIGNAL": stopsignal,
    "SHELL": shell,
    "CMD": cmd,
    "ENTRYPOINT": entrypoint,
    "ONBUILD": onbuild,
    "HEALTHCHECK": healthcheck,
}
