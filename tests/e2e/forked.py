"""`labctl` without its start: one process that has all of it loaded forks for each command line.

What runs is a process of its own, as from the shell, which can be killed at any point; only the half second
of imports before `main` is spent once.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Self


class Forked:
    """The process that forks, from the test's side.  Use with `with`."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)  # with a command that a test gave up
        with self._server:
            pass

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`labctl WORDS` with `env` on top of ours; a command that SIGKILL ended has the code -9."""
        assert self._server.stdin and self._server.stdout
        with tempfile.TemporaryDirectory(prefix="labctl-forked-") as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            asked = {"words": words, "env": {**os.environ, **env}, "out": str(out), "err": str(err)}
            self._server.stdin.write(json.dumps(asked) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def _load() -> None:
    """Import every module that a command may want, and nothing that starts by being imported."""
    import labctl

    for module in pkgutil.walk_packages(labctl.__path__, "labctl."):
        if not module.name.endswith("__main__") and not module.name.startswith("labctl.bench"):
            import_module(module.name)


def _become(asked: Mapping[str, object], env: Mapping[str, str]) -> None:
    """Be the command line from here on; does not return."""
    from labctl.cli.main import main

    for number, path, how in (
        (0, "/dev/null", os.O_RDONLY),
        (1, asked["out"], os.O_WRONLY | os.O_CREAT),
        (2, asked["err"], os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(str(path), how, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    words = asked["words"]
    assert isinstance(words, list)
    sys.argv = ["labctl", *words]
    main()


def _serve() -> None:
    _load()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        if not (pid := os.fork()):
            try:
                answers.close()
                _become(asked, asked["env"])
            finally:  # `main` ends the process by itself
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
        _pid, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
