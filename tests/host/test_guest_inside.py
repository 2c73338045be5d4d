"""Containers inside a machine that is booted for real: planned, made, entered, stopped, removed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from labctl.errors import HostCannot, LabError, TimedOut
from labctl.guest.inside import InsideMachine
from labctl.guest.inside_link import disk_serial
from labctl.guest.machine import Copies, Executes, HasLogs, Measures, Pauses
from labctl.guest.ssh import Endpoint, SshMachine
from labctl.home import Home
from labctl.image.boot_programs import programs
from labctl.image.bootconfig import BootConfig, Nic
from labctl.image.disk import disk as image_disk
from labctl.image.disk import make_ext4
from labctl.image.store import Store
from labctl.looks import Owner, Presence
from labctl.network.model import Interface
from labctl.profile import load
from labctl.resource.codec import decode, encode
from labctl.tiers.context import Choice, ImageFacts, LabFacts, NodeFacts, Place
from labctl.tiers.inside import InsideContainer, plan
from labctl.tiers.record import InterfaceRecord, NodeRecord, SshPlace
from tests.host import boot_rig
from tests.host.boot_rig import CLIENT_KEY, HOST_KEY, MACS, Vm, booted, busybox_tree
from tests.shared_images import shared_cache

pytestmark = [pytest.mark.needs("root", "tcg", "kernel"), pytest.mark.timeout(600)]

PROFILE = """
name: t
networks: {lan: {subnet: 10.0.2.0/24}}
nodes:
  box: {tier: emulation, image: base}
  left:
    tier: container
    image: micro
    inside: box
    memory: 48MiB
    env: {A: b c}
    command: [sh, -c, 'echo out; echo err >&2; trap "echo bye; exit 7" TERM; while :; do sleep 0.1; done']
    files: [{path: /etc/note, content: "noted\\n", mode: "0640", owner: "0:7"}]
  right: {tier: container, image: micro, inside: box}
"""
CONFIG = BootConfig(
    "box",
    (Nic("eth0", MACS[0], ("10.0.2.15/24",)),),
    gateway4="10.0.2.2",
    authorized_keys=(CLIENT_KEY.public,),
    host_key=HOST_KEY.private,
    hosts_containers=True,
)


@dataclass(frozen=True)
class Rig:
    vm: Vm
    place: SshPlace
    ssh: SshMachine
    left: InsideContainer
    right: InsideContainer
    record: NodeRecord

    def machine(self, name: str) -> InsideMachine:
        return InsideMachine(self.ssh, name, name)


@pytest.fixture(scope="module")
def cache() -> Path:
    programs(shared_cache(), "amd64")
    return shared_cache()


def ssh_place(folder: Path, vm: Vm) -> SshPlace:
    (folder / "key").write_text(CLIENT_KEY.private)
    (folder / "key").chmod(0o600)
    (folder / "host.pub").write_text(HOST_KEY.public)
    return SshPlace("127.0.0.1", str(folder / "key"), str(folder / "host.pub"), port=vm.port)


def machine_at(place: SshPlace) -> SshMachine:
    key = " ".join(HOST_KEY.public.split()[:2])
    return SshMachine(
        Endpoint(host=place.address, port=place.port, key_file=place.key_file, host_key=key, node="box")
    )


def planned(
    folder: Path, place: SshPlace, image: ImageFacts
) -> dict[str, tuple[InsideContainer, NodeRecord]]:
    (folder / "t.yaml").write_text(PROFILE)
    profile = load(folder / "t.yaml")
    home = Home(folder / "state", folder / "cache")
    lab = LabFacts(home, Owner("inst", "0a1b2c3d"), "t", profile, "", None, "")
    card = InterfaceRecord("eth0", "lan", "lt0", MACS[0], ("10.0.2.15/24",))
    host = NodeRecord(
        "box", "emulation", "emulation", "base", image.digest, image.arch, "box", "here",
        interfaces=(card,), ssh=place,
    )  # fmt: skip
    found = {}
    for n, name in enumerate(("left", "right")):
        link = Interface(f"lv{n}", "eth0", "lb0", f"02:00:00:00:00:0{n}", (f"10.0.2.{50 + n}/24",))
        where = Place((link,), ("lan",), "10.0.2.2", "", ("10.0.2.3",), "lab")
        facts = NodeFacts(
            lab, profile.nodes[name], Choice("container"), image, where, hosts="127.0.0.1 localhost\n",
            host_record=host,
        )  # fmt: skip
        plans = plan(facts)
        container = plans.resources[0]
        assert isinstance(container, InsideContainer)
        found[name] = (container, plans.record)
    return found


def pings(folder: Path, tree: Path) -> Path:
    """A layer with a Debian's ping and what it is linked to, as everybody may use it."""
    told = subprocess.run(
        ["chroot", tree, "ldd", "/usr/bin/ping"], capture_output=True, text=True, timeout=20, check=True
    )
    for name in ("/usr/bin/ping", *(word for word in told.stdout.split() if word.startswith("/"))):
        there = Path(f"{tree}{name}")
        here = folder / there.parent.resolve().relative_to(tree) / there.name
        here.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(there, here)
    return folder


@pytest.fixture(scope="module")
def rig(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    store = Store(cache / "images")
    machines, image = store.ensure("base"), store.ensure("micro")
    folder = tmp_path_factory.mktemp("inside")
    # Small layers: what is sent to an emulated machine takes it long.
    layers = tuple(map(str, (*store.rootfs(image), pings(folder / "pings", store.rootfs(machines)[0]))))
    facts = ImageFacts("micro", "x86_64", image.digest, layers, image.config)
    with booted(folder / "vm", cache, image_disk(store, machines, cache), CONFIG) as vm:
        place = ssh_place(folder, vm)
        plans = planned(folder, place, facts)
        ssh = machine_at(place)
        (left, record), (right, _) = plans["left"], plans["right"]
        assert left.look().presence is Presence.ABSENT
        assert not InsideContainer.make_many([left, right])
        yield Rig(vm, place, ssh, left, right, record)
        ssh.close()


def looks(items: Sequence[InsideContainer]) -> list[str]:
    return [str(InsideContainer.look_many(items)[item.name].presence) for item in items]


def test_it_runs_in_the_machine(rig: Rig) -> None:
    assert looks([rig.left, rig.right]) == ["present", "present"]
    left = rig.machine("left")
    for shape in (Executes, Copies, HasLogs, Measures, Pauses):
        assert isinstance(left, shape)
    script = (
        "uname -n; echo $A; cat /etc/note; stat -c '%a %u %g' /etc/note; cat /proc/1/comm; cat /etc/hostname"
    )
    done = left.run(["sh", "-c", script])
    assert (done.code, done.errors) == (0, "")
    assert done.text.splitlines() == ["left", "b c", "noted", "640 0 7", "sh", "left"]
    # Its users are nobody's in the machine, and the machine's processes are not seen.
    assert left.run(["cat", "/proc/self/uid_map"]).text.split()[1] not in ("0", "")
    assert rig.record.runs_on == "node box" and rig.record.ssh == rig.place


def test_network(rig: Rig) -> None:
    left, right = rig.machine("left"), rig.machine("right")
    assert left.run(["ping", "-c", "1", "-W", "5", "10.0.2.51"]).code == 0
    assert right.run(["ping", "-c", "1", "-W", "5", "10.0.2.50"], user="nobody").code == 0
    assert left.run(["ping", "-c", "1", "-W", "5", "10.0.2.15"]).code == 0
    assert rig.ssh.run(["ping", "-c", "1", "-W", "5", "10.0.2.50"]).code == 0
    assert "default via 10.0.2.2" in left.run(["ip", "route"]).text


def test_exec_is_exact(rig: Rig) -> None:
    left = rig.machine("left")
    done = left.run(["printf", "%s|", "a b", "", "'\"$X", "\n"], env={"B": "1"})
    assert done.stdout == b"a b||'\"$X|\n|"
    assert left.run(["sh", "-c", "exit 42"]).code == 42
    assert left.run(["sh", "-c", "kill -9 $$"]).code == 137
    assert left.run(["sh", "-c", "exit 254"]).code == 254
    assert left.run(["nonesuch"]).code == 127
    assert left.run(["/etc/passwd"]).code == 126
    done = left.run(["sh", "-c", "pwd; id -u; echo $B; cat >&2"], input=b"in" * 100_000, env={"B": "x y"},
                    cwd="/tmp", user="nobody")  # fmt: skip
    assert done.text.splitlines() == ["/tmp", "65534", "x y"]
    assert done.stderr == b"in" * 100_000


def test_terminal(rig: Rig) -> None:
    out = io.BytesIO()
    assert rig.machine("left").exec(["sh", "-c", "test -t 0 && tty; exit 3"], stdout=out, tty=True) == 3
    assert b"/dev/pts/" in out.getvalue()


def test_timeout_ends_the_command(rig: Rig) -> None:
    left = rig.machine("left")
    with pytest.raises(TimedOut):
        left.run(["sleep", "4242"], timeout=2.0)
    ends = time.monotonic() + 10
    while left.run(["pgrep", "-f", "sleep 4242"]).code == 0:
        assert time.monotonic() < ends, "the command still runs"
        time.sleep(0.2)


def test_copies(rig: Rig, tmp_path: Path) -> None:
    left = rig.machine("left")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"x" * 300_000)
    (tmp_path / "tree/link").symlink_to("file")
    left.copy_in(str(tmp_path / "tree"), "/root")
    assert left.run(["sh", "-c", "stat -c '%s %u' /root/tree/file; readlink /root/tree/link"]).text == (
        "300000 0\nfile\n"
    )
    left.copy_out("/root/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/file").read_bytes() == b"x" * 300_000
    assert (tmp_path / "back/link").is_symlink()
    assert rig.ssh.run(["test", "-e", "/root/tree"]).code == 1, "it landed in the machine"


def test_logs_figures_and_attributes(rig: Rig) -> None:
    left = rig.machine("left")
    logs = {chunk.stream: chunk.data for chunk in left.logs()}
    assert logs == {"stdout": b"out\n", "stderr": b"err\n"}
    assert [chunk.data for chunk in left.logs("stdout", tail=0)] == []
    stats = left.stats()
    assert stats.memory_limit_bytes == 48 << 20
    assert stats.pids and stats.memory_bytes and stats.cpu_seconds
    assert stats.net_received_bytes and stats.block_written_bytes is not None
    rows = left.processes()
    assert (rows[0].pid, rows[0].uid) == (1, 0) and rows[0].command.startswith("sh -c echo out")
    # The machine sees the same process, under another number, and its kernel's tasks.
    seen = {one.pid: one for one in rig.ssh.processes()}
    assert seen[rows[0].host_pid].command.startswith("sh -c echo out")
    assert seen[1].ppid == 0 and any(one.kernel and one.command == "[kthreadd]" for one in seen.values())
    # File capabilities came over with the layer, as far as this Debian's ping has them.
    here = Path(rig.left.layers[-1], "usr/bin/ping")
    there = f"/var/lib/labctl/layers/{here.parents[2].name}/usr/bin/ping"
    found = rig.ssh.run(["python3", "-c", "import os, sys; print(os.listxattr(sys.argv[1]))", there])
    assert found.text.strip() == str(os.listxattr(here))


def test_pause_and_resume(rig: Rig) -> None:
    left = rig.machine("left")
    left.pause()
    assert (rig.left.look().presence, rig.left.look().detail) == (Presence.PRESENT, "paused")
    with pytest.raises(LabError, match="is paused"):
        left.run(["true"])
    left.resume()
    assert rig.left.look().detail == ""
    assert left.run(["true"]).code == 0


def test_stop_and_start_again(rig: Rig) -> None:
    left = rig.machine("left")
    left.run(["touch", "/root/kept"])
    follower = left.logs("stdout", follow=True)
    assert next(follower).data == b"out\n"
    left.stop(10.0)
    assert b"".join(chunk.data for chunk in follower) == b"bye\n"
    look = rig.left.look()
    assert (look.presence, look.data["exit_code"]) == (Presence.STOPPED, 7)
    with pytest.raises(LabError, match="its command ended"):
        left.run(["true"])
    rig.left.make()
    assert rig.left.look().there
    assert left.run(["test", "-e", "/root/kept"]).code == 0
    rig.left.make()


def test_round_trip_and_removal(rig: Rig) -> None:
    again = decode(InsideContainer, encode(rig.right))
    assert again == rig.right
    again.unmake()
    assert looks([rig.left, rig.right]) == ["present", "absent"]
    assert rig.ssh.run(["sh", "-c", f"ls {rig.right.folder}; ip link show lv1"]).text == ""
    again.unmake()
    with pytest.raises(LabError, match="does not exist"):
        rig.machine("right").run(["true"])
    rig.right.make()
    assert rig.right.look().there


def test_a_machine_that_is_gone(rig: Rig) -> None:
    place = replace(rig.place, port=1)
    gone = replace(rig.left, ssh=place)
    assert gone.look().presence is Presence.ABSENT
    gone.unmake()


def test_a_machine_without_python(cache: Path, tmp_path: Path, rig: Rig) -> None:
    tree = busybox_tree(tmp_path / "tree", cache)
    make_ext4([tree], tmp_path / "root.ext4", seed="test", size=1 << 30)
    with booted(tmp_path / "vm", cache, tmp_path / "root.ext4", CONFIG) as vm:
        item = replace(rig.left, ssh=ssh_place(tmp_path, vm))
        assert item.look().presence is Presence.ABSENT
        with pytest.raises(HostCannot, match="has no Python 3") as caught:
            item.make()
        assert "base" in caught.value.hint
        item.unmake()


def test_an_image_that_is_a_disk_of_the_machine(
    cache: Path, tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(cache / "images")
    root, contents = (image_disk(store, store.resolve(name), cache) for name in ("base", "micro"))
    serial = disk_serial(rig.left.image)
    assert len(serial) == 20
    extra = ["-drive", f"if=none,id=more,file={contents},format=raw,readonly=on"]
    extra += ["-device", f"virtio-blk-pci,drive=more,serial={serial}"]
    argv_of = boot_rig._argv
    monkeypatch.setattr(boot_rig, "_argv", lambda *words: [*argv_of(*words), *extra])
    with booted(tmp_path / "vm", cache, root, CONFIG) as vm:
        item = replace(rig.left, ssh=ssh_place(tmp_path, vm))
        item.make()
        assert item.look().there
        box = machine_at(item.ssh)
        done = InsideMachine(box, "left").run(["sh", "-c", "touch /usr/x && cat /etc/note && ls -d /usr/bin"])
        assert done.text == "noted\n/usr/bin\n"
        assert box.run(["ls", "/var/lib/labctl/layers"]).code != 0, "layers were sent as well"
        item.unmake()
        box.close()
