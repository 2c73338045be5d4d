"""ContainerMachine with labctl's own runtime: commands, terminals, copies that no link leads astray, logs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pty
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.errors import LabError, TimedOut, UsageError
from labctl.guest.container import ContainerMachine
from labctl.guest.machine import Copies, Executes, HasConsole, HasLogs, Lists, Measures, Pauses
from tests.host.guest_rig import container

pytestmark = pytest.mark.needs("root", "overlay", "cgroup", "userns", "idmap")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerMachine]:
    script = "echo first; echo second; echo trouble >&2; exec sleep 1000"
    with container(tmp_path_factory.mktemp("box"), ["sh", "-c", script]) as machine:
        yield machine


def test_shapes(box: ContainerMachine) -> None:
    for shape in (Executes, Copies, HasLogs, Measures, Pauses):
        assert isinstance(box, shape)
    assert not isinstance(box, HasConsole)


def test_commands(box: ContainerMachine) -> None:
    words = ["", " ", "it's", '"$HOME`', "line\nbreak", "é"]
    done = box.run(["printf", "<%s>", *words])
    assert done.text == "".join(f"<{word}>" for word in words)
    done = box.run(
        ["sh", "-c", 'echo "$A"; pwd; id -u; id -g; echo e >&2; exit 3'],
        env={"A": "x y"},
        cwd="/srv",
        user="web",
    )
    assert (done.code, done.text, done.errors) == (3, "x y\n/srv\n33\n44\n", "e\n")
    assert box.run(["id", "-u"], user="1234:5678").text == "1234\n"
    assert box.exec(["no-such"]) == 127
    assert box.exec(["/etc/passwd"]) == 126
    assert box.exec(["sh", "-c", "kill -9 $$"]) == 137
    with pytest.raises(UsageError, match="no command"):
        box.exec([])
    with pytest.raises(UsageError, match="NUL"):
        box.exec(["a\0b"])


def test_fifty_megabytes_both_ways(box: ContainerMachine) -> None:
    block = os.urandom(1 << 20)
    out = io.BytesIO()
    assert box.exec(["cat"], stdin=io.BytesIO(block * 50), stdout=out, timeout=60) == 0
    assert hashlib.sha256(out.getbuffer()).digest() == hashlib.sha256(block * 50).digest()


def test_a_command_that_reads_nothing(box: ContainerMachine) -> None:
    assert box.exec(["true"], stdin=io.BytesIO(bytes(4 << 20))) == 0


def test_timeout(box: ContainerMachine) -> None:
    with pytest.raises(TimedOut, match=r"lab/box did not end within 0\.3 s"):
        box.exec(["sleep", "777"], timeout=0.3)
    assert b"777" not in box.run(["ps"]).stdout


def test_terminal(box: ContainerMachine) -> None:
    ours, theirs = pty.openpty()
    out = io.BytesIO()
    codes: list[int] = []

    def go() -> None:
        script = 'test -t 0 && echo terminal; read line; echo "[$line]"; trap "exit 5" INT; read never'
        codes.append(box.exec(["sh", "-c", script], stdin=theirs, stdout=out, tty=True))

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    for wanted, typed in ((b"terminal", b"hello\r"), (b"[hello]", b"\x03")):
        deadline = time.monotonic() + 5
        while wanted not in out.getvalue():
            assert time.monotonic() < deadline, out.getvalue()
            time.sleep(0.02)
        time.sleep(0.1)
        os.write(ours, typed)
    thread.join(5)
    assert codes == [5]
    os.close(ours)
    os.close(theirs)


def test_copies(box: ContainerMachine, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(100_000))
    (source / "file").chmod(0o4751)
    os.link(source / "file", source / "twin")
    (source / "link").symlink_to("/etc/shadow")
    os.mkfifo(source / "fifo")
    (source / "sub/owned").write_text("x")
    os.chown(source / "sub/owned", 33, 44)
    os.utime(source / "sub/owned", (1e9, 1e9))
    done = box.copy_in(str(source), "/srv/copy")
    assert (done.entries, done.skipped) == (7, ())
    told = box.run(["ls", "-ln", "/srv/copy/file", "/srv/copy/sub/owned"]).text.splitlines()
    assert told[0].split()[:4] == ["-rwsr-x--x", "2", "0", "0"]
    assert told[1].split()[:4] == ["-rw-r--r--", "1", "33", "44"]
    back = box.copy_out("/srv/copy", str(tmp_path / "back"))
    assert back.entries == 7
    one, two = tmp_path / "tree/sub/owned", tmp_path / "back/sub/owned"
    assert (one.stat().st_uid, one.stat().st_mtime, one.read_text()) == (
        two.stat().st_uid, two.stat().st_mtime, two.read_text(),
    )  # fmt: skip
    # Set-user-id bits of a container don't come to the host.
    assert (tmp_path / "back/file").stat().st_mode & 0o7777 == 0o751
    assert (tmp_path / "back/link").readlink() == Path("/etc/shadow")
    assert (tmp_path / "back/file").stat().st_ino == (tmp_path / "back/twin").stat().st_ino


def test_where_copies_land(box: ContainerMachine, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("one")
    (tmp_path / "d").chmod(0o700)
    box.run(["mkdir", "-p", "/tmp/land/sub"])
    box.copy_in(str(tmp_path / "d"), "/tmp/land")
    assert box.run(["cat", "/tmp/land/d/f"]).text == "one"
    box.copy_in(f"{tmp_path}/d/.", "/tmp/land/sub")
    assert box.run(["cat", "/tmp/land/sub/f"]).text == "one"
    assert box.run(["sh", "-c", "ls -ld /tmp/land/sub"]).text.startswith("drwxr-xr-x")  # its own mode stays
    box.copy_in(f"{tmp_path}/d/f", "/tmp/land/g")
    assert box.run(["cat", "/tmp/land/g"]).text == "one"
    box.copy_in(f"{tmp_path}/d/f", "/etc/hosts.new")
    (tmp_path / "d/f").write_text("two")
    box.copy_in(f"{tmp_path}/d/f", "tmp/land/g")  # relative paths count from /
    assert box.run(["cat", "/tmp/land/g"]).text == "two"
    # A folder laid over / goes through /lib, which is a link to /usr/lib.
    (tmp_path / "over/lib").mkdir(parents=True)
    (tmp_path / "over/lib/x").write_text("lib")
    box.copy_in(f"{tmp_path}/over/.", "/")
    assert box.run(["cat", "/usr/lib/x"]).text == "lib"
    assert box.run(["readlink", "/lib"]).text == "usr/lib\n"
    with pytest.raises(UsageError, match="there is no folder"):
        box.copy_in(f"{tmp_path}/d/f", "/tmp/none/")
    with pytest.raises(UsageError, match="is a file"):
        box.copy_in(f"{tmp_path}/d", "/etc/passwd")
    with pytest.raises(UsageError, match="there is no lab/box:/none"):
        box.copy_out("/none", str(tmp_path))
    (tmp_path / "astray").symlink_to("no-folder/name")
    with pytest.raises(UsageError, match=r"cannot write .*astray: .*no-folder: No such file"):
        box.copy_out("/etc/passwd", str(tmp_path / "astray"))
    with pytest.raises(LabError, match=r"lab/box: .*No such file"):
        box.copy_in(f"{tmp_path}/d/f", "/no/such/place/f")
    archive = io.BytesIO()
    box.copy_out("/tmp/land/d", "-", stream=archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        assert sorted(tar.getnames()) == ["d", "d/f"]
    archive.seek(0)
    box.copy_in("-", "/tmp/land/sub", stream=archive)
    assert box.run(["cat", "/tmp/land/sub/d/f"]).text == "one"


def test_links_lead_nowhere_out_of_the_container(box: ContainerMachine, tmp_path: Path) -> None:
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("the host's")
    target.mkdir()
    (tmp_path / "f").write_text("from the host")
    box.run(["ln", "-s", str(secret), "/tmp/to-secret"])
    box.run(["ln", "-s", str(target), "/tmp/to-target"])
    box.run(["ln", "-s", "/proc/1/root" + str(target), "/tmp/by-proc"])
    box.run(["sh", "-c", f"ln -s {'../' * 20}{str(target)[1:]} /tmp/by-dots"])
    box.copy_out("/tmp/to-secret", str(tmp_path / "got"))
    assert (tmp_path / "got").is_symlink()  # the link itself, and never what it would mean here
    with pytest.raises(UsageError, match="there is no"):
        box.copy_out("/tmp/to-secret/.", str(tmp_path / "got2"))
    for path in ("/tmp/to-target", "/tmp/by-proc", "/tmp/by-dots"):
        with pytest.raises(LabError):
            box.copy_in(f"{tmp_path}/f", f"{path}/f")
    assert list(target.iterdir()) == []


def test_a_link_that_changes_all_the_time(box: ContainerMachine, tmp_path: Path) -> None:
    """CVE-2018-15664: the folder is swapped for a link to the host's / while files are copied."""
    target = tmp_path / "outside"
    target.mkdir()
    (tmp_path / "f").write_text("x")
    script = (
        f"mkdir -p /tmp/race; cd /tmp; while :; do ln -s {target} r2; rm -rf race; "
        "busybox mv r2 race; rm -f race; mkdir race; done"
    )
    thread = threading.Thread(
        target=lambda: box.exec(["sh", "-c", f"timeout 3 sh -c '{script}'"]), daemon=True
    )
    box.run(["ln", "-s", "busybox", "/bin/timeout"])
    thread.start()
    deadline = time.monotonic() + 2.5
    tries = 0
    while time.monotonic() < deadline:
        with contextlib.suppress(LabError):
            box.copy_in(f"{tmp_path}/f", "/tmp/race/f")
        tries += 1
    thread.join(10)
    assert tries > 3
    assert list(target.iterdir()) == []


def test_a_mounted_file_is_written_in_place(box: ContainerMachine, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("1.2.3.4 there\n")
    with pytest.raises(LabError, match=r"Read-only|denied"):
        box.copy_in(str(tmp_path / "hosts"), "/etc/hosts")  # bound read-only by the rig


def test_logs(tmp_path: Path) -> None:
    script = "echo first; echo second; echo trouble >&2; sleep 0.7; echo last; exit 0"
    with container(tmp_path, ["sh", "-c", script]) as machine:
        got: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        for chunk in machine.logs(follow=True):
            got[chunk.stream] += chunk.data
        assert got == {"stdout": b"first\nsecond\nlast\n", "stderr": b"trouble\n"}
        assert b"".join(c.data for c in machine.logs("stdout", tail=2)) == b"second\nlast\n"
        with pytest.raises(LabError, match="lab/box"):
            machine.exec(["true"])
        with pytest.raises(LabError, match="does not run"):
            machine.copy_out("/etc/passwd", str(tmp_path))


def test_stats_and_pause(box: ContainerMachine) -> None:
    found = box.stats()
    assert found.memory_bytes and 0 < found.memory_bytes < 64 << 20
    assert found.memory_limit_bytes == 64 << 20 and found.pids and found.cpu_seconds is not None
    assert isinstance(box, Lists)
    rows = box.processes()
    assert (rows[0].pid, rows[0].ppid, rows[0].uid) == (1, 0, 0) and rows[0].host_pid == box.pid
    box.pause()
    with pytest.raises(LabError, match="paused"):
        box.exec(["true"])
    box.resume()
    assert box.exec(["true"]) == 0
