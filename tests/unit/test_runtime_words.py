"""The runtime's own small languages: JSON, options, users, signals, ids, configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.linux import capabilities
from labctl.runtime import jsonio, options, signals, spec, state, users
from labctl.runtime.command_inside import size
from labctl.runtime.errors import ContainerError

REPOSITORY = Path(__file__).resolve().parents[2]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=values)
def test_our_json_is_json(value: Any) -> None:
    assert json.loads(jsonio.dumps(value)) == value
    assert jsonio.loads(json.dumps(value, indent=1)) == value


@pytest.mark.parametrize("text", ["", "{", "{} x", "nope", '{"a": }'])
def test_bad_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        jsonio.loads(text)


def test_options_end_at_the_first_name() -> None:
    table = {"bundle": "text", "detach": "flag", "env": "list", "preserve-fds": "number"}
    found = options.parse(
        ["-b", "x", "--detach", "--env=A=b", "--env", "C", "-preserve-fds", "2", "id", "--detach", "-z"],
        table,
        {"b": "bundle"},
    )
    assert (found.text("bundle"), found.flag("detach"), found.many("env")) == ("x", True, ["A=b", "C"])
    assert found.number("preserve_fds") == 2
    assert found.words == ["id", "--detach", "-z"]
    assert options.parse(["--", "-x"], table).words == ["-x"]
    for words, said in (
        (["--nope"], "not defined"),
        (["--bundle"], "needs an argument"),
        (["--preserve-fds", "x"], "not a number"),
    ):
        with pytest.raises(ContainerError, match=said):
            options.parse(words, table)


def test_users(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:\n1000:x:5:5::/n:\nbroken\n"
    )
    (tmp_path / "group").write_text("root:x:0:\nwebs:x:34:web\nmore:x:44:root,web\n")
    etc = str(tmp_path)
    assert users.look_up("web", etc) == (33, 34, [44], "/srv")
    assert users.look_up("33", etc) == (33, 34, [44], "/srv")
    assert users.look_up("web:more", etc) == (33, 44, [], "/srv")
    assert users.look_up("77:88", etc) == (77, 88, [], "/")
    assert users.look_up("1000", etc)[0] == 5, "a name first"
    assert users.look_up("", etc)[0] == 0
    assert users.look_up("0", str(tmp_path / "nowhere")) == (0, 0, [], "/")
    for wrong in ("nobody", "web:nogroup"):
        with pytest.raises(ContainerError, match="no matching entries"):
            users.look_up(wrong, etc)


def test_signals() -> None:
    assert [signals.parse(text) for text in ("TERM", "SIGTERM", "sigterm", "15", "RTMIN+3")] == [
        15,
        15,
        15,
        15,
        37,
    ]
    for wrong in ("NOPE", "0", "99", "", "RTMIN+99"):
        with pytest.raises(ContainerError, match="unknown signal"):
            signals.parse(wrong)


@pytest.mark.parametrize("id_", ["", ".", "..", "a/b", "a b", "a\n", "x" * 1025, "é"])
def test_bad_ids(id_: str) -> None:
    with pytest.raises(ContainerError, match="invalid container ID"):
        state.check_id(id_)


def test_sizes() -> None:
    assert [size(text) for text in ("5", "5k", "5M", "1gb", "-1")] == [5, 5120, 5 << 20, 1 << 30, -1]
    with pytest.raises(ContainerError, match="invalid size"):
        size("5x")


def test_the_default_configuration_is_safe_and_valid() -> None:
    config = spec.default_config(["true"], cgroup="/labctl/i/l/n", lowers=["/a", "/b"], upper="/u", work="/w")
    spec.check(config, "here")
    assert {row["type"] for row in config["linux"]["namespaces"]} == {
        "pid", "ipc", "uts", "mount", "cgroup", "network", "user",
    }  # fmt: skip
    assert config["process"]["noNewPrivileges"]
    assert set(config["process"]["capabilities"]["bounding"]) == set(capabilities.DEFAULT)
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert config["linux"]["uidMappings"][0]["hostID"] == spec.id_range("/labctl/i/l/n")
    assert json.loads(config["annotations"][spec.LOWER]) == ["/a", "/b"]
    assert not config["root"]["readonly"]
    assert spec.default_config(["true"], cgroup="/x", lowers=["/a"])["root"]["readonly"]


@given(key=st.text())
def test_id_ranges_are_whole_and_clear_of_the_usual_ones(key: str) -> None:
    base = spec.id_range(key)
    assert base % 65536 == 0
    assert 524288 <= base <= 0x7FFFFFFF - 65536


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ociVersion": "2.0"}, "ociVersion"),
        ({"root": {}}, "root.path is missing"),
        ({"process": {"args": [], "cwd": "/"}}, "process.args"),
        ({"process": {"args": ["x"], "cwd": "tmp"}}, "process.cwd"),
        ({"process": {"args": ["x"], "cwd": "/", "oomScoreAdj": 2000}}, "process.oomScoreAdj"),
        ({"process": {"args": "x", "cwd": "/"}}, "process.args must be a list, not 'x'"),
        ({"mounts": [{"destination": 3}]}, r"mounts\[0\].destination must be a text, not 3"),
        ({"linux": {"sysctl": {"kernel.panic": "1"}}}, "not in a separate kernel namespace"),
        ({"linux": {"namespaces": [{"type": "nope"}]}}, "unknown type"),
        ({"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}, "twice"),
        ({"linux": {"uidMappings": [{}]}}, "has no containerID"),
        (
            {"linux": {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}},
            "without a user namespace",
        ),
        ({"mounts": [{"type": "tmpfs"}]}, "without a destination"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_made(change: dict[str, Any], said: str) -> None:
    config = spec.default_config(["true"], cgroup="/x", id_base=0) | change
    with pytest.raises(ContainerError, match=said):
        spec.check(config, "config.json")


def test_a_state_folder_survives_a_file_cut_short(tmp_path: Path) -> None:
    store = state.Store(str(tmp_path))
    store.create("one", {"id": "one", "status": "creating"}, "{}")
    with pytest.raises(ContainerError, match="exists"):
        store.create("one", {}, "{}")
    (tmp_path / "one/state.json").write_text('{"id": "o')
    assert store.read("one") == {"id": "one"}
    assert state.status(store, store.read("one")) == "stopped"
    store.remove("one")
    store.remove("one")
    assert store.ids() == []


def test_a_cold_start_imports_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from labctl.runtime import main, command_life, command_inside, execute\n"
        "heavy = {'typing', 'dataclasses', 're', 'enum', 'json', 'argparse', 'subprocess', 'socket'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.strip() == "[]"
