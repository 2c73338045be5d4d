"""What a container sees and may do, each property asked of the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import capabilities, namespaces
from labctl.runtime import spec
from tests.host.runtime_rig import Rig

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_every_namespace_is_its_own(rig: Rig) -> None:
    pid = rig.start("one").pid
    for kind in ("pid", "network", "ipc", "mount", "uts", "cgroup", "user"):
        assert namespaces.identity(pid, kind) != namespaces.identity(os.getpid(), kind), kind


def test_it_is_pid_one_in_a_host_of_its_own_name(rig: Rig) -> None:
    rig.start("one", "echo $$ $(hostname); exec sleep 1000")
    assert rig.wait_for_output("one", "one") == "1 one\n"
    assert rig.sh("one", "ps | wc -l").isdigit()
    assert "sleep 1000" in rig.sh("one", "ps")
    assert rig.sh("one", "ls /sys/class/net") == "lo"


def test_root_inside_is_nobody_outside(rig: Rig) -> None:
    state = rig.start("one")
    base = spec.id_range(rig.cgroup("one").path)
    assert rig.sh("one", "id -u; stat -c %u /bin/sh") == "0\n0"
    assert Path(f"/proc/{state.pid}").stat().st_uid == base
    rig.sh("one", "echo x >/root/made")
    made = rig.folder / "nodes/one/upper/root/made"
    assert made.stat().st_uid == base
    assert not (rig.image / "root/made").exists()


def test_the_usual_fourteen_capabilities_and_no_way_to_more(rig: Rig) -> None:
    pid = rig.start("one").pid
    sets = capabilities.of_process(pid)
    usual = capabilities.mask(capabilities.DEFAULT)
    assert len(capabilities.names(usual)) == 14
    assert sets["effective"] == sets["permitted"] == sets["bounding"] == usual
    assert sets["ambient"] == sets["inheritable"] == 0
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_capabilities_can_be_added_and_dropped(rig: Rig) -> None:
    pid = rig.start("one", extra_capabilities=["net_admin"], drop_capabilities=["CAP_KILL"]).pid
    names = capabilities.names(capabilities.of_process(pid)["effective"])
    assert "CAP_NET_ADMIN" in names
    assert "CAP_KILL" not in names


def test_a_privileged_one_keeps_all_but_the_hosts_ids(rig: Rig) -> None:
    pid = rig.start("one", privileged=True).pid
    assert capabilities.of_process(pid)["effective"] == capabilities.known()
    assert rig.sh("one", "mkdir /m && mount -t tmpfs none /m && echo yes", privileged=True) == "yes"
    assert namespaces.read_map(f"/proc/{pid}/uid_map") == [(0, spec.id_range(rig.cgroup("one").path), 65536)]


def test_the_filter_refuses_mounts_and_namespaces(rig: Rig) -> None:
    rig.start("one", extra_capabilities=["SYS_PTRACE"])
    for script in ("mount -t tmpfs none /tmp", "unshare -U true", "unshare -n true", "hostname other"):
        code, said = rig.run("one", "sh", "-c", script)
        assert code != 0, script
        assert "not permitted" in said or "permission denied" in said, said


def test_masked_and_read_only_paths(rig: Rig) -> None:
    rig.start("one")
    assert rig.sh("one", "cat /proc/keys /proc/timer_list | wc -c") == "0"
    assert rig.sh("one", "ls /sys/firmware | wc -l") == "0"
    for path in ("/proc/sys/kernel/hostname", "/sys/kernel/mm/ksm/run"):
        code, said = rig.run("one", "sh", "-c", f"echo 1 > {path}")
        assert code != 0
        assert "Read-only" in said or "denied" in said, said


def test_devices_and_file_systems(rig: Rig) -> None:
    rig.start("one")
    nodes = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert " ".join(rig.sh("one", "ls /dev").split()) == nodes
    assert rig.sh(
        "one", "head -c 4 /dev/zero | wc -c; echo x >/dev/null; echo x >/dev/full || echo full"
    ).endswith("full")
    assert rig.sh("one", "stat -f -c %T /dev/shm /dev/mqueue /proc /sys | sort -u").count("\n") >= 2
    assert rig.run("one", "mknod", "/dev/mem", "c", "1", "1")[0] != 0
    assert rig.run("one", "mknod", "/tmp/sda", "b", "8", "0")[0] != 0


def test_a_read_only_root_without_an_upper(rig: Rig) -> None:
    rig.start("one", upper="", work="")
    assert "Read-only" in rig.run("one", "touch", "/x")[1]
    assert rig.sh("one", "touch /dev/shm/x && echo yes") == "yes"


def test_files_mounts_and_sysctls(rig: Rig) -> None:
    host = rig.folder / "resolv"
    host.write_text("nameserver 192.0.2.1\n")
    data = rig.folder / "data"
    data.mkdir()
    bind = {"destination": "/srv/data", "type": "bind", "source": str(data), "options": ["rbind", "idmap"]}
    rig.start(
        "one",
        files={"/etc/resolv.conf": str(host)},
        mounts=[bind],
        sysctls={"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536"},
    )
    assert rig.sh("one", "cat /etc/resolv.conf; stat -c %u /etc/resolv.conf") == "nameserver 192.0.2.1\n0"
    assert "Read-only" in rig.run("one", "sh", "-c", "echo x >/etc/resolv.conf")[1]
    rig.sh("one", "echo hi >/srv/data/file")
    assert (data / "file").read_text() == "hi\n"
    assert (data / "file").stat().st_uid == 0, "an idmapped bind gives the host's owner"
    assert rig.sh("one", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax") == "1\n65536"


def test_a_prepared_network_that_its_user_namespace_owns(rig: Rig) -> None:
    user, net = str(rig.folder / "user"), str(rig.folder / "net")
    base = spec.id_range(rig.cgroup("one").path)
    namespaces.pin(user, "user", uids=[(0, base, 65536)])
    namespaces.pin(net, "network", user=user)
    try:
        state = rig.start("one", netns=net, userns=user, id_base=base, extra_capabilities=["NET_ADMIN"])
        assert Path(f"/proc/{state.pid}/ns/net").stat().st_ino == Path(net).stat().st_ino
        assert Path(f"/proc/{state.pid}/ns/user").stat().st_ino == Path(user).stat().st_ino
        assert "UP" in rig.sh("one", "ip link set lo up && ip link show lo")
        assert rig.sh("one", "ping -c1 -W2 127.0.0.1 >/dev/null && echo yes") == "yes"
        # Its end and a second start are its parent's business as any other's.
        rig.client.kill("one", 9)
        assert rig.client.wait("one", 10) == 137
        assert rig.client.launch([rig.bundle("one", "exit 4", netns=net, userns=user, id_base=base)]) == {
            "one": ""
        }
        assert rig.client.wait("one", 10) == 4
    finally:
        rig.client.delete(["one"])
        namespaces.unpin(net)
        namespaces.unpin(user)


def test_a_network_that_the_host_owns_still_serves_port_80(rig: Rig) -> None:
    net = str(rig.folder / "net")
    namespaces.pin(net, "network")
    try:
        rig.start("one", netns=net)
        assert rig.sh("one", "ls /sys/class/net") == "lo"
        assert rig.sh("one", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "0"
        script = "nc -l -p 80 </dev/null >/dev/null 2>&1 & sleep 0.3; kill -0 $! && kill $! && echo serves"
        assert rig.sh("one", script) == "serves"
    finally:
        rig.client.delete(["one"])
        namespaces.unpin(net)


def test_users_by_name_with_their_groups(rig: Rig) -> None:
    rig.start("one", "id; pwd; echo $HOME; umask; exec sleep 1000", user="web", cwd="/srv/new", umask=0o27)
    said = rig.wait_for_output("one", "0027")
    assert said == "uid=33(web) gid=34(webs) groups=44(extra)\n/srv/new\n/srv\n0027\n"
    assert capabilities.of_process(rig.client.states()["one"].pid)["effective"] == 0
    assert rig.sh("one", "id -u; echo $HOME", user="root") == "0\n/root"


def test_stdout_can_be_opened_again_by_whoever_runs(rig: Rig) -> None:
    rig.start("one", "echo again >/dev/stdout; exec sleep 1000", user="web")
    rig.wait_for_output("one", "again")


@pytest.mark.parametrize(
    ("script", "settings", "said"),
    [
        (["nope"], {}, 'exec: "nope": executable file not found in $PATH'),
        (["/nope"], {}, "no such file or directory"),
        (["/etc/passwd"], {}, "permission denied"),
        ("true", {"user": "nobody"}, "unable to find user nobody"),
        ("true", {"cwd": "/etc/passwd"}, "chdir to cwd"),
        ("true", {"netns": "/nope/net"}, "/nope/net"),
        ("true", {"lowers": ["/nope/lower"]}, "/nope/lower"),
        ("true", {"files": {"/etc/x": "/nope/file"}}, "/nope/file"),
        ("true", {"sysctls": {"kernel.nope": "1"}}, "kernel.nope"),
        ("true", {"memory": 1 << 62, "pids": 1 << 62}, "pids.max"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    rig: Rig, script: str | list[str], settings: dict[str, Any], said: str
) -> None:
    assert said in rig.failure("one", script, **settings)


def test_one_that_fails_harms_no_other_of_its_batch(rig: Rig) -> None:
    items = [
        rig.bundle("good", "exec sleep 1000"),
        rig.bundle("bad", ["nope"]),
        rig.bundle("too", "exec sleep 1000"),
    ]
    errors = rig.client.launch(items)
    assert errors["good"] == errors["too"] == ""
    assert "nope" in errors["bad"]
    assert sorted(rig.client.states()) == ["good", "too"]


def test_a_link_in_the_image_leads_no_mount_out_of_it(rig: Rig) -> None:
    outside = rig.folder / "outside"
    outside.mkdir()
    (rig.image / "evil").symlink_to(os.path.relpath(outside, "/"))
    (rig.image / "evil2").symlink_to("../../../../../.." + str(outside))
    mounts = [
        {"destination": f"/{name}/in", "type": "tmpfs", "source": "tmpfs", "options": []}
        for name in ("evil", "evil2")
    ]
    rig.start("one", mounts=mounts)
    assert list(outside.iterdir()) == []
    assert rig.sh("one", f"grep -c ' {outside}/in ' /proc/mounts") == "2"


def test_nothing_of_it_is_mounted_on_the_host(rig: Rig) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    rig.start("one")
    assert Path("/proc/self/mountinfo").read_text() == before


def test_no_descriptor_leaks_into_it(rig: Rig) -> None:
    rig.start("one", "ls /proc/self/fd | wc -l; exec sleep 1000")
    # 0, 1, 2, and the folder that ls reads
    assert rig.wait_for_output("one", "\n") == "4\n"
    assert rig.sh("one", "ls /proc/self/fd | wc -l") == "4"
