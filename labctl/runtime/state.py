"""The state folder of one container: ROOT/ID/{state.json,config.json,exec.fifo}.

state.json is replaced by rename, before and after each step, so a kill leaves an old or a new one and never
half of one.  Whether a container runs is never remembered but asked of the kernel: pid and start time name a
process for good, and the boot id says whether both still mean anything.
"""

from __future__ import annotations

import os
import time

from labctl.linux import proc
from labctl.linux.cgroups import Cgroup, Layout
from labctl.runtime import check as checks
from labctl.runtime import jsonio
from labctl.runtime.errors import ContainerError, NotFoundError, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]

OCI_VERSION = "1.1.0"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "pid": int,
    "start_ticks": int,
    "start_stack": int,
    "bundle": str,
    "annotations": dict,
    "cgroup": str,
    "controllers": list,
    "scope": str,
    "scope_user": bool,
    "boot_id": str,
    "created": (int, float),
    "started": (int, float),
    "finished": (int, float),
    "exit_code": int,
    "pipes": dict,
}
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(id_: str) -> str:
    """The id itself; raises ContainerError when it can't be one (runc's rule, and no "." or "..")."""
    if not id_ or len(id_) > 1024 or not set(id_) <= _ALLOWED or id_ in (".", ".."):
        raise ContainerError(f"invalid container ID format: {id_!r}")
    return id_


def write_atomic(path: str, text: str, mode: int = 0o600) -> None:
    """Replace a file by rename.  Raises OSError, also when the folder is gone."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
    os.replace(temporary, path)


class Store:
    """All containers below one root folder."""

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, id_: str) -> str:
        """Where a container's files are; raises ContainerError for a bad id."""
        return f"{self.root}/{check_id(id_)}"

    def ids(self) -> list[str]:
        """Every container with a state folder, by name."""
        try:
            with os.scandir(self.root) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def create(self, id_: str, document: Document, config: str) -> None:
        """Write down the intent, before anything exists.  Raises ContainerError when the id is in use."""
        folder = self.folder(id_)
        os.makedirs(self.root, mode=0o711, exist_ok=True)
        try:
            os.mkdir(folder, 0o711)
        except FileExistsError:
            raise ContainerError(f"container with id exists: {id_}") from None
        self.write(id_, document)
        write_atomic(f"{folder}/config.json", config)

    def write(self, id_: str, document: Document) -> None:
        """Replace the state."""
        write_atomic(f"{self.folder(id_)}/state.json", jsonio.dumps(document))

    def read(self, id_: str) -> Document:
        """The state as written.  Raises NotFoundError.  A file cut short by a power loss reads as {}."""
        folder = self.folder(id_)
        text = proc.read(f"{folder}/state.json")
        if text is None and not os.path.isdir(folder):
            raise NotFoundError(id_)
        try:
            found = jsonio.loads(text or "{}")
        except ValueError:
            found = {}
        document: Document = found if isinstance(found, dict) else {}
        for key, kind in _KINDS.items():
            if document.get(key) is not None and not isinstance(document[key], kind):
                del document[key]
        document["id"] = id_
        return document

    def config(self, id_: str) -> Document:
        """The configuration that the container was created with; {} when it was not (wholly) written."""
        text = proc.read(f"{self.folder(id_)}/config.json")
        try:
            result: Document = jsonio.loads(text) if text else {}
            checks.shape(result, checks.CONFIG, "")
            return result if isinstance(result, dict) else {}
        except (ValueError, ContainerError) as error:
            warn(f"container {id_}: its saved config.json can't be read: {error}")
            return {}

    def remove(self, id_: str) -> None:
        """Remove the folder; absence is fine."""
        folder = self.folder(id_)
        for _ in range(5):  # the keeper may be writing an exit code just now
            try:
                for name in os.listdir(folder):
                    try:
                        os.unlink(f"{folder}/{name}")
                    except FileNotFoundError:
                        continue
                os.rmdir(folder)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != 39:  # ENOTEMPTY
                    raise
        raise ContainerError(f"cannot remove {folder}: something keeps writing there")


def new_document(id_: str, bundle: str, annotations: dict[str, str]) -> Document:
    """The state of a container that doesn't exist yet."""
    return {
        "ociVersion": OCI_VERSION,
        "id": id_,
        "status": "creating",
        "pid": 0,
        "start_ticks": 0,
        "bundle": bundle,
        "annotations": annotations,
        "cgroup": "",
        "boot_id": proc.boot_id(),
        "created": time.time(),
        "started": None,
        "finished": None,
        "exit_code": None,
    }


def running_pid(document: Document) -> int:
    """The pid of a container that lives, else 0: a number alone, without its start time, names nobody."""
    pid = int(document.get("pid") or 0)
    if (
        pid > 0
        and document.get("start_ticks")
        and document.get("boot_id") == proc.boot_id()
        and proc.alive(pid, document.get("start_ticks"))
    ):
        return pid
    return 0


def has_become(document: Document) -> bool:
    """Whether the first process has become its program: execve gives it another stack."""
    now = proc.start_stack(running_pid(document) or 0)
    return now not in (0, document.get("start_stack"))


def status(store: Store, document: Document, layout: Layout | None = None) -> str:
    """creating, created, running, paused or stopped, as the kernel says it now."""
    pid = running_pid(document)
    if not pid:
        return "stopped"
    if os.path.exists(f"{store.folder(document['id'])}/exec.fifo"):
        return "created" if document.get("status") != "creating" else "creating"
    if document.get("status") == "creating" and not has_become(document):
        return "creating"
    if layout is not None and document.get("cgroup") and cgroup_of(document, layout).frozen():
        return "paused"
    return "running"


def oci(document: Document, status: str) -> Document:
    """The state as the OCI spec has it: for hooks and for `labrun state`."""
    found: Document = {
        "ociVersion": OCI_VERSION,
        "id": document["id"],
        "status": status,
        "pid": document.get("pid") or 0,
        "bundle": document.get("bundle") or "",
    }
    if document.get("annotations"):
        found["annotations"] = document["annotations"]
    return found


def cgroup_of(document: Document, layout: Layout) -> Cgroup:
    """The control group of a container.  Raises ContainerError when its state is too damaged to tell."""
    path, names = document.get("cgroup"), document.get("controllers") or ()
    try:
        return Cgroup(path or "", layout, [name for name in names if isinstance(name, str)])
    except ValueError as error:
        raise ContainerError(
            f"container {document['id']}: its state.json names no control group: delete it with --force"
        ) from error


def processes(store: Store, document: Document, layout: Layout) -> list[int]:
    """The pids in a container: in its control group, or in its pid namespace where it has no group."""
    if document.get("cgroup") != "":
        return cgroup_of(document, layout).procs()
    pid = running_pid(document)
    rows = (store.config(document["id"]).get("linux") or {}).get("namespaces") or ()
    if pid and any(row.get("type") == "pid" for row in rows):
        return proc.in_namespace_of(pid, "pid")
    return [pid] if pid else []


def own_cgroup(document: Document, layout: Layout, verb: str) -> Cgroup:
    """The control group, for what can't be done without one.  Raises ContainerError."""
    if document.get("cgroup") == "":
        raise ContainerError(f"cannot {verb} a container without a control group of its own (rootless)")
    return cgroup_of(document, layout)


def iso_time(seconds: float | None) -> str:
    """RFC 3339 with nanoseconds, as runc prints it."""
    if seconds is None:
        return "0001-01-01T00:00:00Z"
    whole = int(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{text}.{int((seconds - whole) * 1e9):09d}Z"
