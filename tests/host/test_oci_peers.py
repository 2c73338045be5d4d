"""What the suites of runc and crun look for beyond the specification: words, forms and corner cases.

Written from what those suites check (runc's tests/integration, crun's tests), in tests of our own; the
differences that we keep are listed in docs/conformance.md.
"""

from __future__ import annotations

import array
import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.linux import pidfds, systemd
from tests.host.oci_rig import Config, Oci
from tests.host.runtime_rig import LABRUN

pytestmark = [pytest.mark.needs("root", "cgroup"), pytest.mark.long]


def start(oci: Oci, change: Callable[[Config], None] | None = None, name: str = "c") -> None:
    """A container that sleeps."""
    oci.write("exec sleep 1000", change)
    oci.quiet("run", "-d", "--pid-file", str(oci.folder / "pid"), name)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that must fail says."""
    assert done.returncode != 0, done.stdout
    return done.stderr.replace('\\"', '"')


def mounted(**row: object) -> Callable[[Config], None]:
    """One mount more."""
    return lambda config: config["mounts"].append(row)


def user_namespace(config: Config, *, inside: int = 0, size: int = 1000) -> None:
    linux = config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": inside, "hostID": 100000, "size": size}]
    linux["gidMappings"] = [{"containerID": inside, "hostID": 200000, "size": size}]


def give_away(oci: Oci) -> None:
    """Let the root file system belong to the mapped ids, and be reached by them."""
    for path in (oci.rootfs, *oci.rootfs.rglob("*")):
        os.chown(path, 100000, 200000, follow_symlinks=False)
    for folder in (oci.folder, oci.bundle):
        folder.chmod(0o755)


def test_kill_of_a_stopped_one_and_signal_0(oci: Oci) -> None:
    start(oci)
    oci.ok("kill", "c", "0")
    oci.ok("kill", "c", "KILL")
    oci.wait_for("stopped")
    assert "container not running" in said(oci("kill", "c", "0"))
    oci.ok("kill", "-a", "c", "0")


def _without_pids(config: Config) -> None:
    spaces = config["linux"]["namespaces"]
    spaces[:] = [row for row in spaces if row["type"] != "pid"]


@pytest.mark.parametrize("words", [["kill", "c", "KILL"], ["delete", "c"], ["delete", "-f", "c"]])
def test_the_hosts_pids_and_no_first_process_left(oci: Oci, words: list[str]) -> None:
    start(oci, _without_pids)
    for _ in range(3):
        oci.quiet("exec", "-d", "c", "sleep", "1000")
    os.kill(int((oci.folder / "pid").read_text()), signal.SIGKILL)
    oci.wait_for("stopped")
    held = [os.pidfd_open(pid) for pid in oci.group().procs()]
    assert len(held) >= 3
    oci.ok(*words)
    for fd in held:
        assert pidfds.ended(fd, 10.0)
        os.close(fd)


def test_what_exec_says_and_ends_with(oci: Oci) -> None:
    (oci.rootfs / "run.sh").write_text("#!/no/such/shell\n")
    (oci.rootfs / "run.sh").chmod(0o755)
    start(oci, lambda config: config["process"].update(capabilities={}))
    refused = {
        ("--pid-file", "/no/such/folder", "c", "true"): "No such file",
        ("c", "no-such-program"): "executable file not found in $PATH",
        ("nobody", "true"): "does not exist",
        ("c", "/run.sh"): "exec /run.sh: no such file or directory",
        ("--cgroup", "..", "c", "true"): "bad sub cgroup path",
        ("--cgroup", "nope", "c", "true"): "no such file or directory",
        ("--cgroup", "whatever:/", "c", "true"): "unknown controller ",
    }
    for words, text in refused.items():
        done = oci("exec", *words)
        assert (done.returncode, done.stderr.count("\n")) == (255, 1), done
        assert text in done.stderr
    assert " adding pid " in oci("exec", "--cgroup", "nope", "c", "true").stderr
    assert oci.ok("exec", "--user", "1000", "c", "sh", "-u", "-c", "echo $HOME") == "/\n"
    seen = oci.ok("exec", "--cap", "CAP_KILL", "--cap", "NO_SUCH_CAP", "c", "cat", "/proc/self/status")
    assert re.findall("Cap(?:Prm|Eff|Bnd):\t(.*)", seen) == ["0000000000000020"] * 3


@pytest.mark.needs("cgroup-v1")
def test_exec_in_the_group_of_one_controller(oci: Oci) -> None:
    start(oci)
    group = oci.group()
    (Path(group.v1["memory"]) / "inner").mkdir()
    seen = oci.ok("exec", "--cgroup", "memory:inner", "c", "cat", "/proc/self/cgroup")
    inside = {line.split(":")[1] for line in seen.splitlines() if line.endswith("/inner")}
    assert inside == {"memory"}


def test_a_program_whose_interpreter_is_missing(oci: Oci) -> None:
    (oci.rootfs / "run.sh").write_text("#!/no/such/shell\n")
    (oci.rootfs / "run.sh").chmod(0o755)
    oci.write(["/run.sh"])
    text = said(oci("run", "c"))
    assert re.search("exec .*/run.sh.*no such file or directory", text)
    assert text.count("\n") == 1


def test_descriptors_and_listeners_that_are_not_there(oci: Oci) -> None:
    oci.write("echo $LISTEN_FDS $LISTEN_PID")
    command = ["/bin/sh", "-c", 'exec 3>&-; exec "$@"', "sh", *LABRUN, "--root", str(oci.root), "run"]
    settings = {"cwd": oci.bundle, "capture_output": True, "text": True, "timeout": 30}
    done = subprocess.run([*command, "--preserve-fds=1", "c"], check=False, **settings)
    assert "preserved-fd 0" in said(done)
    env = {**os.environ, "LISTEN_FDS": "1"}
    assert subprocess.run([*command, "c"], check=True, env=env, **settings).stdout == "0 1\n"


def test_one_line_of_json_and_the_frame_of_help(oci: Oci) -> None:
    start(oci)
    assert oci.ok("events", "--stats", "c").startswith('{"type":"stats","id":"c","data":{"cpu":')
    assert oci.ok("list", "--format", "json").startswith('[{"ociVersion":"')
    assert [line.partition(":")[0] for line in oci.ok("-v").splitlines()[1:]] == ["commit", "spec"]
    assert "labrun - Open Container Initiative runtime" in oci.ok("-h")
    assert "No help topic for 'foo'" in said(oci("foo", "-h"))


def test_debug_lines_go_where_the_log_goes(oci: Oci) -> None:
    oci.write("true")
    assert "level=debug" in oci("--debug", "run", "c").stderr
    log = oci.folder / "log"
    done = oci("--debug", "--log", f"file:{log}", "--log-format", "json", "run", "c")
    assert done.stderr == ""
    assert {json.loads(line)["level"] for line in log.read_text().splitlines()} == {"debug"}
    assert "cannot write log" in said(oci("--log", "/no/such/folder/log", "list"))


def test_a_group_that_is_taken_or_frozen(oci: Oci) -> None:
    start(oci)
    assert "container's cgroup is not empty" in said(oci("create", "d"))
    oci.ok("pause", "c")
    oci.ok("delete", "-f", "c")
    group = oci.group()
    group.create()
    group.freeze(True)
    assert "container's cgroup unexpectedly frozen" in said(oci("create", "d"))
    group.freeze(False)
    group.remove()


def test_a_bad_unified_limit_is_a_bad_configuration(oci: Oci) -> None:
    for name in ("memory.nope", "nope.max", "nope"):

        def change(config: Config, name: str = name) -> None:
            config["linux"]["resources"]["unified"] = {name: "1"}

        assert "invalid configuration" in oci.refusal(change)


def test_hooks_have_the_runtimes_environment_unless_they_say_otherwise(oci: Oci) -> None:
    script = 'test "$LABRUN_TEST" = "$1"'

    def change(config: Config) -> None:
        plain = {"path": "/bin/sh", "args": ["sh", "-c", script, "sh", "here"]}
        empty = {"path": "/bin/sh", "args": ["sh", "-c", script, "sh", ""], "env": []}
        config["hooks"] = {"prestart": [plain, empty]}

    oci.write("true", change)
    oci.ok("run", "c", env={**os.environ, "LABRUN_TEST": "here"})


def test_home_and_variables_that_are_there_twice(oci: Oci) -> None:
    def env(*pairs: str) -> Callable[[Config], None]:
        return lambda config: config["process"].update(env=["PATH=/bin", *pairs])

    assert oci.run("echo $HOME", env("HOME=/override")) == "/override"
    assert oci.run("echo $HOME", env("HOME=/override", "HOME=")) == "/root"
    assert sorted(oci.run(["env"], env("ONE=two", "ONE=")).split()) == ["HOME=/root", "ONE=", "PATH=/bin"]


def test_a_missing_working_folder_below_a_read_only_root(oci: Oci) -> None:
    def change(config: Config) -> None:
        config["process"]["cwd"] = "/not/there"
        config["root"]["readonly"] = True

    assert oci.run("pwd", change) == "/not/there"


def test_a_temporary_file_system_has_the_mode_of_what_it_hides(oci: Oci) -> None:
    (oci.rootfs / "srv").chmod(0o7751)

    def mode(*options: str) -> str:
        return oci.run(
            "stat -c %a /srv", mounted(destination="/srv", type="tmpfs", source="tmpfs", options=options)
        )

    assert mode() == "7751"
    assert mode("mode=0410") == "410"
    assert stat.S_IMODE((oci.rootfs / "srv").stat().st_mode) == 0o7751


def test_a_read_only_dev_is_complete(oci: Oci) -> None:
    def change(config: Config) -> None:
        next(row for row in config["mounts"] if row["destination"] == "/dev")["options"].append("ro")

    seen = oci.run(
        "grep '^tmpfs /dev ' /proc/mounts; ls /dev/pts/ptmx /dev/null; touch /dev/x || true", change
    )
    assert " ro," in seen
    assert seen.split("\n")[1:] == ["/dev/null", "/dev/pts/ptmx"]


def test_a_link_in_the_place_of_proc(oci: Oci) -> None:
    (oci.rootfs / "proc").symlink_to("/elsewhere")
    assert "must be mounted on ordinary directory" in oci.refusal(lambda config: None)


def test_a_user_namespace_without_a_root(oci: Oci) -> None:
    def change(config: Config) -> None:
        user_namespace(config, inside=1000, size=1)
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        for row in config["mounts"]:
            row["options"] = [word for word in row["options"] if not word.startswith("gid=")]

    give_away(oci)
    seen = oci.run("id -u; id -g; cat /proc/self/uid_map", change).split()
    assert seen == ["1000", "1000", "1000", "100000", "1"]
    start(oci, change)
    assert oci.ok("exec", "c", "id", "-u") == "1000\n"


def test_a_container_in_all_namespaces_of_another(oci: Oci) -> None:
    give_away(oci)
    start(oci, user_namespace)
    pid = oci.state()["pid"]

    def join(config: Config) -> None:
        config["linux"]["cgroupsPath"] += "2"
        config["linux"]["namespaces"].append({"type": "user"})
        for row in config["linux"]["namespaces"]:
            if row["type"] != "mount":
                row["path"] = f"/proc/{pid}/ns/{'net' if row['type'] == 'network' else row['type']}"

    start(oci, join, "d")
    assert oci.ok("exec", "d", "ps").count("sleep 1000") == 2


def test_a_pidfd_of_the_new_process(oci: Oci) -> None:
    path = str(oci.folder / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(20)
        oci.write("exec sleep 1000")

        def taken(*words: str) -> int:
            oci.quiet(*words)
            connection, _ = server.accept()
            with connection:
                _, rights, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
            return array.array("i", rights[0][2])[0]

        first = taken("run", "-d", "--pidfd-socket", path, "c")
        second = taken("exec", "-d", "--pidfd-socket", path, "c", "sleep", "999")
        signal.pidfd_send_signal(second, signal.SIGKILL)
        signal.pidfd_send_signal(first, signal.SIGKILL)
        oci.wait_for("stopped")
        os.close(first)
        os.close(second)


def test_options_of_crun(oci: Oci) -> None:
    oci.write("echo hello")
    (oci.bundle / "config").mkdir()
    (oci.bundle / "config.json").rename(oci.bundle / "config/other.json")
    assert oci.ok("--cgroup-manager=cgroupfs", "run", "-f", "config/other.json", "c") == "hello\n"
    start(oci, name="test-1")
    oci.ok("delete", "-f", "--regex", "test-.*")
    assert oci.ok("list", "-q") == ""
    assert "--regex" in said(oci("delete", "--regex", "("))


def test_a_scope_without_systemd(oci: Oci) -> None:
    def change(config: Config) -> None:
        config["linux"]["cgroupsPath"] = "system.slice:labrun:c"

    oci.write("true", change)
    if systemd.is_running():
        pytest.skip("systemd runs here")
    assert "systemd not running on this host, cannot use systemd cgroups manager" in said(
        oci("--systemd-cgroup", "create", "c")
    )
    assert oci.ok("list", "-q") == ""


def test_a_root_that_is_a_link(oci: Oci) -> None:
    oci.rootfs.rename(oci.bundle / "real")
    oci.rootfs.symlink_to("real")
    assert oci.run("echo here") == "here"
