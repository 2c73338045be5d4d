"""Whether this host can run an engine, found out by running /bin/true with it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from labctl.engines import calls, engine
from labctl.engines.launch import TEMPLATE
from labctl.engines.model import Box, forget_parents
from labctl.errors import HostCannot, LabError, TimedOut
from labctl.home import Home
from labctl.hypervisor.capability import Capability, cached
from labctl.runtime import spec

SECONDS = 15.0
BUSYBOX = "/bin/busybox"


def probe(home: Home, name: str, *, fresh: bool = False) -> Capability:
    """The trial's answer, remembered until the engine's program or the host's boot is another."""
    try:
        program = Path(calls.program(name))
    except HostCannot as error:
        return Capability(f"engine {name}", False, error.message, error.hint)
    return cached(home, f"engine {name}", program, lambda: _trial(home, name), fresh=fresh)


def _trial(home: Home, name: str) -> Capability:
    """All namespaces, an overlay, limits, a filter, and a file that shows that the command ran."""
    label = f"engine {name}"
    if not Path(BUSYBOX).exists():
        return Capability(label, False, "the trial needs busybox", "apt-get install busybox-static")
    driver = engine(name)
    home.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=home.state) as folder:
        base = Path(folder)
        box = Box("trial", str(base / "engine"), folder, f"/labctl/{home.instance()}/doctor/{base.name}")
        try:
            version = driver.version()
            _bundle(base, box)
            try:
                driver.start(box)
                _wait(base / "log")
            finally:
                driver.delete(box)
                forget_parents(box.cgroup)
        except LabError as error:
            remedy = error.hint or f"see whether `{name}` runs a container by itself on this host"
            return Capability(label, False, error.message, remedy)
    return Capability(label, True, detail=f"{name} {version}")


def _bundle(base: Path, box: Box) -> None:
    for part in ("lower/bin", "lower/proc", "lower/dev", "lower/sys", "upper", "work", "log"):
        (base / part).mkdir(parents=True)
    (base / "lower/bin/busybox").write_bytes(Path(BUSYBOX).read_bytes())
    (base / "lower/bin/busybox").chmod(0o755)
    config = spec.default_config(
        ["/bin/busybox", "echo", "ran"],
        cgroup=box.cgroup,
        lowers=[str(base / "lower")],
        upper=str(base / "upper"),
        work=str(base / "work"),
        id_base=0,
        memory=32 << 20,
        pids=16,
    )
    (base / TEMPLATE).write_text(json.dumps(config))


def _wait(logs: Path) -> None:
    end = time.monotonic() + SECONDS
    while not any("ran" in file.read_text(errors="replace") for file in logs.iterdir()):
        if time.monotonic() > end:
            raise TimedOut(f"the trial's command did nothing within {SECONDS:g} s")
        time.sleep(0.005)
