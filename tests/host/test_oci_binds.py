"""Mounts and devices where the suites of runc and crun look closer than the specification.

Written from what those suites check, in tests of our own; see docs/conformance.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.linux import mounts
from labctl.linux.cgroups import Layout, write
from tests.host.oci_rig import Config, Oci
from tests.host.test_oci_peers import give_away, said, start, user_namespace

pytestmark = [pytest.mark.needs("root", "cgroup"), pytest.mark.long]

Change = Callable[[Config], None]


def bound(source: str | Path, target: str, *options: str, **row: Any) -> Config:
    """One bind mount."""
    return {
        "source": str(source),
        "destination": target,
        "type": "bind",
        "options": ["bind", *options],
        **row,
    }


def with_mounts(*rows: Config, change: Change | None = None, first: bool = False) -> Change:
    """These mounts more, behind the others or before them."""

    def apply(config: Config) -> None:
        config["mounts"] = [*rows, *config["mounts"]] if first else [*config["mounts"], *rows]
        if change is not None:
            change(config)

    return apply


@pytest.fixture
def place(oci: Oci) -> Iterator[Path]:
    """A file system of the host's, to be bound."""
    folder = oci.folder / "place"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", folder], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=10)


def flags(oci: Oci, place: Path, has: str, *asked: str, change: Change | None = None) -> str:
    """The flags of a bind mount of a file system with these; or why there is none."""
    every = {"rw", "suid", "dev", "exec", "symfollow", "diratime", "strictatime"}
    opposite = {"ro": "rw", "nodev": "dev", "noexec": "exec", "nosymfollow": "symfollow", "nosuid": "suid"}
    words = has.split(",")
    reset = mounts.Options([*(every - {opposite.get(word, "") for word in words}), *words])
    if {"noatime", "relatime"} & set(words):
        reset.attr_set &= ~mounts.sc.MOUNT_ATTR_STRICTATIME
    fd = os.open(place, os.O_PATH)
    mounts.set_attributes(fd, reset.attr_set, reset.attr_clear)
    os.close(fd)
    script = "awk '$2 == \"/mnt\" { print $4 }' /proc/self/mounts"
    oci.write(script, with_mounts(bound(place, "/mnt", *asked), change=change))
    done = oci("run", "c")
    return f"{done.stdout}{done.stderr}".strip()


@pytest.mark.parametrize(
    ("has", "asked", "seen"),
    [
        ("ro,noexec,nosymfollow", (), "ro,noexec,nosymfollow"),
        ("ro,noexec,nosymfollow", ("dev",), "rw"),
        ("ro", ("nosuid", "nodev", "rprivate"), "rw,nosuid,nodev"),
        ("nodev,nosuid,noatime", ("ro", "exec"), "ro,noatime"),
        ("noatime", ("atime",), "rw,noatime"),
        ("noatime", ("nodiratime",), "rw,nodiratime,relatime"),
        ("noatime", ("nodiratime", "strictatime"), "rw,nodiratime"),
    ],
)
def test_a_bind_mount_has_the_flags_asked_for(
    oci: Oci, place: Path, has: str, asked: tuple[str, ...], seen: str
) -> None:
    """As mount(2): no word on flags keeps the source's, any word replaces all but the access times."""
    assert flags(oci, place, has, *asked) == seen


@pytest.mark.parametrize(
    ("has", "asked", "seen"),
    [
        ("ro,noexec,nosymfollow", ("dev",), "ro,noexec"),
        ("ro", ("nosuid", "nodev"), "ro,nosuid,nodev"),
        ("rw,nodev,nosymfollow", ("ro", "symfollow"), "ro,nodev"),
        ("nodev,nosuid,noatime", ("ro", "exec"), "ro,nosuid,nodev,noatime"),
        ("ro", ("rw", "nosuid"), "Operation not permitted"),
        ("noexec", ("exec",), "Operation not permitted"),
        ("relatime", ("nodiratime",), "Operation not permitted"),
        ("strictatime", ("noatime",), "Operation not permitted"),
    ],
)
def test_a_user_namespace_loses_no_flag_of_the_hosts(
    oci: Oci, place: Path, has: str, asked: tuple[str, ...], seen: str
) -> None:
    """mount_namespaces(7), Restrictions on mount namespaces: also where the runtime itself had the right."""
    give_away(oci)
    found = flags(oci, place, has, *asked, change=user_namespace)
    assert found == seen or (seen.startswith("Operation") and seen in found)


@pytest.mark.parametrize("nested", [False, True])
def test_what_earlier_mounts_made_can_be_bound_again(oci: Oci, nested: bool) -> None:
    """A source in the container's own root, and a destination with the host's way to that root before it."""
    for name in ("a/x", "b/y"):
        (oci.bundle / "src" / name).mkdir(parents=True)
        (oci.bundle / "src" / name / "file").write_text(name)
    (oci.bundle / "src").chmod(0o700)  # only root gets there
    (oci.rootfs / "mnt").mkdir()
    change = None
    if nested:
        give_away(oci)
        change = user_namespace
    rows = [
        bound("src/a", "/mnt"),
        bound("src/b", f"{oci.rootfs}/mnt/x"),
        bound(oci.rootfs / "mnt", f"{oci.rootfs}/final", "rbind"),
    ]
    assert oci.run("cd /final; find . -type f", with_mounts(*rows, change=change)) == "./x/y/file"
    rows[-1] = bound(oci.rootfs / "none", "/final")
    rows.insert(0, {"destination": "/none", "type": "tmpfs", "source": "tmpfs"})
    rows[-1]["source"] += "/at/all"
    assert "No such file" in oci.refusal(with_mounts(*rows, change=change))


def test_the_first_mount_may_be_the_root_itself(oci: Oci) -> None:
    other = oci.folder / "other"
    shutil.copytree(oci.rootfs, other, symlinks=True)
    (other / "marker").write_text("other")
    whole = bound(other, "/")
    seen = oci.run("cat /marker; test -d /proc/1 && touch /made && echo yes", with_mounts(whole, first=True))
    assert seen == "otheryes" and (other / "made").exists() and not (oci.rootfs / "made").exists()
    memory = {"destination": "/", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
    script = "stat -f -c %T /; touch /gone; grep -c sleep /bin/busybox >/dev/null && echo copied"
    assert oci.run(script, with_mounts(memory, first=True)).split() == ["tmpfs", "copied"]
    assert not (oci.rootfs / "gone").exists()
    assert "only the first mount" in oci.refusal(with_mounts(whole))


def test_links_are_not_followed_when_told_so(oci: Oci) -> None:
    (oci.bundle / "file").write_text("inside")
    (oci.bundle / "link").symlink_to(oci.bundle / "file")
    (oci.rootfs / "target").symlink_to("nowhere")
    at = ("dest-nofollow",)
    assert oci.run("cat /target", with_mounts(bound("link", "/target", *at))) == "inside"
    link = with_mounts(bound("link", "/target", "src-nofollow", *at))
    assert oci.run("readlink /target", link) == str(oci.bundle / "file")
    copied = with_mounts(bound("link", "/deep/er/link", "copy-symlink"))
    seen = oci.run("readlink /deep/er/link; grep -c deep /proc/self/mounts || true", copied)
    assert seen.split() == [str(oci.bundle / "file"), "0"]
    assert (oci.rootfs / "deep/er/link").readlink() == oci.bundle / "file"


def test_a_recursive_option_counts_for_a_new_file_system(oci: Oci) -> None:
    row = {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["rro", "rnoexec"]}
    assert oci.run("grep ' /mnt ' /proc/self/mounts", with_mounts(row)).split()[3].startswith("ro,noexec")


def test_devices_in_a_user_namespace_are_those_asked_for(oci: Oci) -> None:
    """Neither the host's node of that name nor nothing: numbers, mode and owner, whatever the mask is."""
    give_away(oci)

    def change(config: Config) -> None:
        user_namespace(config)
        owner = {"uid": 10, "gid": 11, "fileMode": 0o246}
        config["linux"]["devices"] = [
            {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, **owner},
            {"path": "/dev/full", "type": "c", "major": 1, "minor": 3},
            {"path": "/srv/slash/", "type": "b", "major": 7, "minor": 1},
        ]

    script = """
        stat -c '%a %u:%g %t:%T' /dev/own /dev/full; stat -c %F /srv/slash
        head -c 3 /dev/own | wc -c; head -c 3 /dev/full | wc -c
    """
    seen = oci.run(script, change).splitlines()
    assert seen == ["246 10:11 1:5", "666 0:0 1:3", "block special file", "3", "0"]


def test_a_user_namespace_without_maps_has_one_id(oci: Oci) -> None:
    def change(config: Config) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        config["process"]["user"] = {"uid": 7, "gid": 8}
        for row in config["mounts"]:
            row["options"] = [word for word in row["options"] if word != "gid=5"]

    seen = oci.run("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g", change)
    assert seen.split() == ["7", "0", "1", "8", "0", "1", "7", "8"]


def test_the_hosts_own_network_is_left_as_it_is(oci: Oci) -> None:
    """Also when it is joined by its path, together with a user namespace that has no right to it."""
    give_away(oci)
    setting = Path("/proc/sys/net/ipv4/ping_group_range")
    before = setting.read_text()

    def change(config: Config) -> None:
        user_namespace(config)
        for row in config["linux"]["namespaces"]:
            if row["type"] == "network":
                row["path"] = "/proc/self/ns/net"

    assert oci.run("readlink /proc/self/ns/net", change) == str(Path("/proc/self/ns/net").readlink())
    assert setting.read_text() == before


def test_a_sysctl_is_no_path(oci: Oci) -> None:
    for name in ("net/../kernel/sysrq", "/net/ipv4/ip_forward", ".net.ipv4.ip_forward"):
        assert "contains an invalid path" in oci.refusal(
            lambda config, name=name: config["linux"].update(sysctl={name: "1"})
        )


@pytest.mark.needs("cgroup-v1")
def test_delete_when_somebody_froze_it_elsewhere(oci: Oci) -> None:
    """On v1 SIGKILL waits for the thaw: the process comes back into a group of ours, the other one stays."""
    start(oci)
    frozen = Path(Layout.detect().v1["freezer"], f"labctl-elsewhere-{os.getpid()}")
    frozen.mkdir()
    try:
        write(f"{frozen}/cgroup.procs", str(oci.state()["pid"]))
        write(f"{frozen}/freezer.state", "FROZEN")
        before = time.monotonic()
        oci.ok("delete", "--force", "c")
        assert time.monotonic() - before < 5
        assert (frozen / "freezer.state").read_text().strip() == "FROZEN"
    finally:
        write(f"{frozen}/freezer.state", "THAWED")
        frozen.rmdir()


def test_a_log_that_is_no_file_is_refused(oci: Oci) -> None:
    for where in ("syslog:name", "journald:name"):
        assert "give a file" in said(oci("--log", where, "list"))
        assert not (oci.bundle / where).exists()
