"""A container's log on disk: numbered segments of frames, each with the time at which its bytes arrived.

FOLDER/000001.log, 000002.log, …: the newest grows, the oldest goes when there are too many.  A segment begins
with 16 bytes (`MAGIC`, then a mask of the streams that it begins in the middle of a line of); each frame is a
head of 16 bytes (nanoseconds since the epoch, length, stream), the bytes as they were written, and their
length once more, so that the last lines are found from the end.  There is one writer
(labctl.runtime.collector) and any number of readers, who hold nothing that keeps it from going on.

Files `stdout` and `stderr` beside them are of labctl 0.1, whose containers appended to them by themselves.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Frame = tuple[int, int, bytes]  # stream, nanoseconds since the epoch (0: not known), bytes

OUT, ERR, NOTE = 1, 2, 4
"""The streams; NOTE is what the log itself has to say, such as that something is missing."""
STREAMS = {"stdout": OUT, "stderr": ERR}
MAX_SIZE = 10 << 20  # bytes of one segment
MAX_FILES = 3

MAGIC = b"labctl log 1\n\0\0"
HEAD = struct.Struct("<QIBxxx")
FOOT = struct.Struct("<I")
_START = 16
_AROUND = HEAD.size + FOOT.size
_MOST = 1 << 24  # bytes that no frame has: a greater length is no frame's
_BLOCK = 1 << 16


def path_of(folder: str, number: int) -> str:
    """The file of a segment."""
    return f"{folder}/{number:06d}.log"


def segments(folder: str) -> list[int]:
    """The numbers of the segments that are there, in order; none without the folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-4]) for name in names if name.endswith(".log") and name[:-4].isdigit())


class Writer:
    """The one who writes a log.  Not safe in two processes at once: the collector's lock sees to that."""

    def __init__(self, folder: str, max_size: int = MAX_SIZE, max_files: int = MAX_FILES) -> None:
        self.folder, self.max_size, self.max_files = folder, max(max_size, 4096), max(max_files, 1)
        os.makedirs(folder, exist_ok=True)
        self.fd = -1
        self.at = 0
        self._last = {OUT: 0, ERR: 0}  # where the last byte of a stream is in this segment, 0: none yet
        self._within = 0  # streams that began this segment in the middle of a line
        numbers = segments(folder)
        self.number = numbers[-1] if numbers else 0
        if not numbers or not self._goes_on():
            self._next()

    def _goes_on(self) -> bool:
        """Open the last segment, when it ends with a whole frame: one that was cut is left as it is."""
        fd = os.open(path_of(self.folder, self.number), os.O_RDWR | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        if size == _START or (size > _START and _before(fd, size) is not None):
            self.fd, self.at = fd, size
            return True
        os.close(fd)
        return False

    def _next(self) -> None:
        within = self._middle()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        numbers = segments(self.folder)
        for number in numbers[: max(0, len(numbers) - self.max_files + 1)]:
            _unlink(path_of(self.folder, number))
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(path_of(self.folder, self.number + 1), flags, 0o600)
        self.number, self.fd, self.at = self.number + 1, fd, 0
        self._last, self._within = {OUT: 0, ERR: 0}, within
        self._put(MAGIC + bytes((within,)))

    def _middle(self) -> int:
        """The streams whose line goes on in the next segment."""
        found = 0
        for stream, place in self._last.items():
            if place and os.pread(self.fd, 1, place) != b"\n":
                found |= stream
            elif not place:
                found |= self._within & stream
        return found

    def room(self, wanted: int) -> int:
        """How many bytes the next frame may have, at most `wanted`; begins a new segment when one is full."""
        if self.fd < 0 or (self.at > _START and self.at + _AROUND + 1 > self.max_size):
            self._next()
        return max(1, min(wanted, self.max_size - self.at - _AROUND))

    def add(self, stream: int, at: int, data: bytes) -> None:
        """Write bytes that arrived at `at`, in as many frames as it takes.  Raises OSError on a full disk."""
        view = memoryview(data)
        while view:
            part = view[: self.room(len(view))]
            start = self.at
            try:
                self._put(HEAD.pack(at, len(part), stream) + part + FOOT.pack(len(part)))
            except OSError:
                self.cut(start)
                raise
            self._last[stream] = self.at - FOOT.size - 1
            view = view[len(part) :]

    def take(self, stream: int, at: int, pipe: int, count: int) -> int:
        """Move bytes from a pipe that has at least `count` into a frame: how many.

        The kernel moves them (splice(2)), so that none is lost when this process is killed between: a frame
        that was cut short holds what it holds.  Raises OSError, also where there is no splice.
        """
        start, count = self.at, self.room(count)
        start = self.at
        self._put(HEAD.pack(at, count, stream))
        moved = 0
        try:
            while moved < count and (
                done := os.splice(pipe, self.fd, count - moved, None, self.at, os.SPLICE_F_NONBLOCK)
            ):
                moved += done
                self.at += done
        except OSError:
            if not moved:
                self.cut(start)
                raise
        try:
            if moved < count:  # a disk that became full
                os.pwrite(self.fd, HEAD.pack(at, moved, stream), start)
            self._put(FOOT.pack(moved))
        except OSError:
            self._next()  # where the cut frame is still read
        else:
            self._last[stream] = self.at - FOOT.size - 1
        return moved

    def cut(self, size: int) -> None:
        """Take back what was written of a frame."""
        self.at = size
        os.ftruncate(self.fd, size)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, self.at)
            self.at += done
            view = view[done:]

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def shed(folder: str) -> bool:
    """Give the oldest segment's room back to a full disk; False when there is only the newest."""
    numbers = segments(folder)
    if len(numbers) < 2:
        return False
    _unlink(path_of(folder, numbers[0]))
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _before(fd: int, end: int) -> tuple[int, int, int, int] | None:
    """(start, stream, time, length) of the frame that ends at `end`; None when none does."""
    if end < _START + _AROUND:
        return None
    (length,) = FOOT.unpack(os.pread(fd, FOOT.size, end - FOOT.size))
    start = end - length - _AROUND
    if start < _START:
        return None
    at, told, stream = HEAD.unpack(os.pread(fd, HEAD.size, start))
    return (start, stream, at, length) if told == length and stream in (OUT, ERR, NOTE) else None


class Reader:
    """Frames from some place on, and then as they come; holds one file open, with `pin` the newer ones."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.number = 0
        self.at = _START
        self.within = 0  # streams that begin in the middle of a line
        self._fd = -1
        self._pinned: dict[int, int] = {}

    def pin(self) -> None:
        """Hold the newer segments, so that one that goes before it is read is read all the same.

        To be called in one other thread at most.
        """
        held = max(self._pinned, default=self.number)
        for number in segments(self.folder):
            if number > max(held, self.number):
                try:
                    self._pinned[number] = os.open(path_of(self.folder, number), os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    return  # gone again, or too many: a gap is told

    def close(self) -> None:
        """Close the files."""
        for fd in (self._fd, *self._pinned.values()):
            if fd >= 0:
                os.close(fd)
        self._fd, self._pinned = -1, {}

    def more(self) -> Iterator[Frame]:
        """What there is from here on."""
        while True:
            if self._fd < 0 and not self._step():
                return
            newer = self._newer()  # asked first: what is cut short then stays so
            yield from self._frames(cut=newer)
            if not newer:
                return
            before = self.number
            os.close(self._fd)
            self._fd = -1
            if not self._step():
                return
            if self.number != before + 1:
                text = f"{self.number - before - 1} segment(s) of the log went before they were read\n"
                yield NOTE, 0, text.encode()

    def _newer(self) -> bool:
        return bool(self._pinned) or any(number > self.number for number in segments(self.folder))

    def _step(self) -> bool:
        """Go to the next segment; False when there is none yet."""
        while True:
            numbers = sorted({*(n for n in segments(self.folder) if n > self.number), *list(self._pinned)})
            if not numbers:
                return False
            if self.open(numbers[0]):
                return True

    def open(self, number: int, at: int = _START) -> bool:
        """Go on in a segment; False when it is gone."""
        fd = self._pinned.pop(number, -1)
        self.number = number
        if fd < 0:
            try:
                fd = os.open(path_of(self.folder, number), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        mask = os.pread(fd, 1, len(MAGIC))
        self._fd, self.at, self.within = fd, at, mask[0] if mask else 0
        return True

    def _frames(self, *, cut: bool) -> Iterator[Frame]:
        while True:
            head = os.pread(self._fd, HEAD.size, self.at)
            if len(head) < HEAD.size:
                return
            at, length, stream = HEAD.unpack(head)
            if not length or length > _MOST:
                return
            data = os.pread(self._fd, length + FOOT.size, self.at + HEAD.size)
            if len(data) < length + FOOT.size and not cut:
                return
            self.at += _AROUND + length
            if data[:length]:
                yield stream, at, data[:length]


def place_of(folder: str, lines: int, streams: int, until: int) -> tuple[int, int]:
    """(segment, offset) from where the last `lines` lines are surely there; (0, 0) for the beginning."""
    wanted = lines + 2  # each stream may begin in the middle of a line
    for number in reversed(segments(folder)):
        try:
            fd = os.open(path_of(folder, number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            break
        try:
            at = os.fstat(fd).st_size
            while at > _START:
                found = _before(fd, at)
                if found is None:
                    break  # a frame that was cut short, or is being written: this segment is read as a whole
                at, stream, when, length = found
                if stream & streams and (not until or when <= until):
                    wanted -= os.pread(fd, length, at + HEAD.size).count(b"\n")
                if wanted <= 0:
                    return number, at
        finally:
            os.close(fd)
    return 0, 0


def old_files(folder: str) -> dict[int, str]:
    """The files of labctl 0.1, by stream."""
    paths = {number: f"{folder}/{name}" for name, number in STREAMS.items()}
    return {number: path for number, path in paths.items() if os.path.exists(path)}


class GrowingFile:
    """A plain file that is read from some place on, and then as it grows."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = 0

    def start(self, tail: int | None) -> Iterator[bytes]:
        """What is there, or its last `tail` lines."""
        self._at = 0 if tail is None else self._place_of(tail)
        yield from self.more()

    def more(self) -> Iterator[bytes]:
        """What has come since.  A file that isn't there yet is empty.  Raises OSError."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._at:  # started anew with an empty log
                    self._at = 0
                file.seek(self._at)
                while self._at < size and (data := file.read(min(_BLOCK, size - self._at))):
                    self._at += len(data)
                    yield data
        except FileNotFoundError:
            return

    def _place_of(self, lines: int) -> int:
        """Where the last `lines` lines begin, read backwards block by block."""
        try:
            with open(self._path, "rb") as file:
                at = end = file.seek(0, os.SEEK_END)
                if lines <= 0:
                    return end
                wanted = lines
                while at > 0:
                    start = max(0, at - _BLOCK)
                    file.seek(start)
                    block = file.read(at - start)
                    if at == end and block.endswith(b"\n"):
                        block = block[:-1]  # the last line's own end is no further line
                    for place in range(len(block) - 1, -1, -1):
                        if block[place] == 10:
                            wanted -= 1
                            if wanted == 0:
                                return start + place + 1
                    at = start
                return 0
        except FileNotFoundError:
            return 0
