"""What the verbs about images share: their group, the store, and the words they take."""

from __future__ import annotations

from typing import Annotated, Any

from labctl.cli import light as typer
from labctl.cli.session import Session

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
    return [name for name in dict.fromkeys(names) if name and name.startswith(incomplete)]


def complete_what(incomplete: str) -> list[str]:
    """Images, and nodes of labs."""
    from labctl.cli.names import complete_node

    return [*complete_image(incomplete), *complete_node(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes that come with labctl, and folders here with something to build."""
    from pathlib import Path

    from labctl.errors import LabError
    from labctl.image import recipe
    from labctl.image.obtain import CONTAINERFILES

    folder, _slash, _rest = incomplete.rpartition("/")
    try:
        here = [path for path in sorted(Path(folder or ".").iterdir()) if path.is_dir()]
        built = [
            f"./{path}/" if not str(path).startswith(("/", ".")) else f"{path}/"
            for path in here
            if any((path / name).is_file() for name in (*CONTAINERFILES, "recipe.yaml"))
        ]
        return [name for name in [*recipe.names(), *built] if name.startswith(incomplete)]
    except (LabError, OSError):
        return []


def complete_arch(incomplete: str) -> list[str]:
    """Architectures as OCI writes them."""
    return [name for name in ("amd64", "arm64", "arm", "riscv64", "ppc64le", "s390x") if incomplete in name]


Ref = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A name, name:tag or digest.", autocompletion=complete_image)
]
Arch = Annotated[
    str,
    typer.Option(
        "--arch",
        metavar="ARCH",
        help="amd64, arm64, riscv64; else this machine's.",
        autocompletion=complete_arch,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Speak plain HTTP, or TLS without checking who answers (not only here)."),
]
Ca = Annotated[
    str, typer.Option("--ca", metavar="FILE", help="A certificate authority to trust as well (PEM).")
]
