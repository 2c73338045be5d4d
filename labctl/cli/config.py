"""The configuration file: /etc/labctl/config.yaml, then the user's own over it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from labctl.errors import Problem, ProfileError, UsageError, Where
from labctl.records import dataclass

PROGRESS = ("auto", "plain", "json", "tty")


@dataclass(frozen=True)
class Config:
    """What a person sets once instead of on every command line.

    `libvirt` is a connection URI ("" = the system's libvirtd where one runs, else a private one);
    `progress` one of PROGRESS; `fallback` a tier that stands in for one this host can't run,
    `nested` when a host machine is added for such a tier: auto, always or never.
    """

    libvirt: str = ""
    progress: str = "auto"
    fallback: str = ""
    nested: str = "auto"


def files() -> list[Path]:
    """Where it is looked for, the later over the earlier."""
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    return [Path("/etc/labctl/config.yaml"), user / "labctl/config.yaml"]


def load() -> Config:
    """Read the files that are there.  Raises ProfileError with every mistake of a file."""
    config = Config()
    for path in files():
        if path.is_file():
            config = _over(config, path)
    return config


def _over(config: Config, path: Path) -> Config:
    import yaml  # 15 ms, and most people have no such file

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = Where(str(path), mark.line + 1, mark.column + 1) if mark else Where(str(path))
        raise UsageError(f"not YAML: {getattr(error, 'problem', None) or error}", where=where) from error
    if content is None:
        return config
    if not isinstance(content, dict):
        raise UsageError("a mapping of settings is expected", where=Where(str(path)))
    problems = list(_problems(content, path))
    if problems:
        raise ProfileError(problems)
    return replace(config, **content)


def _problems(content: dict[object, object], path: Path) -> list[Problem]:
    from difflib import get_close_matches

    known = list(Config.__dataclass_fields__)
    problems = []
    for key, value in content.items():
        where = Where(str(path), field=str(key))
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            problems.append(Problem("no such setting", where, f"did you mean {near[0]}?" if near else ""))
        elif not isinstance(value, str):
            problems.append(Problem("text is expected", where))
        elif key == "progress" and value not in PROGRESS:
            problems.append(Problem(f"one of {', '.join(PROGRESS)} is expected", where))
    return problems
