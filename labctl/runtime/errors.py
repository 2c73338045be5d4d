"""The one error of the runtime: a sentence that names the container and the object."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class ContainerError(Exception):
    """Something about a container failed.  `code` is the exit code that `labrun` ends with."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class NotFoundError(ContainerError):
    """There is no container of that id."""

    def __init__(self, id_: str) -> None:
        super().__init__("container does not exist")
        self.id = id_


def _say(text: str) -> None:
    os.write(2, f"labrun: warning: {text}\n".encode("utf-8", "replace"))


_sinks: list[Callable[[str], None]] = [_say]


def warn(text: str) -> None:
    """Say what is worth knowing and no error; labrun's command line puts it into its log."""
    _sinks[-1](text)


_listeners: list[Callable[[str], None]] = []


def debug(text: str) -> None:
    """Say what is being done, to whoever asked for it with --debug."""
    for listener in _listeners:
        listener(text)


def debug_with(listener: Callable[[str], None]) -> None:
    """Where such lines go from now on; before that, nowhere."""
    _listeners[:] = [listener]


def warn_with(sink: Callable[[str], None]) -> None:
    """Where warnings go from now on."""
    _sinks[-1] = sink
