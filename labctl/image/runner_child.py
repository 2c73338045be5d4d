"""The process that a build step runs in: enters new namespaces, mounts the image, drops rights, executes.

Started as `python -I -S runner_child.py JSON`.  It writes to the file `report` only when the program could
not be started, and to `report`.made which mount points it had to make.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings  # os.execvpe imports it, and by then the host's files are gone
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from labctl.linux import capabilities
from labctl.linux import syscalls as sc
from labctl.runtime.users import look_up

_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/acpi", "/proc/scsi")
_READ_ONLY = ("/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq")


def main() -> int:
    """Run the step that argv[1] describes; returns its exit code."""
    step: dict[str, Any] = json.loads(sys.argv[1])
    sc.prctl(sc.PR_SET_PDEATHSIG, 9)
    try:
        flags = sc.CLONE_NEWPID | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
        sc.unshare(flags | (0 if step["network"] else sc.CLONE_NEWNET))
    except OSError as error:
        return _failed(step, error)
    report = os.open(step["report"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    made = os.open(step["report"] + ".made", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    parent_alive, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        sc.prctl(sc.PR_SET_PDEATHSIG, 9)
        try:
            _inside(step, made)
        except BaseException as error:  # noqa: BLE001 - the last word of a process that can't go on
            os.write(report, (str(error) or repr(error)).encode("utf-8", "replace"))
            os._exit(125)
    os.close(parent_alive)
    status = os.waitpid(child, 0)[1]
    if os.fstat(report).st_size == 0:
        os.unlink(step["report"])  # noqa: PTH108
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _failed(step: dict[str, Any], error: OSError) -> int:
    with open(step["report"], "w") as file:  # noqa: PTH123
        file.write(str(error))
    return 125


def _inside(step: dict[str, Any], made: int) -> None:
    sc.unshare(sc.CLONE_NEWNS)  # not before the fork: pivot_root would move our parent as well
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    if not step["network"]:
        _loopback()
    sc.sethostname(step["hostname"])
    mount_layers(step["layers"], step["root"], step["upper"], step["work"])
    # What comes from the host is opened before its files are out of sight.
    taken = [_taken(bind) for bind in step["binds"]]
    os.chdir(step["root"])
    sc.pivot_root(".", ".")
    sc.umount(".", sc.MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    points: list[str] = []
    _system(points)
    for tree, bind, is_folder in taken:
        _put(tree, bind, is_folder, points)
    os.write(made, json.dumps(points).encode())
    _protect()
    _become(step)


def mount_layers(layers: list[str], root: str, upper: str = "", work: str = "") -> None:
    """Mount the layers (bottom first) at `root`; with no `upper`, to read only.

    Relative names keep a hundred layers within the one page that mount(2) takes.
    """
    if not layers or (len(layers) == 1 and not upper):
        sc.mount(upper or layers[0], root, None, sc.MS_BIND)
        sc.mount(None, root, None, sc.MS_BIND | sc.MS_REMOUNT | sc.MS_NODEV | (0 if upper else sc.MS_RDONLY))
        return
    os.chdir(os.path.dirname(layers[0]))  # noqa: PTH120
    options = "lowerdir=" + ":".join(os.path.relpath(layer) for layer in reversed(layers))
    if upper:
        # The upper folder becomes a layer, so it must hold whole files and folders.
        options += f",upperdir={upper},workdir={work},redirect_dir=off,metacopy=off,index=off,xino=off"
    sc.mount("overlay", root, "overlay", sc.MS_NODEV, options)


def _taken(bind: dict[str, Any]) -> tuple[int, dict[str, Any], bool]:
    """A bind as a tree that can be moved into the image; -1 for a tmpfs."""
    if "tmpfs" in bind:
        return -1, bind, True
    source = bind["source"]
    if "layers" in bind or "upper" in bind:
        inner = source if "layers" in bind else ""
        lowers = bind.get("layers") or [source]
        mount_layers(lowers, bind["root"], bind.get("upper", ""), bind.get("work", ""))
        source = _beneath(bind["root"], inner)
    elif "root" in bind and os.path.isfile(source) is False and not os.path.isdir(source):  # noqa: PTH112, PTH113
        raise OSError(2, "there is no such file or folder", source)
    return _take(source), bind, os.path.isdir(source)  # noqa: PTH112


def _beneath(root: str, path: str) -> str:
    """The place that a path leads to inside a root, whatever links are on the way."""
    from labctl.image.beneath import Beneath

    with Beneath(root) as beneath:
        descriptor = beneath.open(path, os.O_PATH)
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        finally:
            os.close(descriptor)


def _put(tree: int, bind: dict[str, Any], is_folder: bool, points: list[str]) -> None:
    point = _point(bind["target"], points, folder=is_folder)
    if tree < 0:
        sc.mount("tmpfs", point, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, f"size={bind['tmpfs']}")
        return
    sc.move_mount(tree, sc.AT_FDCWD, point, bind["target"])
    if bind.get("ro") and "upper" not in bind:
        flags = sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
        sc.mount(None, point, None, flags)


def _take(path: str) -> int:
    return sc.open_tree(sc.AT_FDCWD, path, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)


def _point(path: str, points: list[str], *, folder: bool) -> str:
    """The place to mount on, made when the image has none; links are followed inside the image."""
    real = os.path.realpath(path)
    ways = []
    parent = real if folder else os.path.dirname(real)  # noqa: PTH120
    while not os.path.isdir(parent):  # noqa: PTH112
        ways.append(parent)
        parent = os.path.dirname(parent)  # noqa: PTH120
    for way in reversed(ways):
        os.mkdir(way, 0o755)  # noqa: PTH102
        points.append(way)
    if not folder and not os.path.exists(real):  # noqa: PTH110
        os.close(os.open(real, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        points.append(real)
    return real


def _system(points: list[str]) -> None:
    safe = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    sc.mount("proc", _point("/proc", points, folder=True), "proc", safe)
    dev = _point("/dev", points, folder=True)
    sc.mount("dev", dev, "tmpfs", sc.MS_NOSUID, "mode=755,size=64k")
    for name, (major, minor) in _NODES.items():
        os.mknod(f"{dev}/{name}", 0o020666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)  # noqa: PTH101
    for name, target in _LINKS.items():
        os.symlink(target, f"{dev}/{name}")  # noqa: PTH211
    for name in ("pts", "shm"):
        os.mkdir(f"{dev}/{name}")  # noqa: PTH102
    sc.mount(
        "devpts", f"{dev}/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    sc.mount("shm", f"{dev}/shm", "tmpfs", safe, "mode=1777,size=64m")
    sc.mount("sysfs", _point("/sys", points, folder=True), "sysfs", safe | sc.MS_RDONLY)


def _protect() -> None:
    for path in _READ_ONLY:
        if os.path.exists(path):  # noqa: PTH110
            sc.mount(path, path, None, sc.MS_BIND | sc.MS_REC)
            flags = sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
            sc.mount(None, path, None, flags)
    for path in _MASKED:
        if os.path.isdir(path):  # noqa: PTH112
            sc.mount("none", path, "tmpfs", sc.MS_RDONLY, "size=0")
        elif os.path.exists(path):  # noqa: PTH110
            sc.mount("/dev/null", path, None, sc.MS_BIND)


def _loopback() -> None:
    """Bring lo up: SIOCGIFFLAGS, SIOCSIFFLAGS (netdevice(7))."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(sock, 0x8913, request))[1]
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", flags | 1))


def _become(step: dict[str, Any]) -> None:
    environment = dict(item.partition("=")[::2] for item in step["env"])
    environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    uid, gid, groups, home = look_up(step["user"] or "0")
    environment.setdefault("HOME", home or "/")
    keep = capabilities.mask(capabilities.DEFAULT)
    os.makedirs(step["cwd"], exist_ok=True)  # noqa: PTH103
    os.chdir(step["cwd"])
    os.setgroups(groups)
    os.setgid(gid)
    capabilities.drop_bounding(keep)
    if uid == 0:
        capabilities.apply(keep, keep, 0, 0)
    else:
        os.setuid(uid)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    argv = step["argv"]
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        # As a shell says it, with the shell's exit codes.
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    sys.exit(main())
