"""A container's log on disk: frames with times, segments that go, readers that come late."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from labctl.cli.nodes import stamped
from labctl.guest.machine import LogChunk
from labctl.runtime import logbook, logread
from labctl.runtime.logbook import ERR, NOTE, OUT, Reader, Writer
from labctl.runtime.logread import Wanted

SECOND = 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def text(frames: Iterable[logbook.Frame], stream: int = OUT | ERR) -> str:
    return b"".join(data for number, _, data in frames if number & stream).decode()


def test_what_was_written_is_read_with_its_times(folder: str) -> None:
    writer = Writer(folder)
    writer.add(OUT, 5 * SECOND, b"one\ntw")
    writer.add(ERR, 6 * SECOND, b"bad\n")
    writer.add(OUT, 7 * SECOND, b"o\nthree")
    assert list(logread.read(folder, Wanted(OUT | ERR))) == [
        (OUT, 5 * SECOND, b"one\ntw"),
        (ERR, 6 * SECOND, b"bad\n"),
        (OUT, 7 * SECOND, b"o\nthree"),
    ]
    assert text(logread.read(folder, Wanted(ERR))) == "bad\n"
    writer.close()
    again = Writer(folder)
    again.add(OUT, 8 * SECOND, b"!\n")
    assert text(logread.read(folder, Wanted(OUT))) == "one\ntwo\nthree!\n"
    assert logbook.segments(folder) == [1], "another writer goes on in the same segment"


def test_a_line_is_as_old_as_its_first_byte(folder: str) -> None:
    writer = Writer(folder)
    for second in range(10):
        writer.add(OUT, second * SECOND, b"\n%d begins" % second)
    writer.add(OUT, 10 * SECOND, b"\n")
    assert text(logread.read(folder, Wanted(OUT, since=3 * SECOND, until=5 * SECOND))) == (
        "3 begins\n4 begins\n5 begins\n"
    )
    assert text(logread.read(folder, Wanted(OUT, since=8 * SECOND))) == "8 begins\n9 begins\n"
    assert text(logread.read(folder, Wanted(OUT, tail=2, until=4 * SECOND))) == "3 begins\n4 begins\n"


@pytest.mark.parametrize("tail", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("said", ["", "a", "a\n", "a\nb", "a\nb\n", "a\n\nb\n", "x" * 200_000 + "\ny\n"])
@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_tails(folder: str, tail: int, said: str, size: int) -> None:
    if len(said) > 1000 > size:
        size = 1000
    writer = Writer(folder, 1 << 20)
    for start in range(0, len(said), size):
        writer.add(OUT, SECOND, said[start : start + size].encode())
    lines = said.splitlines(keepends=True)
    assert text(logread.read(folder, Wanted(OUT, tail=tail))) == "".join(lines[-tail:] if tail else [])


def test_old_segments_go_and_lines_whose_begin_is_gone_are_left_out_of_tails(folder: str) -> None:
    writer = Writer(folder, 4096, 3)
    lines = [f"line {number:05d}\n" for number in range(2000)]
    for line in lines:
        writer.add(OUT, SECOND, line.encode())
    assert len(logbook.segments(folder)) == 3
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 3 * 4096
    kept = text(logread.read(folder, Wanted(OUT)))
    assert "".join(lines).endswith(kept) and len(kept) > 3000
    first = text(logread.read(folder, Wanted(OUT, tail=1999))).splitlines()[0]
    assert first + "\n" in lines, "a whole line"
    assert text(logread.read(folder, Wanted(OUT, tail=5))) == "".join(lines[-5:])


def test_a_frame_that_was_cut_by_a_kill_is_read_as_far_as_it_goes(folder: str) -> None:
    writer = Writer(folder)
    writer.add(OUT, SECOND, b"whole\n")
    writer.add(OUT, SECOND, b"cut short\n")
    path = logbook.path_of(folder, 1)
    os.truncate(path, os.path.getsize(path) - 9)  # noqa: PTH202
    assert text(logread.read(folder, Wanted(OUT))) == "whole\n", "it may still be being written"
    Writer(folder).add(OUT, 2 * SECOND, b"next\n")
    assert text(logread.read(folder, Wanted(OUT))) == "whole\ncut snext\n"
    assert text(logread.read(folder, Wanted(OUT, tail=1))) == "cut snext\n"


def test_a_reader_that_holds_what_goes_misses_nothing_and_one_that_does_not_is_told(folder: str) -> None:
    writer = Writer(folder, 4096, 2)
    writer.add(OUT, SECOND, b"first\n")
    held, late = Reader(folder), Reader(folder)
    assert text(held.more()) == text(late.more()) == "first\n"
    said = ""
    for number in range(1500):
        line = f"{number}\n"
        said += line
        writer.add(OUT, SECOND, line.encode())
        if number % 50 == 0:
            held.pin()
    held.pin()
    assert text(held.more()) == said
    frames = list(late.more())
    assert any(number == NOTE and b"went before they were read" in data for number, _, data in frames)
    held.close()
    late.close()


def test_from_a_pipe_without_a_copy(folder: str) -> None:
    reader, pipe = os.pipe()
    os.write(pipe, b"through the kernel\n")
    writer = Writer(folder)
    assert writer.take(ERR, SECOND, reader, 19) == 19
    assert list(logread.read(folder, Wanted(ERR))) == [(ERR, SECOND, b"through the kernel\n")]
    os.close(reader)
    os.close(pipe)


def test_followers_end_with_the_container(folder: str) -> None:
    writer = Writer(folder)
    writer.add(OUT, SECOND, b"one\n")
    looks = iter([False, False, True])

    def ended() -> bool:
        writer.add(OUT, SECOND, b"more\n")
        return next(looks)

    found = logread.read(folder, Wanted(OUT), follow=True, ended=ended, pause=0.01)
    assert text(found) == "one\nmore\nmore\nmore\n"


def test_files_of_the_first_version_are_read_before(folder: str) -> None:
    Path(folder).mkdir()
    Path(folder, "stdout").write_text("old 1\nold 2\n")
    assert text(logread.read(folder, Wanted(OUT))) == "old 1\nold 2\n"
    Writer(folder).add(OUT, SECOND, b"new\n")
    assert text(logread.read(folder, Wanted(OUT))) == "old 1\nold 2\nnew\n"
    assert text(logread.read(folder, Wanted(OUT, tail=2))) == "old 2\nnew\n"
    assert text(logread.read(folder, Wanted(OUT, since=1))) == "new\n", "nobody knows when the old ones came"


def test_times_before_lines() -> None:
    def chunks() -> Iterator[LogChunk]:
        yield LogChunk("stdout", b"a\nb", 1_500_000_000)
        yield LogChunk("stderr", b"oh\n", 2_000_000_000)
        yield LogChunk("stdout", b"c\n\n", 3_000_000_000)
        yield LogChunk("stdout", b"old\n", 0)

    found = [(chunk.stream, chunk.data.decode()) for chunk in stamped(chunks())]
    assert found == [
        ("stdout", "1970-01-01T00:00:01.500000000Z a\n1970-01-01T00:00:01.500000000Z b"),
        ("stderr", "1970-01-01T00:00:02.000000000Z oh\n"),
        ("stdout", "c\n1970-01-01T00:00:03.000000000Z \n"),
        ("stdout", "- old\n"),
    ]
