"""Verbs about images: `image ls` and the others of its group."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from labctl.cli import screen
from labctl.cli.session import Session, verb

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Build, list, move and check images.\n\nThe same image starts as a container and boots as a VM.",
)


def store_of(session: Session) -> Any:
    """The image store of this home (labctl.image.store.Store)."""
    from labctl.image.store import Store

    return Store(session.home.cache / "images")


def complete_image(incomplete: str) -> list[str]:
    """Names of images in the store that begin so."""
    from labctl.errors import LabError
    from labctl.home import Home
    from labctl.image.store import Store

    try:
        names = [image.ref for image in Store(Home.find().cache / "images").list()]
    except (LabError, OSError):
        return []  # nothing to complete is better than a message in the middle of a command line
    return [name for name in names if name.startswith(incomplete)]


Ref = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A name, name:tag or digest.", autocompletion=complete_image)
]
Arch = Annotated[
    str, typer.Option("--arch", metavar="ARCH", help="amd64, arm64, riscv64; else this machine's.")
]


@app.command()
@verb()
def ls(session: Session) -> None:
    """List the images in the store.

    \b
    Examples:
      labctl image ls
      labctl image ls --json | jq -r '.images[].ref'
    """
    images = store_of(session).list()
    if session.json:
        screen.document({"images": images})
        return
    rows = [
        (image.ref, image.digest[7:19], image.architecture, len(image.layers), screen.size(image.size))
        for image in images
    ]
    screen.line(screen.table(["image", "digest", "arch", "layers", "size"], rows))


@app.command()
@verb()
def build(
    session: Session,
    refs: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Recipes that come with labctl: micro, base, bench."),
    ],
    arch: Arch = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again, for newer packages.")] = False,
) -> None:
    """Build images from their recipes, unless they are there and nothing changed.

    `up` does it by itself when a lab needs one.

    \b
    Examples:
      labctl image build micro base
      labctl image build base --rebuild
      labctl image build micro --arch arm64
    """
    with session.drawing() as emit:
        store = store_of(session)
        images = [store.ensure(ref, emit, arch=arch, rebuild=rebuild) for ref in refs]
    if session.json:
        screen.document({"images": images})
        return
    for image in images:
        screen.line(f"{image.ref}  {image.digest}  {screen.size(image.size)}")


@app.command()
@verb()
def inspect(session: Session, ref: Ref, arch: Arch = "") -> None:
    """Show everything about an image: names, manifest, configuration.

    \b
    Examples:
      labctl image inspect micro
    """
    screen.document(store_of(session).inspect(ref, arch))


@app.command()
@verb()
def history(session: Session, ref: Ref, arch: Arch = "") -> None:
    """Show how an image came to be, newest step first.

    \b
    Examples:
      labctl image history base
    """
    steps = store_of(session).history(ref, arch)
    if session.json:
        screen.document({"image": ref, "history": steps})
        return
    rows = [
        (step["created"], screen.size(step["size"]), step["created_by"] or step["comment"]) for step in steps
    ]
    screen.line(screen.table(["created", "size", "by"], rows))


@app.command()
@verb()
def tag(
    session: Session,
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    arch: Arch = "",
) -> None:
    """Give an image one more name.

    \b
    Examples:
      labctl image tag base class/base:1
    """
    image = store_of(session).tag(ref, name, arch)
    if session.json:
        screen.document({"image": image})


@app.command()
@verb()
def rm(
    session: Session,
    refs: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Names.", autocompletion=complete_image)
    ],
    arch: Arch = "",
) -> None:
    """Take names away, and an image with its last name.

    \b
    Examples:
      labctl image rm class/base:1
    """
    store = store_of(session)
    removed = [digest for ref in refs for digest in store.remove(ref, arch)]
    if session.json:
        screen.document({"removed": removed})


@app.command()
@verb()
def prune(session: Session) -> None:
    """Remove what no named image and no lab needs.

    \b
    Examples:
      labctl image prune
    """
    digests, freed = store_of(session).prune()
    if session.json:
        screen.document({"removed": digests, "bytes": freed})
    else:
        screen.line(f"{len(digests)} blobs and layers removed, {screen.size(freed)} freed")


@app.command()
@verb()
def verify(
    session: Session,
    deep: Annotated[bool, typer.Option("--deep", help="Also hash what each layer holds.")] = False,
) -> int:
    """Check that every blob has its digest and no image misses one.

    \b
    Examples:
      labctl image verify --deep
    """
    wrong = store_of(session).verify(deep=deep)
    if session.json:
        screen.document({"problems": wrong})
    else:
        for sentence in wrong:
            screen.line(sentence)
        screen.line("the store is whole" if not wrong else f"{len(wrong)} problems")
    return 1 if wrong else 0
