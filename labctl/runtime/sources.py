"""What a container's parent makes for it, with the host's rights: its root, bind mounts, sysfs, net sysctls.

All are detached mounts, handed over by descriptor: see labctl.linux.mounts.
"""

from __future__ import annotations

import os
import stat

from labctl.linux import mounts, namespaces
from labctl.linux import syscalls as sc
from labctl.linux.mounts import Options, OverlayMaker
from labctl.runtime import jsonio, spec
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Config = dict[str, Any]


def namespace_paths(config: Config) -> dict[str, str]:
    """{type: path, "" for a new one} of `linux.namespaces`."""
    rows = (config.get("linux") or {}).get("namespaces") or ()
    return {row["type"]: row.get("path") or "" for row in rows}


def join_mounts(path: str) -> None:
    """Enter a mount namespace by its path.  Raises ContainerError, SyscallError.

    The runtime's own is refused: the container's root would become everybody's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would hold us for ever
    try:
        if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/mnt")):
            raise ContainerError(f"linux.namespaces: {path} is the mount namespace of the runtime itself")
        sc.setns(fd, sc.CLONE_NEWNS, path)
    finally:
        os.close(fd)


def default_propagation(config: Config) -> int:
    """How mounts that come from the host relate to it unless they say so: as `rootfsPropagation`, not shared.

    A container's mounts would otherwise reach the host wherever the host's are shared, systemd's default.
    """
    word = ((config.get("linux") or {}).get("rootfsPropagation") or "").lstrip("r")
    return sc.MS_SLAVE if word in ("shared", "slave") else sc.MS_PRIVATE


def _cut_off(fd: int, config: Config, asked: Sequence[int] = ()) -> None:
    """Set the propagation of a detached tree that was copied from the host: as asked, or the default."""
    if not any(word & (sc.MS_SHARED | sc.MS_SLAVE) for word in asked):
        asked = [default_propagation(config) | sc.MS_REC, *asked]
    for word in asked:
        flags = sc.AT_EMPTY_PATH | (sc.AT_RECURSIVE if word & sc.MS_REC else 0)
        sc.mount_setattr(fd, "", flags, propagation=word & ~sc.MS_REC)


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether an OCI mount is a bind mount (one with `remount` only changes what is there)."""
    options = mount.get("options") or ()
    return (mount.get("type") == "bind" or "bind" in options or "rbind" in options) and (
        "remount" not in options
    )


def overlay_of(config: Config) -> tuple[list[str], str, str]:
    """(lowers bottom first, upper, work) from the annotations; ([], "", "") for a plain root."""
    notes = config.get("annotations") or {}
    lowers = jsonio.loads(notes.get(spec.LOWER) or "[]")
    return list(lowers), notes.get(spec.UPPER) or "", notes.get(spec.WORK) or ""


def make_root(config: Config, bundle: str, maker: OverlayMaker | None, userns: int) -> int:
    """The detached root file system."""
    lowers, upper, work = overlay_of(config)
    if not lowers or maker is None:
        path = os.path.join(bundle, config["root"]["path"])
        if not os.path.isdir(path):
            raise ContainerError(f"root file system {path} is not a folder")
        root = mounts.tree(path, recursive=True)
        _cut_off(root, config)
        return root
    owner = namespaces.owner_outside(*spec.id_maps(config))
    if upper:
        mounts.prepare_upper(upper, work, lowers, owner)
    return maker.make(lowers, upper, work, userns=userns, owner=owner)


def make_binds(config: Config, bundle: str, userns: int) -> list[int]:
    """One detached tree for each bind mount, in order, but not for those that are `late`.

    Raises SyscallError that names the source.
    """
    made: list[int] = []
    later = late(config, bundle)
    try:
        for index, mount in enumerate(config.get("mounts") or ()):
            if is_bind(mount) and index not in later:
                made.append(make_bind(config, bundle, mount, userns))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


def make_bind(config: Config, bundle: str, mount: dict[str, Any], userns: int, place: str = "") -> int:
    """The detached tree of one bind mount; for `copy-symlink` of a link the link itself.

    With `place`, where the container's root is attached, the source is looked up in that.
    """
    options = Options(mount.get("options") or ())
    source = os.path.join(bundle, mount.get("source") or "")
    if place:
        source = f"{place.rstrip('/')}{_inside_root(config, bundle, mount)}"
    if options.copy_link and os.path.islink(source):
        return os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    recursive = bool(options.flags & sc.MS_REC)
    fd = mounts.tree(source, recursive=recursive, follow=not options.src_nofollow)
    try:
        _cut_off(fd, config, options.propagation)
        if options.idmap or mount.get("uidMappings"):
            _idmap(fd, mount, options, userns)
        mounts.set_bound(fd, options, locked="user" in namespace_paths(config))
        mounts.set_attributes(fd, options.rec_set, options.rec_clear, recursive=True)
    except OSError:
        os.close(fd)
        raise
    return fd


def late(config: Config, bundle: str) -> set[int]:
    """The bind mounts, by index, whose source is in the container's root where an earlier mount changed it.

    Their trees can be had only once those mounts are made.
    """
    found: set[int] = set()
    before: list[str] = []
    for index, mount in enumerate(config.get("mounts") or ()):
        if is_bind(mount):
            inner = _inside_root(config, bundle, mount)
            if inner and any(_related(inner, place) for place in before):
                found.add(index)
        before.append(os.path.normpath("/" + mount["destination"].lstrip("/")))
    return found


def _inside_root(config: Config, bundle: str, mount: dict[str, Any]) -> str:
    """The path in the container of a mount's source, "" when that is not in the container's root."""
    root = os.path.normpath(os.path.join(bundle, (config.get("root") or {}).get("path") or "/nowhere"))
    source = os.path.normpath(os.path.join(bundle, mount.get("source") or ""))
    return f"/{source[len(root) :].strip('/')}" if f"{source}/".startswith(f"{root}/") else ""


def _related(one: str, other: str) -> bool:
    """Whether one path is the other or above it."""
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)


def make_devices(config: Config, scratch: str) -> list[int]:
    """The nodes of `linux.devices` but pipes, in order, for a container that may make none itself.

    They are made in a file system of the host's user namespace, else they would open nothing; a mount
    namespace that nobody sees holds it while they are copied.  Only in a single-threaded process.
    """
    rows = [row for row in (config.get("linux") or {}).get("devices") or () if row["type"] != "p"]
    if not rows:
        return []
    maps = spec.id_maps(config)
    made: list[int] = []
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0)
    try:
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("labctl", scratch, "tmpfs", sc.MS_NOSUID, "mode=0700,size=64k")
        for index, row in enumerate(rows):
            path = f"{scratch}/{index}"
            kind = stat.S_IFBLK if row["type"] == "b" else stat.S_IFCHR
            mode = kind | (0o666 if row.get("fileMode") is None else row["fileMode"] & 0o7777)
            os.mknod(path, mode, os.makedev(row["major"], row["minor"]))
            owner = [namespaces.to_host(maps[i], row.get(key) or 0) for i, key in enumerate(("uid", "gid"))]
            os.chown(path, owner[0], owner[1])
            made.append(mounts.tree(path))
    except (OSError, ValueError):
        for fd in made:
            os.close(fd)
        raise
    finally:
        os.umask(before)
        sc.setns(home, sc.CLONE_NEWNS, "the first mount namespace")
        os.fchdir(here)
        os.close(home)
        os.close(here)
    return made


def _idmap(fd: int, mount: dict[str, Any], options: Options, userns: int) -> None:
    """Map the owners: by the mount's own map, else by the container's user namespace."""
    recursive = options.idmap == "ridmap"
    if not mount.get("uidMappings"):
        if userns < 0:
            raise ContainerError(f"mount {mount['destination']}: idmap needs a user namespace or a map")
        mounts.idmap(fd, userns, recursive=recursive)
        return

    def rows(name: str) -> list[namespaces.IdMap]:
        return [(row["containerID"], row["hostID"], row["size"]) for row in mount.get(name) or ()]

    hold, release = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = sc.clone(sc.CLONE_NEWUSER)
    if pid == 0:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
    os.close(hold)
    try:
        namespaces.write_maps(pid, rows("uidMappings"), rows("gidMappings") or rows("uidMappings"))
        space = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            mounts.idmap(fd, space, recursive=recursive)
        finally:
            os.close(space)
    finally:
        os.close(release)
        os.close(pidfd)
        os.waitpid(pid, 0)


def inside_network(config: Config, userns: int) -> int:
    """What needs the host's rights inside a prepared network namespace: its sysctls and its sysfs.

    Returns the descriptor of a detached sysfs, or -1 where the container can mount it itself.
    """
    path = namespace_paths(config).get("network")
    if not path:
        return -1
    settings = {} if namespaces.is_own("network", path) else net_sysctls(config)
    wants_sysfs = userns >= 0 and any(row.get("type") == "sysfs" for row in config.get("mounts") or ())
    if not settings and not wants_sysfs:
        return -1
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sc.setns(target, sc.CLONE_NEWNET, path)
        try:
            for name, value in settings.items():
                write_sysctl(name, value)
            return mounts.filesystem("sysfs", source="sysfs") if wants_sysfs else -1
        finally:
            sc.setns(home, sc.CLONE_NEWNET, "the first network namespace")
    finally:
        os.close(target)
        os.close(home)


def net_sysctls(config: Config) -> dict[str, str]:
    """The sysctls that belong to the network namespace.

    With a user namespace two more: a network that the container's user namespace doesn't own gives it no
    rights, so that it could neither serve port 80 nor ping.
    """
    linux = config.get("linux") or {}
    found = {name: value for name, value in (linux.get("sysctl") or {}).items() if is_net(name)}
    spaces = namespace_paths(config)
    if "user" in spaces:
        # The range is of ids as the writer sees them: the host for a prepared network, else the container.
        first, last = 0, 2147483647
        if not spaces.get("network"):  # both ends must be mapped
            rows = linux.get("gidMappings") or ({"containerID": 0, "size": 1},)
            first = min(row["containerID"] for row in rows)
            last = max(row["containerID"] + row["size"] - 1 for row in rows)
        found.setdefault("net.ipv4.ip_unprivileged_port_start", "0")
        found.setdefault("net.ipv4.ping_group_range", f"{first} {last}")
    return found


def is_net(name: str) -> bool:
    """Whether a sysctl is one of the network namespace."""
    return name.replace("/", ".").startswith("net.")


def write_sysctl(name: str, value: str, folder: int = -1) -> None:
    """Write one sysctl, below /proc/sys or the descriptor of it.

    Dots and slashes as in sysctl(8): "net.ipv4.conf.eth0/1.forwarding" is eth0.1's.
    """
    slash, dot = name.find("/"), name.find(".")
    as_path = slash >= 0 and (dot < 0 or slash < dot)
    path = name if as_path else name.translate(str.maketrans("./", "/."))
    if ".." in path.split("/"):
        raise ContainerError(f"bad sysctl name {name!r}")
    try:
        if folder >= 0:
            fd = os.open(path.lstrip("/"), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        else:
            fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise sc.SyscallError(error.errno or 5, "sysctl", f"{name} = {value}") from error
