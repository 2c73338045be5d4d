"""What is put into a node before it starts: a folder over its /, single files, secrets.

The same for every tier: the seed is written as a tar, which a container gets unpacked into its upper
layer and a VM on its configuration disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import LabError, UsageError
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.profile.models import Node, Profile


@dataclass(frozen=True)
class Placed:
    """One file or folder: its text, or where it comes from on this host."""

    path: str  # in the node
    content: str | None = None
    source: str = ""
    variable: str = ""  # an environment variable of labctl that holds it (a secret)
    mode: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Seed:
    """All that is put into a node.  `stamp` changes when a source on this host does."""

    root: str = ""
    files: tuple[Placed, ...] = ()
    stamp: str = ""

    def __bool__(self) -> bool:
        return bool(self.root or self.files)

    def bytes(self) -> int:
        """What it takes on a disk, about; what can't be read now counts nothing."""
        total = sum(len((file.content or "").encode()) for file in self.files)
        for source in filter(None, (self.root, *(file.source for file in self.files))):
            for path in (Path(source), *Path(source).rglob("*")):
                try:
                    total += path.lstat().st_size
                except OSError:
                    continue
        return total


def seed_of(node: Node, profile: Profile, extra: Sequence[Placed] = ()) -> Seed:
    """The seed of a node; looks at the sources only for their stamps."""
    files = [*extra]
    for file in node.files:
        files.append(Placed(file.path, file.content, file.source, "", file.mode or "", file.owner))
    for use in node.secrets:
        secret = profile.secrets[use.secret]
        target = use.target or f"/run/secrets/{use.secret}"
        files.append(Placed(target, None, secret.file, secret.env, use.mode, use.owner))
    sources = [node.root, *(file.source for file in files)]
    return Seed(node.root, tuple(files), _stamp([source for source in sources if source]))


def _stamp(sources: Sequence[str]) -> str:
    """A digest over name, size, mode and time of every file below the sources: enough to see an edit.

    Raises UsageError for a folder that changes under our eyes, as /proc does.
    """
    if not sources:
        return ""
    digest = hashlib.sha256()
    for source in sources:
        try:
            below = sorted(Path(source).rglob("*"))
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or source}: {error.strerror}") from error
        for path in (Path(source), *below):
            try:
                info = path.lstat()
            except OSError:
                continue
            digest.update(f"{path}\0{info.st_mode}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def write_tar(seed: Seed, dest: Path, layers: Sequence[str]) -> None:
    """Write the seed as a tar; `layers` are the image's, where names of owners are looked up.

    Raises LabError when a source can't be read, UsageError for an owner whom the image doesn't know.
    """
    try:
        with tarfile.open(dest, "w", format=tarfile.PAX_FORMAT) as tar:
            if seed.root:
                for path in sorted(Path(seed.root).rglob("*")):
                    tar.add(path, path.relative_to(seed.root).as_posix(), recursive=False)
            for file in seed.files:
                for info, data in _members(file, layers):
                    tar.addfile(info, data)
    except OSError as error:
        raise LabError(f"cannot read {error.filename or dest}: {error.strerror}") from error


def _members(file: Placed, layers: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, io.BytesIO | None]]:
    uid, gid = owner_ids(file.owner, layers)
    name = file.path.lstrip("/")
    if file.content is not None:
        yield _entry(name, file, uid, gid, 0o644, file.content)
    elif file.variable:
        value = os.environ.get(file.variable)
        if value is None:
            raise UsageError(f"the secret for {file.path} is not there: ${file.variable} is not set")
        yield _entry(name, file, uid, gid, 0o400, value)
    else:
        source = Path(file.source)
        for path in (source, *(sorted(source.rglob("*")) if source.is_dir() else ())):
            inner = name if path == source else f"{name}/{path.relative_to(source).as_posix()}"
            yield _copied(path, inner, file, uid, gid)


def _copied(
    path: Path, name: str, file: Placed, uid: int, gid: int
) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    info = tarfile.TarInfo(name)
    stat = path.lstat()
    info.mtime, info.mode, info.uid, info.gid = int(stat.st_mtime), stat.st_mode & 0o7777, uid, gid
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        return info, None
    if path.is_dir():
        info.type = tarfile.DIRTYPE
        return info, None
    if file.mode:
        info.mode = int(file.mode, 8)
    data = path.read_bytes()
    info.size = len(data)
    return info, io.BytesIO(data)


def _entry(
    name: str, file: Placed, uid: int, gid: int, mode: int, text: str
) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    data = text.encode()
    info.mode = int(file.mode, 8) if file.mode else mode
    info.uid, info.gid, info.size = uid, gid, len(data)
    return info, io.BytesIO(data)


def owner_ids(owner: str, layers: Sequence[str]) -> tuple[int, int]:
    """The numbers behind "user", "user:group" or numbers; names as the image's /etc/passwd has them.

    Raises UsageError for a name that it doesn't know.
    """
    if not owner:
        return 0, 0
    user, _, group = owner.partition(":")
    uid, gid = _look_up("passwd", user, layers)
    if group:
        gid = _look_up("group", group, layers)[0]
    return uid, gid


def _look_up(base: str, name: str, layers: Sequence[str]) -> tuple[int, int]:
    if name.isdigit():
        return int(name), 0
    for layer in reversed(layers):
        file = Path(layer, "etc", base)
        if file.is_file() and not file.is_symlink():
            for line in file.read_text(errors="replace").splitlines():
                parts = line.split(":")
                if parts[0] == name and len(parts) > 3:
                    return int(parts[2]), int(parts[3]) if base == "passwd" and parts[3].isdigit() else 0
            break
    kind = "user" if base == "passwd" else "group"
    raise UsageError(f"the image has no {kind} {name!r}", hint="use a number, or add it in the image")


def extract(seed: Seed, dest: Path, layers: Sequence[str]) -> None:
    """Lay the seed out as a tree below `dest`, with owners and modes.  Raises LabError, UsageError."""
    archive, fresh = dest.with_name(dest.name + ".tar"), dest.with_name(dest.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        write_tar(seed, archive, layers)
        fresh.mkdir()
        with tarfile.open(archive) as tar:
            # Our own archive of the person's own files: links may point anywhere, as they do in an image.
            # (The filter's name is unknown to Debian 12's Python 3.11.2, and trust is the default there.)
            known = hasattr(tarfile, "fully_trusted_filter")
            trust: dict[str, Any] = {"filter": "fully_trusted"} if known else {}
            tar.extractall(fresh, numeric_owner=True, **trust)
        # Whole or not at all: after a kill in the middle nobody takes a half tree for the whole one.
        fresh.replace(dest)
    except (OSError, tarfile.TarError) as error:
        raise LabError(f"cannot lay out the files below {dest}: {error}", hint="is the disk full?") from error
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
