"""Recipes, carried out for real: what comes out runs, is the same twice, and survives a kill."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labctl.errors import HostCannot, UsageError
from labctl.events import Event, silent
from labctl.image import recipe, scratch
from labctl.image.model import Image, host_arch
from labctl.image.runner import OverlayRunner, Step
from labctl.image.store import Store
from tests.e2e.labs import until
from tests.shared_images import share

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the micro image's packages in it, so that the tests ask the mirror once."""
    folder = tmp_path_factory.mktemp("cache")
    Store(folder / "images").ensure("micro", silent)
    return folder


@pytest.fixture
def store(cache: Path, tmp_path: Path) -> Store:
    """An empty store that shares the downloaded packages."""
    (tmp_path / "boot").symlink_to(cache / "boot")
    return Store(tmp_path / "images")


def run(store: Store, image: Image, *argv: str, **more: object) -> tuple[int, str]:
    said: list[bytes] = []
    with store.scratch.folder("test") as work:
        (work / "upper").mkdir()
        step = Step(argv, image.config.env, **more)  # type: ignore[arg-type]
        code = OverlayRunner().run(store.rootfs(image), work / "upper", step, said.append)
    return code, b"".join(said).decode()


def test_micro_runs_and_is_small(cache: Path) -> None:
    store = Store(cache / "images")
    image = store.ensure("micro", silent)
    assert image.size < 9_000_000 and image.architecture == host_arch()
    assert image.config.command == ("/usr/bin/idle",)
    code, said = run(
        store, image, "sh", "-c", "ls /sbin/ip /usr/sbin/httpd /bin/nc && httpd --help; dropbear -V; id -un"
    )
    assert "dropbear v" in said.lower() and "root" in said and "/usr/sbin/httpd" in said, said
    assert code == 0
    tree = store.rootfs(image)[0]
    assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (tree / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert not any((tree / "usr/share").iterdir())
    assert store.verify(deep=True) == []


def test_micro_has_wget_with_a_time_limit_and_a_shell_that_heeds_the_path(cache: Path) -> None:
    """Debian 12's busybox ends with a segmentation fault at `wget -T`."""
    store = Store(cache / "images")
    image = store.resolve("micro")
    script = """
    ip link set lo up; httpd -p 80 -h /etc; nc -l -p 81 -e sleep 9 >/dev/null 2>&1 &
    for words in '-T 5' -T5 --timeout=5 -cqT5; do wget -qO - $words http://127.0.0.1/issue || echo $?; done
    echo http://127.0.0.1/issue | xargs wget --header 'X: -T' -qT 5 -O /tmp/got && cat /tmp/got
    wget -T 1 -qO - http://127.0.0.1:81/; echo slow $?
    wget -T 1s http://127.0.0.1/; echo wrong $?
    mkdir /own; printf '#!/bin/sh\necho own\n' >/own/ls; chmod +x /own/ls; PATH=/own:$PATH; ls; timeout 9 ls
    su nobody -s /bin/sh -c 'id -un'
    """
    code, said = run(store, image, "sh", "-c", script)
    page = "labctl micro\n"
    late = "wget: download timed out\nslow 1\nwget: invalid number '1s'\nwrong 1\n"
    assert (code, said) == (0, page * 5 + late + "own\nown\nnobody\n"), said


def test_idle_ends_at_once(cache: Path) -> None:
    store = Store(cache / "images")
    image = store.resolve("micro")
    script = "idle & sleep 0.3; kill $!; wait $!; echo ended $?"
    assert run(store, image, "sh", "-c", script) == (0, "ended 0\n")


def test_same_packages_same_digest(cache: Path, store: Store) -> None:
    first = Store(cache / "images").resolve("micro")
    time.sleep(1.1)  # so that a time stamp of the build would show
    second = store.ensure("micro", silent)
    assert first.digest == second.digest
    assert "dropbear-bin=" in second.config.labels["org.labctl.packages"]


def test_built_once_and_again_when_the_recipe_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(recipe.data("images"), tmp_path / "recipes")
    monkeypatch.setattr(recipe, "data", lambda *parts: tmp_path / "recipes" / Path(*parts[1:]))
    events: list[Event] = []
    first = store.ensure("micro", events.append)
    assert events
    events.clear()
    assert store.ensure("micro", events.append).digest == first.digest and not events
    path = tmp_path / "recipes/micro/recipe.yaml"
    path.write_text(path.read_text().replace("labctl micro\n", "other words\n"))
    (path.parent / "files/etc").mkdir(parents=True)
    (path.parent / "files/etc/motd").write_text("hello\n")
    changed = store.ensure("micro", silent)
    assert changed.digest != first.digest
    assert run(store, changed, "cat", "/etc/motd", "/etc/issue") == (0, "hello\nother words\n")


def test_foreign_architecture(store: Store) -> None:
    other = "arm64" if host_arch() != "arm64" else "amd64"
    image = store.ensure("micro", silent, arch=other)
    native = store.ensure("micro", silent)
    assert (image.architecture, native.architecture) == (other, host_arch())
    assert store.resolve("micro").digest == native.digest  # this machine's comes first
    assert store.resolve("micro", other).digest == image.digest
    head = (store.rootfs(image)[0] / "usr/bin/dropbear").read_bytes()[:20]
    assert head[18] == {"arm64": 183, "amd64": 62}[other]  # ELF e_machine
    with pytest.raises(HostCannot, match="can't be built for"):
        store.ensure("base", silent, arch=other)


def test_names_that_are_nothing(store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        store.ensure("mircro", silent)
    assert "micro" in caught.value.hint
    with pytest.raises(UsageError, match="no image name"):
        store.ensure("Not A Name", silent)


BUILD = """
import sys
from pathlib import Path
from labctl.image.store import Store
image = Store(Path(sys.argv[1])).ensure("micro")
print(image.digest)
"""


def test_two_builds_at_once(store: Store) -> None:
    argv = [sys.executable, "-c", BUILD, str(store.root)]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate(timeout=120)[0].strip() for process in both}
    assert len(digests) == 1 and digests.pop().startswith("sha256:")
    assert all(process.returncode == 0 for process in both)
    assert len(store.list()) == 1 and not list((store.root / "tmp").iterdir())


def test_killed_builds_leave_no_half_image(store: Store) -> None:
    chance = random.Random(5)
    argv = [sys.executable, "-c", BUILD, str(store.root)]
    killed = 0
    for _ in range(12):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(chance.uniform(0.05, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        assert store.verify(deep=True) == []
        if store.find("micro"):
            store.remove("micro")
    assert killed
    image = store.ensure("micro", silent)
    assert store.verify(deep=True) == [] and store.rootfs(image)
    store.prune()
    assert not list((store.root / "tmp").iterdir())
    wanted = {image.digest, image.config_digest, *(layer.digest for layer in image.layers)}
    assert {blob.digest for blob in store.blobs.all()} == wanted


@pytest.mark.timeout(600)
def test_base_and_a_layer_on_top(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real Debian, with what issue and recipe promise; and apt works on top of it."""
    share(store, "base")
    shutil.copytree(recipe.data("images"), tmp_path / "recipes")
    (tmp_path / "recipes/more").mkdir()
    (tmp_path / "recipes/more/recipe.yaml").write_text("from: base\npackages: [bc]\n")
    monkeypatch.setattr(recipe, "data", lambda *parts: tmp_path / "recipes" / Path(*parts[1:]))
    image = store.ensure("more", silent)
    script = "python3 -c 'print(6*7)'; ip -V; ping -V; curl --version | head -1; ps --version; echo 6*7 | bc"
    code, said = run(store, image, "sh", "-c", script)
    assert code == 0, said
    for words in (
        "42\n",
        "iproute2",
        "ping from iputils",
        "curl 7" if "curl 7" in said else "curl 8",
        "procps",
    ):
        assert words in said, said
    base = store.resolve("base")
    assert image.layers[0] == base.layers[0] and len(image.layers) == 2
    assert image.layers[1].size < 8_000_000
    upper = store.rootfs(image)[1]
    assert not (upper / "var/lib/apt/lists").exists() or not any((upper / "var/lib/apt/lists").iterdir())
    assert not (store.rootfs(base)[0] / "etc/resolv.conf").exists()
    shared, own = store.sizes()[image.digest]
    assert shared == base.layers[0].size and own < 10_000_000


def test_a_builder_whose_labctl_is_killed_ends_and_leaves_no_mount(tmp_path: Path) -> None:
    """The builder of Debian trees mounts /proc and /sys in what it makes; they must not stay on the host.
    Nor must what it started and doesn't wait for."""
    nap = f"sleep {random.randrange(10**6, 10**7)}"
    script = f"mount -t tmpfs none {tmp_path}; setsid {nap} & {nap} & echo on; wait"
    code = (
        "import sys; from labctl.image.packages import streamed;"
        "streamed(['sh', '-c', sys.argv[1]], lambda text: print(text, flush=True), timeout=600, env={})"
    )

    def naps() -> int:
        found = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                found += (entry / "cmdline").read_bytes() == f"{nap}\0".replace(" ", "\0").encode()
            except OSError:
                continue  # gone meanwhile
        return found

    process = subprocess.Popen([sys.executable, "-c", code, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "on\n"
    until(lambda: naps() == 2, "the builder is at work")
    assert not os.path.ismount(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: naps() == 0, "nothing of the builder goes on")


def test_litter_that_is_still_written_to_waits_for_the_next_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = store.scratch.root / "cook-1-dead"
    (left / "tree").mkdir(parents=True)
    rmtree = shutil.rmtree

    def busy(path: Path) -> None:
        (left / "tree" / "new").touch()
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(scratch.shutil, "rmtree", busy)
    assert store.sweep() == 0 and left.exists()
    monkeypatch.setattr(scratch.shutil, "rmtree", rmtree)
    assert store.sweep() == 1 and not left.exists()
