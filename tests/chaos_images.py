"""Pull, push, build and import, killed at random moments, over lines that break at random bytes.

    python -m tests.chaos_images [--rounds 200] [--seed 1]

After each round the store must be whole (`verify --deep`); in the end everything must go through.  Prints
the counts.  tests/host/test_image_chaos.py runs a few rounds of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from labctl.image.archive import save
from labctl.image.model import ImageConfig
from labctl.image.store import Store
from tests.unit.test_image_unpack import folder, layer, link, member

WORK = """
import sys
from pathlib import Path
from labctl.image import archive
from labctl.image.build import BuildOptions, build
from labctl.image.registry import pull, push
from labctl.image.store import Store
what, root, place = sys.argv[1:4]
store = Store(Path(root))
if what == "pull":
    store.rootfs(pull(store, place))
elif what == "push":
    push(store, "source:1", target=place)
elif what == "import":
    archive.load(store, Path(place), ref="imported:1")
else:
    build(store, BuildOptions(place, tags=("built:1",)))
"""


class BreakingLine:
    """Passes TCP connections on and ends each after a random number of bytes; `whole` passes all."""

    def __init__(self, target: str, seed: int) -> None:
        host, _, port = target.partition(":")
        self.target = (host, int(port))
        self.chance = random.Random(seed)
        self.whole = False
        self.cuts = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        # Half of the lines hold; the others break in the first bytes, or anywhere in the first megabytes.
        limit = self.chance.choice([1 << 60, 1 << 60, 2000, 3 << 20])
        left = [1 << 60 if self.whole else self.chance.randrange(limit)]
        with contextlib.suppress(OSError), near, socket.create_connection(self.target, timeout=10) as far:
            pairs = [(near, far), (far, near)]
            threads = [threading.Thread(target=self._pump, args=(*pair, left), daemon=True) for pair in pairs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _pump(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if len(data) > left[0]:
                    sink.sendall(data[: left[0]])
                    self.cuts += 1
                    for end in (source, sink):
                        end.shutdown(socket.SHUT_RDWR)
                    return
                left[0] -= len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Take no more connections."""
        self.server.close()


@contextlib.contextmanager
def registry(root: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port."""
    root.mkdir(exist_ok=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{sock.getsockname()[1]}"
    config = {
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}, "delete": {"enabled": True}},
        "http": {"addr": host},
    }  # fmt: skip
    (root / "config.yml").write_text(json.dumps(config))
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "config.yml")], stdout=log, stderr=log
        )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(10)


def put(store: Store, ref: str, seed: int, size: int) -> None:
    """An image of three layers whose bytes follow from the seed."""
    chance = random.Random(seed)
    with store.adding():
        tars = [
            layer(folder("d"), member(f"d/{n}", chance.randbytes(size)), link(f"l{n}", f"d/{n}")).getvalue()
            for n in range(3)
        ]
        layers = [store.add_layer([tar]) for tar in tars]
        store.add_image(ref, ImageConfig(cmd=("/x",)), layers)


class Rounds:
    """The work, round by round; every mistake is counted and told."""

    def __init__(self, root: Path, host: str, seed: int) -> None:
        self.root, self.host, self.seed = root, host, seed
        self.chance = random.Random(seed)
        self.line = BreakingLine(host, seed)
        self.store = Store(root / "images")
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        put(self.store, "source:1", seed, 1 << 20)
        save(self.store, "source:1", root / "image.tar")
        self.context = root / "context"
        self.context.mkdir()
        (self.context / "Containerfile").write_text(
            "FROM source:1\nCOPY . /c/\nWORKDIR /w\nADD more.tar /w/\nENV A=1\nCOPY data /again\n"
        )
        (self.context / "more.tar").write_bytes(layer(folder("m"), member("m/x", b"x" * 100_000)).getvalue())

    def round(self, number: int) -> None:
        """One piece of work, most often killed, then a look at the store."""
        what = self.chance.choice(["pull", "push", "build", "import"])
        self.line.whole = what in ("build", "import")
        if what == "build":
            (self.context / "data").write_bytes(random.Random(number).randbytes(1 << 20))
        elif what == "import" and (found := self.store.find("imported:1")):
            self.store.remove(found.ref)
        elif what == "pull":
            place = f"{self.host}/pull:{number}"
            if self.chance.random() < 0.7:
                seed_store = Store(self.root / "other")
                put(seed_store, "it:1", number, 1 << 20)
                self.good(seed_store, "push", place, "it:1")
        self.run(what, number)
        problems = self.store.verify(deep=True)
        if problems:
            self.wrong.append(f"round {number}, {what}: {problems}")
        if number % 20 == 19:
            self.store.prune(cache=number % 40 == 39)

    def good(self, store: Store, what: str, place: str, ref: str) -> None:
        """Work on a whole line, in this process."""
        from labctl.image.registry import push

        assert what == "push"
        push(store, ref, target=place, compress=self.chance.choice(["gzip", ""]))

    def run(self, what: str, number: int) -> None:
        """The work in a process of its own; killed at a random moment in two of three rounds."""
        line = self.line.address
        place = {
            "pull": f"{line}/pull:{number}",
            "push": f"{line}/push:{number}",
            "import": str(self.root / "image.tar"),
            "build": str(self.context),
        }[what]
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, what, str(self.store.root), place],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True,
        )  # fmt: skip
        kill = self.chance.random() < 0.67
        try:
            _, error = process.communicate(timeout=self.chance.uniform(0.15, 1.5) if kill else 120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self.counts[f"{what} killed"] += 1
            return
        self.counts[f"{what} {'done' if process.returncode == 0 else 'failed'}"] += 1
        if process.returncode and not ("Error" in error and "labctl" in error):
            self.wrong.append(f"round {number}, {what}: {error[-400:]}")

    def finish(self) -> None:
        """What must be true in the end: all goes through on a line that holds, and no litter is left."""
        self.line.whole = True
        for what in ("push", "import", "build"):
            self.chance = random.Random(0)
            done = subprocess.run(
                [sys.executable, "-c", WORK, what, str(self.store.root), self._place(what)],
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            if done.returncode:
                self.wrong.append(f"in the end, {what}: {done.stderr[-400:]}")
        self.store.prune(cache=True)
        self.wrong += self.store.verify(deep=True)
        for name in ("tmp", "partial"):
            left = list((self.store.root / name).glob("*"))
            if left:
                self.wrong.append(f"left in {name}: {left}")
        self.line.close()

    def _place(self, what: str) -> str:
        ends = {"push": f"{self.host}/end:1", "import": str(self.root / "image.tar")}
        return ends.get(what, str(self.context))


def chaos(root: Path, rounds: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run it; (what happened how often, what went wrong)."""
    with registry(root / "registry") as host:
        work = Rounds(root, host, seed)
        for number in range(rounds):
            work.round(number)
        work.finish()
        work.counts["lines cut"] = work.line.cuts
        return work.counts, work.wrong


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labctl-chaos-") as root:
        counts, wrong = chaos(Path(root), asked.rounds, asked.seed)
    for what, count in sorted(counts.items()):
        print(f"{count:5}  {what}")
    print(f"{len(wrong):5}  wrong")
    for sentence in wrong:
        print(sentence)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
