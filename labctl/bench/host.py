"""The bare host as a place: the image's root file system in a mount namespace of its own, and nothing else.

Processes there are ordinary ones of the host: its PID, network, IPC, UTS, user and cgroup namespaces, its
limits, all rights.  What differs from a program of the host's own is only which files it sees, so that the
binaries are those of the nodes.  A small holder process keeps the mounts; when labctl ends, however it does,
the holder kills what still runs there and removes what was written.  Commands enter by nsenter(1).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from labctl.errors import HostCannot, LabError, TimedOut
from labctl.guest.machine import Completed

_START_SECONDS = 20.0


def allowed() -> None:
    """Raise HostCannot where the bare host can't be measured."""
    if os.geteuid() != 0:
        raise HostCannot(
            "the bare host can be measured by root only: the image's files are mounted for it",
            hint="run it with sudo, or say --baseline none",
        )
    if shutil.which("nsenter") is None:
        raise HostCannot("nsenter is missing", hint="apt-get install util-linux")


def sweep(folder: Path) -> None:
    """Remove what holders that were killed left behind: folders whose lock nobody holds."""
    import fcntl

    for left in folder.iterdir() if folder.is_dir() else ():
        try:
            with (left / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # held, or another labctl is just making it
        shutil.rmtree(left, ignore_errors=True)


class HostRoot:
    """The host with the image's files.  A context manager; `folder` holds what is written, and is removed."""

    def __init__(self, layers: Sequence[Path], env: Sequence[str], folder: Path) -> None:
        self._layers, self._folder = layers, folder
        self._env = dict(item.partition("=")[::2] for item in env)
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HostRoot:
        allowed()
        sweep(self._folder.parent)
        for name in ("upper", "work", "root", "data"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        words = {"layers": [str(layer) for layer in self._layers], "folder": str(self._folder)}
        program = Path(__file__).with_name("host_holder.py")
        argv = [sys.executable, "-I", "-S", str(program), json.dumps(words)]
        self._holder = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        timer = threading.Timer(_START_SECONDS, self._holder.kill)
        timer.start()
        try:
            assert self._holder.stdout is not None
            said = self._holder.stdout.readline()
        finally:
            timer.cancel()
        if said != b"ready\n":
            assert self._holder.stderr is not None
            self._holder.kill()
            why = self._holder.stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            self.close()
            raise LabError(
                f"the image's files can't be mounted for the host: {why[0] if why else 'it ended at once'}",
                hint="labctl doctor says what this host has; --baseline none measures without it",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the holder, and with it the mounts, and remove what was written."""
        if self._holder is not None:
            with suppress(BrokenPipeError):
                if self._holder.stdin:
                    self._holder.stdin.close()
            try:
                self._holder.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._holder.kill()
                self._holder.wait()
            for pipe in (self._holder.stdout, self._holder.stderr):
                if pipe:
                    pipe.close()
            self._holder = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Completed:
        """Run argv on the host; see guest.machine.Executes.  Raises TimedOut: all of it is killed."""
        if self._holder is None or self._holder.poll() is not None:
            raise LabError("the process that holds the image's files for the host has ended")
        # --wd without a folder is the holder's, the new root; one that is named would be opened before.
        words = ["nsenter", f"--target={self._holder.pid}", "--mount", "--root", "--wd", "--"]
        process = subprocess.Popen(
            [*words, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"HOME": "/root", "LANG": "C.UTF-8", **self._env, **(env or {})},
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(input, timeout)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimedOut(f"{argv[0]} on this host took longer than {timeout:g} s") from error
            raise
        code = process.returncode
        return Completed(code if code >= 0 else 128 - code, out, errors)
