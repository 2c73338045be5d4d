"""The files of a disk's ext2, ext3 or ext4 file system, read by debugfs(8) and never mounted.

debugfs believes what the file system says: an entry may be called ../../etc/passwd, or come twice, once as
a link to a file of the host.  So it runs in a cage (`caged`), and such names are refused afterwards.  Its
rdump leaves out set-uid and set-gid bits, hard links and extended attributes; they are given back here.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from labctl.errors import HostCannot
from labctl.image.boot_files import run
from labctl.image.diskfile import CONVERT_SECONDS, parts
from labctl.image.model import BadImage
from labctl.records import dataclass

#: /INODE/MODE/UID/GID/NAME/SIZE/, as `ls -p` of debugfs writes an entry; MODE in octal with the file's kind.
_ENTRY = re.compile(r"/(\d+)/(\d{6})/\d+/\d+/(.*)/\d*/")
_ATTRIBUTE = re.compile(r"  ((?:user|security|trusted)\.[\w.:-]+) \(\d+\)")
_VALUE = re.compile(r"([\w.:-]+) \(\d+\) = ([0-9a-f ]*)")
_BATCH = 20_000  # commands for one debugfs, so that its output stays within bounds


@dataclass(frozen=True)
class _Entry:
    """A name in the file system: its inode, its mode with the kind, where it lies in the copy."""

    inode: int
    mode: int
    path: Path

    @property
    def is_file(self) -> bool:
        """Whether the copy has it as a regular file."""
        return self.mode & 0o170000 == 0o100000 and self.path.is_file() and not self.path.is_symlink()


def extract(raw: Path, dest: Path, work: Path) -> None:
    """The files of the largest Linux file system of a raw disk into the existing folder `dest`.

    Owners, modes, times, hard links and extended attributes are kept; `work` is for files on the way.
    Raises BadImage when there is no such file system or its names mean harm, HostCannot without root.
    """
    found = [part for part in parts(raw) if part.system == "ext"]
    if not found:
        there = ", ".join(sorted({part.system for part in parts(raw) if part.system})) or "none that is known"
        raise BadImage(
            f"there is no ext2, ext3 or ext4 file system on the disk (found: {there})",
            hint="boot the disk as a machine instead, or import a tar of its files",
        )
    if os.geteuid() != 0:
        raise HostCannot("reading a disk's files needs root, to keep their owners", hint="run it with sudo")
    part = max(found, key=lambda part: part.size)
    reader = _Reader(
        f"{raw.absolute()}?offset={part.start}" if part.start else str(raw.absolute()), dest, work
    )
    said = reader.debugfs("-R", f'rdump / "{dest}"')
    if not any(dest.iterdir()):
        raise BadImage(f"the disk's file system can't be read: {said[-300:]}")
    entries = reader.entries()
    _link(entries)
    reader.give_attributes(entries)
    for entry in entries:
        # rdump sets the mode before the owner, which takes these bits away.
        if entry.mode & 0o6000 and entry.is_file:
            entry.path.chmod(entry.mode & 0o7777)
    # What belongs to the file system and not to the image.
    lost = dest / "lost+found"
    if lost.is_dir() and not lost.is_symlink() and not any(lost.iterdir()):
        lost.rmdir()


def _link(entries: Iterable[_Entry]) -> None:
    """Make names of one inode names of one file again."""
    first: dict[int, Path] = {}
    for entry in entries:
        if not entry.is_file:
            continue
        kept = first.setdefault(entry.inode, entry.path)
        if kept is not entry.path:
            folder = entry.path.parent.stat()
            entry.path.unlink()
            entry.path.hardlink_to(kept)
            os.utime(entry.path.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


class _Reader:
    """debugfs on one file system, in its cage."""

    def __init__(self, target: str, dest: Path, work: Path) -> None:
        self.target, self.dest, self.work = target, dest, work

    def debugfs(self, *words: str) -> str:
        """What it prints for these options."""
        program = Path(__file__).with_name("caged.py")
        argv = [sys.executable, "-I", "-S", str(program), str(self.dest), "debugfs", *words, self.target]
        return run(argv, timeout=CONVERT_SECONDS, what="read the disk's file system", package="e2fsprogs")

    def _each(self, commands: list[bytes]) -> Iterator[tuple[str, list[str]]]:
        """Each command as debugfs repeats it, and the lines of its answer."""
        script = self.work / "commands"
        for start in range(0, len(commands), _BATCH):
            script.write_bytes(b"".join(command + b"\n" for command in commands[start : start + _BATCH]))
            said, lines = "", list[str]()
            for line in self.debugfs("-f", str(script)).splitlines():
                if line.startswith("debugfs: "):
                    if said:
                        yield said, lines
                    said, lines = line.removeprefix("debugfs: "), []
                else:
                    lines.append(line)
            if said:
                yield said, lines

    def entries(self) -> list[_Entry]:
        """All names but "." and ".."; raises BadImage for those that lead elsewhere or come twice."""
        inner = (os.path.relpath(at, self.dest) for at, _, _ in os.walk(self.dest))
        folders = [b"/" if path == "." else b"/" + os.fsencode(path) for path in inner]
        # debugfs has no way to write these two in a command.
        names = [name for name in folders if b'"' not in name and b"\n" not in name]
        found: list[_Entry] = []
        for said, lines in self._each([b'ls -p "%s"' % name for name in names]):
            at = said.removeprefix("ls -p ").strip('"').lstrip("/")
            here = [match.groups() for line in lines if (match := _ENTRY.fullmatch(line))]
            # Inode 0: the place of an entry that was removed.
            here = [entry for entry in here if entry[0] != "0" and entry[2] not in (".", "..")]
            taken = Counter(name for _, _, name in here)
            for inode, mode, name in here:
                if "/" in name or not name or taken[name] > 1:
                    raise BadImage(f"the disk's file system has an impossible name in /{at}: {name[:100]!r}")
                found.append(_Entry(int(inode), int(mode, 8), self.dest / at / name))
        return found

    def give_attributes(self, entries: Iterable[_Entry]) -> None:
        """Set the extended attributes of files and folders."""
        places = {
            entry.inode: entry.path
            for entry in entries
            if entry.is_file or (entry.path.is_dir() and not entry.path.is_symlink())
        }
        wanted: list[bytes] = []
        for said, lines in self._each([b"ea_list <%d>" % inode for inode in places]):
            keys = [match[1] for line in lines if (match := _ATTRIBUTE.match(line))]
            wanted += [f"ea_get -x {said.split()[-1]} {key}".encode() for key in keys]
        for said, lines in self._each(wanted):
            place = places[int(said.split()[-2].strip("<>"))]
            for match in filter(None, map(_VALUE.fullmatch, (line.rstrip() for line in lines))):
                with suppress(OSError):  # the store's file system has none of the kind
                    os.setxattr(place, match[1], bytes.fromhex(match[2]))
