"""Conformance with config-linux.md: namespaces, devices, groups, seccomp and the rest, by section."""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import namespaces, proc
from tests.host.oci_rig import Config, Oci

pytestmark = [pytest.mark.needs("root", "cgroup"), pytest.mark.long]
IDS = [{"containerID": 0, "hostID": 300000, "size": 65536}]


def spaces_of(pid: int | str) -> dict[str, str]:
    return {kind: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for kind, name in namespaces.FILES.items()}


def without(kind: str) -> Any:
    def change(config: Config) -> None:
        rows = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [row for row in rows if row["type"] != kind]
        if kind == "uts":
            del config["hostname"]

    return change


def replaced(kind: str, path: str) -> Any:
    def change(config: Config) -> None:
        without(kind)(config)
        config["linux"]["namespaces"].append({"type": kind, "path": path})

    return change


def test_the_default_file_systems(oci: Oci) -> None:
    """config-linux.md, Default Filesystems."""
    found = {}
    for line in oci.run("cat /proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        found[left.split()[4]] = right.split()[0]
    wanted = {"/proc": "proc", "/sys": "sysfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs"}
    assert wanted.items() <= found.items()


def test_new_namespaces_are_new_and_missing_ones_inherited(oci: Oci) -> None:
    """config-linux.md, Namespaces: without a path a new one; not listed, the runtime's own."""
    own = spaces_of("self")
    names = ("pid", "network", "ipc", "uts", "cgroup", "mount", "time")
    script = "for n in pid net ipc uts cgroup mnt time; do readlink /proc/self/ns/$n; done"

    def all_new(config: Config) -> None:
        config["linux"]["namespaces"].append({"type": "time"})

    seen = dict(zip(names, oci.run(script, all_new).split(), strict=True))
    assert [name for name in names if seen[name] == own[name]] == []
    for kind in ("pid", "network", "ipc", "uts", "cgroup"):
        seen = dict(zip(names, oci.run(script, without(kind)).split(), strict=True))
        assert [name for name in names if seen[name] == own[name]] == [kind, "time"]


def test_namespaces_by_path(oci: Oci) -> None:
    """config-linux.md, Namespaces: path; a wrong type, a relative path, a type twice is an error."""
    with subprocess.Popen(["unshare", "-nipuC", "--fork", "sleep", "1000"]) as other:
        try:
            child = _child(other.pid)
            theirs = spaces_of(child)
            for kind in ("network", "ipc", "uts", "pid", "cgroup"):
                path = f"/proc/{child}/ns/{namespaces.FILES[kind]}"
                seen = oci.run(f"readlink /proc/self/ns/{namespaces.FILES[kind]}", replaced(kind, path))
                assert seen == theirs[kind]
            wrong = replaced("ipc", f"/proc/{child}/ns/net")
            assert "ns/net" in oci.refusal(wrong)
            os.kill(child, 9)
        finally:
            other.kill()
    assert "absolute path" in oci.refusal(replaced("ipc", "proc/self/ns/ipc"))
    assert "/no/such" in oci.refusal(replaced("ipc", "/no/such"))
    twice = oci.refusal(lambda config: config["linux"]["namespaces"].append({"type": "pid"}))
    assert "pid twice" in twice
    assert "unknown type" in oci.refusal(replaced("nope", ""))


def _child(pid: int) -> int:
    end = time.monotonic() + 10
    while True:
        text = proc.read(f"/proc/{pid}/task/{pid}/children") or ""
        if text.split() and "sleep" in (proc.read(f"/proc/{text.split()[0]}/comm") or ""):
            return int(text.split()[0])
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_mount_namespace_by_path_is_never_the_hosts(oci: Oci) -> None:
    """config-linux.md, Namespaces: mount by path; the runtime's own would give the host a new root."""
    assert "of the runtime itself" in oci.refusal(replaced("mount", "/proc/self/ns/mnt"))
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000"]) as other:
        try:
            end = time.monotonic() + 10
            while "sleep" not in (proc.read(f"/proc/{other.pid}/comm") or ""):
                assert time.monotonic() < end
                time.sleep(0.01)
            theirs = str(Path(f"/proc/{other.pid}/ns/mnt").readlink())
            path = f"/proc/{other.pid}/ns/mnt"
            assert oci.run("readlink /proc/self/ns/mnt; ls /srv", replaced("mount", path)) == theirs
        finally:
            other.kill()


def test_no_mount_namespace_is_a_plain_change_of_root(oci: Oci) -> None:
    """config-linux.md, Namespaces: without mount the host's is inherited, and nothing is mounted there."""

    def bare(config: Config) -> None:
        config["mounts"] = []
        del config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]
        config["linux"]["namespaces"] = []
        del config["hostname"]

    before = Path("/proc/self/mountinfo").read_text()
    assert oci.run("ls /; pwd", bare).split()[-1] == "/"
    assert Path("/proc/self/mountinfo").read_text() == before
    assert "mount namespace" in oci.refusal(without("mount"))


def test_exec_without_a_mount_namespace_stays_in_the_containers_root(oci: Oci) -> None:
    def bare(config: Config) -> None:
        config["mounts"] = []
        del config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]
        config["linux"]["namespaces"] = [{"type": "pid"}]
        del config["hostname"]

    (oci.rootfs / "srv/mark").touch()
    oci.write("exec sleep 1000", bare)
    oci.quiet("run", "-d", "c")
    assert set(oci.ok("exec", "c", "ls", "/..").split()) == {path.name for path in oci.rootfs.iterdir()}
    assert "mark" in oci.ok("exec", "c", "ls", "/srv")
    assert "no such file" in oci("exec", "c", "/usr/bin/env").stderr


def test_ids_are_mapped(oci: Oci) -> None:
    """config-linux.md, User namespace mappings; and the files keep their owners."""
    for path in (oci.rootfs, *oci.rootfs.rglob("*")):
        os.chown(path, 300000, 300000, follow_symlinks=False)

    def change(config: Config) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=IDS, gidMappings=IDS)

    seen = oci.run("cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u /bin/busybox", change)
    assert seen.split() == ["0", "300000", "65536"] * 2 + ["0", "0"]
    assert (oci.rootfs / "bin/busybox").stat().st_uid == 300000
    assert "user namespace" in oci.refusal(lambda config: config["linux"].update(uidMappings=IDS))

    def half(config: Config) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(gidMappings=IDS)

    assert "uidMappings is empty" in oci.refusal(half)


def test_the_clocks_are_shifted(oci: Oci) -> None:
    """config-linux.md, Offset for Time Namespace."""
    offsets = {"monotonic": {"secs": 1000}, "boottime": {"secs": 864000, "nanosecs": 5}}

    def change(config: Config) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = offsets

    up = float(Path("/proc/uptime").read_text().split()[0])
    seen = float(oci.run("cut -d' ' -f1 /proc/uptime", change))
    assert 864000 <= seen - up < 864600
    oci.write("exec sleep 1000", change)
    oci.quiet("run", "-d", "c")
    inside = float(oci.ok("exec", "c", "cut", "-d ", "-f1", "/proc/uptime"))
    assert inside - up >= 864000
    oci.ok("delete", "-f", "c")
    assert "unknown clock" in oci.refusal(
        lambda config: (change(config), config["linux"]["timeOffsets"].update(nope={"secs": 1}))
    )
    assert "time namespace" in oci.refusal(lambda config: config["linux"].update(timeOffsets=offsets))


def test_default_and_further_devices(oci: Oci) -> None:
    """config-linux.md, Devices and Default Devices, and runtime-linux.md, Dev symbolic links."""
    rows = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/srv/deep/pipe", "type": "p", "fileMode": 0o600},
        {"path": "/dev/disk", "type": "b", "major": 7, "minor": 1},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
    ]
    names = "null zero full random urandom tty"
    script = f"""
        cd /dev; for n in {names}; do stat -c '%n %a %t:%T' $n; done
        stat -c '%F %a %t:%T %u:%g' mine; stat -c '%F %a' /srv/deep/pipe; stat -c '%F' disk
        for n in fd stdin stdout stderr ptmx; do readlink $n; done
    """
    lines = oci.run(script, lambda config: config["linux"].update(devices=rows)).splitlines()
    numbers = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"]
    assert lines[:6] == [f"{name} 666 {number}" for name, number in zip(names.split(), numbers, strict=True)]
    assert lines[6:9] == ["character special file 640 1:3 7:8", "fifo 600", "block special file"]
    fd = "/proc/self/fd"
    assert lines[9:] == [fd, f"{fd}/0", f"{fd}/1", f"{fd}/2", "pts/ptmx"]
    (oci.rootfs / "srv/plain").write_text("")
    other = {"path": "/srv/plain", "type": "c", "major": 1, "minor": 3}
    assert "plain" in oci.refusal(lambda config: config["linux"].update(devices=[other]))
    for bad in ({"path": "/dev/x", "type": "z"}, {"path": "/dev/x", "type": "c"}, {"path": "x", "type": "p"}):
        oci.refusal(lambda config, bad=bad: config["linux"].update(devices=[bad]))


def test_the_allowed_devices(oci: Oci) -> None:
    """config-linux.md, Allowed Device list: in their order, the last that matches decides."""

    def change(config: Config) -> None:
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_MKNOD")
        config["linux"]["resources"]["devices"] = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"},
        ]

    script = """
        cd /tmp; mknod zero c 1 5; mknod kmsg c 1 11; mknod mem c 1 1
        head -c1 zero >/dev/null && echo zero
        head -c1 kmsg >/dev/null 2>&1 && echo kmsg
        head -c1 mem >/dev/null 2>&1 && echo mem
        echo end
    """
    assert oci.run(script, change).split() == ["zero", "end"]


def test_the_group_is_where_it_is_asked_for_and_goes_again(oci: Oci) -> None:
    """config-linux.md, Cgroups Path: absolute from the mount point, the same place each time."""
    script = "cat /proc/self/cgroup"
    for _ in range(2):
        seen = oci.run(script, without("cgroup"))
        paths = {line.split(":", 2)[2] for line in seen.splitlines()}
        assert f"{oci.cgroup}/c" in paths
        assert not oci.group().exists()
    assert oci.run(script, lambda config: config["linux"].update(cgroupsPath=f"{oci.cgroup[1:]}/rel"))
    oci.refusal(lambda config: config["linux"].update(cgroupsPath="/../x"))


def test_limits_are_in_force(oci: Oci) -> None:
    """config-linux.md, Memory, CPU, PIDs: what is asked for stands in the group's files."""
    resources = {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swappiness": 10},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 55},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    oci.write("exec sleep 1000", lambda config: config["linux"].update(resources=resources))
    oci.quiet("run", "-d", "c")
    assert value(oci, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert value(oci, "memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 << 20)
    assert value(oci, "pids", "pids.max", "pids.max") == "55"
    assert value(oci, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    if "cpu" in oci.layout.v1:
        assert value(oci, "memory", "memory.swappiness", "") == "10"
        assert value(oci, "cpu", "cpu.shares", "") == "512"
        assert value(oci, "cpu", "cpu.cfs_quota_us", "") == "50000"
        assert value(oci, "cpu", "cpu.cfs_period_us", "") == "100000"
    else:
        assert value(oci, "cpu", "", "cpu.max") == "50000 100000"
    change = {"memory": {"limit": 40 << 20}, "pids": {"limit": 44}, "cpu": {"quota": 20000}}
    oci.ok("update", "--resources", "-", "c", input=json.dumps(change), stdin=None)
    assert value(oci, "memory", "memory.limit_in_bytes", "memory.max") == str(40 << 20)
    assert value(oci, "pids", "pids.max", "pids.max") == "44"
    oci.ok("update", "c", "--memory", "48M", "--pids-limit", "-1", "--cpu-quota", "-1")
    assert value(oci, "memory", "memory.limit_in_bytes", "memory.max") == str(48 << 20)
    assert value(oci, "pids", "pids.max", "pids.max") == "max"


def value(oci: Oci, controller: str, v1: str, v2: str) -> str:
    """What stands in the container's group."""
    layout = oci.layout
    place = f"{layout.v1[controller]}{oci.cgroup}/c/{v1}" if controller in layout.v1 else ""
    return Path(place or f"{layout.v2}{oci.cgroup}/c/{v2}").read_text().strip()


def test_a_limit_that_cannot_be_set_is_an_error(oci: Oci) -> None:
    """config-linux.md, Unified, RDMA, Network, Huge page limits, IntelRdt: an error, never left out."""
    rows: list[Config] = [
        {"unified": {"nope.max": "1"}},
        {"unified": {"../memory.max": "1"}},
        {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]},
        {"rdma": {"mlx5_1": {"hcaHandles": 3}}},
        {"network": {"priorities": [{"name": "nope0", "priority": 1}]}},
        {"memory": {"limit": -5}},
    ]
    for row in rows:
        oci.refusal(lambda config, row=row: config["linux"].update(resources=row))
    assert "Intel RDT" in oci.refusal(lambda config: config["linux"].update(intelRdt={"closID": "x"}))


def test_sysctls_of_its_own_namespaces_and_no_others(oci: Oci) -> None:
    """config-linux.md, Sysctl; one outside the container's namespaces would change the host."""
    values = {"net.ipv4.ip_forward": "1", "kernel.shmmni": "99", "fs.mqueue.msg_max": "7"}
    seen = oci.run(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max",
        lambda config: config["linux"].update(sysctl=values),
    )
    assert seen.split() == ["1", "99", "7"]
    for name in ("kernel.panic", "vm.swappiness", "kernel/core_pattern", "net.ipv4/../../kernel.panic"):
        oci.refusal(lambda config, name=name: config["linux"].update(sysctl={name: "1"}))

    def shared(config: Config) -> None:
        without("ipc")(config)
        config["linux"]["sysctl"] = {"kernel.shmmni": "99"}

    assert "ipc namespace" in oci.refusal(shared)
    own = replaced("ipc", "/proc/self/ns/ipc")
    bad = oci.refusal(lambda config: (own(config), config["linux"].update(sysctl={"kernel.shmmni": "99"})))
    assert "the host's" in bad


def filtered(default: str, *rules: Config, **more: Any) -> Any:
    def change(config: Config) -> None:
        config["linux"]["seccomp"] = {"defaultAction": default, "syscalls": list(rules), **more}

    return change


@pytest.mark.parametrize("new_privileges", [False, True])
def test_seccomp_actions(oci: Oci, new_privileges: bool) -> None:
    """config-linux.md, Seccomp: ERRNO with its number, ALLOW, LOG, KILL_PROCESS, TRAP; args; flags."""

    def run(script: str, *rules: Config, **more: Any) -> str:
        change = filtered("SCMP_ACT_ALLOW", *rules, **more)

        def both(config: Config) -> None:
            change(config)
            config["process"]["noNewPrivileges"] = not new_privileges

        return oci.run(script, both)

    mkdir = {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO"}
    assert "not permitted" in run("mkdir /tmp/d 2>&1; true", mkdir)
    assert "too long" in run("mkdir /tmp/d 2>&1; true", {**mkdir, "errnoRet": 36}).lower()
    kill = {**mkdir, "action": "SCMP_ACT_KILL_PROCESS"}
    assert run("mkdir /tmp/d; echo $?", kill).split()[-1] == "159"
    trap = {**mkdir, "action": "SCMP_ACT_TRAP"}
    assert run("mkdir /tmp/d; echo $?", trap).split()[-1] == "159"
    log = {**mkdir, "action": "SCMP_ACT_LOG"}
    flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    assert run("mkdir /tmp/d && echo made; rmdir /tmp/d", log, flags=flags) == "made"
    kill_arg = {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}
    only = {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [kill_arg]}
    assert run("kill -HUP $$ 2>&1; kill -0 $$ && echo rest", only).split()[-1] == "rest"


def test_seccomp_that_cannot_be_done_is_refused(oci: Oci) -> None:
    """config-linux.md, Seccomp: unknown words; an errno where the action takes none; NOTIFY with no path."""
    wrongs = [
        filtered("SCMP_ACT_NOPE"),
        filtered("SCMP_ACT_ALLOW", {"names": [], "action": "SCMP_ACT_ERRNO"}),
        filtered("SCMP_ACT_ALLOW", {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "errnoRet": 3}),
        filtered("SCMP_ACT_ALLOW", defaultErrnoRet=3),
        filtered("SCMP_ACT_ALLOW", flags=["NOPE"]),
        filtered("SCMP_ACT_ALLOW", listenerMetadata="x"),
        filtered("SCMP_ACT_ALLOW", {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}),
    ]
    for wrong in wrongs:
        assert "seccomp" in oci.refusal(wrong)


class Agent:
    """A seccomp agent: takes one listener, answers every call with an errno."""

    def __init__(self, path: Path, errno: int) -> None:
        self.errno = errno
        self.states: list[Config] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.listener.settimeout(20)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                data, rights, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4))
                fd = array.array("i", rights[0][2])[0]
                while part := connection.recv(65536):
                    data += part
            self.states.append(json.loads(data))
            threading.Thread(target=self._answer, args=(fd,), daemon=True).start()

    def _answer(self, fd: int) -> None:
        while True:
            request = bytearray(80)
            try:
                fcntl.ioctl(fd, 0xC0502100, request)  # SECCOMP_IOCTL_NOTIF_RECV
                (id_,) = struct.unpack_from("Q", request)
                fcntl.ioctl(fd, 0xC0182101, struct.pack("QqiI", id_, 0, -self.errno, 0))
            except OSError:
                os.close(fd)
                return


def test_seccomp_notify_hands_the_listener_to_its_agent(oci: Oci) -> None:
    """config-linux.md, Seccomp listenerPath, and The Container Process State; for create, run and exec."""
    path = oci.folder / "agent"
    agent = Agent(path, 18)  # EXDEV
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}
    change = filtered("SCMP_ACT_ALLOW", rule, listenerPath=str(path), listenerMetadata="meta")
    assert "ross-device" in oci.run("mkdir /tmp/d 2>&1; true", change)
    state = agent.states[0]
    assert (state["fds"], state["metadata"], state["state"]["id"]) == (["seccompFd"], "meta", "c")
    assert state["pid"] == state["state"]["pid"]
    assert state["ociVersion"] == "1.1.0"
    oci.write("mkdir /tmp/d 2>/tmp/said; exec sleep 1000", change)
    oci.quiet("create", "c")
    oci.ok("start", "c")
    done = oci("exec", "c", "sh", "-c", "until [ -s /tmp/said ]; do :; done; cat /tmp/said; mkdir /tmp/e")
    assert done.stdout.count("ross-device") == 1
    assert done.stderr.count("ross-device") == 1
    assert [row["state"]["status"] for row in agent.states] == ["creating", "creating", "running"]
    path.unlink()
    oci.ok("delete", "-f", "c")
    assert "seccomp agent" in oci.refusal(change)


def test_masked_and_read_only_paths(oci: Oci) -> None:
    """config-linux.md, Masked Paths and Readonly Paths: folders, files, missing ones; absolute only."""
    (oci.rootfs / "srv/secret").write_text("secret\n")
    (oci.rootfs / "srv/dir").mkdir()
    (oci.rootfs / "srv/dir/inner").write_text("x")

    def change(config: Config) -> None:
        config["linux"]["maskedPaths"] = ["/srv/secret", "/srv/dir", "/no/such", "/proc/kcore"]
        config["linux"]["readonlyPaths"] = ["/root", "/proc/sys", "/no/such"]

    script = """
        cat /srv/secret; ls /srv/dir; head -c1 /proc/kcore
        touch /root/x 2>/dev/null && echo wrote
        echo 1 2>/dev/null >/proc/sys/kernel/shmmni && echo wrote
        echo end
    """
    assert oci.run(script, change) == "end"
    for name in ("maskedPaths", "readonlyPaths"):
        assert "absolute" in oci.refusal(lambda config, name=name: config["linux"].update({name: ["srv"]}))


@pytest.mark.parametrize("word", ["shared", "slave", "private", "unbindable"])
def test_the_propagation_of_the_root(oci: Oci, word: str) -> None:
    """config-linux.md, Rootfs Mount Propagation."""
    seen = oci.run("cat /proc/self/mountinfo", lambda config: config["linux"].update(rootfsPropagation=word))
    root = next(line for line in seen.splitlines() if line.split()[4] == "/").partition(" - ")[0].split()[6:]
    kinds = {field.partition(":")[0] for field in root}
    assert ("shared" in kinds) == (word == "shared")
    assert ("unbindable" in kinds) == (word == "unbindable")
    if word == "private":
        assert not kinds
    assert "unknown value" in oci.refusal(lambda config: config["linux"].update(rootfsPropagation="nope"))


def test_the_personality(oci: Oci) -> None:
    """config-linux.md, Personality."""
    machine = os.uname().machine
    seen = oci.run("uname -m", lambda config: config["linux"].update(personality={"domain": "LINUX32"}))
    assert seen != machine or machine not in ("x86_64", "aarch64")
    assert (
        oci.run("uname -m", lambda config: config["linux"].update(personality={"domain": "LINUX"})) == machine
    )
    for bad in ({"domain": "NOPE"}, {"domain": "LINUX", "flags": ["X"]}):
        assert "personality" in oci.refusal(lambda config, bad=bad: config["linux"].update(personality=bad))
