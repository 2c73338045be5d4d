"""From a node's record to its machine: for commands, files, logs, whatever tier it is on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labctl.errors import LabError
from labctl.tiers.record import NodeRecord, SshPlace

if TYPE_CHECKING:
    from labctl.guest.container import ContainerMachine
    from labctl.guest.engine import EngineMachine
    from labctl.guest.inside import InsideMachine
    from labctl.guest.inside_link import Link
    from labctl.guest.ssh import Endpoint, SshMachine

POLL_SECONDS = 0.02  # between two looks whether a booting machine answers
# The same where each look makes OpenSSH start a process, which takes seconds under emulation: looks at that
# pace are all that such a machine would do.
CLOUD_POLL_SECONDS = 2.0

_connections: dict[str, SshMachine] = {}


def machine(
    record: NodeRecord, on_silence: Callable[[], None] | None = None
) -> SshMachine | ContainerMachine | InsideMachine | EngineMachine:
    """The machine of a node.  `on_silence` is asked when nobody answers in it, and raises when it knows why.

    Raises LabError when the node was skipped or its keys are gone.
    """
    if record.skipped:
        raise LabError(f"{record.name} was skipped: {record.skipped}", hint=record.remedy)
    if record.tier == "container" and record.engine:
        from labctl.engines import engine
        from labctl.engines.model import Box
        from labctl.guest.engine import EngineMachine

        box = Box(record.container, record.run_root, record.folder, record.cgroup)
        return EngineMachine(engine(record.engine), box, record.name, record.stop_signal)
    if record.tier == "container" and not record.inside:
        from labctl.guest.container import ContainerMachine

        return ContainerMachine(Path(record.run_root), record.container, record.name)
    ssh = ssh_machine(record)
    if on_silence:
        ssh.connection.on_silence = on_silence
    if record.tier == "container":
        from labctl.guest.inside import InsideMachine

        return InsideMachine(ssh, record.container, record.name)
    return ssh


def container(record: NodeRecord) -> ContainerMachine | InsideMachine | EngineMachine:
    """The machine of a node that is a container, on this host or inside a VM.  Raises LabError."""
    from labctl.guest.ssh import SshMachine

    found = machine(record)
    if isinstance(found, SshMachine):
        raise LabError(f"{record.name} is a machine, not a container")
    return found


def ssh_machine(record: NodeRecord) -> SshMachine:
    """The machine of a node that is one, or the one that a container is inside of.  Raises LabError."""
    return _ssh(endpoint(record), "shell" if record.is_cloud else "labctl")


def link_to(record: NodeRecord) -> Link:
    """Calls into the machine that a container is inside of.  Raises LabError."""
    from labctl.guest.inside_link import Link

    return Link(ssh_machine(record))


def endpoint(record: NodeRecord) -> Endpoint:
    """Where the node's SSH server is (for a container inside a VM: the VM's), and the key it must show."""
    place = record.ssh
    if place is None:
        raise LabError(f"{record.name} has no SSH server", hint=f"labctl exec {record.name} -- COMMAND")
    if not place.address:
        raise LabError(f"{record.name} has no address that this host reaches")
    return _endpoint(place, record.inside if record.tier == "container" and record.inside else record.name)


def _endpoint(place: SshPlace, name: str) -> Endpoint:
    from labctl.guest.ssh import Endpoint

    try:
        host_key = " ".join(Path(place.host_key_file).read_text().split()[:2])
    except OSError as error:
        raise LabError(
            f"{name}: its host key {place.host_key_file} cannot be read: {error.strerror}",
            hint="run as root, or `labctl up` to make the lab's keys again",
        ) from error
    return Endpoint(
        host=place.address,
        port=place.port,
        user=place.user,
        key_file=place.key_file,
        host_key=host_key,
        node=name,
    )


def host_machine(place: SshPlace, name: str) -> SshMachine:
    """The machine behind an SSH place, called `name` in messages.  Raises LabError without its key."""
    return _ssh(_endpoint(place, name))


def _ssh(place: Endpoint, protocol: Literal["labctl", "shell"] = "labctl") -> SshMachine:
    """One machine object per endpoint and process, since it keeps its connections."""
    from labctl.guest.ssh import SshMachine

    key = f"{place.host}:{place.port}:{place.host_key}"
    if key not in _connections:
        _connections[key] = SshMachine(place, protocol=protocol)
    return _connections[key]


def wait_reachable(record: NodeRecord, timeout: float) -> None:
    """Wait until commands run in the node.  Raises TimedOut with the reason; a container that was
    started runs commands already."""
    if record.tier == "container":
        return
    from labctl.guest.ready import wait_for
    from labctl.guest.ssh import banner_up

    place = record.ssh
    if place is None or not place.address:
        return

    cloud = record.is_cloud

    def probe(seconds: float) -> str:
        up = banner_up(place.address, place.port, timeout=seconds if cloud else min(seconds, 1.0))
        return "" if up else f"no SSH server answers at {place.address}; see `labctl console {record.name}`"

    interval = CLOUD_POLL_SECONDS if cloud else POLL_SECONDS
    wait_for(record.name, probe, timeout=timeout, interval=interval)
