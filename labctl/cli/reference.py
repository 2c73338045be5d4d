"""The command line's reference as Markdown, from the verbs themselves (docs/cli.md)."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from labctl.cli.main import ALIASES, VERBS
from labctl.cli.tree import app

HEAD = """\
# The command line

Written by `make docs` from the program itself; `labctl VERB --help` says the same.

Data goes to stdout, everything else to stderr. `--json` prints one document with a `schema_version`.
Exit codes are in [exit-codes.md](exit-codes.md), the fields of a profile in [profile.md](profile.md).

A node is `LAB/NODE`, or `NODE` alone where one lab is up. Where several nodes are taken, so are
patterns (`'web-*'`, `'spectrum/*'`), a list with commas, and a lab's name for all its nodes.
"""

TAIL = """
## Configuration

`/etc/labctl/config.yaml`, then `~/.config/labctl/config.yaml` over it:

```yaml
libvirt: qemu:///system   # the connection; left out: the system's libvirtd, else a private one
progress: plain           # auto, plain, json or tty
fallback: emulation       # where a tier can't run here
nested: auto              # host machines for tiers that can't run here: auto (para), always, never
```

`LABCTL_HOME` moves state and cache into one folder. Without it they are in `/var/lib/labctl` and
`/var/cache/labctl` for root, in the XDG folders for others.

## Completion

`labctl --install-completion` sets it up for the current shell; names of labs, nodes, images and
profiles are completed as well.
"""


def markdown() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    parts = [HEAD]
    for section, verbs in VERBS.items():
        parts.append(f"## {section}\n")
        for name in verbs:
            command = root.commands[name]  # type: ignore[attr-defined]
            inner = getattr(command, "commands", None)
            if inner is None:
                parts.append(_verb(name, command))
            else:
                parts += [_verb(f"{name} {verb}", inner[verb]) for verb in inner]
    parts.append("## Aliases\n")
    parts.append("\n".join(f"- `labctl {alias}` is `labctl {real}`" for alias, real in ALIASES.items()))
    return "\n".join(parts) + "\n" + TAIL


def _verb(name: str, command: Any) -> str:
    told = inspect.cleandoc(command.help or "").replace("\b\n", "\b")
    about, _mark, examples = told.partition("\bExamples:")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    words = [str(p.metavar or p.name.upper()) for p in arguments]
    usage = " ".join(
        [
            "labctl",
            name,
            "[OPTIONS]",
            *(w if p.required else _optional(w) for p, w in zip(arguments, words, strict=True)),
        ]
    )
    lines = [f"### labctl {name}", "", f"`{usage}`", "", about.strip(), ""]
    rows = [(f"`{word}`", p.help or "") for p, word in zip(arguments, words, strict=True)]
    rows += [(_option(p), p.help or "") for p in options]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows), ""]
    if examples.strip():
        lines += ["```sh", inspect.cleandoc("\n" + examples.strip("\n")).strip(), "```", ""]
    return "\n".join(lines)


def _optional(word: str) -> str:
    return word if word.startswith("[") else f"[{word}]"


def _option(option: Any) -> str:
    names = sorted([*option.opts, *option.secondary_opts], key=lambda word: (word.startswith("--"), word))
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{word}{value if word.startswith('--') else ''}`" for word in names)


def _cell(words: str) -> str:
    return words.replace("|", "\\|")
