"""Verbs that bring images in and out: registries, archives, root file systems, disks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from labctl.cli import light as typer
from labctl.cli import screen
from labctl.cli.image_words import Arch, Ca, Insecure, Ref, app, complete_what, store_of
from labctl.cli.session import Session, verb
from labctl.errors import UsageError

Remote = Annotated[
    str, typer.Argument(metavar="IMAGE", help="HOST[:PORT]/NAME[:TAG|@DIGEST]; without a host, docker.io.")
]


@app.command()
@verb()
def pull(
    session: Session,
    refs: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="HOST[:PORT]/NAME[:TAG|@DIGEST], or docker.io's.")
    ],
    arch: Arch = "",
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="Every architecture.")] = False,
    insecure: Insecure = False,
    ca: Ca = "",
) -> None:
    """Bring images from a registry into the store; what broke off goes on where it was.

    \b
    Logins are read from ~/.docker/config.json and podman's auth.json, credential helpers included;
    certificates also from /etc/docker/certs.d and /etc/containers/certs.d.  Plain HTTP is spoken only on
    this machine, or with --insecure.
    \b
    Examples:
      labctl image pull localhost:5000/class/web:1
      labctl image pull registry.example.org/team/app@sha256:…
      labctl image pull debian:bookworm --arch arm64
    """
    from labctl.image.registry import pull_all as fetch

    images: list[Any] = []
    with session.drawing() as emit:
        store = store_of(session)
        for ref in refs:
            images += fetch(
                store, ref, emit, arch=arch, insecure=insecure, ca=ca, all_platforms=all_platforms
            )
    _told(session, images)


@app.command()
@verb()
def push(
    session: Session,
    ref: Ref,
    target: Annotated[
        str, typer.Argument(metavar="[TARGET]", help="HOST[:PORT]/NAME[:TAG]; else the image's own name.")
    ] = "",
    arch: Arch = "",
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="Every architecture under that name, and an index.")
    ] = False,
    compress: Annotated[
        str, typer.Option("--compress", metavar="HOW", help="gzip, zstd, or none: layers as they are.")
    ] = "gzip",
    insecure: Insecure = False,
    ca: Ca = "",
) -> None:
    """Push an image to a registry; layers that it has already are not sent again.

    \b
    Examples:
      labctl image push class/web:1 localhost:5000/class/web:1
      labctl image push localhost:5000/class/web:1 --compress zstd
    """
    from labctl.image.registry import push as send

    if compress not in ("gzip", "zstd", "none"):
        raise UsageError(f"--compress {compress}: gzip, zstd or none is expected")
    with session.drawing() as emit:
        digest = send(
            store_of(session), ref, emit, target=target, arch=arch, insecure=insecure, ca=ca,
            compress="" if compress == "none" else compress, all_platforms=all_platforms,
        )  # fmt: skip
    if session.json:
        screen.document({"image": target or ref, "digest": digest})
    else:
        screen.line(f"{target or ref}  {digest}")


@app.command()
@verb()
def tags(session: Session, ref: Remote, insecure: Insecure = False, ca: Ca = "") -> None:
    """List the tags of a repository in a registry.

    \b
    Examples:
      labctl image tags localhost:5000/class/web
    """
    from labctl.image.registry import tags as ask

    found = ask(ref, insecure=insecure, ca=ca)
    if session.json:
        screen.document({"repository": ref, "tags": found})
    else:
        for name in found:
            screen.line(name)


@app.command()
@verb()
def delete(session: Session, ref: Remote, insecure: Insecure = False, ca: Ca = "") -> None:
    """Delete an image in a registry (`image rm` is for the store here).

    \b
    Examples:
      labctl image delete localhost:5000/class/web:1
    """
    from labctl.image.registry import delete as remove

    digest = remove(ref, insecure=insecure, ca=ca)
    if session.json:
        screen.document({"image": ref, "digest": digest})
    else:
        screen.line(f"{ref}  {digest}")


@app.command("import")
@verb()
def import_(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="An archive, a folder, a root file system's tar, a disk; - is stdin."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="Its name here; a root file system and a disk have none else."),
    ] = "",
    arch: Arch = "",
) -> None:
    """Bring an image in from a file or folder, told by its content.

    oci-archive, docker-archive (docker save), an OCI layout, a tar or a folder with a root file system,
    packed or not; and disks: qcow2, raw, VMDK, VDI, VHDX, VHD and OVA, whose largest Linux file system
    becomes the image.

    \b
    Examples:
      labctl image import web.tar
      labctl image import rootfs.tar.xz class/box:1
      docker save nginx | labctl image import -
    """
    with session.drawing() as emit:
        images = _load(store_of(session), file, name, arch, emit)
    _told(session, images)


def _load(store: Any, file: str, name: str, arch: str, emit: Any) -> list[Any]:
    from labctl.image.archive import load

    if file != "-":
        return load(store, Path(file).expanduser(), emit, ref=name, arch=arch)
    if sys.stdin.isatty():
        raise UsageError("there is no archive on standard input", hint="docker save IMAGE | labctl …")
    with store.scratch.file("stdin") as (path, _):
        with path.open("wb") as out:
            while chunk := sys.stdin.buffer.read(1 << 20):
                out.write(chunk)
        return load(store, path, emit, ref=name, arch=arch)


@app.command("export")
@verb()
def export(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE|LAB/NODE",
            help="An image, or a stopped node of a lab.",
            autocompletion=complete_what,
        ),
    ],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it; - is stdout.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="oci-archive, docker-archive, rootfs; raw, qcow2, vmdk, ova, vdi, vhdx, vhd.",
        ),
    ] = "",
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Of a disk: 8GiB.")] = "",
    key: Annotated[
        list[str],
        typer.Option("--ssh-key", metavar="FILE", help="A public key that opens the disk's machine."),
    ] = [],  # noqa: B006
    hostname: Annotated[str, typer.Option("--hostname", metavar="NAME", help="Of the disk's machine.")] = "",
    arch: Arch = "",
) -> None:
    """Write an image or a node to a file, for other tools and other hypervisors.

    Without --format the file's name decides: .tar is an oci-archive, .vmdk a disk for VMware. A disk boots
    on its own by a PC's BIOS, with Debian's kernel, and asks for addresses by DHCP.

    \b
    Examples:
      labctl image export base base.tar
      labctl image export base - --format docker-archive | docker load
      labctl image export class/web:1 web.ova --ssh-key ~/.ssh/id_ed25519.pub
      labctl image export spectrum/emu emu.vmdk
    """
    from labctl.cli.image_export import Wanted, export_to

    if file == "-" and sys.stdout.isatty():
        raise UsageError("an image is no text for a terminal", hint="name a file, or pipe it")
    with session.drawing() as emit:
        path = Path("/dev/stdout") if file == "-" else Path(file).expanduser()
        export_to(
            session, store_of(session), what, path, Wanted(kind, size, tuple(key), hostname, arch), emit
        )
    if session.json and file != "-":
        screen.document({"image": what, "file": str(path), "bytes": path.stat().st_size})


@app.command()
@verb()
def fetch(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(metavar="[NAME|URL]", help="A cloud image of the catalog, or a URL; none lists them."),
    ] = "",
    sums: Annotated[str, typer.Option("--sums", metavar="URL", help="The checksum list of a URL.")] = "",
    checksum: Annotated[
        str, typer.Option("--checksum", metavar="sha256:HEX", help="The checksum of a URL.")
    ] = "",
    name: Annotated[str, typer.Option("--import", metavar="NAME", help="Import it under this name.")] = "",
) -> None:
    """Download a cloud image (Debian, Ubuntu, Fedora, Alpine, or any URL), checked and kept in the cache.

    What broke off goes on where it was. Prints the path of the disk. With --import its files become an
    image: a node with `init: true` then runs its own systemd or OpenRC.

    \b
    Examples:
      labctl image fetch
      labctl image fetch debian-12 --import cloud/debian:12
      labctl image fetch https://example.org/box.qcow2 --sums https://example.org/SHA256SUMS
    """
    from labctl.image import cloud

    if not what:
        known = cloud.catalog()
        if session.json:
            screen.document({"images": list(known.values())})
        else:
            rows = [(image.name, image.arch, image.about) for image in known.values()]
            screen.line(screen.table(["name", "arch", "about"], rows))
        return
    wanted = cloud.named(what, sums=sums, digest=checksum)
    with session.drawing() as emit:
        path = cloud.fetch(session.home.cache, wanted, emit)
        images = _load(store_of(session), str(path), name, wanted.arch, emit) if name else []
    if session.json:
        screen.document({"file": str(path), "images": images})
        return
    screen.line(str(path))
    for image in images:
        screen.line(f"{image.ref}  {image.digest}  {screen.size(image.size)}")


def _told(session: Session, images: list[Any]) -> None:
    if session.json:
        screen.document({"images": images})
        return
    for image in images:
        screen.line(f"{image.ref or '(no name)'}  {image.digest}  {screen.size(image.size)}")
