"""Start-up scripts that go on after a failing line and report each.

POSIX shells have no ERR trap, so the script is cut into complete statements (a loop or a here-document
stays whole) and each is run by `eval` in one and the same shell.
"""

from __future__ import annotations

import re
import shlex
import subprocess

from labctl.records import dataclass

# What a failing statement looks like in the output: a control character that scripts don't print.
MARK = "\x1elabctl-failed"
_SHOWN = 200  # characters of a reason
_HEREDOC = re.compile(r"<<(-?)\s*(?:'([^']+)'|\"([^\"]+)\"|\\?([A-Za-z_][\w.]*))")


@dataclass(frozen=True)
class Statement:
    """A complete statement of a script and the line (from 1) where it begins."""

    line: int
    text: str


@dataclass(frozen=True)
class Failed:
    """A statement that ended with a code other than 0, and the line of its standard error that tells most."""

    line: int
    text: str
    code: int
    said: str = ""

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        said = f": {self.said}" if self.said else ""
        return f"line {self.line}: `{first}` ended with {self.code}{said}"


def statements(script: str) -> list[Statement]:
    """Cut a script into complete statements, by asking the shell itself which are complete."""
    found: list[Statement] = []
    lines: list[str] = []
    began = 1
    for number, line in enumerate(script.splitlines(), 1):
        if not lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            began = number
        lines.append(line)
        text = "\n".join(lines)
        if not line.endswith("\\") and not _open_heredoc(lines) and _complete(text):
            found.append(Statement(began, text))
            lines = []
    if lines:  # a mistake in the script: let the node's shell say so
        found.append(Statement(began, "\n".join(lines)))
    return found


def _open_heredoc(lines: list[str]) -> bool:
    """Whether a here-document is begun and not ended: `sh -n` takes the end of file for its end."""
    waiting: list[tuple[bool, str]] = []
    for line in lines:
        if waiting:
            tabs, word = waiting[0]
            if (line.lstrip("\t") if tabs else line) == word:
                waiting.pop(0)
            continue
        waiting += [(bool(m[1]), m[2] or m[3] or m[4]) for m in _HEREDOC.finditer(line)]
    return bool(waiting)


def _complete(text: str) -> bool:
    check = subprocess.run(
        ["/bin/sh", "-n", "-c", text], capture_output=True, timeout=10, stdin=subprocess.DEVNULL, check=False
    )
    return check.returncode == 0


def wrap(script: str) -> str:
    """A script for sh that runs every statement and marks those that fail; always ends with 0."""
    lines = []
    for statement in statements(script):
        mark = f"printf '\\036labctl-failed %d %d\\n' {statement.line} $?"
        tell = f"printf '\\036labctl-failed %d\\n' {statement.line} >&2"
        lines.append(f"eval {shlex.quote(statement.text)} || {{ {mark}; {tell}; }}")
    return "\n".join((*lines, "exit 0", ""))


def failures(script: str, output: str, errors: str = "") -> list[Failed]:
    """Read back which statements failed, and from the standard error why."""
    texts = {statement.line: statement.text for statement in statements(script)}
    found = re.findall(rf"{MARK} (\d+) (\d+)", output)
    said = re.findall(rf"(.*?){MARK} (\d+)\n", errors, re.DOTALL)
    reasons = {int(line): _telling(text) for text, line in said}
    return [Failed(int(n), texts.get(int(n), ""), int(code), reasons.get(int(n), "")) for n, code in found]


def _telling(text: str) -> str:
    """The line that tells most of what went wrong: the first that speaks of an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"[A-Za-z]", line)]
    chosen = next(
        (line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)), "".join(lines[-1:])
    )
    return chosen if len(chosen) <= _SHOWN else chosen[: _SHOWN - 1] + "…"
