"""`image export`: an image or a node, as an archive or as a disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.errors import UsageError
from labctl.events import Emit
from labctl.records import dataclass

if TYPE_CHECKING:
    from labctl.cli.session import Session


@dataclass(frozen=True)
class Wanted:
    """The options of the command line."""

    kind: str = ""
    size: str = ""
    keys: tuple[str, ...] = ()
    hostname: str = ""
    arch: str = ""


def export_to(session: Session, store: Any, what: str, path: Path, wanted: Wanted, emit: Emit) -> None:
    """Write it; raises UsageError before anything is done when the words can't be carried out."""
    from labctl.image import archive, diskfile

    kind = wanted.kind or diskfile.format_of(path.name) or "oci-archive"
    known = (*archive.FORMATS, *diskfile.FORMATS)
    if kind not in known:
        raise UsageError(f"there is no format {kind}", hint=f"there are: {', '.join(known)}")
    node = _node(session, store, what, wanted)
    if kind in diskfile.FORMATS:
        if str(path) == "/dev/stdout":
            raise UsageError("a disk can't be written to a pipe", hint="name a file")
        _disk(session, store, what, node, path, kind, wanted, emit)
        return
    for option, value in (
        ("--size", wanted.size),
        ("--ssh-key", wanted.keys),
        ("--hostname", wanted.hostname),
    ):
        if value:
            raise UsageError(f"{option} is for disks, and {kind} is none")
    if node is None:
        archive.save(store, what, path, kind, arch=wanted.arch)
        return
    from labctl.lab.exporting import commit
    from labctl.lab.model import Options

    image = commit(*node, Options(home=session.home), emit)
    archive.save(store, image.digest, path, kind)


def _node(session: Session, store: Any, what: str, wanted: Wanted) -> tuple[str, str] | None:
    """Lab and node when that is meant: an image of the name comes first."""
    from labctl.cli.names import Names
    from labctl.image import refs

    lab, slash, node = what.partition("/")
    if slash and not refs.is_path(what):
        labs = Names.read(session.home).labs
        if node in labs.get(lab, {}) and store.find(what) is None:
            return lab, node
    store.resolve(what, wanted.arch)
    return None


def _disk(
    session: Session, store: Any, what: str, node: tuple[str, str] | None, path: Path, kind: str,
    wanted: Wanted, emit: Emit,
) -> None:  # fmt: skip
    import re

    from labctl.image import bootable, diskfile

    keys = []
    for name in wanted.keys:
        try:
            text = Path(name).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--ssh-key {name}: cannot read it: {error}") from error
        if not re.match(r"(ssh-|ecdsa-|sk-)\S+ \S+", text) or "PRIVATE" in text:
            raise UsageError(f"--ssh-key {name} holds no public key", hint="the file that ends with .pub")
        keys.append(text)
    plain = (
        re.sub(r"[^a-z0-9]+", "-", what.rpartition("/")[2].partition(":")[0].lower()).strip("-") or "labctl"
    )
    hostname = wanted.hostname or plain
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", hostname):
        raise UsageError(f"--hostname {hostname} is no host name")
    wish = bootable.Wish(hostname, diskfile.size_of(wanted.size) if wanted.size else 0, tuple(keys))
    with store.scratch.folder("raw") as work:
        raw = work / "disk.raw"
        if node is None:
            image = store.resolve(what, wanted.arch)
            bootable.bootable(store, image, session.home.cache, raw, wish, emit)
        else:
            from labctl.lab.exporting import export_disk
            from labctl.lab.model import Options

            export_disk(*node, raw, wish, Options(home=session.home), emit)
        diskfile.convert(raw, path, kind, name=hostname)
