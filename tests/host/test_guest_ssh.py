"""SshMachine against a real dropbear: exact argv, codes, streams, terminals, the pinned key, copies."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.errors import LabError, TimedOut, UsageError
from labctl.guest.machine import Copies, Executes, HasLogs
from labctl.guest.ssh import SshMachine, banner_up, ssh_command
from labctl.guest.ssh_forward import Forward
from tests.host.guest_ssh_server import free_port, make_key, ssh_server

pytestmark = pytest.mark.needs("root", "dropbear")
MB50 = 50 << 20


@pytest.fixture(scope="module", params=["labctl", "shell"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshMachine]:
    with ssh_server(tmp_path_factory.mktemp("sshd"), request.param) as endpoint:
        found = SshMachine(endpoint, protocol=request.param)
        yield found
        found.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshMachine]:
    with ssh_server(tmp_path_factory.mktemp("sshd"), "labctl") as endpoint:
        found = SshMachine(endpoint)
        yield found
        found.close()


def test_shapes(machine: SshMachine) -> None:
    assert isinstance(machine, Executes) and isinstance(machine, Copies) and isinstance(machine, HasLogs)


def test_argv_arrives_exactly(machine: SshMachine) -> None:
    words = [
        "",
        " ",
        "a b",
        "it's",
        '"',
        "$HOME",
        "`id`",
        "\\",
        "*",
        "line\nbreak",
        "é…",
        "-n",
        "%s",
        ";",
        "&",
    ]
    done = machine.run(["printf", "<%s>", *words], timeout=20)
    assert done.text == "".join(f"<{word}>" for word in words)
    assert (done.code, done.stderr) == (0, b"")


def test_long_argv(own: SshMachine) -> None:
    words = [f"{number:04d}'$x" for number in range(20_000)]
    done = own.run(["sh", "-c", "cat; printf '%s\n' \"$@\"", "sh", *words], input=b"input\n", timeout=30)
    assert done.stdout.splitlines() == [b"input", *(word.encode() for word in words)]
    with pytest.raises(UsageError, match="NUL"):
        own.run(["echo", "a\0b"])
    with pytest.raises(UsageError, match="no command"):
        own.run([])


def test_exit_codes(machine: SshMachine) -> None:
    for code in (0, 1, 42, 126, 127, 255):
        assert machine.exec(["sh", "-c", f"exit {code}"], timeout=20) == code
    assert machine.exec(["no-such-program"], timeout=20) == 127
    assert machine.exec(["/etc/passwd"], timeout=20) == 126
    assert machine.exec(["/etc"], timeout=20) == 126


def test_signals_become_codes(machine: SshMachine) -> None:
    assert machine.exec(["sh", "-c", "kill -TERM $$"]) == 128 + 15
    assert machine.exec(["sh", "-c", "kill -KILL $$"]) == 128 + 9


def test_streams_are_apart(machine: SshMachine) -> None:
    done = machine.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=20)
    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_env_folder_and_user(machine: SshMachine) -> None:
    done = machine.run(
        ["sh", "-c", 'echo "$A|$B"; pwd; id -u; id -g'], env={"A": "x 'y", "B": ""}, cwd="/usr/lib"
    )
    assert done.text.splitlines() == ["x 'y|", "/usr/lib", "0", "0"]
    assert machine.run(["id"], user="nobody").text.startswith("uid=65534(nobody) gid=65534(nogroup)")
    assert machine.run(["sh", "-c", "id -u; id -g"], user="1234:5678").text == "1234\n5678\n"
    assert machine.exec(["pwd"], cwd="/no/such/folder") == 126


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_fifty_megabytes_both_ways_at_once(own: SshMachine, timeout: float | None) -> None:
    block = os.urandom(1 << 20)
    digest = hashlib.sha256(block * 50).hexdigest()
    out = io.BytesIO()
    source = io.BytesIO(block * 50)
    assert own.exec(["cat"], stdin=source, stdout=out, timeout=timeout) == 0
    assert len(out.getvalue()) == MB50
    assert hashlib.sha256(out.getbuffer()).hexdigest() == digest


def test_much_on_both_outputs(machine: SshMachine) -> None:
    script = "dd if=/dev/zero bs=1M count=8 2>/dev/null & dd if=/dev/zero bs=1M count=8 >&2 2>/dev/null; wait"
    done = machine.run(["sh", "-c", script], timeout=60)
    assert (len(done.stdout), len(done.stderr)) == (8 << 20, 8 << 20)


def test_command_that_reads_nothing(machine: SshMachine) -> None:
    assert machine.exec(["true"], stdin=io.BytesIO(bytes(8 << 20)), timeout=20) == 0
    read, write = os.pipe()
    assert machine.exec(["true"], stdin=read, timeout=20) == 0  # a pipe that nobody closes
    os.close(read)
    os.close(write)


def test_a_terminal_without_input_and_with_input_that_ends(machine: SshMachine) -> None:
    out = io.BytesIO()
    assert machine.exec(["sh", "-c", "sleep 0.2; tty; exit 3"], stdout=out, tty=True, timeout=20) == 3
    assert b"/dev/pts/" in out.getvalue()
    out = io.BytesIO()
    assert machine.exec(["cat"], stdin=io.BytesIO(b"told\n"), stdout=out, tty=True, timeout=20) == 0
    assert b"told" in out.getvalue()


def test_timeout_ends_the_command(own: SshMachine) -> None:
    with pytest.raises(TimedOut, match=r"lab/node did not end within 0\.5 s"):
        own.exec(["sh", "-c", "exec sleep 98765"], timeout=0.5)
    deadline = time.monotonic() + 10
    while b"98765" in own.run(["pgrep", "-f", "^sleep 98765"]).stdout or _runs("sleep", "98765"):
        assert time.monotonic() < deadline, "the command still runs in the node"
        time.sleep(0.1)


def _runs(*argv: str) -> bool:
    ends = "".join(f"{word}\0" for word in argv).encode()
    found = False
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = found or path.read_bytes().endswith(ends)
        except OSError:
            continue
    return found


def test_terminal(machine: SshMachine) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(theirs, True)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    out = io.BytesIO()
    codes: list[int] = []
    script = "stty size; trap 'echo got-it; exit 5' INT; read line; echo \"[$line]\"; stty size; read never"

    def go() -> None:
        codes.append(machine.exec(["sh", "-c", script], stdin=theirs, stdout=out, tty=True))

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    _until(lambda: b"33 101" in out.getvalue())
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
    time.sleep(0.6)
    os.write(ours, b"hello\r")
    _until(lambda: b"[hello]" in out.getvalue() and b"44 99" in out.getvalue())
    os.write(ours, b"\x03")
    thread.join(10)
    assert codes == [5]
    assert b"got-it" in out.getvalue()
    assert termios.tcgetattr(theirs)[3] & termios.ICANON  # no longer raw
    os.close(ours)
    os.close(theirs)


def _until(true, seconds: float = 10) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_another_host_key_is_refused(own: SshMachine, tmp_path: Path) -> None:
    wrong = SshMachine(replace(own.endpoint, host_key=make_key(tmp_path / "other")))
    with pytest.raises(LabError, match="another host key than the one labctl made"):
        wrong.run(["true"])
    with pytest.raises(LabError, match="host key of lab/node is not known"):
        SshMachine(replace(own.endpoint, host_key="")).run(["true"])
    rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC7"
    with pytest.raises(LabError, match="no SSH with lab/node"):
        SshMachine(replace(own.endpoint, host_key=rsa)).run(["true"])


def test_another_key_of_ours_is_refused(own: SshMachine, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    with pytest.raises(LabError, match="does not accept the key"):
        SshMachine(replace(own.endpoint, key_file=str(tmp_path / "stranger"))).run(["true"])
    with pytest.raises(LabError, match="there is no SSH key"):
        SshMachine(replace(own.endpoint, key_file=str(tmp_path / "none"))).run(["true"])


def test_nobody_there(own: SshMachine) -> None:
    port = free_port()
    assert banner_up("127.0.0.1", own.endpoint.port) and not banner_up("127.0.0.1", port, 0.5)
    with pytest.raises(LabError, match="cannot reach lab/node"):
        SshMachine(replace(own.endpoint, port=port)).run(["true"])


def test_a_lost_connection_is_made_again(own: SshMachine) -> None:
    assert own.run(["echo", "1"]).text == "1\n"
    for kept in own.connection._idle:
        kept.sock.shutdown(2)
    time.sleep(0.1)
    assert own.run(["echo", "2"]).text == "2\n"


def test_many_at_once(machine: SshMachine) -> None:
    answers: list[str] = []

    def ask(number: int) -> None:
        answers.append(machine.run(["echo", str(number)], timeout=30).text.strip())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(int, answers)) == list(range(12))


def test_copies_both_ways(machine: SshMachine, tmp_path: Path) -> None:
    node = tmp_path / "node"  # the server runs here, so that the host sees the node's files
    node.mkdir()
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(300_000))
    (source / "file").chmod(0o751)
    os.link(source / "file", source / "twin")
    (source / "link").symlink_to("/etc/shadow")
    (source / "sub" / "é name").write_text("x")
    os.chown(source / "sub" / "é name", 1234, 5678)
    for path in (source / "file", source / "sub" / "é name", source / "sub", source):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # long ago: a time that was not kept can't pass for it
    done = machine.copy_in(str(source), str(node / "copy"))
    assert done.entries == 6
    _same(source, node / "copy")
    machine.copy_in(str(source), str(node))
    _same(source, node / "tree")
    machine.copy_out(str(node / "tree"), str(tmp_path / "back"))
    _same(source, tmp_path / "back")
    machine.copy_out(f"{node}/tree/.", str(tmp_path / "back"))
    _same(source, tmp_path / "back")
    machine.copy_out(f"{node}/tree/file", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == (source / "file").read_bytes()
    archive = io.BytesIO()
    machine.copy_out(f"{node}/tree", "-", stream=archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        assert "é name" in {Path(name).name for name in tar.getnames()}
    archive.seek(0)
    (node / "fresh").mkdir()
    machine.copy_in("-", str(node / "fresh"), stream=archive)
    _same(source, node / "fresh" / "tree")


def _same(left: Path, right: Path) -> None:
    assert sorted(p.relative_to(left) for p in left.rglob("*")) == sorted(
        p.relative_to(right) for p in right.rglob("*")
    )
    for path in left.rglob("*"):
        mine, other = path.lstat(), (right / path.relative_to(left)).lstat()
        assert (mine.st_mode, mine.st_uid, mine.st_gid) == (other.st_mode, other.st_uid, other.st_gid), path
        if not path.is_symlink():  # busybox's tar leaves a link's own time
            assert int(mine.st_mtime) == int(other.st_mtime), path
        if path.is_symlink():
            assert (right / path.relative_to(left)).readlink() == path.readlink()
    assert (right / "file").stat().st_ino == (right / "twin").stat().st_ino


def test_copies_that_fail(machine: SshMachine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no lab/node:/no/such"):
        machine.copy_out("/no/such", str(tmp_path))
    with pytest.raises(UsageError, match="cannot read"):
        machine.copy_in(str(tmp_path / "absent"), "/tmp")
    with pytest.raises(UsageError, match="is a file, and a folder"):
        machine.copy_in(str(tmp_path), "/etc/hostname")
    (tmp_path / "f").write_text("x")
    with pytest.raises(LabError, match="/proc"):
        machine.copy_in(str(tmp_path / "f"), "/proc/labctl-test")


def test_logs(own: SshMachine) -> None:
    chunks = list(own.logs())
    assert [(c.stream, c.data) for c in chunks] == [
        ("stdout", b"first\nsecond\nthird\n"),
        ("stderr", b"trouble\n"),
    ]
    assert b"".join(c.data for c in own.logs("stdout", tail=2)) == b"second\nthird\n"
    much = os.getpid()  # in the command's words, to tell it from other runs' on this host
    follower = own.logs("stdout", follow=True, tail=much)
    assert next(follower).data == b"first\nsecond\nthird\n"
    own.run(["sh", "-c", "echo fourth >> /run/labctl/log/stdout"])
    assert next(follower).data == b"fourth\n"
    assert _runs("tail", "-F", "-n", str(much), "/run/labctl/log/stdout")
    follower.close()
    _until(lambda: not _runs("tail", "-F", "-n", str(much), "/run/labctl/log/stdout"))


def test_forward(own: SshMachine) -> None:
    with Forward(own.connection, "127.0.0.1", own.endpoint.port) as forward:
        assert banner_up("127.0.0.1", forward.port)
        assert banner_up("127.0.0.1", forward.port)
    assert not banner_up("127.0.0.1", forward.port, 0.5)


def test_plain_ssh(own: SshMachine, tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        return  # labctl itself doesn't need OpenSSH
    argv = ssh_command(own.endpoint, str(tmp_path / "known_hosts"), ["echo", "$((6*7))"])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    other = replace(own.endpoint, host_key=make_key(tmp_path / "other"))
    argv = ssh_command(other, str(tmp_path / "known_hosts"), ["true"])
    assert subprocess.run(argv, capture_output=True, timeout=20, stdin=subprocess.DEVNULL).returncode == 255
