"""What of containers inside machines can be told without a machine: frames, held words, the runtime's tar."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from labctl.errors import LabError
from labctl.guest.inside import _Held
from labctl.guest.inside_driver import REASON
from labctl.guest.inside_link import layer_place, runtime_tar, xattrs_of
from labctl.looks import Owner, Presence
from labctl.tiers.inside import InsideContainer, _look_of
from labctl.tiers.record import SshPlace
from labctl.tiers.seed import Seed


def held(*blocks: bytes) -> tuple[bytes, str]:
    sink = io.BytesIO()
    file = _Held(sink)
    for block in blocks:
        file.write(block)
    file.settle()
    return sink.getvalue(), file.reason


def test_the_drivers_own_words_are_kept_back() -> None:
    word = REASON.encode()
    assert held(word[:3], word[3:] + b"is pau", b"sed\n") == (b"", "is paused")


@pytest.mark.parametrize("blocks", [(b"error: x\n", b"y"), (b"lab", b"ctl says"), (b"labctl-in",), ()])
def test_all_else_passes(blocks: tuple[bytes, ...]) -> None:
    assert held(*blocks) == (b"".join(blocks), "")


def test_runtime_is_the_same_each_time_and_runs_alone(tmp_path: Path) -> None:
    digest, data = runtime_tar()
    runtime_tar.cache_clear()
    assert runtime_tar() == (digest, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1));"
        " from labctl.guest.inside_driver import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(tmp_path), "xattrs"]
    request = json.dumps({"folder": str(tmp_path), "rows": [["nonesuch", "user.a", "00"]]})
    done = subprocess.run(argv, input=request, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1, done.stderr
    assert "nonesuch" in json.loads(done.stdout)["error"]


def test_attributes_of_a_layer(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/f").write_text("x")
    (tmp_path / "d/l").symlink_to("f")
    os.setxattr(tmp_path / "d/f", "user.a", b"\0\xff")
    os.setxattr(tmp_path / "d/e", "user.b", b"")
    assert sorted(xattrs_of(str(tmp_path))) == [("d/e", "user.b", ""), ("d/f", "user.a", "00ff")]
    assert layer_place("/cache/layers/0123abcd") == "/var/lib/labctl/layers/0123abcd"


@pytest.mark.parametrize(
    ("status", "presence", "detail"),
    [
        ("running", Presence.PRESENT, ""),
        ("created", Presence.PRESENT, ""),
        ("paused", Presence.PRESENT, "paused"),
        ("stopped", Presence.STOPPED, "ended with 3"),
        ("odd", Presence.BROKEN, "odd"),
    ],
)
def test_looks(status: str, presence: Presence, detail: str) -> None:
    look = _look_of({"status": status, "pid": 5, "exit_code": 3})
    assert (look.presence, look.detail) == (presence, detail)


def test_look_of_nothing() -> None:
    assert _look_of(None).presence is Presence.ABSENT


def test_a_machine_without_a_key_never_was_and_has_nothing_inside(tmp_path: Path) -> None:
    """As an `up` leaves it that is killed before it has made the lab's keys."""
    item = InsideContainer(
        owner=Owner("feedc0de", "12345678"),
        name="inner",
        machine="vm",
        ssh=SshPlace("10.255.0.1", str(tmp_path / "key"), str(tmp_path / "vm.pub")),
        folder="/var/lib/labctl/labs/12345678/nodes/inner",
        net="{}",
        config="{}",
        files={},
        image="sha256:0",
        layers=(),
        seed=Seed("", (), ""),
    )
    assert item.look().presence is Presence.ABSENT
    item.unmake()
    with pytest.raises(LabError, match="host key"):
        item.make()
