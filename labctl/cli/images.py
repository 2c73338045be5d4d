"""Verbs about images: `image ls` and the others of its group."""

from __future__ import annotations

from typing import Annotated

from labctl.cli import light as typer
from labctl.cli import screen
from labctl.cli.image_words import Arch, Ref, app, complete_image, complete_recipe, store_of
from labctl.cli.session import Session, key_values, verb


@app.command()
@verb()
def ls(
    session: Session,
    digests: Annotated[bool, typer.Option("--digests", help="Whole digests.")] = False,
) -> None:
    """List the images in the store.

    "shared" is what other images have too, "own" what goes when this one is removed.

    \b
    Examples:
      labctl image ls
      labctl image ls --json | jq -r '.images[].ref'
    """
    store = store_of(session)
    images = store.list()
    sizes = store.sizes()
    if session.json:
        found = []
        for image in images:
            shared, own = sizes.get(image.digest, (0, image.size))
            found.append({**screen.plain(image), "shared": shared, "unique": own})
        screen.document({"images": found})
        return
    rows = []
    for image in images:
        shared, own = sizes.get(image.digest, (0, image.size))
        digest = image.digest if digests else image.digest[7:19]
        layers = len(image.layers)
        sized = (screen.size(size) for size in (image.size, shared, own))
        rows.append((image.ref, digest, image.architecture, layers, *sized))
    screen.line(screen.table(["image", "digest", "arch", "layers", "size", "shared", "own"], rows))


@app.command()
@verb()
def build(
    session: Session,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT...",
            help="Recipes that come with labctl (micro, base, bench), or folders: ., ./web, /srv/box.",
            autocompletion=complete_recipe,
        ),
    ],
    tag: Annotated[
        list[str], typer.Option("--tag", "-t", metavar="NAME", help="Name of the image; again for more.")
    ] = [],  # noqa: B006 - typer copies it
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="The Containerfile; - is standard input.")
    ] = "",
    build_arg: Annotated[
        list[str],
        typer.Option("--build-arg", metavar="KEY=VALUE", help="A value for an ARG; KEY takes it from here."),
    ] = [],  # noqa: B006
    target: Annotated[str, typer.Option("--target", metavar="STAGE", help="Stop after this stage.")] = "",
    secret: Annotated[
        list[str],
        typer.Option("--secret", metavar="id=ID,src=FILE", help="For RUN --mount=type=secret; or env=NAME."),
    ] = [],  # noqa: B006
    platform: Annotated[
        str, typer.Option("--platform", metavar="OS/ARCH", help="Like --arch, as docker writes it.")
    ] = "",
    network: Annotated[
        str, typer.Option("--network", metavar="HOW", help="Network of RUN: host or none.")
    ] = "host",
    arch: Arch = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Carry every step out again.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Recipes: again, for newer packages.")] = False,
) -> None:
    """Build images: from recipes, or from folders with a Containerfile or Dockerfile.

    A recipe is built only when it isn't there or changed. A folder is always gone through; steps whose
    input is the same come from the cache. `up` does both by itself when a lab needs it. With
    SOURCE_DATE_EPOCH set the same input gives the same digest.

    \b
    Examples:
      labctl image build micro base
      labctl image build . -t class/web:1
      labctl image build ./app -f docker/Dockerfile --target test --build-arg VERSION=3
      labctl image build micro --arch arm64
    """
    from labctl.cli.image_build import Wanted, build_all

    wanted = Wanted(
        tuple(tag), file, key_values(build_arg, "--build-arg"), target, tuple(secret), platform or arch,
        network, no_cache, rebuild,
    )  # fmt: skip
    with session.drawing() as emit:
        images = build_all(store_of(session), what, wanted, emit)
    if session.json:
        screen.document({"images": images})
        return
    for image in images:
        screen.line(f"{image.ref or '(no name)'}  {image.digest}  {screen.size(image.size)}")


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
def prune(
    session: Session,
    cache: Annotated[bool, typer.Option("--cache", help="The cache of builds as well.")] = False,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="Images without a name as well.")] = False,
) -> None:
    """Remove what no named image and no lab needs: blobs, unpacked layers, disks, broken downloads.

    \b
    Examples:
      labctl image prune
      labctl image prune --cache --unnamed
    """
    from labctl.image.disk import prune_disks

    store = store_of(session)
    gone = store.remove_unnamed() if unnamed else []
    # Of cloud images a lab that is just being made has the disk, and nothing in the store yet.
    digests, freed = store.prune(cache=cache, also=lambda keep: prune_disks(session.home.cache, keep))
    digests = list(dict.fromkeys([*gone, *digests]))
    if session.json:
        screen.document({"removed": digests, "bytes": freed})
    else:
        screen.line(f"{len(digests)} blobs removed, {screen.size(freed)} freed")


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


# The rest of the group: a module of its own, which adds its verbs to the same group.
from labctl.cli import image_moving as _moving  # noqa: E402

__all__ = ["_moving", "app"]
