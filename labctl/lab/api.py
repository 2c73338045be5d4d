"""The verbs of labctl as functions: what the CLI, a script or a web page calls.

Nothing heavy is imported before the verb needs it.  A node is (lab, node), by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from labctl.events import Emit, silent
from labctl.lab.model import LabStatus, Leftover, Options, PlanResult, UpResult

if TYPE_CHECKING:
    from labctl.guest.machine import Machine
    from labctl.lab.checks import CheckResult
    from labctl.lab.compare import Comparison
    from labctl.lab.doctor import Finding
    from labctl.lab.figures import Meter
    from labctl.lab.journal import Happening
    from labctl.profile.models import Profile

Target = tuple[str, str]


def plan(profile: Profile, options: Options, emit: Emit = silent) -> PlanResult:
    """See making.plan."""
    from labctl.lab import making

    return making.plan(profile, options, emit)


def up(profile: Profile, options: Options, emit: Emit = silent) -> UpResult:
    """See making.up."""
    from labctl.lab import making

    return making.up(profile, options, emit)


def down(name: str | None, options: Options, emit: Emit = silent) -> dict[str, list[str]]:
    """See removing.down."""
    from labctl.lab import removing

    return removing.down(name, options, emit)


def gc(options: Options, emit: Emit = silent, *, dry_run: bool = True) -> list[Leftover]:
    """See removing.collect."""
    from labctl.lab import removing

    return removing.collect(options, emit, dry_run=dry_run)


def status(name: str, options: Options) -> LabStatus:
    """See looking.status."""
    from labctl.lab import looking

    return looking.status(name, options)


def labs(options: Options) -> list[LabStatus]:
    """See looking.labs."""
    from labctl.lab import looking

    return looking.labs(options)


def inspect(lab: str, node: str, options: Options) -> dict[str, Any]:
    """See looking.inspect."""
    from labctl.lab import looking

    return looking.inspect(lab, node, options)


def machine(lab: str, node: str, options: Options) -> Machine:
    """The machine of a node, for commands and files."""
    from labctl.lab import looking
    from labctl.tiers import machines

    with looking.opened(options) as ledger:
        record = looking.record_named(ledger, lab, node)[1]
    return machines.machine(record, lambda: looking.refuse_resting(lab, node, options))


def viewer(lab: str, node: str, options: Options) -> str:
    """See looking.viewer."""
    from labctl.lab import looking

    return looking.viewer(lab, node, options)


def console(lab: str, node: str, options: Options, fd_in: int, fd_out: int, *, force: bool = False) -> None:
    """See power.console."""
    from labctl.lab import power

    power.console(lab, node, options, fd_in, fd_out, force=force)


def start(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """See power.start."""
    from labctl.lab import power

    power.start(targets, options, emit)


def stop(targets: Sequence[Target], options: Options, emit: Emit = silent, *, force: bool = False) -> None:
    """See power.stop."""
    from labctl.lab import power

    power.stop(targets, options, emit, force=force)


def restart(targets: Sequence[Target], options: Options, emit: Emit = silent, *, force: bool = False) -> None:
    """See power.restart."""
    from labctl.lab import power

    power.restart(targets, options, emit, force=force)


def pause(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """See power.pause."""
    from labctl.lab import power

    power.pause(targets, options, emit)


def resume(targets: Sequence[Target], options: Options, emit: Emit = silent) -> None:
    """See power.resume."""
    from labctl.lab import power

    power.resume(targets, options, emit)


def wait(targets: Sequence[Target], state: str, timeout: float, options: Options) -> None:
    """See power.wait."""
    from labctl.lab import power

    power.wait(targets, state, timeout, options)


def meter(targets: Sequence[Target], options: Options) -> Meter:
    """Samples of what nodes use; see figures.Meter."""
    from labctl.lab import figures

    return figures.Meter(targets, options)


def happenings(lab: str, since: float, options: Options, *, follow: bool = False) -> Iterator[Happening]:
    """What labs went through; see journal.happenings."""
    from labctl.lab import journal

    return journal.happenings(options.home, lab, since, follow=follow)


def checks(name: str, options: Options, emit: Emit = silent) -> list[CheckResult]:
    """Run the checks of a lab's profile; see checks.run_checks."""
    from labctl.lab import together

    return together.checks(name, options, emit)


def compare(name: str, options: Options, emit: Emit = silent, *, timeout: float = 0.0) -> Comparison:
    """The same observations in every node; see compare."""
    from labctl.lab import together

    return together.compare(name, options, emit, timeout=timeout)


def doctor(options: Options, emit: Emit = silent, *, fresh: bool = False) -> list[Finding]:
    """See doctor.doctor."""
    from labctl.lab import doctor as room

    return room.doctor(options, emit, fresh=fresh)
