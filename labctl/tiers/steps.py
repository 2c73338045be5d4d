"""Steps in the life of a node that leave no object of their own: reach it, provision it, wait for it.

They stand in the graph like resources, so that the ledger knows how far an `up` came and what other
nodes may wait for.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, Self

from labctl.errors import LabError, TimedOut
from labctl.looks import PRESENT, Look, Outlook, Owner, Signs, Way
from labctl.records import dataclass
from labctl.tiers.record import NodeRecord

if TYPE_CHECKING:
    from labctl.guest.machine import Executes
    from labctl.guest.ssh import SshMachine

BANNER_SECONDS = 3.0  # for a machine that is to be ended to say that it is there
_QUOTED = 8  # lines of a console in a message


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Wait until commands run in a node, then run its start-up script.

    Made again after every start of the machine, since a start-up script runs at every start.
    """

    kind: ClassVar[str] = "reach"
    follows: ClassVar[bool] = True

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    record: NodeRecord
    timeout: float = 60.0  # seconds
    startup: str = ""
    mounts: tuple[str, ...] = ()  # what a machine must have mounted before anything counts on it
    told: tuple[str, ...] = ()  # its cards and volumes, in the words of templates/host/attach
    resolver: str = ""  # its /etc/resolv.conf
    console: str = ""  # the file of what its serial line said

    @property
    def batched(self) -> bool:
        """Whether there is nothing to wait for and nothing to run: such steps are done all at once."""
        return self.record.tier == "container" and not self.record.inside and not self.startup

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """For those that are `batched`: a container that was started runs commands already."""
        return {}

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Nothing is left of any."""
        return {}

    def make(self) -> list[str]:
        """Wait, then run the script.  Returns a sentence for each line of it that failed.

        Raises TimedOut when the node doesn't answer, LabError when something is not mounted in it.
        """
        from labctl.tiers.machines import machine, ssh_machine

        self._wait()
        if self.mounts:
            refuse_unmounted(self.name, ssh_machine(self.record), self.mounts)
        return run_startup(self.name, machine(self.record), self.startup) if self.startup else []

    def _wait(self) -> None:
        """Wait until commands run in it, and a cloud image has set itself up.  Raises TimedOut, LabError."""
        from labctl.tiers.machines import ssh_machine, wait_reachable

        ends = monotonic() + self.timeout
        try:
            wait_reachable(self.record, self.timeout)
            if self.record.is_cloud:
                await_cloud_init(self.name, ssh_machine(self.record), ends)
        except TimedOut as error:
            if not self.console:
                raise
            from labctl.hypervisor.panic import last_lines

            said = last_lines(self.console, _QUOTED) or ["(nothing)"]
            quoted = "".join(f"\n  {line}" for line in said)
            raise TimedOut(f"{error.message}; its console said last:{quoted}", hint=error.hint) from error

    def look(self) -> Look:
        """Nothing of its own to look at: whether the machine runs is the machine's affair."""
        return PRESENT

    def signs(self) -> Signs:
        """None: see look."""
        return Signs()

    def change(self, old: Reach) -> bool:
        """A machine is told of what it got since; a changed script is run; the node must answer."""
        from labctl.tiers.machines import machine, ssh_machine

        self._wait()
        if old.told and (self.told, self.resolver) != (old.told, old.resolver):
            self._tell(old)
        if self.mounts != old.mounts:
            refuse_unmounted(self.name, ssh_machine(self.record), self.mounts)
        if self.startup and self.startup != old.startup:
            run_startup(self.name, machine(self.record), self.startup)
        return True

    def _tell(self, old: Reach) -> None:
        """Let a running machine set up the cards and disks that it got.  Raises LabError with its words."""
        from labctl.data import data
        from labctl.tiers.machines import ssh_machine

        lines = [data("templates", "host", "attach").read_text()]
        lines += [line for line in self.told if line not in old.told]
        if self.resolver != old.resolver:
            lines.append(f"printf %s {shlex.quote(self.resolver)} >/etc/resolv.conf")
        script = "\n".join(lines) + "\n"
        target = ssh_machine(self.record)
        done = target.run(["sh", "-s"], input=script.encode(), user="0", timeout=60, own_tools=True)
        if done.code:
            said = done.errors.strip().splitlines()[-1:] or [f"exit code {done.code}"]
            raise LabError(
                f"{self.name} did not take what it was given: {said[0]}", hint=f"labctl restart {self.name}"
            )

    def outlook(self, old: Reach, look: Look | None) -> Outlook:
        """Nothing of it is replaced."""
        return Outlook(Way.LIVE)

    def rest(self) -> None:
        """Ask a machine that answers to power off.  Raises LabError."""
        from labctl.guest.ssh import banner_up
        from labctl.tiers.machines import ssh_machine

        place = self.record.ssh
        if self.record.tier == "container" or place is None or not place.address:
            return
        if banner_up(place.address, place.port, timeout=BANNER_SECONDS):
            ssh_machine(self.record).power_off()

    def unmake(self) -> None:
        """Nothing is left of it."""


def await_cloud_init(node: str, target: SshMachine, deadline: float) -> None:
    """Wait until cloud-init has done all that it was told (`cloud-init status --wait`).

    An SSH server that doesn't know the lab's keys yet is asked again.  Raises TimedOut, LabError with what
    cloud-init said when it failed.
    """
    while True:
        left = deadline - monotonic()
        try:
            done = target.run(["cloud-init", "status", "--wait", "--long"], timeout=max(left, 1.0))
            break
        except TimedOut as error:
            raise TimedOut(f"{node}: cloud-init has not ended: {error.message}") from error
        except LabError:
            if left <= 0:
                raise
            sleep(1.0)
    # 2: done, but something was to be warned of (cloud-init 24).
    if done.code not in (0, 2):
        raise LabError(
            f"{node}: cloud-init failed: {(done.text.strip() or done.errors.strip())[-500:]}",
            hint=f"labctl logs {node}; labctl exec {node} -- cat /var/log/cloud-init.log",
        )


def refuse_unmounted(node: str, target: SshMachine, mounts: Sequence[str]) -> None:
    """See that a file system is mounted on each folder (proc(5), mounts).  Raises LabError for the first
    that has none: what is written there would be lost, or go to the wrong place."""
    done = target.run(["readlink", "-f", *mounts], own_tools=True, user="0", timeout=60)
    table = target.run(["cat", "/proc/mounts"], own_tools=True, user="0", timeout=60).text
    there = {line.split()[1] for line in table.splitlines()}
    real = done.text.splitlines()
    for place, path in zip(mounts, [*real, *mounts[len(real) :]], strict=True):
        if path.translate(_MOUNT_ESCAPES) not in there:
            raise LabError(
                f"{node}: nothing is mounted on {place}",
                hint=f"its kernel may lack the driver: labctl exec {node} -- cat /run/labctl/problems",
            )


_MOUNT_ESCAPES = str.maketrans({" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"})


def run_startup(node: str, target: Executes, script: str, timeout: float = 300.0) -> list[str]:
    """Run a start-up script to its end; a sentence for each failing line.  Raises TimedOut, LabError."""
    from labctl.tiers import scripts

    done = target.run(["sh", "-s"], input=scripts.wrap(script).encode(), timeout=timeout)
    told = [
        f"{node}: start-up script, {failed}" for failed in scripts.failures(script, done.text, done.errors)
    ]
    if done.code:
        last = done.errors.strip().splitlines()[-1:] or ["the shell gave up"]
        told.append(f"{node}: start-up script, {last[0]}")
    return told


@dataclass(frozen=True)
class Script:
    """One provisioning step.  `timeout` in seconds."""

    name: str
    run: str
    timeout: float


@dataclass(frozen=True, kw_only=True)
class Provision:
    """The provisioning steps of a node, each run once in its life."""

    kind: ClassVar[str] = "provision"

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    record: NodeRecord
    steps: tuple[Script, ...]

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """What they did goes with the nodes' files."""
        return {}

    def make(self) -> None:
        """Run the steps.  Raises LabError with what the failing one said, TimedOut."""
        self._run(self.steps)

    def _run(self, steps: tuple[Script, ...]) -> None:
        from labctl.tiers.machines import machine

        target = machine(self.record)
        for step in steps:
            done = target.run(["sh", "-e", "-c", step.run], timeout=step.timeout)
            if done.code:
                said = (done.errors.strip() or done.text.strip()).splitlines()[-5:]
                raise LabError(
                    f"{self.name}: provisioning step {step.name!r} ended with {done.code}"
                    + "".join(f"\n  {line}" for line in said),
                    hint="mend the step in the profile and run `labctl up` again: it goes on there",
                )

    def look(self) -> Look:
        """What it did is in the node's own files."""
        return PRESENT

    def signs(self) -> Signs:
        """None: see look."""
        return Signs()

    def change(self, old: Provision) -> bool:
        """Run only the steps that are new."""
        done = set(old.steps)
        self._run(tuple(step for step in self.steps if step not in done))
        return True

    def outlook(self, old: Provision, look: Look | None) -> Outlook:
        """Nothing of it is replaced."""
        return Outlook(Way.LIVE)

    def unmake(self) -> None:
        """What it did goes with the node's files."""


@dataclass(frozen=True, kw_only=True)
class ReadyWait:
    """Wait until a node is ready, as its profile defines that: a port, a command or an HTTP answer."""

    kind: ClassVar[str] = "ready"
    follows: ClassVar[bool] = True

    owner: Owner
    name: str
    node: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    record: NodeRecord
    port: int = 0
    command: tuple[str, ...] = ()
    http: str = ""
    timeout: float = 60.0
    interval: float = 1.0
    netns: str = ""  # where a port or URL is asked for, when this host has no way to the node

    @property
    def batched(self) -> bool:
        """Whether there is no condition to wait for: such steps are done all at once."""
        return not (self.port or self.http or self.command)

    @classmethod
    def make_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """For those that are `batched`: nothing to do."""
        return {}

    @classmethod
    def unmake_many(cls, items: Sequence[Self]) -> dict[str, LabError]:
        """Nothing is left of any."""
        return {}

    def make(self) -> None:
        """Wait.  Raises TimedOut with the last reason; nothing to do without a condition."""
        if self.batched:
            return
        from labctl.guest import asking, ready
        from labctl.tiers.machines import link_to, machine

        # A machine is asked where this host reaches it, which needn't be its first address.  What is inside
        # one has the machine's SSH place, and addresses of its own.
        here = self.record.ssh if not (self.record.inside and self.record.tier == "container") else None
        first = self.record.addresses[0] if self.record.addresses else ""
        address = (here.address if here else "") or first
        ask: ready.Ask = asking.asked
        if self.netns:
            address = first or "127.0.0.1"  # the node may have given itself an address that we don't know
            ask = (
                ready.in_container_of(link_to(self.record), self.netns)
                if self.record.inside
                else (ready.in_netns(self.netns))
            )
        target = machine(self.record)
        wait: dict[str, Any] = {"timeout": self.timeout, "interval": self.interval, "what": self.name}
        wait["over"] = getattr(target, "ended", None)  # a machine goes on when its command has ended
        if self.port:
            ready.wait_port(address, self.port, ask=ask, **wait)
        elif self.http:
            ready.wait_http(address, self.http, ask=ask, **wait)
        elif self.command:
            ready.wait_command(target, self.command, **wait)

    def look(self) -> Look:
        """Nothing of its own."""
        return PRESENT

    def signs(self) -> Signs:
        """None: see look."""
        return Signs()

    def change(self, old: ReadyWait) -> bool:
        """Another condition is waited for; one that only changed its words costs one probe."""
        self.make()
        return True

    def outlook(self, old: ReadyWait, look: Look | None) -> Outlook:
        """Nothing of it is replaced."""
        return Outlook(Way.LIVE)

    def unmake(self) -> None:
        """Nothing is left of it."""
