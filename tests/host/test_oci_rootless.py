"""`labrun` started by an ordinary user, who has no control groups here and one id, or some by newuidmap."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import proc
from tests.host.oci_rig import Config
from tests.host.runtime_rig import LABRUN, REPOSITORY, busybox_root

pytestmark = [pytest.mark.needs("root", "userns")]
USER = 65534  # nobody: a name that newuidmap finds, and nothing on this machine belongs to it
IDS = 3000000


class Person:
    """An ordinary user with a bundle, a state folder and, in a mount namespace apart, subordinate ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        busybox_root(self.bundle / "rootfs")
        self.ids = folder / "subids"
        self.ids.write_text(f"nobody:{IDS}:1000\n")
        (folder / "runtime").mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)
        for path in (folder, *folder.parents):  # pytest's folders are closed to everybody else
            if path.stat().st_mode & 0o055 != 0o055:
                path.chmod(path.stat().st_mode | 0o055)
        self.ok("spec", "--rootless")
        self.fresh = json.loads((self.bundle / "config.json").read_text())

    def __call__(self, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        binds = "".join(f"mount --bind {self.ids} /etc/{name}; " for name in ("subuid", "subgid"))
        script = f'{binds} exec setpriv --reuid {USER} --regid {USER} --clear-groups -- "$@"'
        argv = ["unshare", "-m", "sh", "-ec", script, "sh", *LABRUN, *words]
        env = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(self.folder / "runtime")}
        settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **settings}
        return subprocess.run(argv, env=env, cwd=self.bundle, timeout=60, check=False, **settings)

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def start(self, name: str = "c") -> None:
        with (self.folder / "log").open("w") as log:
            done = self("run", "-d", name, capture_output=False, stdout=log, stderr=log)
        assert done.returncode == 0, (self.folder / "log").read_text()

    def write(self, script: str, change: Callable[[Config], None] | None = None) -> None:
        config = json.loads(json.dumps(self.fresh))
        config["process"] |= {"terminal": False, "args": ["sh", "-c", script]}
        if change is not None:
            change(config)
        (self.bundle / "config.json").write_text(json.dumps(config))

    def refusal(self, change: Callable[[Config], None], *words: str) -> str:
        """Why one isn't made; nothing may be left of it."""
        self.write("true", change)
        done = self(*words, "create", "c")
        assert done.returncode == 1, done.stderr
        assert self.ok("list", "-q") == ""
        return done.stderr.replace('\\"', '"')


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """And afterwards none of its processes or mounts is left."""
    readable = subprocess.run(
        ["setpriv", "--reuid", str(USER), "test", "-r", str(REPOSITORY / "scripts/labrun")], check=False
    )
    if readable.returncode:
        pytest.skip(f"an ordinary user can't read {REPOSITORY}")
    found = Person(tmp_path)
    yield found
    for name in found.ok("list", "-q").split():
        found.ok("delete", "--force", name)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def own_ids(config: Config) -> None:
    """More than one id, as newuidmap gives them."""
    for key in ("uidMappings", "gidMappings"):
        config["linux"][key] = [
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": IDS, "size": 1000},
        ]
    config["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9]}


def test_a_life_with_one_id(person: Person) -> None:
    person.write("id -u; cat /proc/self/uid_map; ! touch /x && ls /sys/class >/dev/null && echo well")
    assert person.ok("run", "c").split() == ["0", "0", str(USER), "1", "well"]
    assert person.ok("list", "-q") == ""

    person.write("exec sleep 1000")
    person.start()
    state = json.loads(person.ok("state", "c"))
    assert (state["status"], Path(f"/proc/{state['pid']}").stat().st_uid) == ("running", USER)
    assert json.loads(person.ok("list", "-f", "json"))[0]["owner"] == "nobody"
    assert person.ok("exec", "c", "sh", "-c", "id -u; ps | grep -c '[s]leep 1000'").split() == ["0", "1"]
    assert json.loads(person.ok("ps", "-f", "json", "c")) == [state["pid"]]
    for verb in (["pause", "c"], ["update", "--pids-limit", "9", "c"], ["events", "--stats", "c"]):
        assert "without a control group of its own (rootless)" in person(*verb).stderr
    assert "cannot delete container c that is not stopped" in person("delete", "c").stderr
    person.ok("kill", "--all", "c", "KILL")
    person.ok("delete", "c")
    assert not Path(f"/proc/{state['pid']}").exists() or proc.state(state["pid"]) == "Z"


def test_create_and_start(person: Person) -> None:
    person.write("echo it runs; exec sleep 1000")
    log = person.folder / "out"
    with log.open("w") as out:
        done = person("create", "c", capture_output=False, stdout=out, stderr=out)
    assert done.returncode == 0, log.read_text()
    assert json.loads(person.ok("state", "c"))["status"] == "created"
    person.ok("start", "c")
    assert json.loads(person.ok("state", "c"))["status"] == "running"
    person.ok("delete", "-f", "c")
    assert log.read_text() == "it runs\n"


@pytest.mark.long
def test_a_life_with_many_ids(person: Person) -> None:
    person.write("id -u; id -G; grep -c . /proc/self/uid_map; exec 2>&1; touch /srv/x", own_ids)
    seen = person("run", "c").stdout
    assert seen.split()[:4] == ["7", "8", "9", "2"]
    assert "Permission denied" in seen or "Read-only" in seen
    person.write("exec sleep 1000", own_ids)
    person.start()
    pid = json.loads(person.ok("state", "c"))["pid"]
    assert Path(f"/proc/{pid}").stat().st_uid == IDS + 6
    assert person.ok("exec", "--user", "5", "c", "id", "-u") == "5\n"
    person.ok("kill", "c", "KILL")
    person.ok("delete", "--force", "c")


@pytest.mark.long
def test_what_only_root_can_do_is_refused(person: Person) -> None:
    def without_users(config: Config) -> None:
        linux = config["linux"]
        linux["namespaces"] = [row for row in linux["namespaces"] if row["type"] != "user"]
        del linux["uidMappings"], linux["gidMappings"]

    assert "rootless container requires user namespaces" in person.refusal(without_users)
    said = person.refusal(lambda config: config["linux"].update(uidMappings=[]))
    assert "linux.uidMappings is empty" in said
    said = person.refusal(lambda config: config["mounts"][1]["options"].append("gid=5"))
    assert "cannot specify gid= mount options for unmapped gid in rootless containers" in said
    said = person.refusal(lambda config: config["process"]["user"].update(additionalGids=[3]))
    assert "cannot set any additional groups in a rootless container" in said
    said = person.refusal(lambda config: config["linux"].update(resources={"pids": {"limit": 10}}))
    assert "rootless needs no limits + no cgrouppath when no permission is granted for cgroup" in said
    assert re.search("limits asked for: pids", said)

    def too_many(config: Config) -> None:
        own_ids(config)
        config["linux"]["uidMappings"][1]["size"] = 9999

    said = person.refusal(too_many)
    assert "newuidmap" in said and "not allowed" in said
    person.ids.write_text("")
    assert "newgidmap" in person.refusal(own_ids)
