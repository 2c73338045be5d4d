"""Conformance with config.md: version, root, mounts, process, names; the section stands in each docstring."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.host.oci_rig import Config, Oci

pytestmark = pytest.mark.needs("root", "cgroup")


def mount(destination: str, kind: str, source: str, *options: str) -> Any:
    """A change that adds one mount."""
    row = {"destination": destination, "type": kind, "source": source, "options": list(options)}
    return lambda config: config["mounts"].append(row)


@pytest.mark.parametrize("version", ["", "1.0", "2.0.0", "one", None])
def test_the_version_must_be_semantic_and_one(oci: Oci, version: str | None) -> None:
    """config.md, Specification version: SemVer 2.0; 1.x is compatible, what isn't is an error."""
    assert "ociVersion" in oci.refusal(lambda config: config.update(ociVersion=version))


def test_older_and_newer_minor_versions_and_unknown_properties_work(oci: Oci) -> None:
    """config.md, Specification version and Extensibility: 1.x works, unknown properties are ignored."""

    def change(config: Config) -> None:
        config.update(ociVersion="1.0.2-dev+x", future={"a": 1}, windows={}, vm=None)
        config["process"]["future"] = True
        config["linux"]["future"] = []

    assert oci.run("echo ok", change) == "ok"


def test_the_root_must_be_there(oci: Oci) -> None:
    """config.md, Root: a directory must exist at root.path; relative to the bundle or absolute."""
    assert "/no/such" in oci.refusal(lambda config: config["root"].update(path="/no/such"))
    assert "root.path is missing" in oci.refusal(lambda config: config.pop("root"))
    assert oci.run("echo ok", lambda config: config["root"].update(path=str(oci.rootfs))) == "ok"


def test_a_read_only_root_is_read_only_and_another_is_not(oci: Oci) -> None:
    """config.md, Root: readonly."""
    script = "touch /tmp/x 2>/dev/null && echo written || echo refused"
    assert oci.run(script, lambda config: config["root"].update(readonly=True)) == "refused"
    assert oci.run(script) == "written"


def test_mounts_are_made_in_their_order(oci: Oci) -> None:
    """config.md, Mounts: in the listed order, missing destinations are made."""
    (oci.folder / "data").mkdir()
    (oci.folder / "data/file").write_text("from outside\n")

    def change(config: Config) -> None:
        mount("/a/b", "tmpfs", "tmpfs", "size=1m")(config)
        mount("/a/b/c", "bind", str(oci.folder / "data"), "bind")(config)
        mount("/a/b/d/file", "bind", str(oci.folder / "data/file"), "bind", "ro")(config)

    assert oci.run("cat /a/b/c/file /a/b/d/file", change) == "from outside\nfrom outside"


def test_mount_options_are_in_force(oci: Oci) -> None:
    """config.md, Linux mount options: what each says stands in mountinfo."""
    rows = {
        "/m1": ("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"),
        "/m2": ("sync", "dirsync", "relatime", "mode=700", "size=65536"),
        "/m3": ("ro", "rw", "nosuid", "suid", "noexec", "exec", "nosymfollow"),
        "/m4": ("strictatime", "lazytime", "defaults", "silent"),
    }

    def change(config: Config) -> None:
        for place, options in rows.items():
            mount(place, "tmpfs", "tmpfs", *options)(config)

    found = {}
    for line in oci.run("cat /proc/self/mountinfo", change).splitlines():
        left, _, right = line.partition(" - ")
        found[left.split()[4]] = (set(left.split()[5].split(",")), set(right.split()[2].split(",")))
    assert {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"} <= found["/m1"][0]
    assert "relatime" in found["/m2"][0]
    assert {"sync", "dirsync", "mode=700", "size=64k"} <= found["/m2"][1]
    assert "rw" in found["/m3"][0]
    assert "nosymfollow" in found["/m3"][0]
    assert not {"nosuid", "noexec"} & found["/m3"][0]
    assert not {"relatime", "noatime"} & found["/m4"][0]
    assert "lazytime" in found["/m4"][1]


def test_a_bad_option_says_which(oci: Oci) -> None:
    """config.md, Mounts: what the file system doesn't know is an error."""
    said = oci.refusal(mount("/m", "tmpfs", "tmpfs", "nonsense=1"))
    assert "nonsense" in said
    assert "/m" in said


def test_recursive_options_reach_the_mounts_below(oci: Oci) -> None:
    """config.md, Linux mount options: ro is this mount's, rro and its like all below; remount changes one."""
    tree = oci.folder / "tree"
    (tree / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tree / "sub")], check=True, timeout=10)
    try:
        test = "for d in /t /t/sub; do touch $d/x 2>/dev/null && echo written || echo refused; done"
        assert oci.run(test, mount("/t", "bind", str(tree), "rbind", "ro")).split() == ["refused", "written"]
        assert oci.run(test, mount("/t", "bind", str(tree), "rbind", "rro")).split() == ["refused", "refused"]

        def again(config: Config) -> None:
            mount("/t", "bind", str(tree), "bind")(config)
            mount("/t", "bind", "", "bind", "remount", "ro")(config)

        assert oci.run("touch /t/y 2>/dev/null && echo written || echo refused", again) == "refused"
        assert oci.run("ls /t/sub", mount("/t", "bind", str(tree), "bind")) == ""
    finally:
        subprocess.run(["umount", str(tree / "sub")], check=True, timeout=10)


def test_tmpcopyup_keeps_what_the_image_has(oci: Oci) -> None:
    """config.md, Linux mount options: tmpcopyup."""
    (oci.rootfs / "srv/deep").mkdir()
    (oci.rootfs / "srv/deep/file").write_text("kept\n")
    (oci.rootfs / "srv/deep/file").chmod(0o640)
    script = "cat /srv/deep/file; stat -c %a /srv/deep/file; echo new >/srv/new; cat /srv/new"
    assert oci.run(script, mount("/srv", "tmpfs", "tmpfs", "tmpcopyup")).split() == ["kept", "640", "new"]
    assert not (oci.rootfs / "srv/new").exists()


@pytest.mark.needs("idmap")
def test_a_mount_with_its_own_map_of_ids(oci: Oci) -> None:
    """config.md, Mounts: uidMappings and gidMappings of one mount, idmap and ridmap."""
    (oci.folder / "data").mkdir()
    (oci.folder / "data/file").touch()
    os.chown(oci.folder / "data/file", 1000, 1001)

    def change(config: Config) -> None:
        mount("/data", "bind", str(oci.folder / "data"), "rbind", "ridmap")(config)
        config["mounts"][-1]["uidMappings"] = [{"containerID": 1000, "hostID": 5000, "size": 1}]
        config["mounts"][-1]["gidMappings"] = [{"containerID": 1001, "hostID": 5001, "size": 1}]

    assert oci.run("stat -c %u:%g /data/file", change) == "5000:5001"
    half = {"destination": "/d", "type": "bind", "source": "/tmp", "options": ["bind"]}
    half["uidMappings"] = [{"containerID": 0, "hostID": 1, "size": 1}]
    assert "belong together" in oci.refusal(lambda config: config["mounts"].append(half))


def test_a_mount_of_the_hosts_shares_nothing_unless_asked(oci: Oci) -> None:
    """config.md, Linux mount options: propagation; and config-linux.md, Rootfs Mount Propagation."""
    tree = oci.folder / "tree"
    tree.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tree)], check=True, timeout=10)
    subprocess.run(["mount", "--make-shared", str(tree)], check=True, timeout=10)
    (tree / "a").mkdir()

    def admin(*options: str) -> Any:
        def change(config: Config) -> None:
            mount("/t", "bind", str(tree), "rbind", *options)(config)
            for kind in ("bounding", "effective", "permitted"):
                config["process"]["capabilities"][kind] = ["CAP_SYS_ADMIN"]

        return change

    try:
        script = "mount -t tmpfs tmpfs /t/a; grep -c ' /t/a ' /proc/self/mountinfo"
        for options, seen in (
            ((), False),
            (("rprivate",), False),
            (("rslave",), False),
            (("rshared",), True),
        ):
            assert oci.run(script, admin(*options)) == "1"
            mounted = f" {tree}/a " in Path("/proc/self/mountinfo").read_text()
            assert mounted is seen, options
            if mounted:
                subprocess.run(["umount", str(tree / "a")], check=True, timeout=10)
    finally:
        subprocess.run(["umount", "--recursive", str(tree)], check=True, timeout=10)


def test_a_link_in_the_root_leads_no_mount_out(oci: Oci) -> None:
    """config.md, Mounts: a destination is a path inside the container, whatever links the image has."""
    outside = oci.folder / "outside"
    outside.mkdir()
    (oci.rootfs / "evil").symlink_to(outside)
    (oci.rootfs / "up").symlink_to("../../../../../.." + str(outside))

    def change(config: Config) -> None:
        mount("/evil/a", "tmpfs", "tmpfs")(config)
        mount("/up/b/../c", "tmpfs", "tmpfs")(config)

    inside = oci.run("grep -c tmpfs.* /proc/self/mountinfo >/dev/null; ls -d /evil/a /up/c", change)
    assert inside.split() == ["/evil/a", "/up/c"]
    assert list(outside.iterdir()) == []


def test_args_are_found_by_the_containers_path(oci: Oci) -> None:
    """config.md, Process: args[0] as execvp finds it; not there is an error of create."""
    (oci.rootfs / "srv/tool").write_text("#!/bin/sh\necho tool $0 $1\n")
    (oci.rootfs / "srv/tool").chmod(0o755)

    def change(config: Config) -> None:
        config["process"].update(args=["tool", "a b"], env=["PATH=/srv:/bin"])

    assert oci.run("", change) == "tool /srv/tool a b"
    assert "executable file not found" in oci.refusal(lambda config: config["process"].update(args=["nope"]))
    assert "process.args" in oci.refusal(lambda config: config["process"].update(args=[]))
    assert "ermission denied" in oci.refusal(lambda config: config["process"].update(args=["/etc/passwd"]))


def test_the_environment_is_what_it_says(oci: Oci) -> None:
    """config.md, Process: env, and nothing of ours."""
    env = ["PATH=/bin", "A=1", "B=two words", "A=3", "EMPTY="]
    seen = oci.run("env | sort", lambda config: config["process"].update(env=env)).splitlines()
    assert [line for line in seen if line[:2] in ("A=", "B=", "EM")] == ["A=3", "B=two words", "EMPTY="]
    assert {line.partition("=")[0] for line in seen} <= {"PATH", "A", "B", "EMPTY", "HOME", "PWD", "SHLVL"}


def test_the_working_folder(oci: Oci) -> None:
    """config.md, Process: cwd is absolute, and made when missing."""
    assert oci.run("pwd", lambda config: config["process"].update(cwd="/srv")) == "/srv"
    assert oci.run("pwd", lambda config: config["process"].update(cwd="/not/yet")) == "/not/yet"
    assert "absolute" in oci.refusal(lambda config: config["process"].update(cwd="srv"))


def test_who_it_is(oci: Oci) -> None:
    """config.md, User: uid, gid, umask, additionalGids."""
    user = {"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 2000]}
    script = "id -u; id -g; id -G; umask; touch /tmp/new; stat -c %a:%u:%g /tmp/new"
    seen = oci.run(script, lambda config: config["process"].update(user=user)).splitlines()
    assert seen == ["1000", "1001", "1001 5 2000", "0027", "640:1000:1001"]
    assert oci.run("umask; id -G").splitlines() == ["0022", "0"]


def test_rlimits(oci: Oci) -> None:
    """config.md, POSIX process: soft and hard; a type twice or unknown is an error."""
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_CPU", "soft": 50, "hard": 60},
    ]
    names = "Max open files|Max core file size|Max cpu time"
    seen = oci.run(
        f"grep -E '{names}' /proc/self/limits", lambda config: config["process"].update(rlimits=limits)
    )
    rows = {line[:26].strip(): line[26:].split()[:2] for line in seen.splitlines()}
    assert rows == {
        "Max cpu time": ["50", "60"],
        "Max core file size": ["0", "0"],
        "Max open files": ["100", "200"],
    }
    twice = [limits[0], limits[0]]
    assert "twice" in oci.refusal(lambda config: config["process"].update(rlimits=twice))
    for name in ("RLIMIT_NOPE", "NOFILE"):
        bad = [{"type": name, "soft": 1, "hard": 1}]
        assert "rlimit" in oci.refusal(lambda config, bad=bad: config["process"].update(rlimits=bad))


def test_the_five_sets_of_capabilities(oci: Oci) -> None:
    """config.md, Linux Process: bounding, effective, permitted, inheritable, ambient."""
    net, kill = "CAP_NET_BIND_SERVICE", "CAP_KILL"
    sets = {
        "bounding": [net, kill],
        "permitted": [net, kill],
        "inheritable": [net],
        "ambient": [net],
        "effective": [kill],
    }

    def change(config: Config) -> None:
        config["process"]["capabilities"] = sets
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    seen = dict(line.split() for line in oci.run("grep Cap /proc/self/status", change).splitlines())
    assert int(seen["CapBnd:"], 16) == 1 << 10 | 1 << 5
    # execve of a plain program by a user: permitted and effective become the ambient set (capabilities(7)).
    assert {seen[f"Cap{kind}:"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {f"{1 << 10:016x}"}
    none = oci.run("grep Cap /proc/self/status", lambda config: config["process"].update(capabilities={}))
    assert {line.split()[1] for line in none.splitlines()} == {"0" * 16}


def test_an_unknown_capability_is_a_warning(oci: Oci) -> None:
    """config.md, Linux Process: what can't be mapped or granted is logged, and is no reason to fail."""
    oci.write("echo ran", lambda config: config["process"]["capabilities"]["bounding"].append("CAP_TEST"))
    done = oci("run", "c")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "level=warning" in done.stderr
    assert "CAP_TEST" in done.stderr


def test_no_new_privileges_and_the_oom_score(oci: Oci) -> None:
    """config.md, Linux Process: noNewPrivileges, oomScoreAdj."""
    script = "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj"

    def change(config: Config) -> None:
        config["process"].update(noNewPrivileges=False, oomScoreAdj=123)

    assert oci.run(script, change).split() == ["NoNewPrivs:", "0", "123"]
    own = Path("/proc/self/oom_score_adj").read_text().strip()
    assert oci.run(script).split() == ["NoNewPrivs:", "1", own]
    assert "oomScoreAdj" in oci.refusal(lambda config: config["process"].update(oomScoreAdj=1001))


def test_scheduler_and_io_priority(oci: Oci) -> None:
    """config.md, Linux Process: scheduler, ioPriority."""

    def change(config: Config) -> None:
        config["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
        config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}

    seen = oci.run("cut -d' ' -f19,41 /proc/self/stat; ionice -p 1", change).splitlines()
    assert seen == ["7 3", "best-effort: prio 6"]
    for key, row in (("scheduler", {"policy": "SCHED_NOPE"}), ("ioPriority", {"class": "NOPE"})):
        said = oci.refusal(lambda config, key=key, row=row: config["process"].update({key: row}))
        assert "unknown value" in said


def test_a_security_module_that_is_not_there_is_refused(oci: Oci) -> None:
    """config.md, Linux Process: apparmorProfile and selinuxLabel are applied, or an error."""
    from labctl.runtime import lsm

    if not lsm.apparmor_enabled():
        assert "no AppArmor" in oci.refusal(lambda config: config["process"].update(apparmorProfile="p"))
    if not lsm.selinux_enabled():
        assert "SELinux" in oci.refusal(lambda config: config["process"].update(selinuxLabel="a:b:c:s0"))
        assert "SELinux" in oci.refusal(lambda config: config["linux"].update(mountLabel="a:b:c:s0"))


def test_host_and_domain_name(oci: Oci) -> None:
    """config.md, Hostname and Domainname: in a UTS namespace of its own, else an error."""
    change = {"hostname": "alpha", "domainname": "beta.example"}
    script = "hostname; cat /proc/sys/kernel/domainname"
    assert oci.run(script, lambda config: config.update(change)).split() == ["alpha", "beta.example"]

    def without(config: Config) -> None:
        config["linux"]["namespaces"] = [row for row in config["linux"]["namespaces"] if row["type"] != "uts"]

    assert "UTS namespace" in oci.refusal(without)


def test_a_terminal_with_its_size(oci: Oci) -> None:
    """config.md, Process: terminal and consoleSize; config-linux.md, Default Devices: /dev/console."""

    def change(config: Config) -> None:
        config["process"].update(terminal=True, consoleSize={"height": 41, "width": 111})

    oci.write("stty size; tty; stat -c %t:%T /dev/console /dev/pts/0; test -t 2 && echo yes", change)
    done = oci("run", "c")
    assert done.returncode == 0, done.stderr
    size, name, console, slave, yes = done.stdout.split()[0:2], *done.stdout.split()[2:]
    assert (size, name, yes) == (["41", "111"], "/dev/pts/0", "yes")
    assert console == slave


def test_wrong_types_say_where(oci: Oci) -> None:
    """config.md as a whole: what is not of its type is an error that names the property."""
    wrongs: list[tuple[str, Any]] = [
        ("process", []),
        ("mounts", {}),
        ("hooks", {"prestart": {}}),
        ("linux", {"namespaces": ["pid"]}),
        ("linux", {"resources": {"memory": {"limit": "1g"}}}),
        ("annotations", {"a": 1}),
        ("hostname", 3),
    ]
    for key, value in wrongs:
        said = oci.refusal(lambda config, key=key, value=value: config.update({key: value}))
        assert f"config.json: {key}" in said


def test_a_configuration_that_is_no_json(oci: Oci) -> None:
    """config.md: config.json missing, empty, cut short, or no object."""
    for text in ("", "{", "[]", '{"ociVersion": "1.0.0",}', "nul", "\x00"):
        (oci.bundle / "config.json").write_text(text)
        done = oci("create", "c")
        assert (done.returncode, "config.json" in done.stderr) == (1, True), text
    (oci.bundle / "config.json").unlink()
    assert "not found" in oci("create", "c").stderr
    assert oci.ok("list", "-q") == ""


def test_output_can_be_opened_again_by_a_user(oci: Oci) -> None:
    """config-linux.md, Dev symbolic links: /dev/stdout and its like work for who isn't root."""
    user = {"uid": 1000, "gid": 1000}
    script = "echo one >/dev/stdout; echo two >/proc/self/fd/1; ls -l /dev/fd | wc -l"
    seen = oci.run(script, lambda config: config["process"].update(user=user)).split()
    assert seen[:2] == ["one", "two"]
    assert stat.S_ISDIR(oci.rootfs.stat().st_mode)
