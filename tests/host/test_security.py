"""The known ways out of a container, tried: each must fail.  docs/security.md names them with these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import proc
from tests.host.oci_rig import Config, Oci
from tests.host.runtime_rig import Rig

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    rig = Oci(tmp_path / "oci")
    yield rig
    rig.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "rig")
    yield made
    made.close()


def test_the_runtime_is_not_run_again_from_inside(oci: Oci) -> None:
    """CVE-2019-5736: /proc/self/exe as the program, by a link, by a script; at create and at exec."""
    (oci.rootfs / "srv/link").symlink_to("/proc/self/exe")
    (oci.rootfs / "srv/script").write_text("#!/proc/self/exe -c\nprint('escaped')\n")
    (oci.rootfs / "srv/nested").write_text("#!/srv/script\n")
    for name in ("script", "nested"):
        (oci.rootfs / "srv" / name).chmod(0o755)
    places = ["/proc/self/exe", "/srv/link", "/srv/script", "/srv/nested"]
    for place in places:
        said = oci.refusal(lambda config: None, [place, "-c", "print('escaped')"])
        assert "is the runtime itself" in said
    oci.write("exec sleep 1000")
    oci.quiet("run", "-d", "c")
    for place in places:
        done = oci("exec", "c", place, "-c", "print('escaped')")
        assert (done.returncode, done.stdout) == (255, "")
        assert "is the runtime itself" in done.stderr


def test_nothing_inside_can_look_into_a_process_that_enters(oci: Oci) -> None:
    """CVE-2016-9962, CVE-2019-5736: ptrace and /proc/PID of an exec on its way in."""
    script = """
        while [ ! -e /tmp/stop ]; do
            for p in /proc/[0-9]*; do
                case $(readlink $p/exe) in */busybox|'') ;; *) readlink $p/exe >>/tmp/seen;; esac
                case $(readlink $p/cwd) in /|/srv|'') ;; *) readlink $p/cwd >>/tmp/seen;; esac
            done
        done
    """
    names = ["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID"]
    sets = dict.fromkeys(("bounding", "effective", "permitted"), names)
    oci.write(script, lambda config: config["process"].update(capabilities=sets))
    oci.quiet("run", "-d", "c")
    for _ in range(15):
        assert oci("exec", "c", "true").returncode == 0
    (oci.rootfs / "tmp/stop").touch()
    oci.wait_for("stopped")
    assert not (oci.rootfs / "tmp/seen").exists()


def test_no_descriptor_and_no_working_folder_leads_out(oci: Oci) -> None:
    """CVE-2024-21626: a leaked descriptor of the host as the working folder, at create and at exec."""
    oci.write("exec sleep 1000")
    oci.quiet("run", "-d", "c")
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(folder, True)
    try:
        for number in range(3, 24):
            cwd = f"/proc/self/fd/{number}"
            done = oci("exec", "--cwd", cwd, "c", "ls", "-d", "home", "proc", close_fds=False)
            assert done.returncode != 0 or "home" not in done.stdout, f"{number}: {done.stdout}"
    finally:
        os.close(folder)
    seen = oci.ok("exec", "c", "sh", "-c", "ls -l /proc/self/fd | wc -l; readlink /proc/1/cwd")
    assert seen.split() == ["5", "/"]  # "total", 0 to 2, and the folder that ls reads
    oci.ok("delete", "-f", "c")
    for number in (3, 4, 5, 6, 7, 8, 9, 10):
        change = {"cwd": f"/proc/self/fd/{number}"}
        oci.write("ls -d /proc/self/cwd/home", lambda config, change=change: config["process"].update(change))
        assert "home" not in oci("run", "c").stdout
        oci("delete", "-f", "c")


def test_release_agent_is_out_of_reach(rig: Rig) -> None:
    """CVE-2022-0492: mount a cgroup v1 hierarchy in a new user namespace, or write to one that is there."""
    rig.start("c")
    tries = """
        mkdir /tmp/cg
        unshare -UrmC true 2>/dev/null && echo unshared
        mount -t cgroup -o memory cgroup /tmp/cg 2>/dev/null && echo mounted
        for f in $(find /sys/fs/cgroup -name release_agent); do echo /x >$f && echo wrote; done 2>/dev/null
        for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo 1 >$f && echo wrote; done 2>/dev/null
        for f in $(find /sys/fs/cgroup -name '*limit_in_bytes'); do echo 1 >$f && echo wrote; done 2>/dev/null
        true
    """
    assert rig.sh("c", tries) == ""


def test_links_and_fakes_in_the_image_move_no_mount(oci: Oci) -> None:
    """CVE-2019-16884, CVE-2019-19921, CVE-2023-28642: /proc and /sys as links, and fakes over them."""
    fake = oci.folder / "fake"
    fake.mkdir()

    def bind(destination: str) -> Any:
        row = {"destination": destination, "type": "bind", "source": str(fake), "options": ["bind"]}
        return lambda config: config["mounts"].append(row)

    for place in ("/proc", "/proc/", "/x/../proc", "//proc/."):
        assert "only a proc file system" in oci.refusal(bind(place))
    for place in ("/proc/self/attr", "/proc/sys/kernel", "/proc/1"):
        assert "inside /proc" in oci.refusal(bind(place))
    for name in ("proc", "sys"):
        (oci.rootfs / name).symlink_to("/srv")
        assert "ordinary directory" in oci.refusal(lambda config: None)
        (oci.rootfs / name).unlink()


def test_a_race_of_links_moves_no_mount_out(oci: Oci) -> None:
    """CVE-2021-30465: a folder and a link to the host change places while mounts are made."""
    target = oci.folder / "target"
    target.mkdir()
    inside = oci.rootfs / "srv"
    (inside / "a").mkdir()
    (inside / "b").symlink_to(target)
    code = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "one, two = sys.argv[1].encode(), sys.argv[2].encode()\n"
        "while True: libc.renameat2(-100, one, -100, two, 2)\n"  # RENAME_EXCHANGE
    )
    command = [sys.executable, "-c", code, str(inside / "a"), str(inside / "b")]
    mounts = [
        {"destination": f"/srv/a/m{number}", "type": "tmpfs", "source": "tmpfs", "options": []}
        for number in range(5)
    ]
    with subprocess.Popen(command) as racer:
        try:
            for _ in range(8):
                oci.write("true", lambda config: config["mounts"].extend(mounts))
                oci("run", "c")
                oci("delete", "--force", "c")
                assert list(target.iterdir()) == []
                assert str(target) not in Path("/proc/self/mountinfo").read_text()
        finally:
            racer.kill()


def test_a_hostile_namespace_path(oci: Oci) -> None:
    """setns: a pipe, a plain file, the host's own mounts, another kind: an error, and no hanging."""
    pipe, plain = oci.folder / "pipe", oci.folder / "plain"
    os.mkfifo(pipe)
    plain.touch()
    for kind in ("network", "mount", "pid", "user"):
        for path in (str(pipe), str(plain), "/proc/self/ns/uts"):

            def change(config: Config, kind: str = kind, path: str = path) -> None:
                rows = [row for row in config["linux"]["namespaces"] if row["type"] != kind]
                config["linux"]["namespaces"] = [*rows, {"type": kind, "path": path}]

            assert oci.refusal(change)


def test_no_device_of_the_host(rig: Rig, oci: Oci) -> None:
    """mknod, raw disks, /dev/mem; and what lies in /dev."""
    disk = next(Path("/sys/class/block").iterdir()).joinpath("dev").read_text().strip().split(":")
    tries = f"""
        cd /tmp
        mknod disk b {disk[0]} {disk[1]} 2>/dev/null && head -c1 disk 2>/dev/null && echo read
        mknod mem c 1 1 2>/dev/null && head -c1 mem 2>/dev/null && echo read
        mknod kmsg c 1 11 2>/dev/null && head -c1 kmsg 2>/dev/null && echo read
        ls /dev | sort
    """
    usual = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"}
    usual |= {"stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    rig.start("c")
    assert set(rig.sh("c", tries).split()) <= usual

    def admin(config: Config) -> None:
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind] = ["CAP_MKNOD", "CAP_DAC_OVERRIDE"]
        del config["linux"]["resources"]["devices"]

    assert set(oci.run(tries, admin).split()) <= usual


def test_keyrings_are_not_shared_and_not_reachable(rig: Rig) -> None:
    """keyctl(2) and /proc/keys."""
    rig.start("c")
    assert rig.sh("c", "cat /proc/keys; cat /proc/key-users 2>/dev/null | wc -l") in ("0", "1")
    from labctl.linux import seccomp

    refused = {
        name
        for row in seccomp.default_profile()["syscalls"]
        if row["action"] == "SCMP_ACT_ERRNO" and not row.get("args")
        for name in row["names"]
    }
    wanted = {"keyctl", "add_key", "request_key", "bpf", "userfaultfd", "mount", "unshare", "setns"}
    assert wanted <= refused


def test_sysctls_of_the_host_are_read_only(rig: Rig) -> None:
    """/proc/sys, /proc/sysrq-trigger, /sys."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    rig.start("c")
    tries = """
        for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/panic /proc/sys/vm/swappiness \
                 /proc/sysrq-trigger /sys/kernel/uevent_helper /proc/sys/fs/suid_dumpable; do
            echo x 2>/dev/null >$f && echo wrote $f
        done; true
    """
    assert rig.sh("c", tries) == ""
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_a_fork_bomb_and_a_memory_bomb_stay_inside(rig: Rig) -> None:
    """pids.max and memory.max: the host goes on, and so does another container."""
    rig.start("calm")
    rig.start("forks", "b() { b | b & }; b; sleep 1000", pids=40)
    rig.start("memory", "x=x; while :; do x=$x$x; done; true", memory=24 << 20, pids=20)
    assert rig.client.wait("memory", 60) != 0
    assert rig.sh("calm", "echo well") == "well"
    group = rig.cgroup("forks")
    assert len(group.procs()) <= 40
    assert proc.alive(os.getpid())


def test_memory_file_systems_are_bounded(rig: Rig) -> None:
    """Exhaustion through /dev and /dev/shm: both have a size."""
    rig.start("c")
    script = """
        head -c 200000 /dev/zero >/dev/big 2>/dev/null && echo dev
        head -c 70000000 /dev/zero >/dev/shm/big 2>/dev/null && echo shm
        rm -f /dev/big /dev/shm/big; true
    """
    assert rig.sh("c", script) == ""


def test_the_default_profile_is_as_strict_as_dockers(rig: Rig) -> None:
    """Capabilities, filter, no_new_privs, a user namespace, masked paths: on without being asked for."""
    rig.start("c")
    lines = dict(
        line.split(":\t") for line in rig.sh("c", "grep -E 'Cap|NoNew|Seccomp' /proc/1/status").splitlines()
    )
    assert int(lines["CapBnd"], 16) == 0xA80425FB  # the fourteen that Docker leaves
    assert lines["CapInh"].strip("0") == lines["CapAmb"].strip("0") == ""
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")
    assert rig.sh("c", "cut -c1-20 /proc/self/uid_map").split()[:2] != ["0", "0"]
    paths = "/proc/kcore /proc/timer_list /sys/firmware"
    masked = f"for p in {paths}; do head -c1 $p 2>/dev/null; ls $p/ 2>/dev/null; done"
    assert rig.sh("c", f"{masked}; true") == ""
    assert rig.sh("c", "cat /proc/self/mountinfo | grep -c ' /proc/sys ro'") == "1"
