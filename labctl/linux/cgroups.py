"""Control groups, v1, v2 and hybrid: one path that stands for a folder in every hierarchy we use.

On v1 an isolated write to cgroup.procs waits for a grace period (4 to 20 ms), writes back to back don't, so
`attach_all` moves a whole batch.  Removal follows crun: kill, rmdir, on EBUSY descend, wait, again, bounded.
Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import os
import time

from labctl.linux import proc
from labctl.linux.syscalls import SyscallError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections` cost a cold process 15 ms
    from collections.abc import Iterable, Sequence

ALWAYS = ("memory", "cpu", "cpuacct", "pids")
"""v1 controllers that every container gets, for its figures even without a limit."""


def write(path: str, text: str) -> None:
    """Write one value to a control file; the error names the file and the value."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SyscallError(error.errno or 5, "write", f"{text!r} to {path}") from error


def systemd_path(text: str) -> str:
    """The folder of systemd's "slice:prefix:name" (systemd.slice(5)); any other path as it is.

    The same place is made, by ourselves and not by systemd: "a-b.slice" lies in "a.slice".
    """
    if text.count(":") != 2:
        return text
    slice_, prefix, name = text.split(":")
    path = ""
    parts = (slice_ or "system.slice").removesuffix(".slice").split("-")
    for count in range(1, len(parts) + 1):
        if parts != [""]:  # "-.slice" is the root
            path += "/" + "-".join(parts[:count]) + ".slice"
    if name.endswith(".slice"):
        return f"{path}/{name}"
    return f"{path}/{prefix}-{name}.scope" if prefix else f"{path}/{name}.scope"


class Layout:
    """Where this machine's hierarchies are mounted: `v2` ("" when nowhere) and `v1` by controller."""

    def __init__(self, v2: str, v1: dict[str, str]) -> None:
        self.v2 = v2
        self.v1 = v1
        self.v2_controllers = (proc.read(f"{v2}/cgroup.controllers") or "").split() if v2 else []

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Layout:
        """Read /proc/self/mountinfo."""
        text = proc.read("/proc/self/mountinfo") if mountinfo is None else mountinfo
        v2 = ""
        v1: dict[str, str] = {}
        for line in (text or "").splitlines():
            left, _, right = line.partition(" - ")
            fstype, _, options = [*right.split(" ", 2), "", "", ""][:3]
            point = proc.unescape(left.split(" ")[4])
            if fstype == "cgroup2" and not v2:
                v2 = point
            elif fstype == "cgroup":
                for option in options.split(","):
                    if option not in ("rw", "ro", "xattr", "clone_children", "none", "noprefix"):
                        v1.setdefault(option, point)
        return cls(v2, v1)

    @property
    def kind(self) -> str:
        """ "v1", "v2", "hybrid" or "none"."""
        resource = [name for name in self.v1 if not name.startswith("name=")]
        if resource:
            return "hybrid" if self.v2 else "v1"
        return "v2" if self.v2 else "none"

    def has(self, controller: str) -> bool:
        """Whether a limit of this controller can be set here."""
        return controller in self.v1 or controller in self.v2_controllers


class Cgroup:
    """One control group: the same path (like "/labctl/INSTANCE/LAB/NODE") in every hierarchy in use.

    `extra` names v1 controllers besides `ALWAYS` (devices, cpuset, blkio): each costs a little at creation.
    """

    def __init__(self, path: str, layout: Layout, extra: Sequence[str] = ()) -> None:
        parts = [part for part in path.split("/") if part]
        if not parts or any(part in (".", "..") for part in parts):
            raise ValueError(f"bad cgroup path {path!r}")
        self.path = "/" + "/".join(parts)
        self.layout = layout
        wanted = [*ALWAYS, *extra]
        if not layout.v2:
            wanted.append("freezer")
        roots = {name: layout.v1[name] for name in wanted if name in layout.v1}
        self.v1 = {name: root + self.path for name, root in roots.items()}
        self.v2 = layout.v2 + self.path if layout.v2 else ""

    def by_name(self) -> dict[str, str]:
        """Our folders by the v1 controller (the mount point's name where several share one), "" for v2."""
        found = {"": self.v2} if self.v2 else {}
        for name, folder in self.v1.items():
            point = os.path.basename(self.layout.v1[name])
            found[point if name in point.split(",") else name] = folder
        return found

    def folders(self) -> list[str]:
        """Our folder in each hierarchy, each once, v2 first."""
        found = [self.v2] if self.v2 else []
        for folder in self.v1.values():
            if folder not in found:
                found.append(folder)
        return found

    def all_folders(self) -> list[str]:
        """As `folders`, and those that another version or `extra` may have made, in every v1 hierarchy."""
        found = self.folders()
        for root in self.layout.v1.values():
            if root + self.path not in found:
                found.append(root + self.path)
        return found

    def create(self) -> None:
        """Make the folders (there already is fine) and pass the v2 controllers down.  Raises SyscallError."""
        if not self.folders():
            raise SyscallError(2, "mkdir", f"cgroup {self.path}: no cgroup hierarchy is mounted")
        for folder in self.folders():
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise SyscallError(error.errno or 5, "mkdir", folder) from error
        if self.layout.v2_controllers:
            self._pass_down()
        if "cpuset" in self.v1:
            self._fill_cpuset()

    def _pass_down(self) -> None:
        """Enable in each ancestor what it has, so that the limit files exist in our folder."""
        folder = self.layout.v2
        for part in self.path.strip("/").split("/"):
            enabled = set((proc.read(f"{folder}/cgroup.subtree_control") or "").split())
            for name in (proc.read(f"{folder}/cgroup.controllers") or "").split():
                if name in enabled or name not in ("cpu", "cpuset", "io", "memory", "pids", "hugetlb"):
                    continue
                try:
                    write(f"{folder}/cgroup.subtree_control", "+" + name)
                except SyscallError as error:
                    # EBUSY: processes live in this folder; EINVAL, ENOENT, EOPNOTSUPP: not for us; EPERM,
                    # EACCES: above what was delegated.  A limit that then can't be set is reported when it
                    # is set.
                    if error.errno not in (16, 22, 2, 95, 1, 13):
                        raise
            folder += "/" + part

    def _fill_cpuset(self) -> None:
        """On v1 nothing may enter a group whose cpus and mems are empty: copy them down."""
        parent = self.layout.v1["cpuset"]
        for part in self.path.strip("/").split("/"):
            folder = f"{parent}/{part}"
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (proc.read(f"{folder}/{name}") or "").strip():
                    write(f"{folder}/{name}", (proc.read(f"{parent}/{name}") or "").strip())
            parent = folder

    def below(self, path: str, controllers: Sequence[str] = ()) -> Cgroup:
        """The group at `path` below this one, in every hierarchy or only in those of `controllers`.

        Raises ValueError for a controller whose hierarchy this group has no part in.
        """
        found = Cgroup(self.path, self.layout, list(self.v1))
        known = {**self.v1, **({"": self.v2, "unified": self.v2} if self.v2 else {})}
        for name in controllers:
            if name not in known:
                raise ValueError(f"unknown controller {name!r} for cgroup {self.path}")
        wanted = {known[name] for name in controllers or known}
        found.v1 = {
            name: f"{folder}/{path}" if folder in wanted else folder for name, folder in self.v1.items()
        }
        found.v2 = f"{self.v2}/{path}" if self.v2 and self.v2 in wanted else self.v2
        return found

    def exists(self) -> bool:
        """Whether any of its folders is there."""
        return any(os.path.isdir(folder) for folder in self.all_folders())

    def attach(self, pid: int) -> None:
        """Move one process here (0 = the caller)."""
        attach_all([(self, pid)])

    def procs(self, *, below: bool = True) -> list[int]:
        """The processes in it (and in the groups below), each once."""
        found: dict[int, None] = {}
        for folder in self.folders():
            for here in [folder, *(_descend(folder) if below else ())]:
                for line in (proc.read(f"{here}/cgroup.procs") or "").split():
                    found[int(line)] = None
        found.pop(0, None)  # a process of another pid namespace
        return list(found)

    def signal(self, number: int) -> None:
        """Send a signal to every process in it."""
        for pid in self.procs():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """SIGKILL everything in it; doesn't wait.  On v1 it is frozen meanwhile, so that none escapes."""
        if self.v2 and os.path.exists(f"{self.v2}/cgroup.kill"):
            write(f"{self.v2}/cgroup.kill", "1")
            if not self.v1:
                return
        elif "freezer" in self.v1 and os.path.exists(f"{self.v1['freezer']}/freezer.state"):
            write(f"{self.v1['freezer']}/freezer.state", "FROZEN")
            self.signal(9)
            write(f"{self.v1['freezer']}/freezer.state", "THAWED")
            return
        self.signal(9)

    def freeze(self, on: bool, timeout: float = 5.0) -> None:
        """Freeze or thaw; returns when it is done.  Raises TimeoutError."""
        if self.v2 and os.path.exists(f"{self.v2}/cgroup.freeze"):
            write(f"{self.v2}/cgroup.freeze", "1" if on else "0")
            done = self._frozen_v2
        elif "freezer" in self.v1:
            write(f"{self.v1['freezer']}/freezer.state", "FROZEN" if on else "THAWED")
            done = self._frozen_v1
        else:
            raise SyscallError(
                95, "freeze", f"cgroup {self.path}: neither cgroup v2 nor the v1 freezer is there"
            )
        end = time.monotonic() + timeout
        while done() is not on:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"cgroup {self.path} not {'frozen' if on else 'thawed'} after {timeout:g} s"
                )
            time.sleep(0.001)

    def frozen(self) -> bool:
        """Whether it is frozen now."""
        if self.v2 and os.path.exists(f"{self.v2}/cgroup.freeze"):
            return (proc.read(f"{self.v2}/cgroup.freeze") or "").strip() == "1"
        return self._frozen_v1()

    def _frozen_v2(self) -> bool:
        return "frozen 1" in (proc.read(f"{self.v2}/cgroup.events") or "")

    def _frozen_v1(self) -> bool:
        folder = self.v1.get("freezer")
        return bool(folder) and (proc.read(f"{folder}/freezer.state") or "").strip() == "FROZEN"

    def remove(self, timeout: float = 5.0) -> None:
        """Kill what is left, remove the folders (absence is fine), return when they are gone.

        Raises TimeoutError, naming the folder and its processes.
        """
        end = time.monotonic() + timeout
        left = self.all_folders()
        while left := [folder for folder in left if not _remove_tree(folder)]:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"cgroup {left[0]} not removed after {timeout:g} s: processes {self.procs()}"
                )
            self.kill()
            time.sleep(0.002)

    def remove_empty_parents(self, stop: str = "/labctl") -> None:
        """Remove the ancestors below `stop`, and `stop` itself, as far as they are empty."""
        stop = stop.rstrip("/")
        path = os.path.dirname(self.path)
        while path.startswith(stop) and path != "/":
            for root in {self.layout.v2, *self.layout.v1.values()} - {""}:
                try:
                    os.rmdir(root + path)
                except OSError:
                    continue  # not there or not empty: somebody else's business
            path = os.path.dirname(path)


def attach_all(items: Iterable[tuple[Cgroup, int]]) -> None:
    """Move many processes, each into its own group: back to back, so that one grace period serves all.

    Raises SyscallError for the first that can't be moved.
    """
    for cgroup, pid in items:
        for folder in cgroup.folders():
            write(f"{folder}/cgroup.procs", str(pid))


def _descend(folder: str) -> list[str]:
    """All folders below, deepest last.

    As everywhere but on btrfs a folder's links are two and one for each folder in it (fs/kernfs/inode.c): a
    group without others is not read, which would list thirty control files.
    """
    found = []
    try:
        if os.stat(folder).st_nlink == 2:
            return []
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return []
    except OSError as error:
        if error.errno == 19:  # ENODEV: removed while we read it
            return []
        raise
    for path in below:
        found += [path, *_descend(path)]
    return found


def _remove_tree(folder: str) -> bool:
    """rmdir a group and those below it; True when it is gone."""
    try:
        os.rmdir(folder)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (16, 39):  # EBUSY, ENOTEMPTY
            raise SyscallError(error.errno or 5, "rmdir", folder) from error
    for path in reversed(_descend(folder)):
        try:
            os.rmdir(path)
        except OSError:
            return False  # still in use: the caller tries again, bounded
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def of_process(pid: int | str) -> dict[str, str]:
    """The groups a process is in: by v1 controller, and "" for v2."""
    found = {}
    for line in (proc.read(f"/proc/{pid}/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    return found
