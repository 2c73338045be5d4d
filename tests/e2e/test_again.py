"""The quick answer of a second `up`: given while nothing changed, and never when anything did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.home import Home
from labctl.lab import again, inputs
from labctl.linux import proc
from labctl.runtime import jsonio
from labctl.runtime.client import KeeperClient
from tests.e2e.labs import CONTAINERS, Lab, until

pytestmark = pytest.mark.needs(*CONTAINERS)

PROFILE = """
name: again
networks: {lan: {internet: true}}
volumes: {data: {}}
secrets:
  word: {env: AGAIN_SECRET}
  key: {file: key.txt}
nodes:
  web:
    tier: container
    image: micro
    root: tree
    files: [{path: /etc/motd, source: motd.txt}]
    secrets: [word, key]
    volumes: [{source: data, target: /data}]
    ports: [{node_port: 80, host_ip: 127.0.0.1}]
    command: [sleep, infinity]
  db: {tier: container, image: micro, command: [sleep, infinity]}
"""


@pytest.fixture(autouse=True, scope="module")
def forwarding() -> Iterator[None]:
    """Whose table is deleted forgets who turned forwarding on, and leaves it as for a host that had it on."""
    switches = [Path("/proc/sys/net", path) for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
    before = [switch.read_text() for switch in switches]
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.write_text(value)


class Again(Lab):
    """The lab, its sources, and the question whether its `up` is answered quickly."""

    env: dict[str, str]

    def quick(self, *words: str, **env: str) -> bool:
        """Whether the same `up` would be answered quickly now."""
        script = (
            "import sys\nfrom labctl.lab import again\n"
            "print(again.standing(['up', *sys.argv[1:]]) is not None)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *self.words(*words)],
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment(**env),
            check=True,
        )
        return done.stdout.strip() == "True"

    def environment(self, **env: str) -> dict[str, str]:
        """Without what pytest changes from the set-up of a test to the test."""
        found = {**os.environ, **self.env, **env}
        found.pop("PYTEST_CURRENT_TEST", None)
        return found

    def words(self, *more: str) -> tuple[str, ...]:
        return (str(self.file), "--json", *more)

    def settle(self) -> None:
        """Bring it up until it stands as asked; the kernel's clock must have moved on from the last edit."""
        for _ in range(3):
            self.up()
            if self.quick():
                return
        raise AssertionError(f"an `up` that has nothing to do is not answered quickly: {self.doubts()}")

    def doubts(self) -> list[str]:
        """What differs from the note, for the reader of a failure."""
        script = (
            "import os, sys\nfrom labctl.lab import again\nfrom labctl.runtime import jsonio\n"
            "for name in os.listdir(sys.argv[1]):\n"
            "    note = jsonio.loads(open(f'{sys.argv[1]}/{name}').read())\n"
            "    print(name, [p for p, how, found in note['inputs'] if again.fingerprint(p, how) != found])\n"
            "    facts = again.gather(note['signs'])\n"
            "    print([kind for kind in facts if facts[kind] != note['facts'][kind]])\n"
        )
        folder = str(self.home.state / again.FOLDER)
        done = subprocess.run(
            [sys.executable, "-c", script, folder],
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment(),
            check=False,
        )
        return (done.stdout + done.stderr).splitlines()

    def applied(self, *words: str, **env: str) -> set[str]:
        """What the next `up` does, which must not be answered quickly."""
        assert not self.quick(*words, **env)
        done = self.up(*words, **env)
        return {f"{c['action']} {c['kind']}:{c['name']}" for c in done["changes"] if c["action"] != "keep"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Again]:
    folder = tmp_path_factory.mktemp("again")
    base = folder / "home"
    kept = os.environ.get("LABCTL_HOME")
    os.environ["LABCTL_HOME"] = str(base)
    try:
        (folder / "tree/srv").mkdir(parents=True)
        (folder / "tree/srv/page").write_text("first")
        (folder / "motd.txt").write_text("hello")
        (folder / "key.txt").write_text("key")
        made = Again(Home.find(), folder, "again", PROFILE)
        made.env = {"AGAIN_SECRET": "one"}
        try:
            made.up()
            yield made
        finally:
            made.good("down", "--all")
    finally:
        if kept is None:
            del os.environ["LABCTL_HOME"]
        else:
            os.environ["LABCTL_HOME"] = kept


@pytest.fixture
def standing(lab: Again) -> Again:
    """The lab, whose next `up` will be answered quickly."""
    lab.settle()
    return lab


def spec(lab: Again, key: str) -> dict[str, Any]:
    rows = json.loads(lab.good("inspect", "again", "--json"))["resources"]
    found: dict[str, Any] = next(row["spec"] for row in rows if row["key"] == key)
    return found


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


def test_the_answer_is_that_of_the_whole_way(standing: Again) -> None:
    told = standing.up()
    (note,) = (standing.home.state / again.FOLDER).iterdir()
    note.unlink()
    whole = standing.up()
    assert {**told, "seconds": 0} == {**whole, "seconds": 0}
    assert (
        standing.good("up", str(standing.file))
        .splitlines()[-1]
        .startswith("again was up already, nothing to do (")
    )


# -- what is there


def end(pid: int) -> None:
    """Kill, and wait until it is dead: a signal is only on its way when kill(2) returns."""
    os.kill(pid, 9)
    until(lambda: not proc.alive(pid), f"process {pid} ends")


def kill_container(lab: Again) -> str:
    pid = KeeperClient(lab.home.lab(spec(lab, "net:web")["owner"]["lab"]) / "run").states()["db"].pid
    end(pid)
    return "make container:db"


def remove_netns(lab: Again) -> str:
    subprocess.run(["umount", "-l", spec(lab, "net:db")["path"]], check=True, timeout=20)
    return "replace net:db"


def remove_veth(lab: Again) -> str:
    ip("link", "delete", spec(lab, "net:db")["interfaces"][0]["host_name"])
    return "replace net:db"


def unplug_veth(lab: Again) -> str:
    ip("link", "set", spec(lab, "net:db")["interfaces"][0]["host_name"], "nomaster")
    return "replace net:db"


def nft(lab: Again, verb: str, kind: str, *more: str) -> None:
    table = spec(lab, "firewall:lab")["table"]
    subprocess.run(["nft", verb, kind, "inet", table, *more], check=True, timeout=20)


def flush_rules(lab: Again) -> str:
    nft(lab, "flush", "chain", "forward")
    return "replace firewall:lab"


def remove_table(lab: Again) -> str:
    nft(lab, "delete", "table")
    return "make firewall:lab"


def kill_dns(lab: Again) -> str:
    end(int(Path(spec(lab, "dns:lab")["directory"], "dnsmasq.pid").read_text()))
    return "make dns:lab"


def edit_dns(lab: Again) -> str:
    with Path(spec(lab, "dns:lab")["directory"], "hosts").open("a") as file:
        file.write("10.9.8.7 intruder\n")
    return "replace dns:lab"


def remove_address(lab: Again) -> str:
    bridge = spec(lab, "bridge:lan")
    ip("address", "delete", bridge["addresses"][0], "dev", bridge["ifname"])
    return "replace bridge:lan"


def bridge_down(lab: Again) -> str:
    ip("link", "set", spec(lab, "bridge:lan")["ifname"], "down")
    return "replace bridge:lan"


def no_route_localnet(lab: Again) -> str:
    Path(f"/proc/sys/net/ipv4/conf/{spec(lab, 'bridge:lan')['ifname']}/route_localnet").write_text("0")
    return "replace firewall:lab"


def remove_volume(lab: Again) -> str:
    Path(spec(lab, "volume:data")["path"]).rmdir()
    return "make volume:data"


@pytest.mark.parametrize(
    "trouble",
    [
        *(
            kill_container,
            remove_netns,
            remove_veth,
            unplug_veth,
            flush_rules,
            remove_table,
            kill_dns,
            edit_dns,
        ),
        *(remove_address, bridge_down, no_route_localnet, remove_volume),
    ],
)
def test_what_is_broken_on_the_host_is_mended(standing: Again, trouble: Callable[[Again], str]) -> None:
    wanted = trouble(standing)
    assert wanted in standing.applied()
    assert standing.good("exec", "again/db", "--", "echo", "here") == "here\n"


def test_a_paused_node_is_told(standing: Again) -> None:
    standing.good("pause", "again/db")
    assert not standing.quick()
    states = {node["name"]: node["state"] for node in standing.up()["nodes"]}
    assert states == {"web": "ready", "db": "paused"}
    assert not standing.quick()
    standing.good("resume", "again/db")


def test_a_stopped_node_is_started(standing: Again) -> None:
    standing.good("stop", "again/db")
    assert "make container:db" in standing.applied()


# -- what is read


def edited(path: Path, text: str) -> None:
    """Write, and wait until the kernel's clock has another time for what comes later."""
    path.write_text(text)
    written = path.stat().st_mtime_ns
    while time.time_ns() < written + 50_000_000:
        time.sleep(0.01)


def test_an_edited_profile(standing: Again) -> None:
    edited(standing.file, PROFILE.replace("  db: {tier", "  db: {memory: 64MiB, tier"))
    assert standing.applied() == {"change container:db"}
    edited(standing.file, PROFILE + "# a remark\n")
    assert "replace container:db" in standing.applied()
    edited(standing.file, PROFILE)
    assert standing.applied() == set()


@pytest.mark.parametrize("name", ["motd.txt", "key.txt", "tree/srv/page", "tree/srv/new"])
def test_an_edited_source(standing: Again, name: str) -> None:
    edited(standing.file.parent / name, f"edited {time.time_ns()}")
    assert "replace container:web" in standing.applied()


def test_the_same_size_and_an_old_time(standing: Again) -> None:
    source = standing.file.parent / "motd.txt"
    before = source.stat()
    text = source.read_text()
    source.write_text(text[::-1] if text[::-1] != text else "x" * len(text))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not standing.quick()


def test_a_changed_variable(standing: Again) -> None:
    assert not standing.quick(AGAIN_SECRET="two")
    assert not standing.quick(LABCTL_MAX_LAYER="1000000000")


def test_other_words(standing: Again) -> None:
    assert not standing.quick("-s", "nodes.db.memory=64MiB")
    assert not standing.quick("--name", "other")
    assert not standing.quick("--check")
    assert not standing.quick("--skip-unavailable")
    standing.up("--check")
    assert not standing.quick("--check")


def test_another_image_under_the_name(standing: Again) -> None:
    # The index is where a name gets another digest; an equal one written anew is doubt enough.
    index = standing.home.cache / "images/index.json"
    fresh = index.with_name(f"index.{os.getpid()}")
    fresh.write_bytes(index.read_bytes())
    fresh.replace(index)
    assert not standing.quick()


def test_another_configuration(standing: Again, tmp_path: Path) -> None:
    assert not standing.quick(XDG_CONFIG_HOME=str(tmp_path))


def test_another_folder(standing: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not standing.quick()


def test_a_lab_at_work_is_no_answer(standing: Again) -> None:
    from labctl.resource.lock import locked

    lab_id = spec(standing, "net:web")["owner"]["lab"]
    with locked(standing.home.state / "locks" / lab_id, "a test"):
        assert not standing.quick()
    assert standing.quick()


def test_every_write_of_the_ledger_takes_the_note_away(standing: Again) -> None:
    from labctl.resource.ledger import Ledger

    ledger = Ledger(standing.home.ledger)
    try:
        row = ledger.labs()[0]
        writes: list[Callable[[], None]] = [
            lambda: ledger.intend(row, []),
            lambda: ledger.mark(row.id, "made", {}),
            lambda: ledger.forget(row.id, []),
            lambda: ledger.set_node(row.id, "db", ledger.nodes(row.id)["db"]),
        ]
        for write in writes:
            note = standing.home.state / again.FOLDER / f"{row.id}-0"
            note.write_text("{}")
            write()
            assert not note.exists()
    finally:
        ledger.close()


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"caller": []}'])
def test_a_damaged_note_is_no_answer(standing: Again, damage: str) -> None:
    (note,) = (standing.home.state / again.FOLDER).iterdir()
    note.write_text(damage)
    assert not standing.quick()


def test_every_input_counts(standing: Again) -> None:
    """Each line of the note, changed by itself, is doubt enough."""
    (path,) = (standing.home.state / again.FOLDER).iterdir()
    whole = path.read_text()
    note = jsonio.loads(whole)
    assert again.gather(note["signs"]) == note["facts"]
    read = {name for name, _how, _found in note["inputs"]}
    folder = standing.file.parent
    for name in (standing.file, folder / "motd.txt", folder / "key.txt", folder / "tree/srv/page"):
        assert str(name) in read
    assert any(name.endswith("/lab/planner.py") for name in read)
    assert any(name.endswith("/images/index.json") for name in read)
    for kind, found in note["facts"].items():
        if kind != "commands":
            assert found, kind
    assert inputs.enough() is None  # nobody watches here
