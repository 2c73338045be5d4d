"""Running other programs: bounded, with their own words in the error."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence

from labctl.errors import HostCannot, LabError, TimedOut

# What a program says when another one is changing the same rules at the same instant.
_BUSY = ("resource busy", "resource temporarily unavailable", "interrupted system call", "xtables lock")
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin"


def find(name: str) -> str | None:
    """The path of a program; those of root are found with a user's PATH as well."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def need(name: str, package: str) -> str:
    """The path of a program, or HostCannot naming the Debian package that has it."""
    path = find(name)
    if path is None:
        raise HostCannot(f"the program {name} is not installed", hint=f"apt-get install {package}")
    return path


def run(argv: Sequence[str], *, text: str = "", timeout: float = 20.0, what: str = "") -> str:
    """Run a program to its end; its standard output.

    A collision with another user of the same kernel tables is tried again, up to five times.
    Raises LabError with the last line it wrote to standard error, TimedOut after `timeout` seconds.
    """
    for attempt in range(6):
        code, out, err = attempt_run(argv, text=text, timeout=timeout)
        if code == 0:
            return out
        if attempt == 5 or not any(word in err.lower() for word in _BUSY):
            break
        time.sleep(0.02 * 2**attempt)
    lines = [line for line in err.strip().splitlines() if line.strip(" ^~")]
    said = lines[0] if lines else f"exit code {code}"
    raise LabError(f"{what or 'cannot run ' + ' '.join(argv[:4])}: {said}")


def attempt_run(argv: Sequence[str], *, text: str = "", timeout: float = 20.0) -> tuple[int, str, str]:
    """Run a program once: (exit code, standard output, standard error).  Raises TimedOut, HostCannot."""
    try:
        done = subprocess.run(
            list(argv), input=text, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{argv[0]} did not end within {timeout:g} s") from error
    except FileNotFoundError as error:
        raise HostCannot(f"the program {argv[0]} is not installed") from error
    return done.returncode, done.stdout, done.stderr
