"""The one error of the runtime: a sentence that names the container and the object."""

from __future__ import annotations


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
