"""Files of any kind as descriptors, for the calls that take only descriptors."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from labctl.guest.machine import Completed, Sink, Source

_BLOCK = 1 << 16


def descriptor_of(file: Source | Sink) -> int | None:
    """The descriptor behind a file, or None when it has none (a BytesIO)."""
    if file is None or isinstance(file, int):
        return file
    try:
        return file.fileno()
    except (OSError, AttributeError, io.UnsupportedOperation):
        return None


def write_all(sink: Sink, data: bytes) -> None:
    """Write all of it, however small the steps are.  Raises OSError."""
    if sink is None:
        return
    if isinstance(sink, int):
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
        return
    sink.write(data)
    sink.flush()


@contextmanager
def standard_streams(stdin: Source, stdout: Sink, stderr: Sink) -> Iterator[tuple[int, int, int]]:
    """Three descriptors that stand for the three files while the block runs.

    A file without a descriptor gets a pipe and a thread; what was written is all there when the block ends,
    unless a process in the background still holds the pipe: that is waited for a second, no longer.
    """
    with ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        yield _source(stack, stdin, null), _sink(stack, stdout, null), _sink(stack, stderr, null)


def _source(stack: ExitStack, source: Source, null: int) -> int:
    if source is None:
        return null
    found = descriptor_of(source)
    if found is not None:
        return found
    assert not isinstance(source, int)
    read, write = os.pipe2(os.O_CLOEXEC)

    def feed() -> None:
        # The command may end without reading everything: that is no failure.
        with suppress(BrokenPipeError), open(write, "wb", buffering=0) as out:  # noqa: PTH123
            while chunk := source.read(_BLOCK):
                write_all(out.fileno(), chunk)

    thread = threading.Thread(target=feed, name="stdin", daemon=True)
    thread.start()
    stack.callback(thread.join, 1.0)
    stack.callback(os.close, read)
    return read


def _sink(stack: ExitStack, sink: Sink, null: int) -> int:
    if sink is None:
        return null
    found = descriptor_of(sink)
    if found is not None:
        if not isinstance(sink, int):
            sink.flush()
        return found
    read, write = os.pipe2(os.O_CLOEXEC)

    blocks = [0]

    def drain() -> None:
        with open(read, "rb", buffering=0) as inp:  # noqa: PTH123
            while chunk := inp.read(_BLOCK):
                write_all(sink, chunk)
                blocks[0] += 1

    def settle() -> None:
        seen = -1
        while thread.is_alive() and seen != blocks[0]:
            seen = blocks[0]
            thread.join(1.0)

    thread = threading.Thread(target=drain, name="output", daemon=True)
    thread.start()
    stack.callback(settle)
    stack.callback(os.close, write)
    return write


def collect(execute: Callable[..., int], argv: Sequence[str], input: bytes, **settings: Any) -> Completed:
    """Run argv by a machine's `exec` with `input`, and keep what it says in memory: `Executes.run`."""
    out, err = io.BytesIO(), io.BytesIO()
    code = execute(argv, stdin=io.BytesIO(input) if input else None, stdout=out, stderr=err, **settings)
    return Completed(code, out.getvalue(), err.getvalue())
