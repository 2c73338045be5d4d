"""Damaged configurations and state folders for `labrun`: no crash without a message, nothing left behind.

    sudo .venv/bin/python -m tests.fuzz_runtime --examples 500

Hypothesis changes a valid config.json, or the state folder of a container that waits for its start, and
labrun is asked to go on with it.  What counts as a failure: a Python traceback, an error without a message,
a command that hangs, and a cgroup, mount, process or folder that is left.  Bounded by --examples; prints
how many were tried and how they ended.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from labctl.linux import pidfds, proc
from labctl.linux.cgroups import Cgroup
from labctl.runtime import main
from tests.host.oci_rig import Config, Oci

HANG_SECONDS = 90.0
CRASHED = 99
_WORDS = (
    "",
    "a",
    "..",
    "../x",
    "/nope",
    "/dev/null",
    "/proc/self",
    "ü",
    "a\x00b",
    "x" * 5000,
    "-1",
    "SCMP_ACT_LOG",
)
_NUMBERS = (-(2**63) - 1, -1, 0, 1, 2, 7, 4096, 2**31, 2**63, 2**64, 10**30)
VALUES = st.one_of(
    st.sampled_from(_WORDS),
    st.sampled_from(_NUMBERS),
    st.sampled_from((None, True, False, 1.5, [], {}, [[]], [None], {"a": 1}, [{}], ["a", 1])),
)
# What a made-up value could turn against the host that runs this; see `_allowed`.
_TAME = {
    "cgroupsPath": (None, 5, [], "", "labctl-fuzz-odd", "..", "a/../b"),
    "cgroup": (None, 5, [], "", "..", "/labctl-fuzz-odd"),
    "path": (None, 5, "", "nope", "rootfs/nope", "/dev/null"),
    "pid": (None, "1", 0, -1, 2**22 + 1),
}


def places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values of a JSON tree."""
    found = [way] if way else []
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in rows:
        found += places(value, (*way, key))
    return found


def changed(tree: Any, data: st.DataObject) -> Any:
    """One to three values of a tree replaced, removed or doubled."""
    for _ in range(data.draw(st.integers(1, 3))):
        ways = places(tree)
        if not ways:
            break
        way = data.draw(st.sampled_from(ways))
        parent = tree
        for key in way[:-1]:
            parent = parent[key]
        last = way[-1]
        how = data.draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if how == "remove":
            del parent[last]
        elif how == "double" and isinstance(parent, list):
            parent.append(parent[last])
        else:
            tame = _TAME.get(str(last))
            parent[last] = data.draw(st.sampled_from(tame) if tame else VALUES)
    return tree


def damaged(text: str, data: st.DataObject) -> bytes:
    """A JSON text with changed values, cut short, or with a byte in it that doesn't belong there."""
    how = data.draw(st.sampled_from(("values",) * 6 + ("cut", "byte")))
    if how == "values":
        return json.dumps(changed(json.loads(text), data)).encode()
    raw = text.encode()
    at = data.draw(st.integers(0, 10**6)) % len(raw)  # not by its length: Hypothesis replays examples
    return raw[:at] if how == "cut" else raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]


def labrun(oci: Oci, *words: str) -> tuple[int, str]:
    """Run a command in a forked copy of this process: exit code and what it said."""
    log = oci.folder / "said"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pid = os.fork()
    if pid == 0:
        code = CRASHED
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for source, target in ((null, 0), (fd, 1), (fd, 2)):
                os.dup2(source, target)
            os.closerange(3, 256)
            os.chdir(oci.bundle)
            code = main.main(["--root", str(oci.root), *words])
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            os.write(2, f"CRASH {error!r}".encode())
        finally:
            os._exit(code)
    os.close(fd)
    pidfd = os.pidfd_open(pid)
    try:
        if not pidfds.ended(pidfd, HANG_SECONDS):
            pidfds.send(pidfd, 9)
            os.waitpid(pid, 0)
            raise AssertionError(f"labrun {words} hangs")
    finally:
        os.close(pidfd)
    code = pidfds.exit_code(os.waitpid(pid, 0)[1])
    text = log.read_text(errors="replace")
    assert code != CRASHED, f"labrun {words}: {text}"
    assert "Traceback" not in text, f"labrun {words}: {text}"
    assert code == 0 or len(text.strip()) > 10, f"labrun {words} ends with {code} and says {text!r}"
    return code, text


class Fuzz:
    """One folder for all examples, and the counts of how they ended."""

    def __init__(self, folder: Path) -> None:
        self.oci = Oci(folder)
        self.ended: collections.Counter[str] = collections.Counter()

    def base(self) -> Config:
        """A configuration that has a little of everything."""

        def more(config: Config) -> None:
            config["hooks"] = {"prestart": [{"path": "/bin/true", "timeout": 5, "env": ["A=b"]}]}
            config["annotations"] = {"org.example": "x"}
            linux = config["linux"]
            linux["cgroupsPath"] = f"labctl-fuzz-{os.getpid()}"
            linux["resources"].update(memory={"limit": 1 << 26}, pids={"limit": 20}, cpu={"shares": 100})
            linux["devices"] = [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438}]
            rule = {
                "names": ["mkdir"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
            }
            linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

        return self.oci.config(["/bin/true"], more)

    def config(self, data: st.DataObject) -> None:
        """A damaged config.json: created, started and deleted, or refused."""
        self.clear()
        (self.oci.bundle / "config.json").write_bytes(damaged(json.dumps(self.base()), data))
        code, _ = labrun(self.oci, "create", "f")
        if code == 0:
            labrun(self.oci, "start", "f")
            assert labrun(self.oci, "delete", "--force", "f")[0] == 0
        self.ended["config.json: " + ("refused" if code else "taken")] += 1
        self.nothing_left()

    def state(self, data: st.DataObject) -> None:
        """A damaged state folder: every command gives an answer, and it can be removed."""
        self.clear()
        (self.oci.bundle / "config.json").write_text(json.dumps(self.base()))
        assert labrun(self.oci, "create", "f")[0] == 0
        document = json.loads((self.oci.root / "f/state.json").read_text())
        held = os.pidfd_open(document["pid"])
        name = data.draw(st.sampled_from(("state.json", "state.json", "config.json", "exec.fifo")))
        path = self.oci.root / "f" / name
        if name == "exec.fifo" or data.draw(st.integers(0, 9)) == 0:
            path.unlink()
        else:
            path.write_bytes(damaged(path.read_text(), data))
        for words in (
            ("state", "f"),
            ("list",),
            ("ps", "f"),
            ("exec", "f", "true"),
            ("kill", "f", "0"),
            ("pause", "f"),
        ):
            code, _ = labrun(self.oci, *words)
            self.ended[f"state folder, {words[0]}: " + ("refused" if code else "done")] += 1
        assert labrun(self.oci, "delete", "--force", "f")[0] == 0
        # Who its process and group were may be what was lost: then nobody could have ended them but us.
        pidfds.send(held, 9)
        assert pidfds.ended(held, 10.0)
        os.close(held)
        Cgroup(document["cgroup"], self.oci.layout, document["controllers"]).remove()
        self.nothing_left()

    def clear(self) -> None:
        """Away with what an example that failed has left."""
        for pid in Cgroup(f"/labctl-fuzz-{os.getpid()}", self.oci.layout).procs():
            os.kill(pid, 9)
        labrun(self.oci, "delete", "--force", "f")
        names = [name for name in self.oci.layout.v1 if "=" not in name]
        for path in (f"/labctl-fuzz-{os.getpid()}", "/labctl-fuzz-odd", "/f"):
            Cgroup(path, self.oci.layout, names).remove()
        shutil.rmtree(self.oci.root / "f", ignore_errors=True)

    def nothing_left(self) -> None:
        """No folder, group, mount or process of the example may be there."""
        assert not (self.oci.root / "f").exists()
        for path in (f"/labctl-fuzz-{os.getpid()}", "/labctl-fuzz-odd", "/f"):
            assert not Cgroup(path, self.oci.layout).exists(), path
        assert str(self.oci.folder) not in (proc.read("/proc/self/mountinfo") or "")
        children = (proc.read(f"/proc/self/task/{os.getpid()}/children") or "").split()
        assert not children, children


def fuzz(folder: Path, examples: int) -> collections.Counter[str]:
    """Try `examples` configurations and a quarter as many state folders; how they ended."""
    one = Fuzz(folder)
    quiet = {
        "deadline": None,
        "database": None,
        "report_multiple_bugs": False,
        "phases": (Phase.generate, Phase.shrink),
        "suppress_health_check": list(HealthCheck),
    }
    try:
        settings(max_examples=examples, **quiet)(given(st.data())(one.config))()
        settings(max_examples=max(1, examples // 4), **quiet)(given(st.data())(one.state))()
    finally:
        one.clear()
        one.oci.close()
    return one.ended


def run() -> None:
    """The command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--examples", type=int, default=500, help="configurations to try (default 500)")
    folder = Path(tempfile.mkdtemp(prefix="labctl-fuzz-"))
    folder.chmod(0o755)
    begun = time.monotonic()
    try:
        ended = fuzz(folder, words.parse_args().examples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, count in sorted(ended.items()):
        print(f"{count:6} {name}")
    print(f"no crash and nothing left; {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    run()
