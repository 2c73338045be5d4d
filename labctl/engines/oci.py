"""runc and crun: runtimes that take a bundle of the OCI runtime specification, as labctl's own does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labctl.engines import calls
from labctl.engines.launch import LAUNCH, TEMPLATE, settle_user
from labctl.engines.model import SECONDS, Box, Command, State, end_group
from labctl.errors import LabError, TimedOut
from labctl.linux import proc
from labctl.runtime.errors import ContainerError


class OciEngine:
    """A runtime by its command line, which both share (runc(8), crun(1)).

    Its state is in a folder of the lab's own, so that no other container of this host is ever seen.
    """

    log_format = "plain"

    def __init__(self, name: str) -> None:
        self.name = name
        self._hide = calls.hidden() if name == "crun" else ""

    def version(self) -> str:
        """The second half of its first line: "runc version 1.1.5+ds1"."""
        said = calls.call([calls.program(self.name), "--version"], seconds=10.0)
        return said.partition("\n")[0].rpartition(" ")[2]

    def _words(self, root: str, *words: str) -> list[str]:
        return [calls.program(self.name), "--root", root, *words]

    def _call(self, root: str, *words: str, data: str = "") -> str:
        try:
            return calls.call(calls.apart(self._words(root, *words), self._hide), data=data)
        except TimedOut as error:
            raise TimedOut(f"{self.name} {words[0]}: no answer within {SECONDS:g} s") from error
        except LabError as error:
            raise LabError(f"{self.name} {words[0]}: {error.message}") from error

    def start(self, box: Box) -> None:
        """See `Engine.start`: one run of the runtime, which leaves nothing of its own behind."""
        Path(box.root).mkdir(mode=0o700, parents=True, exist_ok=True)
        errors = Path(box.folder, "engine.log")
        errors.unlink(missing_ok=True)
        told = ["--log", str(errors), "--log-format", "json"]
        argv = self._words(box.root, *told, "run", "--detach", "--bundle", box.folder, box.id)
        base = str(Path(__file__).resolve().parents[2])
        own = [sys.executable, "-I", "-S", "-c", LAUNCH, base, box.folder, str(errors), str(os.getpid())]
        with box.log["stdout"].open("ab") as out, box.log["stderr"].open("ab") as err:
            try:
                done = subprocess.run(
                    [*own, self._hide, "", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=box.folder,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise TimedOut(f"{self.name} did not start {box.id} within {SECONDS:g} s") from error
        if done.returncode:
            said = calls.logged(errors) or f"ended with {done.returncode}"
            raise LabError(f"{self.name} can't start {box.id}: {said}")

    def state(self, box: Box) -> State | None:
        """See `Engine.state`."""
        if not Path(box.root, box.id).is_dir():
            return None
        try:
            found = json.loads(self._call(box.root, "state", box.id))
            return State(str(found["status"]), int(found.get("pid") or 0))
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{self.name}: its word on {box.id} can't be read: {error}") from error
        except LabError:
            if not Path(box.root, box.id).is_dir():
                return None  # gone meanwhile
            raise

    def group(self, box: Box) -> str:
        """See `Engine.group`."""
        return box.cgroup

    def running(self, box: Box, command: Command) -> int:
        """See `Engine.running`."""
        number = (proc.read(str(command.pid_file)) or "").strip()
        return int(number) if number.isdecimal() else 0

    def signal(self, box: Box, number: int) -> None:
        """See `Engine.signal`."""
        self._call(box.root, "kill", box.id, str(number))

    def freeze(self, box: Box, on: bool) -> None:
        """See `Engine.freeze`."""
        found = self.state(box)
        if found is None or (found.status == "paused") is on:
            return
        self._call(box.root, "pause" if on else "resume", box.id)

    def update(self, box: Box, resources: Mapping[str, Any]) -> bool:
        """See `Engine.update`."""
        with tempfile.NamedTemporaryFile("w", dir=box.folder, suffix=".json") as file:
            json.dump(resources, file)
            file.flush()
            self._call(box.root, "update", "--resources", file.name, box.id)
        return True

    def command(
        self, box: Box, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, user: str, tty: bool
    ) -> Command:
        """See `Engine.command`: a `process` of the specification in a file."""
        found = self.state(box)
        if found is None or found.status not in ("running", "created"):
            raise LabError(f"it is {found.status if found else 'not there'}")
        try:
            config = json.loads(Path(box.folder, "config.json").read_text())
            # A container that runs as another user still has root's rights for root.
            rights = json.loads(Path(box.folder, TEMPLATE).read_text())["process"]["capabilities"]
            config["process"]["capabilities"] = rights
        except (OSError, ValueError, KeyError) as error:
            raise LabError(f"its config.json can't be read: {error}") from error
        folder = Path(tempfile.mkdtemp(prefix="exec-", dir=box.folder))
        made = Command((), folder)
        try:
            process = _process(config, argv, env, cwd, user, tty, f"/proc/{found.pid}/root")
            (folder / "process.json").write_text(json.dumps(process))
            told = ["--log", str(made.errors), "--log-format", "json"]
            words = ["exec", "--process", str(folder / "process.json"), "--pid-file", str(made.pid_file)]
            return Command(
                tuple(calls.apart(self._words(box.root, *told, *words, box.id), self._hide)), folder
            )
        except (OSError, ContainerError, LabError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise error if isinstance(error, LabError) else LabError(str(error)) from error

    def delete(self, box: Box) -> None:
        """See `Engine.delete`.

        What the runtime doesn't know any more, because it was killed at its work, is found by its control
        group.  Killed and waited for by ourselves: `delete --force` would wait until somebody has reaped it.
        """
        end_group(box.id, box.cgroup, keep=True)
        if Path(box.root, box.id).is_dir():
            try:
                self._call(box.root, "delete", "--force", box.id)
            except LabError:
                if self._known(box):
                    raise
        end_group(box.id, box.cgroup)
        shutil.rmtree(Path(box.root, box.id), ignore_errors=True)

    def _known(self, box: Box) -> bool:
        """Whether the runtime itself can say what the container is: not one of which it wrote only half."""
        try:
            return self.state(box) is not None
        except LabError:
            return False


def _process(
    config: dict[str, Any],
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    user: str,
    tty: bool,
    root: str,
) -> dict[str, Any]:
    """`process` of the specification for one more command, from that of the container."""
    from labctl.runtime.execute import build_process

    process = build_process(config, argv, env=env or None, cwd=cwd or None)
    process["terminal"] = tty
    if user and "HOME" not in env:
        process["env"] = [pair for pair in process.get("env") or () if not pair.startswith("HOME=")]
    settle_user(process, user, root)
    return process
