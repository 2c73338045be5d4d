"""Packages on top of an image that has apt, as a layer: apt runs inside, over an overlay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import LabError
from labctl.image.model import Image
from labctl.image.packages import apt_options, host_release, sources_for
from labctl.image.runner import OverlayRunner, Step

if TYPE_CHECKING:
    from labctl.image.recipe import Recipe
    from labctl.image.store import Store

_MOUNT = "/run/labctl-build"
_RUN_SECONDS = 600.0


def install(
    store: Store, base: Image, packages: Sequence[str], upper: Path, release: str, line: Callable[[str], None]
) -> list[str]:
    """Install the packages; `upper` then holds the difference.  Returns name=version of those added.

    Package lists and archives lie in a folder of the host that is mounted for the time, so that nothing of
    them is in the layer.  Raises LabError with apt's last lines.
    """
    layers = store.rootfs(base)
    aside = upper.with_name("apt")
    for name in ("lists/partial", "archives/partial", "log"):
        (aside / name).mkdir(parents=True)
    (aside / "debian.sources").write_text(sources_for(release, host_release()))
    settings = {
        **apt_options(),
        "Dir::Etc::sourcelist": f"{_MOUNT}/debian.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": f"{_MOUNT}/lists",
        "Dir::Cache::archives": f"{_MOUNT}/archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Log": f"{_MOUNT}/log",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "0",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Dpkg::Use-Pty": "0",
    }
    text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
    (aside / "apt.conf").write_text(text)
    before = set(_versions(layers))
    _apt(layers, upper, aside, ("update",), line)
    _apt(layers, upper, aside, ("install", "-y", *packages), line)
    return sorted(set(_versions((*layers, upper))) - before)


def run(store: Store, base: Image, recipe: Recipe, upper: Path) -> None:
    """Run the recipe's own commands in the image, without a network; `upper` is its layer so far.

    Raises LabError with the command and its last lines.
    """
    layers = store.rootfs(base)
    for command in recipe.run:
        last: list[str] = []

        def output(chunk: bytes, last: list[str] = last) -> None:
            last.extend(chunk.decode(errors="replace").splitlines())
            del last[:-12]

        step = Step(("sh", "-ec", command), ("LC_ALL=C.UTF-8",), network=False, timeout=_RUN_SECONDS)
        if code := OverlayRunner().run(layers, upper, step, output):
            raise LabError(
                f"the recipe {recipe.name}: `{command}` failed with {code}:\n" + "\n".join(last),
                hint=f"mend it in {recipe.path}",
            )


def _apt(
    layers: Sequence[Path], upper: Path, aside: Path, words: Sequence[str], line: Callable[[str], None]
) -> None:
    env = (f"APT_CONFIG={_MOUNT}/apt.conf", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", *_proxies())
    last: list[str] = []

    def output(chunk: bytes) -> None:
        for text in chunk.decode(errors="replace").splitlines():
            last.append(text)
            del last[:-30]
            line(text)

    step = Step(
        ("apt-get", "-q", *words), env, binds=({"source": str(aside), "target": _MOUNT},), timeout=1800
    )
    if code := OverlayRunner().run(layers, upper, step, output):
        raise LabError(f"apt-get {words[0]} failed with {code}:\n" + "\n".join(last[-12:]))


def _proxies() -> tuple[str, ...]:
    import os

    names = ("http_proxy", "https_proxy", "no_proxy")
    return tuple(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))


def _versions(layers: Sequence[Path]) -> list[str]:
    from labctl.image.cook import installed

    for layer in reversed(layers):
        if found := installed(layer):
            return found
    return []
