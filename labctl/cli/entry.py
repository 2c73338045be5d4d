"""The first steps of the program `labctl`: who ends it while it still loads is answered as later on."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports `enum`: 5 ms
import os

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; from here on Ctrl-C, SIGTERM and SIGHUP give one line and exit code 130."""
    tell_at_once()
    from labctl.cli.main import main

    main()


def tell_at_once() -> None:
    """Let these signals end the process with its one line, wherever it is; those ignored (nohup) stay so.

    For the time before a verb begins and after it has ended: nothing is under way that needs an end in order.
    """
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) is not _signal.SIG_IGN:
            _signal.signal(number, _end)


def listen_to_ctrl_c() -> None:
    """Let SIGINT raise KeyboardInterrupt again, where it is heard and not ignored."""
    if _signal.getsignal(_signal.SIGINT) is _end:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os.write(2, b"labctl: interrupted\n")
    os._exit(_INTERRUPTED)
