"""Run one step of a build inside an image: in namespaces of its own, over an overlay of the layers.

`Runner` is all that the builder knows.  `OverlayRunner` starts `runner_child.py` in a process of its own,
which the kernel ends together with us.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from labctl.errors import HostCannot, LabError, TimedOut
from labctl.image.pack import is_opaque
from labctl.records import dataclass


@dataclass(frozen=True)
class Step:
    """What to run.  `user` is name, uid, name:group or uid:gid, looked up in the image; "" is root."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    network: bool = True  # the host's network, or none but loopback
    stdin: bytes = b""
    #: What is mounted besides: objects with `target`, and `source` (a path of the host, or in `layers`),
    #: `ro`, `upper` and `work` (where to write instead), or `tmpfs` (its size).
    binds: tuple[Mapping[str, Any], ...] = ()
    timeout: float = 3600.0  # seconds


#: Called with each piece of output as it comes.
Output = Callable[[bytes], None]


class Runner(Protocol):
    """Runs a step over layers (bottom first); what it writes is left in `upper`, overlayfs' way."""

    def run(self, layers: Sequence[Path], upper: Path, step: Step, output: Output) -> int:
        """The exit code of the program, 128+n for a signal.  Raises HostCannot, TimedOut, LabError."""
        ...


@dataclass
class OverlayRunner:
    """Mount, PID, IPC and UTS namespaces, the usual fourteen capabilities.  Needs root."""

    hostname: str = "build"

    def run(self, layers: Sequence[Path], upper: Path, step: Step, output: Output) -> int:
        """See Runner.  Beside `upper` a folder work-… and root-… are made and removed."""
        if os.geteuid() != 0:
            raise HostCannot("RUN in a build needs root", hint="run it with sudo")
        work, root = upper.with_name(f"work-{upper.name}"), upper.with_name(f"root-{upper.name}")
        for folder in (work, root):
            folder.mkdir(exist_ok=True)
        report = upper.with_name(f"report-{upper.name}")
        copies = _copies(upper, step)
        words = {
            **{key: value for key, value in asdict(step).items() if key not in ("stdin", "timeout")},
            "layers": [str(layer) for layer in layers],
            "upper": str(upper),
            "work": str(work),
            "root": str(root),
            "report": str(report),
            "hostname": self.hostname,
            "binds": [*step.binds, *({"source": str(path), "target": target} for path, target in copies)],
        }
        try:
            code = _child(words, step, output)
            _explain(report, step)
            _tidy(upper, report, layers)
            return code
        finally:
            report.unlink(missing_ok=True)
            (report.with_suffix(".made")).unlink(missing_ok=True)
            for path, _ in copies:
                path.unlink(missing_ok=True)
            root.rmdir()
            with suppress(OSError):
                (work / "work").rmdir()
                work.rmdir()


def _copies(upper: Path, step: Step) -> list[tuple[Path, str]]:
    """What names are looked up with; copies, so that a step may write to them and nobody else sees it."""
    made = []
    for number, source in enumerate(("/etc/resolv.conf", "/etc/hosts")):
        text = "127.0.0.1 localhost\n::1 localhost\n" if number else ""
        if step.network and Path(source).exists():
            text = Path(source).read_text(errors="replace")
        copy = upper.with_name(f"host{number}-{upper.name}")
        copy.write_text(text)
        made.append((copy, source))
    return made


def _child(words: dict[str, object], step: Step, output: Output) -> int:
    program = Path(__file__).with_name("runner_child.py")
    argv = [sys.executable, "-I", "-S", str(program), json.dumps(words)]
    given = subprocess.PIPE if step.stdin else subprocess.DEVNULL
    process = subprocess.Popen(
        argv, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()  # its namespaces' first process ends with it, and all in them with that

    timer = threading.Timer(step.timeout, stop)
    timer.start()
    try:
        if process.stdin:
            with suppress(BrokenPipeError):
                process.stdin.write(step.stdin)
                process.stdin.close()
        while chunk := os.read(process.stdout.fileno(), 65536):
            output(chunk)
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()
        process.stdout.close()
    if late.is_set():
        raise TimedOut(f"a step of the build took longer than {step.timeout:.0f} s")
    if code < 0:
        return 128 + (-code if -code != signal.SIGKILL else 9)
    return code


def _explain(report: Path, step: Step) -> None:
    """Raise what the child could not do before the program was started."""
    try:
        text = report.read_text().strip()
    except FileNotFoundError:
        return
    raise LabError(
        f"cannot run {step.argv[0] if step.argv else 'nothing'}: {text}",
        hint="a build needs overlayfs and namespaces; labctl doctor says what this host has",
    )


def _tidy(upper: Path, report: Path, layers: Sequence[Path]) -> None:
    """Take away the empty mount points that the child made, and the folders copied up for them."""
    try:
        made = json.loads(report.with_suffix(".made").read_text())
    except FileNotFoundError:
        return
    for name in reversed(made):
        path = upper / name.lstrip("/")
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.is_file() and path.stat().st_size == 0:
                path.unlink()
            _uncopy(upper, path.parent, layers)


def _uncopy(upper: Path, folder: Path, layers: Sequence[Path]) -> None:
    """Remove an empty folder of the upper layer that says nothing new about the one below."""
    if folder == upper or not folder.is_dir() or is_opaque(str(folder)) or any(folder.iterdir()):
        return
    for layer in reversed(layers):
        below = layer / folder.relative_to(upper)
        if below.is_dir() and not below.is_symlink():
            ours, theirs = folder.stat(), below.stat()
            if (ours.st_mode, ours.st_uid, ours.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid):
                folder.rmdir()
            return
