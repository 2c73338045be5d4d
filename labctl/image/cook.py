"""A recipe → an image in the store.

Reproducible: the same packages give the same digest.  What a maintainer script or labctl wrote gets the
time of the newest file that came in a package; what differs from run to run is removed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from labctl.errors import HostCannot, LabError
from labctl.events import Emit, Note, Progress
from labctl.image.beneath import clean
from labctl.image.boot_apt import AptRoot
from labctl.image.locks import locked
from labctl.image.model import HistoryEntry, Image, ImageConfig, Layer, debian_arch, host_arch, oci_arch
from labctl.image.pack import Packing, pack
from labctl.image.packages import (
    Packages,
    apt_options,
    host_release,
    sources_for,
    streamed,
    unpack_deb,
)
from labctl.image.recipe import KEY, Recipe

if TYPE_CHECKING:
    from labctl.image.store import Store

NAME = "org.labctl.recipe"
BUILD_SECONDS = 1800.0

#: What differs from one run to the next, or belongs to the host that built.
_NOISE = (
    "etc/hostname",
    "etc/resolv.conf",
    "etc/machine-id",
    "etc/.pwd.lock",
    "etc/*-",
    "var/log/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/lib/systemd/random-seed",
    "tmp/*",
    "run/*",
)


def cook(store: Store, recipe: Recipe, ref: str, emit: Emit, *, arch: str, rebuild: bool) -> Image:
    """Carry the recipe out, unless the store has what it makes; two callers at once build once.

    Raises HostCannot when the host lacks a program, root or the network, LabError when a step fails.
    """
    release = host_release()
    base = store.ensure(recipe.base, emit, arch=arch, rebuild=rebuild) if recipe.base else None
    key = recipe.key(release, arch, base.digest if base else "")
    asked = time.time()
    with locked(store.root / "locks" / f"recipe-{key}", timeout=BUILD_SECONDS, what=f"the build of {ref}"):
        done = store.find(ref, arch)
        if done and done.annotations.get(KEY) == key and (not rebuild or _built_after(store, done, asked)):
            return done
        store.sweep()
        emit(Note("", f"building image {ref} ({recipe.description or recipe.method})"))
        with store.adding(), store.scratch.folder("cook") as work:
            tree = work / "tree"
            tree.mkdir()
            tree.chmod(0o755)
            return _Kitchen(store, recipe, ref, emit, arch, release, rebuild, tree).make(base, key)


def _built_after(store: Store, image: Image, moment: float) -> bool:
    """Whether another process built it while we waited for the lock."""
    try:
        return store.blobs.path(image.digest).stat().st_mtime >= moment
    except FileNotFoundError:
        return False


class _Kitchen:
    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        ref: str,
        emit: Emit,
        arch: str,
        release: str,
        rebuild: bool,
        tree: Path,
    ) -> None:
        self.store, self.recipe, self.ref, self.emit = store, recipe, ref, emit
        self.arch, self.release, self.rebuild, self.tree = arch, recipe.release or release, rebuild, tree
        self.host_release = release
        self.start = int(time.time())
        self.versions: list[str] = []

    def make(self, base: Image | None, key: str) -> Image:
        """Fill the tree, pack it, name it."""
        if base is not None:
            from labctl.image.cook_install import install

            packages = self.recipe.packages
            self.versions = install(
                self.store, base, packages, self.tree, self.release, self._line("Setting up")
            )
        elif self.recipe.method == "unpack":
            self._unpack()
        else:
            self._debootstrap()
        self._season()
        if base is not None and self.recipe.run:
            from labctl.image.cook_install import run

            run(self.store, base, self.recipe, self.tree)
            self._remove()
        epoch = self._newest()
        layer = self._layer(epoch, base)
        created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        config = self._config(base, created)
        layers = (*base.layers, layer) if base else (layer,)
        image = self.store.add_image(self.ref, config, layers, {KEY: key, NAME: self.recipe.name})
        self.emit(Note("", f"built image {self.ref}: {image.size / 1e6:.1f} MB"))
        return image

    # -- the three methods ------------------------------------------------------------------------

    def _unpack(self) -> None:
        for path, target in self.recipe.layout.items():
            place = self.tree / path
            place.parent.mkdir(parents=True, exist_ok=True)
            (place.parent / target).mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
        debian = debian_arch(self.arch)
        packages = Packages(AptRoot.at(self.store.root.parent, debian).root, debian)
        debs = packages.fetch(self.recipe.packages, fresh=self.rebuild)
        for number, deb in enumerate(debs):
            self.emit(Progress("", f"image {self.ref}: {deb.name}", number, len(debs)))
            unpack_deb(deb.path, self.tree)
            self.versions.append(f"{deb.name}={deb.version}")

        for name, files in self.recipe.aside.items():
            # One by one, and no packages that they need: they may conflict with those above.
            for deb in packages.fetch([name], fresh=self.rebuild):
                if deb.name == name:
                    self._aside(deb.path, files)
                    self.versions.append(f"{deb.name}={deb.version}")

    def _aside(self, deb: Path, wanted: Mapping[str, str]) -> None:
        """Take files out of a package whose others would stand in the way of another package's."""
        folder = self.tree.parent / "aside"
        folder.mkdir()
        try:
            unpack_deb(deb, folder)
            for name, to in wanted.items():
                # From Debian 13 on, packages have their programs in /usr/bin and no more in /bin.
                source = next((p for p in (folder / name, folder / "usr" / name) if p.is_file()), None)
                place = self._place(to)
                if source is None:
                    raise LabError(f"the recipe {self.recipe.name}: {deb.name} has no file {name}")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
        finally:
            shutil.rmtree(folder)

    def _debootstrap(self) -> None:
        if os.geteuid() != 0:
            raise HostCannot(f"building {self.ref} needs root", hint="run it with sudo")
        if oci_arch(self.arch) != host_arch():
            raise HostCannot(
                f"{self.ref} can't be built for {self.arch} on a {host_arch()} host",
                hint="recipes of the method unpack can: micro",
            )
        sources = self.tree.parent / "debian.sources"
        sources.write_text(sources_for(self.release, self.host_release))
        argv = ["mmdebstrap", "--mode=root", f"--variant={self.recipe.variant}", "--format=directory"]
        argv += ["--skip=output/dev", f"--include={','.join(self.recipe.packages)}"]
        argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in self.recipe.exclude]
        if self.recipe.exclude:
            argv.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        argv += [f'--aptopt={name} "{value}"' for name, value in apt_options().items()]
        argv += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "0"']
        argv += [self.release, str(self.tree), str(sources)]
        if self.release == "bookworm":
            # Else usrmerge comes in to do it afterwards, and brings all of perl.
            argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=usr-is-merged"]
        environment = {
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "TMPDIR": str(self.tree.parent),
        }
        streamed(argv, self._line("I: "), timeout=BUILD_SECONDS, env=environment)
        drop_settings(self.tree)
        self.versions = installed(self.tree)

    def _line(self, start: str) -> Callable[[str], None]:
        """Tell of the lines with that start as progress."""
        steps = [0]

        def line(text: str) -> None:
            if text.startswith(start):
                steps[0] += 1
                self.emit(Progress("", f"image {self.ref}: {text.removeprefix('I: ')}", steps[0]))

        return line

    # -- what all have in common ------------------------------------------------------------------

    def _season(self) -> None:
        """Files, folders and links of the recipe itself; then away with what isn't wanted."""
        self._remove()
        for name, mode in self.recipe.directories.items():
            place = self._place(name)
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(mode)
        for name, file in self.recipe.files.items():
            place = self._place(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.write_text(file.text)
            place.chmod(file.mode)
        if self.recipe.overlay:
            shutil.copytree(self.recipe.overlay, self.tree, symlinks=True, dirs_exist_ok=True)
        for name in self.recipe.applets:
            self._applets(self._place(name), self._place(self.recipe.applets[0]).parent)
        _still(self.tree)

    def _remove(self) -> None:
        patterns = [*self.recipe.remove, *(_NOISE if self.recipe.method != "unpack" else ())]
        for pattern in patterns:
            for path in sorted(self.tree.glob(pattern)):
                remove_inside(self.tree, path)

    def _place(self, path: str) -> Path:
        """The path in the tree; parts that are links in the recipe's layout are followed inside."""
        place = self.tree / clean(path)
        if not str(place.parent.resolve()).startswith(str(self.tree.resolve())):
            raise LabError(f"the recipe {self.recipe.name} leads out of the image with {path}")
        return place

    def _applets(self, program: Path, folder: Path) -> None:
        target = os.path.relpath(program, folder)
        for name in applets(program):
            link = folder / name
            if not link.exists() and not link.is_symlink():
                link.symlink_to(target)

    def _newest(self) -> int:
        """The time of the newest file that came in a package, in seconds since the epoch."""
        if given := os.environ.get("SOURCE_DATE_EPOCH"):
            return int(given)
        newest = 0
        for folder, _, files in os.walk(self.tree):
            for name in files:
                when = int(os.lstat(f"{folder}/{name}").st_mtime)
                if newest < when < self.start:
                    newest = when
        return newest

    def _layer(self, epoch: int, base: Image | None) -> Layer:
        owner = (0, 0) if self.recipe.method == "unpack" else None
        with self.store.scratch.file("layer") as (path, _):
            with path.open("wb") as out:
                pack(self.tree, out, Packing(epoch=epoch, owner=owner, root=base is None))
            with path.open("rb") as file:
                return self.store.add_layer(iter(lambda: file.read(1 << 20), b""))

    def _config(self, base: Image | None, created: str) -> ImageConfig:
        config = self.recipe.config
        if base is not None:
            below = base.config
            config = replace(
                config,
                entrypoint=config.entrypoint or below.entrypoint,
                cmd=config.cmd or below.cmd,
                env=_merged(below.env, config.env),
                working_dir=config.working_dir or below.working_dir,
                user=config.user or below.user,
                labels={**below.labels, **config.labels},
            )
        step = HistoryEntry(
            created,
            f"labctl recipe {self.recipe.name}: {' '.join(self.recipe.packages)}",
            f"{self.recipe.method}",
        )
        labels = {**config.labels, "org.labctl.packages": " ".join(sorted(self.versions))}
        return replace(
            config,
            labels=labels,
            architecture=oci_arch(self.arch),
            created=created,
            history=(*(base.config.history if base else ()), step),
        )


def _merged(below: Sequence[str], above: Sequence[str]) -> tuple[str, ...]:
    named = {item.partition("=")[0]: item for item in (*below, *above)}
    return tuple(named.values())


def applets(program: Path) -> list[str]:
    """The names that a busybox answers to, read from the file: works for a foreign architecture as well.

    It holds them one after the other, each ended by a zero, in order: "[", "[[", "acpid"….
    """
    content = program.read_bytes()
    start = content.find(b"[\0[[\0")  # in Debian 13's, no zero is before the first one
    end = content.find(b"\0\0", start)
    if start < 0 or end < 0:
        raise LabError(f"{program} is no busybox with a list of its names")
    return [name.decode() for name in content[start:end].split(b"\0")]


def remove_inside(tree: Path, path: Path) -> None:
    """Remove what a pattern found in a tree; a path that leads through a link out of it is left alone."""
    if not str(path.parent.resolve()).startswith(str(tree.resolve())):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _still(tree: Path) -> None:
    """/etc/shadow holds the day of the last change of each password: set it to one and the same."""
    shadow = tree / "etc/shadow"
    if not shadow.is_file() or shadow.is_symlink():
        return
    status = shadow.stat()
    lines = []
    for line in shadow.read_text().splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit():
            fields[2] = "1"
        lines.append(":".join(fields))
    shadow.write_text("".join(f"{line}\n" for line in lines))
    os.utime(shadow, ns=(status.st_mtime_ns, status.st_mtime_ns))


def drop_settings(tree: Path) -> None:
    """Settings of the build that must not stay: the host's proxies and checks."""
    for path in (tree / "etc/apt/apt.conf.d").glob("*mmdebstrap*"):
        path.unlink()


def installed(tree: Path) -> list[str]:
    """name=version of the packages that dpkg has installed in the tree."""
    status = tree / "var/lib/dpkg/status"
    found, name = [], ""
    if not status.is_file():
        return []
    for line in status.read_text(errors="replace").splitlines():
        if line.startswith("Package: "):
            name = line[9:]
        elif line.startswith("Version: "):
            found.append(f"{name}={line[9:]}")
    return found
