"""Getting at a profile's text: every kind of wrong file has one clear message and costs no time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labctl.data import data
from labctl.errors import ProfileError
from labctl.profile import load
from labctl.profile.source import LIMIT, read_text

GOOD = "name: t\nnodes: [a]\n"


def refused(path: object) -> str:
    with pytest.raises(ProfileError) as caught:
        load(str(path))
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    return str(problem)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(GOOD)
    assert refused(tmp_path) == f"{tmp_path}: is a folder, not a profile (profiles in it: lab.yaml)"


def test_a_file_that_is_not_there_and_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "spectrum.yaml").write_text(GOOD)
    path = tmp_path / "spectrun.yaml"
    assert refused(path) == f"{path}: there is no such file (did you mean spectrum.yaml?)"
    assert "did you mean hello?" in refused("helo")
    shipped = sorted(path.stem for path in data("profiles").glob("*.yaml"))
    assert f"profiles that come with labctl: {', '.join(shipped)})" in refused("zzzzzzzz")


def test_a_loop_of_links_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x")
    assert refused(tmp_path / "x").endswith("can't be read: Too many levels of symbolic links")


def test_a_name_beyond_the_limits(tmp_path: Path) -> None:
    assert refused(tmp_path / ("x" * 300)).endswith("File name too long")
    assert refused("").endswith("is no file name")
    assert refused("a\0b").endswith("is no file name")


def test_a_pipe_without_a_writer_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").endswith("is no regular file (use - for standard input)")
    assert refused("/dev/zero").endswith("is no regular file (use - for standard input)")


def test_a_hundred_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as stream:
        stream.truncate(100_000_000_000)
    message = f"has 100000000000 bytes; {LIMIT} are the limit of a profile (is it the right file?)"
    assert refused(path) == f"{path}: {message}"


def test_a_megabyte_of_comments_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    text = GOOD + "# padding\n" * ((LIMIT - len(GOOD)) // 10)
    path.write_text(text)
    assert load(path).name == "t"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty (`labctl init` writes one to start from)"),
        (b" \n\n", "is empty (`labctl init` writes one to start from)"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "is a binary file, not YAML"),
        ("name: t\n".encode("utf-16"), "is UTF-16 text (save it as UTF-8)"),
    ],
)
def test_what_is_no_text(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_bytes(raw)
    assert refused(path) == f"{path}: {message}"


def test_where_text_stops_being_utf8(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_bytes(b"name: t\n# caf\xe9\n")
    assert refused(path) == f"{path}:2:6: the text is not UTF-8 (save it as UTF-8)"


def test_marks_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: t\r\nnodes: [a]\r\n")
    assert load(path).source == str(path)


def test_a_shipped_profile_by_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("hello").name == load("hello.yaml").name == "hello"
    (tmp_path / "hello").write_text(GOOD)
    assert load("hello").name == "t"
    with pytest.raises(ProfileError):
        load("./web")


def test_standard_input() -> None:
    code = "from labctl.profile import load; print(load('-').name)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=GOOD, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "t\n", done.stderr


def test_importing_the_room_costs_nothing() -> None:
    code = "import sys, labctl.profile; sys.exit('pydantic' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_name_longer_than_any_file_has_is_cut() -> None:
    with pytest.raises(ProfileError) as caught:
        read_text("a" * 5000)
    assert "File name too long" in str(caught.value) and len(str(caught.value)) < 400
