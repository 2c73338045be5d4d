"""What a person reads when something fails, and the exit code that a script reads."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from labctl.errors import Failures, LabError, ProfileError

INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports a program that the signal ended


def warn(text: str) -> None:
    """One line for the person, never among the data on stdout."""
    print(f"labctl: {text}", file=sys.stderr, flush=True)


def explain(error: LabError) -> str:
    """The whole message of an error: what is wrong, where, and what to do."""
    if isinstance(error, ProfileError):
        count = len(error.problems)
        head = f"labctl: error: the {error.what} has {count} mistake{'s' if count > 1 else ''}\n"
        return head + "\n".join(str(problem) for problem in error.problems)
    lines = [f"labctl: error: {error}"]
    if isinstance(error, Failures):
        lines += [f"  - {_with_hint(cause)}" for cause in error.causes]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


def _with_hint(error: LabError) -> str:
    inner = f" [{'; '.join(str(cause) for cause in error.causes)}]" if isinstance(error, Failures) else ""
    return f"{error}{inner} ({error.hint})" if error.hint else f"{error}{inner}"


def guarded(action: Callable[[], object]) -> int:
    """Run the action; every way in which it can fail becomes one message and an exit code."""
    try:
        action()
        sys.stdout.flush()
    except LabError as error:
        print(explain(error), file=sys.stderr, flush=True)
        return _code(error)
    except KeyboardInterrupt:
        warn("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does.  Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _full(error)
        return _unexpected(error, _system_error(error))
    except Exception as error:  # noqa: BLE001 - the last resort: the traceback is kept in a file
        return _unexpected(error, f"unexpected {type(error).__name__}: {error}")
    return 0


def _code(error: LabError) -> int:
    """The exit code; several failures of one kind keep that kind's code."""
    if isinstance(error, Failures) and error.causes:
        codes = {_code(cause) for cause in error.causes}
        return codes.pop() if len(codes) == 1 else error.exit_code
    return error.exit_code


def _full(error: OSError) -> int:
    """Where the error doesn't say which file it was, it is on one of labctl's two disks."""
    from labctl.home import Home, write_hint

    home = Home.find()
    places = [Path(str(error.filename))] if error.filename else [home.state, home.cache]
    print(
        f"labctl: error: the disk is full{f': {error.filename}' if error.filename else ''}", file=sys.stderr
    )
    for place in places:
        print(f"hint: {write_hint(place)}", file=sys.stderr, flush=True)
    return 1


def _system_error(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _unexpected(error: BaseException, message: str) -> int:
    print(f"labctl: error: {message}", file=sys.stderr)
    print(f"hint: the traceback is in {_keep_traceback(error)}", file=sys.stderr, flush=True)
    return 1


def _keep_traceback(error: BaseException) -> str:
    """Write the traceback where it can be found later; says where."""
    import tempfile
    import traceback

    from labctl.home import Home

    text = "".join(traceback.format_exception(error))
    name = f"traceback-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    for folder in (Home.find().state / "log", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # O_EXCL: /tmp belongs to everybody.
            with open(folder / name, "x") as file:  # noqa: PTH123
                file.write(f"{' '.join(sys.argv)}\n{text}")
            return str(folder / name)
        except OSError:
            continue  # a full or read-only disk: the next folder may do
    return f"no file, since none could be written:\n{text}"
