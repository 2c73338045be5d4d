"""labctl's own libvirtd, for hosts where none runs: started, joined and ended, one per labctl home.

Layout of `home.state/libvirtd`: `daemon.json` (who it is, written before it starts), `run`, `etc`,
`lib`, `log` (laid over /run/libvirt, /etc/libvirt, … in the daemon's own mount namespace, so that the
distribution's folders are neither read nor written), `drivers` (only the QEMU driver: the daemon starts
in a twentieth of the time and never touches the host's networks, firewall or devices), `lock`, `users`.
The QEMU capabilities it probed (seconds) are kept in `home.cache/libvirtd`.

The folders outlive the daemon: killed and started again it finds its running domains by its own status
files.  After a reboot of the host `run` is emptied.  Every process of the daemon, QEMU included, is
recognised by its /run/libvirt being our `run` folder, never by a name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

from labctl.data import data
from labctl.errors import Busy, HostCannot, LabError, TimedOut
from labctl.home import Home
from labctl.records import dataclass

# The distribution's folders that libvirtd was compiled with, and what lies over each.
FOLDERS = {
    "run": "/run/libvirt",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
START_SECONDS = 30.0
STOP_SECONDS = 10.0
LOCK_SECONDS = 60.0
DRIVER_FOLDERS = ("/usr/lib/*/libvirt/connection-driver", "/usr/lib64/libvirt/connection-driver")
INSTALL_HINT = "apt-get install libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86"


@dataclass(frozen=True)
class Record:
    """What `daemon.json` holds: the reaper's pid and start time (clock ticks after boot), the boot's id,
    and the mount points that the host lacked and we made."""

    pid: int
    start: int
    boot: str
    made: tuple[str, ...] = ()


def base(home: Home) -> Path:
    """The folder of the private libvirtd."""
    return home.state / "libvirtd"


def socket_path(home: Home) -> Path:
    """Its socket as the host sees it; may be longer than sun_path (connection.py copes)."""
    return base(home) / "run" / "libvirt-sock"


def seen_outside(home: Home, path: str) -> str:
    """The host's name of a file that the private daemon calls `path`."""
    for name, folder in FOLDERS.items():
        if path.startswith(f"{folder}/"):
            place = home.cache / "libvirtd" if name == "cache" else base(home) / name
            return str(place) + path.removeprefix(folder)
    return path


def uri(home: Home) -> str:
    """The libvirt URI of the private daemon: stable, the same in every process and after a restart."""
    return f"qemu:///system?socket={quote(str(socket_path(home)))}"


def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)), in clock ticks after boot; 0 when there is no such process
    or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def read_record(home: Home) -> Record | None:
    """The record on disk; None when there is none.  A damaged one counts as none: processes are also
    found by their mount namespace."""
    try:
        raw = json.loads((base(home) / "daemon.json").read_text())
        return Record(int(raw["pid"]), int(raw["start"]), str(raw["boot"]), tuple(raw["made"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write_record(home: Home, record: Record) -> None:
    path = base(home) / "daemon.json"
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextlib.contextmanager
def _locked(home: Home, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """The lock under which the daemon is started and ended; Busy after `seconds`.

    The file goes with the folder when the daemon is ended, so a lock only counts while the path still
    leads to the locked file.
    """
    path = base(home) / "lock"
    end = monotonic() + seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the folder was removed between the two calls
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(fd, path):
                break
        except BlockingIOError:
            pass
        os.close(fd)
        if monotonic() > end:
            raise Busy(f"another labctl has been starting or ending {base(home)} for {seconds:.0f} s")
        sleep(0.01)
    try:
        yield
    finally:
        os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _claim(home: Home, mode: int) -> int:
    """An open, locked `users` file: shared by every process that has a connection, exclusive to end."""
    fd = os.open(base(home) / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def answers(home: Home) -> bool:
    """Whether something listens on the private daemon's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            with reachable(socket_path(home)) as path:
                probe.connect(path)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name of `path` short enough for sun_path (108 bytes, unix(7)): through an open folder if need be."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def join(home: Home) -> int:
    """Start the private daemon unless it runs, and keep it from being ended by others.

    Returns the open file to close when the connection is no longer needed.  HostCannot when libvirt or
    root's rights are missing, TimedOut or LabError when it does not come up; bounded by START_SECONDS.
    """
    if os.geteuid() != 0:
        raise HostCannot(
            "no libvirtd runs on this host, and only root can start labctl's own",
            hint="run labctl as root, or start libvirtd: systemctl start libvirtd",
        )
    with _locked(home):
        if not answers(home):
            _start(home)
        users = _claim(home, fcntl.LOCK_SH)
        if users < 0:
            raise Busy(f"the libvirtd in {base(home)} is being ended by another process")
        return users


def domains(home: Home) -> set[str]:
    """Names of the domains, defined or running, by libvirt's own files: needs no daemon, cannot hang."""
    here = base(home)
    files = [*here.glob("etc/qemu/*.xml"), *here.glob("run/qemu/*.xml")]
    return {path.stem for path in files}


def _find_driver() -> Path:
    for pattern in DRIVER_FOLDERS:
        for folder in sorted(Path("/").glob(pattern.lstrip("/"))):
            driver = folder / "libvirt_driver_qemu.so"
            if driver.exists():
                return driver
    raise HostCannot("libvirt's QEMU driver is not installed", hint=INSTALL_HINT)


def _lay_out(home: Home, binary_driver: Path) -> None:
    """Make the daemon's folders and configuration."""
    here, boot = base(home), boot_id()
    record = read_record(home)
    if record is None or record.boot != boot:
        shutil.rmtree(here / "run", ignore_errors=True)
    for name in ("run", "etc", "lib", "log", "drivers"):
        (here / name).mkdir(mode=0o711, exist_ok=True)
    (home.cache / "libvirtd").mkdir(parents=True, mode=0o711, exist_ok=True)
    for name in ("libvirtd.conf", "qemu.conf"):
        (here / "etc" / name).write_text(data("templates", "libvirtd", name).read_text())
    link = here / "drivers" / binary_driver.name
    if not link.is_symlink() or link.readlink() != binary_driver:
        link.unlink(missing_ok=True)
        link.symlink_to(binary_driver)


def _start(home: Home) -> None:
    """Start the daemon; the caller holds the lock.  The reaper waits until its pid is on disk."""
    program = shutil.which("libvirtd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise HostCannot("libvirtd is not installed", hint=INSTALL_HINT)
    here, driver = base(home), _find_driver()
    _end_daemons(home)  # one that was killed half way, or no longer listens
    _lay_out(home, driver)
    old = read_record(home)
    missing = tuple(path for path in FOLDERS.values() if not Path(path).is_dir())
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LABCTL_LIBVIRTD": str(here),
        "LIBVIRT_DRIVER_DIR": str(here / "drivers"),
        # No systemd-machined: the virtual machines of a lab are labctl's, not the host's.
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent",
    }
    binds = [
        [str(home.cache / name if name == "cache" else here / name), path] for name, path in FOLDERS.items()
    ]
    binds[-1][0] = str(home.cache / "libvirtd")
    order = {
        "binds": binds,
        "hide": ["/sys/fs/cgroup"],  # without it libvirt leaves cgroups alone, whatever their version
        "argv": [program, "-f", "/etc/libvirt/libvirtd.conf", "-p", "/run/libvirt/libvirtd.pid"],
        "env": env,
        "log": str(here / "log" / "libvirtd.log"),
    }
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), str(here)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        start_new_session=True,
        cwd="/",
    )
    _children.append(reaper)
    assert reaper.stdin is not None
    with reaper.stdin as pipe:
        made = tuple(dict.fromkeys((*(old.made if old else ()), *missing)))
        _write_record(home, Record(reaper.pid, start_time(reaper.pid), boot_id(), made))
        for path in missing:
            Path(path).mkdir(mode=0o755, exist_ok=True)
        pipe.write(json.dumps(order).encode() + b"\n")
    _await_socket(home, reaper)


def _await_socket(home: Home, reaper: subprocess.Popen[bytes]) -> None:
    log = base(home) / "log" / "libvirtd.log"
    end = monotonic() + START_SECONDS
    while not answers(home):
        if reaper.poll() is not None:
            raise LabError(f"labctl's libvirtd ended at once: {_last_line(log)}", hint=f"see {log}")
        if monotonic() > end:
            _end_daemons(home)
            raise TimedOut(f"labctl's libvirtd did not listen after {START_SECONDS:.0f} s", hint=f"see {log}")
        sleep(0.005)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1] if lines else "it left no log"


# Reapers that this process started: kept so that their end is waited for and no zombie stays.
_children: list[subprocess.Popen[bytes]] = []


def members(home: Home) -> set[int]:
    """Every process that lives in the private daemon's world: reaper, libvirtd, QEMU."""
    try:
        ours = (base(home) / "run").stat()
    except FileNotFoundError:
        ours = None
    mark = b"LABCTL_LIBVIRTD=" + os.fsencode(base(home))
    found = set()
    for entry in (path.name for path in Path("/proc").iterdir()):
        if entry.isdigit() and start_time(int(entry)) and _is_member(int(entry), ours, mark):
            found.add(int(entry))
    return found


def _is_member(pid: int, ours: os.stat_result | None, mark: bytes) -> bool:
    try:
        if ours is not None:
            theirs = os.stat(f"/proc/{pid}/root{FOLDERS['run']}")  # noqa: PTH116 - a magic link, not a path
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                return True
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # ended meanwhile, a kernel thread, or without such a folder


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_daemon(pid: int) -> bool:
    return os.path.basename(_command(pid)[0] if _command(pid) else b"") == b"libvirtd"  # noqa: PTH119 - bytes


def daemons(home: Home) -> set[int]:
    """The pids of every libvirtd of ours."""
    return {pid for pid in members(home) if _is_daemon(pid)}


def _end_daemons(home: Home) -> None:
    """End every libvirtd of ours; the QEMUs stay."""
    end_processes(daemons(home), STOP_SECONDS)


def end_processes(pids: set[int], seconds: float) -> None:
    """SIGTERM, wait up to `seconds`, SIGKILL, wait again; TimedOut when one survives that.

    A process is held by a pidfd, so that its number cannot pass to another one meanwhile.
    """
    held: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        for number, limit in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
            left = [pid for pid in held if start_time(pid)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], number)
            end = monotonic() + limit
            while left and monotonic() < end:
                left = [pid for pid in left if start_time(pid)]
                sleep(0.002)
            if not left:
                return
        raise TimedOut(f"process {left[0]} did not end {seconds + 5:.0f} s after SIGTERM and SIGKILL")
    finally:
        for fd in held.values():
            os.close(fd)


def end(home: Home) -> bool:
    """End the private daemon when it has no domain and no other process uses it; whether it is gone.

    Afterwards none of its processes, mounts and files is left but the probed capabilities in the cache.
    """
    if not base(home).exists():
        return True
    if os.geteuid() != 0:
        return False
    with _locked(home):
        users = _claim(home, fcntl.LOCK_EX)
        if users < 0:
            return False
        try:
            if domains(home):
                return False
            end_processes({pid for pid in members(home) if not _is_reaper(pid)}, STOP_SECONDS)
            _await_reapers(home)
            record = read_record(home)
            for path in record.made if record else ():
                with contextlib.suppress(OSError):
                    Path(path).rmdir()  # not empty: someone else's by now
            shutil.rmtree(base(home))
            return True
        finally:
            os.close(users)


def _is_reaper(pid: int) -> bool:
    name = os.fsencode(Path(__file__).with_name("reaper.py").name)
    return any(part.endswith(b"/" + name) for part in _command(pid)[:5])


def _await_reapers(home: Home) -> None:
    """A reaper leaves by itself when its last child has ended; one that does not is ended."""
    end = monotonic() + 3
    while (left := members(home)) and monotonic() < end:
        sleep(0.002)
    if left:
        # A reaper ignores SIGTERM, so that no service manager's sweep takes the virtual machines along.
        end_processes(left, 0.1)
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)
