"""User Mode Linux's management console: datagrams on a UNIX socket (Linux, arch/um/drivers/mconsole.h).

A request is a magic word, a version, a length and up to 512 bytes of text; answers come as an error flag, a
"more follows" flag, a length and text.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from labctl.errors import LabError, TimedOut
from labctl.hypervisor import private

_MAGIC, _VERSION, _LONGEST = 0xCAFEBABE, 2, 512
_REQUEST = struct.Struct(f"=III{_LONGEST}s")
_REPLY = struct.Struct(f"=III{_LONGEST}s")


def ask(path: Path, command: str, *, seconds: float = 5.0) -> str:
    """The answer to a command.

    Raises LabError when there is no such socket or the kernel refuses the command, TimedOut when it does not
    answer.
    """
    raw = command.encode()
    if len(raw) >= _LONGEST:
        raise LabError(f"a command of {len(raw)} bytes is too long for {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("")  # answers go to an address: the kernel chooses one without a file (unix(7), autobind)
        line.settimeout(seconds)
        try:
            with private.reachable(path) as short:
                line.sendto(_REQUEST.pack(_MAGIC, _VERSION, len(raw), raw), short)
            return _answer(line, command)
        except TimeoutError as error:
            raise TimedOut(f"User Mode Linux did not answer {command!r} within {seconds:g} s") from error
        except OSError as error:
            raise LabError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _answer(line: socket.socket, command: str) -> str:
    text = b""
    while True:
        raw = line.recv(_REPLY.size).ljust(_REPLY.size, b"\0")
        failed, more, length, data = _REPLY.unpack(raw)
        text += data[: min(length, _LONGEST)]
        if more:
            continue
        said: str = text.rstrip(b"\0").decode(errors="replace").strip()
        if failed:
            raise LabError(f"User Mode Linux refused {command!r}: {said}")
        return said
