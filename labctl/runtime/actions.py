"""What is done to containers that exist: signals, freezing, limits, figures, removal; by labrun and by labs.

Nothing here needs the keeper: everything is found by the state folder, the pidfd and the cgroup.
"""

from __future__ import annotations

import os
import time

from labctl.linux import limits, pidfds, proc, proctable, traffic
from labctl.linux.cgroups import Cgroup, Layout, attach_all, of_process, write
from labctl.linux.syscalls import SyscallError
from labctl.runtime import signals, spec, state
from labctl.runtime.errors import ContainerError, NotFoundError
from labctl.runtime.state import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Document = dict[str, Any]


def open_process(document: Document) -> int:
    """A pidfd of the container's first process, or -1."""
    pid = state.running_pid(document)
    return pidfds.open_pid(pid, document["start_ticks"]) if pid else -1


def kill(store: Store, id_: str, signal: int, layout: Layout, *, everything: bool = False) -> None:
    """Send a signal to the first process, or to all in the cgroup.  Raises ContainerError."""
    document = store.read(id_)
    if not everything and signal == 9 and _shares_pids(store, id_, document):
        # Nothing else ends with its first process, and that may be gone while the others go on.
        group = state.cgroup_of(document, layout)
        if not group.procs():
            raise ContainerError("container not running")
        everything = True
    if everything:
        if document.get("cgroup") == "":
            for pid in state.processes(store, document, layout):
                _send(pid, signal)
            return
        group = state.cgroup_of(document, layout)
        if signal == 9:
            group.kill()
        else:
            group.signal(signal)
        return
    fd = open_process(document)
    if fd < 0:
        raise ContainerError("container not running")
    try:
        if not pidfds.send(fd, signal):
            raise ContainerError("container not running")
        if signal == 9 and document.get("cgroup"):
            group = state.cgroup_of(document, layout)
            if group.frozen():  # on v1 a frozen process doesn't even die
                group.freeze(False)
    finally:
        os.close(fd)


def _send(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        return


def _shares_pids(store: Store, id_: str, document: Document) -> bool:
    """Whether its processes are in a pid namespace that is not its own, and in a group that is."""
    rows = (store.config(id_).get("linux") or {}).get("namespaces") or ()
    own = any(row.get("type") == "pid" and not row.get("path") for row in rows)
    return bool(document.get("cgroup")) and not own


def freeze(store: Store, id_: str, layout: Layout, on: bool) -> None:
    """Pause or resume.  Raises ContainerError."""
    document = store.read(id_)
    now = state.status(store, document, layout)
    wanted = ("running", "created") if on else ("paused",)
    if now not in wanted:
        raise ContainerError("container not running" if on else "container not paused")
    state.own_cgroup(document, layout, "pause" if on else "resume").freeze(on)


def update(store: Store, id_: str, resources: dict[str, Any], layout: Layout) -> None:
    """Change limits of a running container, in place.  Raises ContainerError."""
    document = store.read(id_)
    if not state.running_pid(document):
        raise ContainerError("container not running")
    group = state.own_cgroup(document, layout, "update")
    if document.get("scope"):
        from labctl.runtime import scope

        scope.update(document, resources)
    held = list(document.get("controllers") or ())
    extra = [name for name in limits.extra_controllers(resources) if name not in held]
    if any(name in layout.v1 for name in extra):
        group = Cgroup(group.path, layout, [*held, *extra])
        pids = state.cgroup_of(document, layout).procs()
        group.create()
        attach_all([(group, pid) for pid in pids])
        document["controllers"] = [*held, *extra]
        store.write(id_, document)
    limits.apply(group, resources)


def stop_signal(document: Document) -> int:
    """The signal that asks this container to end."""
    name = (document.get("annotations") or {}).get(spec.STOP_SIGNAL)
    return signals.parse(name) if name else signals.BY_NAME["TERM"]


def heeds(pid: int, signal: int) -> bool:
    """Whether pid 1 of a container does anything on this signal.

    The kernel drops what the first process of a pid namespace neither handles nor waits for
    (pid_namespaces(7)), so waiting for it would only cost time.  Who waits has the signal blocked, or is in
    sigtimedwait(2), which lifts the block meanwhile.  A mask that can't be read counts as heeding.
    """
    found = [
        int(line.split()[1], 16) >> (signal - 1) & 1
        for line in (proc.read(f"/proc/{pid}/status") or "").splitlines()
        if line.startswith(("SigCgt:", "SigBlk:"))
    ]
    return not found or any(found) or _waits_for_signals(pid)


def _waits_for_signals(pid: int) -> bool:
    """Whether it is in sigtimedwait(2) just now (proc(5), syscall)."""
    from labctl.linux import syscall_numbers

    native = syscall_numbers.NATIVE.get(os.uname().machine)
    here = (proc.read(f"/proc/{pid}/syscall") or "").split(" ", 1)[0]
    return native is not None and here == str(syscall_numbers.numbers(native[0])["rt_sigtimedwait"])


def stop(
    store: Store, ids: Iterable[str], layout: Layout, *, signal: int | None, timeout: float
) -> dict[str, str]:
    """Ask all to end, wait at most `timeout` seconds for all together, then kill their whole cgroups.

    id → what went wrong ("" = stopped, or was not running).
    """
    errors: dict[str, str] = {}
    waiting: dict[str, tuple[int, Document]] = {}
    for id_ in ids:
        errors[id_] = ""
        try:
            document = store.read(id_)
            fd = open_process(document)
            if fd < 0:
                continue
            waiting[id_] = (fd, document)
            number = stop_signal(document) if signal is None else signal
            group = state.cgroup_of(document, layout)
            if group.frozen():
                group.freeze(False)
            if _shares_pids(store, id_, document) or heeds(document["pid"], number):
                pidfds.send(fd, number)
            else:
                group.kill()
        except (OSError, ContainerError) as error:
            errors[id_] = str(error)
    end = time.monotonic() + timeout
    for fd, _ in waiting.values():
        pidfds.ended(fd, max(0.0, end - time.monotonic()))
    for id_, (fd, document) in waiting.items():
        # Without a pid namespace of its own the others go on when its first process has ended.
        if not pidfds.ended(fd) or _shares_pids(store, id_, document):
            state.cgroup_of(document, layout).kill()
    for id_, (fd, _) in waiting.items():
        if not pidfds.ended(fd, 10.0):
            errors[id_] = "still there 10 s after SIGKILL"
        os.close(fd)
    return errors


def delete(store: Store, ids: Iterable[str], layout: Layout, *, force: bool) -> dict[str, str]:
    """Remove containers: processes, cgroups, state.  id → what went wrong; an absent one is fine.

    Without `force` one that runs is an error.  All are killed first and waited for together.
    """
    errors: dict[str, str] = {}
    gone: list[tuple[str, int, Document, Cgroup | None]] = []
    for id_ in ids:
        errors[id_] = ""
        try:
            document = store.read(id_)
        except NotFoundError:
            continue
        except (OSError, ContainerError) as error:
            errors[id_] = str(error)
            continue
        fd = open_process(document)
        if fd >= 0 and not force and state.status(store, document) == "running":
            os.close(fd)
            errors[id_] = (
                f"cannot delete container {id_} that is not stopped: {state.status(store, document, layout)}"
            )
            continue
        group = state.cgroup_of(document, layout) if document.get("cgroup") else None
        try:
            if fd >= 0:
                pidfds.send(fd, 9)
                _thaw_elsewhere(document["pid"], group)
            if group is not None:
                if group.frozen():
                    group.freeze(False)
                group.kill()
            gone.append((id_, fd, document, group))
        except (OSError, TimeoutError) as error:
            errors[id_] = str(error)
    for id_, fd, document, group in gone:
        try:
            if fd >= 0 and not pidfds.ended(fd, 10.0):
                raise ContainerError(f"process {document['pid']} is still there 10 s after SIGKILL")
            if document.get("scope"):
                from labctl.runtime import scope

                scope.stop(document)
            if group is not None:
                group.remove()
            hooks_left = (store.config(id_).get("hooks") or {}).get("poststop") or []
            store.remove(id_)
            _poststop(hooks_left, document)
        except (OSError, ContainerError, TimeoutError) as error:
            errors[id_] = str(error)
        finally:
            if fd >= 0:
                os.close(fd)
    for path in {os.path.dirname(group.path) for _, _, _, group in gone if group is not None}:
        Cgroup(f"{path}/x", layout).remove_empty_parents()
    return errors


def _thaw_elsewhere(pid: int, group: Cgroup | None) -> None:
    """On v1 a process that somebody moved into a frozen group doesn't even die: take it back into ours."""
    folder = group.v1.get("freezer") if group is not None else None
    if group is None or not folder:
        return
    now = of_process(pid).get("freezer")
    if now is not None and not f"{now}/".startswith(f"{group.path}/") and os.path.isdir(folder):
        try:
            write(f"{folder}/cgroup.procs", str(pid))
        except SyscallError as error:
            if error.errno != 3:  # ESRCH: it has ended meanwhile
                raise


def _poststop(rows: list[dict[str, Any]], document: Document) -> None:
    """The spec's last step: after everything is gone, before the operation returns."""
    if rows:
        from labctl.runtime import hooks

        hooks.run_all(rows, state.oci(document, "stopped"), "poststop", only_warn=True)


def figures(store: Store, id_: str, layout: Layout) -> dict[str, int]:
    """What `limits.stats` says of a container, and as far as it is counted its traffic in bytes:
    net_received, net_sent, block_read, block_written.  {} when it is gone.  Raises NotFoundError.
    """
    document = store.read(id_)
    if not document.get("cgroup"):
        return {}
    group = state.cgroup_of(document, layout)
    found = limits.stats(group)
    pid = state.running_pid(document)
    if pid and (moved := traffic.network(pid)):
        found["net_received"], found["net_sent"] = moved
    if pid and (moved := traffic.blocks(group, group.procs())):
        found["block_read"], found["block_written"] = moved
    return found


def process_table(store: Store, id_: str, layout: Layout) -> list[dict[str, Any]]:
    """Its processes as it sees them (labctl.linux.proctable).  Raises NotFoundError."""
    document = store.read(id_)
    return proctable.of_container(state.processes(store, document, layout), state.running_pid(document))


def record_exit(store: Store, id_: str, code: int | None) -> bool:
    """Write down that a container has ended; one that is being removed meanwhile is left alone.

    False when it was known, or isn't to be known any more.
    """
    try:
        document = store.read(id_)
        if document.get("exit_code") is None:
            document.update(status="stopped", exit_code=code, finished=time.time())
            store.write(id_, document)
            return True
    except (NotFoundError, FileNotFoundError):
        pass
    return False
