"""Cloud images as disks below the nodes' own: kept in the cache by content, never written again.

An image is a file on this host or a name of images/catalog.yaml (see `cloud`), which is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from labctl.errors import HostCannot, LabError, UsageError
from labctl.events import Emit, Note, silent
from labctl.image import cloud, refs
from labctl.image.boot_files import fresh_file, locked, run
from labctl.image.diskfile import CONVERT_SECONDS, QEMU_NAMES, kind_of, refuse_others_files
from labctl.records import dataclass

MARK = ".cloud."


@dataclass(frozen=True)
class CloudDisk:
    """A cloud image in the cache: its file (….cloud.qcow2 or ….cloud.raw), and the digest of what it was."""

    path: str
    digest: str


def ensure(cache: Path, image: str, arch: str, emit: Emit = silent) -> CloudDisk:
    """The disk of a file or of a name of the catalog, fetched and copied into the cache where it isn't.

    Raises UsageError for what is no disk, HostCannot for what can't be reached or booted, LabError.
    """
    _refuse_foreign(image, arch)
    source = Path(image) if refs.is_path(image) else cloud.fetch(cache, cloud.named(image), emit)
    found = _kept(cache, source)
    if found is not None:
        return found
    kind = kind_of(source)
    if kind not in QEMU_NAMES:
        raise UsageError(
            f"{image} is no disk that a machine boots from", hint=f"one of {', '.join(QEMU_NAMES)}"
        )
    folder = cache / "boot" / "disks"
    with locked(folder / ".cloud.lock"):
        if found := _kept(cache, source):
            return found
        if kind != "raw":
            refuse_others_files(source, kind)
        emit(Note("", f"copying {source.name} into the cache"))
        return _keep(cache, source, kind)


def find(cache: Path, image: str) -> CloudDisk | None:
    """The disk when it is in the cache.  Raises UsageError for a file that is not there, an unknown name."""
    if refs.is_path(image):
        if not Path(image).exists():
            raise UsageError(f"there is no {image}", hint="a cloud image is a file that is there, or a name")
        return _kept(cache, Path(image))
    known = cloud.named(image)
    there = cloud.kept(cache, known)
    return _kept(cache, there) if there else None


def _refuse_foreign(image: str, arch: str) -> None:
    known = arch if refs.is_path(image) else {"amd64": "x86_64"}.get(cloud.named(image).arch, "other")
    if (arch, known) != ("x86_64", "x86_64"):
        raise HostCannot(
            f"{image}: a cloud image is booted by a PC's BIOS here, and this is not for x86_64",
            hint="take the image for amd64, or import its files (labctl image fetch --import)",
        )


def _note_of(cache: Path, source: Path) -> Path:
    """The file that says what a source was when it was copied: found by all that changes with it."""
    status = source.stat()
    words = [str(source.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    key = hashlib.sha256(repr(words).encode()).hexdigest()[:24]
    return cache / "boot" / "disks" / f".cloud-{key}.json"


def _kept(cache: Path, source: Path) -> CloudDisk | None:
    try:
        told = json.loads(_note_of(cache, source).read_text())
        found = CloudDisk(str(told["path"]), str(told["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if Path(found.path).exists() else None


def _keep(cache: Path, source: Path, kind: str) -> CloudDisk:
    note = _note_of(cache, source)
    try:
        with source.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        form = "raw" if kind == "raw" else "qcow2"
        final = note.parent / f"{digest.replace(':', '-')}{MARK}{form}"
        with fresh_file(final) as work:
            if kind in ("raw", "qcow2"):
                argv = ["cp", "--reflink=auto", "--sparse=always", str(source), str(work)]
                run(argv, timeout=CONVERT_SECONDS, what="copy a cloud image")
            else:
                argv = ["qemu-img", "convert", "-f", QEMU_NAMES[kind], "-O", "qcow2", str(source), str(work)]
                run(argv, timeout=CONVERT_SECONDS, what="convert a cloud image", package="qemu-utils")
        with fresh_file(note) as work:
            work.write_text(json.dumps({"path": str(final), "digest": digest}))
    except OSError as error:
        raise LabError(f"cannot copy {source} into the cache: {error.strerror}") from error
    return CloudDisk(str(final), digest)


def form_of(path: str) -> str:
    """The format of a disk below a node's own: qcow2 for a cloud image that is one, else raw."""
    return "qcow2" if path.endswith(f"{MARK}qcow2") else "raw"


def size_of(path: Path) -> int:
    """The bytes that a machine sees of a disk.  Raises LabError, HostCannot without qemu-img."""
    argv = ["qemu-img", "info", "-U", "-f", form_of(str(path)), "--output", "json", str(path)]
    return int(json.loads(run(argv, timeout=60, what="read a disk", package="qemu-utils"))["virtual-size"])
