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
_HEREDOC = re.compile(r"<<(-?)\s*(?:'([^']+)'|\"([^\"]+)\"|\\?([A-Za-z_][\w.]*))")


@dataclass(frozen=True)
class Statement:
    """A complete statement of a script and the line (from 1) where it begins."""

    line: int
    text: str


@dataclass(frozen=True)
class Failed:
    """A statement that ended with a code other than 0."""

    line: int
    text: str
    code: int

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"line {self.line}: `{first}` ended with {self.code}"


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
        lines.append(
            f"eval {shlex.quote(statement.text)} || printf '\\036labctl-failed %d %d\\n' {statement.line} $?"
        )
    return "\n".join((*lines, "exit 0", ""))


def failures(script: str, output: str) -> list[Failed]:
    """Read back which statements failed."""
    texts = {statement.line: statement.text for statement in statements(script)}
    found = re.findall(rf"{MARK} (\d+) (\d+)", output)
    return [Failed(int(line), texts.get(int(line), ""), int(code)) for line, code in found]
