"""The words in which other engines are spoken to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.engines import calls
from labctl.engines.launch import OCI_VERSION, for_libseccomp, plain_config
from labctl.engines.model import Box
from labctl.engines.podman import run_words
from labctl.errors import LabError
from labctl.guest.container import K8sLog
from labctl.linux.cgroups import Layout
from labctl.linux.seccomp import default_profile
from labctl.runtime import spec
from labctl.runtime.errors import ContainerError


def config(root: Path, user: str = "", **more: Any) -> dict[str, Any]:
    """A configuration of labctl's as another runtime gets it."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
    (root / "etc/group").write_text("web:x:34:\nextra:x:50:web\n")
    given = spec.default_config(["sh"], cgroup="/labctl/i/l/n", lowers=["/l"], user=user, id_base=0, **more)
    return plain_config(given, str(root))


def test_nothing_that_only_labctl_knows_is_left(tmp_path: Path) -> None:
    volume = {"destination": "/v", "type": "bind", "source": "/s", "options": ["rbind", "idmap", "rw"]}
    plain = config(tmp_path, mounts=[volume], annotations={"org.example": "kept"})
    assert plain["annotations"] == {"org.example": "kept"}
    assert (plain["ociVersion"], plain["root"]["path"]) == (OCI_VERSION, "rootfs")
    assert plain["mounts"][-1]["options"] == ["rbind", "rw"]
    assert "user" not in {space["type"] for space in plain["linux"]["namespaces"]}
    assert plain["linux"]["cgroupsPath"] == "/labctl/i/l/n"


def test_a_user_is_looked_up_and_only_root_has_rights(tmp_path: Path) -> None:
    process = config(tmp_path, "web")["process"]
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [50]}
    assert "HOME=/srv" in process["env"]
    assert list(process["capabilities"]) == ["bounding"]
    assert set(config(tmp_path, "0")["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    with pytest.raises(ContainerError, match="unable to find user nobody"):
        config(tmp_path, "nobody")


def test_users_come_from_the_image_and_never_from_this_host(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/etc")
    with pytest.raises(ContainerError, match="unable to find user root"):
        plain_config(spec.default_config(["sh"], cgroup="/c", lowers=["/l"], user="root"), str(tmp_path))


def test_no_rule_without_arguments_takes_what_one_with_arguments_allows() -> None:
    rows = for_libseccomp(default_profile()["syscalls"])
    assert {name for row in rows if row.get("args") for name in row["names"]} == {
        "clone",
        "personality",
        "socket",
    }
    seen: dict[str, set[str]] = {}
    for row in rows:
        assert row["names"]
        for name in row["names"]:
            seen.setdefault(name, set()).add(row["action"])
    assert all(len(actions) == 1 for actions in seen.values())
    assert seen["mount"] == {"SCMP_ACT_ERRNO"} and seen["read"] == {"SCMP_ACT_ALLOW"}


def test_a_hybrid_hierarchy_alone_is_hidden() -> None:
    assert calls.hidden(Layout("/cg/unified", {"memory": "/cg/memory"})) == "/cg/unified"
    assert calls.hidden(Layout("/cg", {})) == "" and calls.hidden(Layout("", {"memory": "/m"})) == ""
    assert calls.apart(["crun", "list"], "") == ["crun", "list"]
    assert calls.apart(["crun", "list"], "/cg/u")[-3:] == ["/cg/u", "crun", "list"]


def test_podman_is_asked_for_what_the_configuration_says() -> None:
    box = Box("n", "/r", "/lab/nodes/n", "/labctl/i/l/n")
    volume = {"destination": "/v", "type": "bind", "source": "/s", "options": ["rbind", "idmap", "ro"]}
    given = spec.default_config(
        ["sh", "-c", "x"],
        cgroup=box.cgroup,
        hostname="h",
        lowers=["/l"],
        user="web",
        netns="/net/n",
        id_base=0,
        memory=64 << 20,
        cpus=0.5,
        pids=50,
        mounts=[volume],
        env={"A": "b c"},
    )
    words = run_words(given, box)
    for word in (
        "--network=ns:/net/n",
        "--cgroup-parent=/labctl/i/l/n",
        "--memory=67108864b",
        "--memory-swap=67108864b",
        "--cpu-quota=50000",
        "--pids-limit=50",
        "--user=web",
        "--env=A=b c",
        "--hostname=h",
        "--security-opt=no-new-privileges",
        "--security-opt=seccomp=/dev/shm/seccomp.json",
        "--read-only",
        "--mount=type=bind,src=/s,dst=/v,ro=true,bind-propagation=rprivate",
    ):
        assert word in words
    assert [word for word in words if word.startswith(("--mount", "--tmpfs"))] == [words[words.index(word)]]
    assert words[-5:] == ["--rootfs", "/lab/nodes/n/rootfs", "sh", "-c", "x"]
    free = run_words(spec.default_config(["sh"], cgroup="/c", lowers=["/l"], privileged=True, id_base=0), box)
    assert {"--network=none", "--security-opt=seccomp=unconfined", "--security-opt=unmask=all"} <= {*free}
    with pytest.raises(LabError, match="no comma"):
        run_words({**given, "mounts": [{**volume, "source": "/a,b"}]}, box)


def test_a_log_with_times_is_read_by_stream(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"T stdout F one\nT stderr F bad\nT stdout P tw\nT stdout F o\nT stdout F \nT stdo")
    log = K8sLog(file, "stdout")
    assert b"".join(log.start(None)) == b"one\ntwo\n\n"
    with file.open("ab") as more:
        more.write(b"ut F a b\n")
    assert list(log.more()) == [b"a b\n"] and list(log.more()) == []
    assert list(K8sLog(file, "stderr").start(1)) == [b"bad\n"]
    assert list(K8sLog(file, "stdout").start(2)) == [b"\na b\n"]
    assert (
        list(K8sLog(file, "stdout").start(0)) == list(K8sLog(tmp_path / "none", "stdout").start(None)) == []
    )


def test_the_last_error_of_a_log_is_the_message(tmp_path: Path) -> None:
    log = (
        '{"level":"warning","msg":"w"}\n{"level":"error","msg":"no such thing"}\n{"level":"info","msg":"i"}\n'
    )
    assert calls.last_words(log) == "no such thing"
    assert calls.last_words("plain words\n") == "plain words"
    assert calls.last_words("") == ""
    file = tmp_path / "log"
    assert calls.logged(file) == ""
    file.write_text(log + "/dev/pts/0\r\n\n")
    assert calls.logged(file) == "no such thing"
    file.write_text("/dev/pts/0\r\n\n")
    assert calls.logged(file) == "", "what a terminal showed is no error"
