"""plan and up: from a profile to a lab that stands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace

from labctl.errors import Foreign, LabError, UsageError
from labctl.events import Emit, Event, NodePhase, Note, StepDone, StepFailed, StepStarted, silent
from labctl.home import Home
from labctl.lab import (
    addresses,
    again,
    disk_facts,
    facts,
    inputs,
    journal,
    places,
    planner,
    stopping,
)
from labctl.lab.looking import lab_status, opened, status_of
from labctl.lab.model import LabStatus, Options, PlanResult, UpResult
from labctl.lab.names import lab_id
from labctl.lab.remember import remember
from labctl.linux import netnode
from labctl.looks import Owner
from labctl.profile.models import Profile
from labctl.profile.types import Isolation, Tier
from labctl.records import dataclass
from labctl.resource import executor
from labctl.resource.ledger import Claim, LabRow, Ledger
from labctl.resource.lock import locked
from labctl.tiers.context import Choice
from labctl.tiers.record import NodeRecord

SUBNET_TRIES = 5


@dataclass(frozen=True)
class _Lab:
    """One lab while it is planned: who it is, and what the ledger knows of it from before."""

    owner: Owner
    row: LabRow | None
    records: Mapping[str, NodeRecord]
    claims: tuple[Claim, ...]
    backings: Mapping[str, str]  # node → what its disk is a layer over

    @property
    def addresses(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """node → interface → addresses of the last time."""
        return {n: {i.name: i.addresses for i in r.interfaces} for n, r in self.records.items()}

    @property
    def ports(self) -> dict[tuple[str, int], int]:
        """The host ports of the last time."""
        return {(n, i): p.host_port for n, r in self.records.items() for i, p in enumerate(r.ports)}

    @property
    def subnets(self) -> dict[str, tuple[str, str]]:
        """network → (IPv4, IPv6) of the last time."""
        found: dict[str, tuple[str, str]] = {}
        for claim in self.claims:
            if claim.kind == "subnet" and claim.lab == self.owner.lab:
                four, six = found.get(claim.note, ("", ""))
                found[claim.note] = (four, claim.value) if ":" in claim.value else (claim.value, six)
        return found


def _known(ledger: Ledger, profile: Profile, options: Options) -> _Lab:
    owner = Owner(options.home.instance(), "")
    owner = replace(owner, lab=lab_id(owner.instance, profile.name))
    row = ledger.lab(owner.lab)
    records = {n: NodeRecord.from_json(text) for n, text in ledger.nodes(owner.lab).items()} if row else {}
    rows = ledger.resources(owner.lab) if row else []
    backings = {r.name: str(json.loads(r.spec).get("backing", "")) for r in rows if r.kind == "vmdisk"}
    return _Lab(owner, row, records, tuple(ledger.claims()), backings)


# Isolations with which root in a node is the host's root, and what of the host it has.
_LITTLE = {
    Isolation.CHROOT: "a chroot has all rights of this host",
    Isolation.VSERVER: "a vserver has this host's network and users",
}


def refuse_privileged(profile: Profile, options: Options) -> None:
    """Refuse nodes with the host's rights unless the command line allows them.  Raises UsageError."""
    if options.allow_privileged:
        return
    reasons: dict[str, list[str]] = {}
    for node in profile.nodes.values():
        if node.tier is not Tier.CONTAINER:
            continue  # a machine passes over what it hasn't
        if node.privileged:
            reasons.setdefault("privileged nodes have all rights of this host", []).append(node.name)
        elif node.isolation in _LITTLE:
            reasons.setdefault(_LITTLE[node.isolation], []).append(node.name)
    if reasons:
        raise UsageError(
            "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items()),
            hint="say --allow-privileged if you trust this profile and its images",
        )


def _plan(
    ledger: Ledger, profile: Profile, options: Options, emit: Emit, *, build: bool
) -> tuple[planner.Planned, _Lab, list[str]]:
    """Everything up to the graph.  With `build` images are made and subnets are reserved."""
    refuse_privileged(profile, options)
    profile, chosen = facts.choices(profile, options)
    places.refuse_without_daemon(profile, chosen)
    places.refuse_beyond_host(profile, chosen)
    places.refuse_without_hooks(profile, chosen)
    facts.check_room(profile, chosen)
    facts.check_sources(profile, chosen)
    lab = _known(ledger, profile, options)
    if build and not lab.row and any(c.tier == "container" and not c.skipped for c in chosen.values()):
        with inputs.choosing():
            netnode.start_ahead()
    fixed = [
        (n, s) for n, net in profile.networks.items() for s in (net.subnet, net.subnet6) if s and net.host
    ]
    with inputs.choosing():
        if not lab.row:
            facts.check_fixed(fixed)
        taken = [c.value for c in lab.claims if c.kind == "port"]
        ports = facts.free_ports(profile, chosen, lab.ports, taken)
    if build:
        facts.check_disk(profile, chosen, lab.records, options.home.state, ledger.spare_bytes())
        facts.tell_skipped(profile.name, chosen, profile, emit)
    images, missing = facts.images(profile, chosen, options, emit, build=build)
    # What a lab that is up stands on is in the cache; a plan for a new one fetches nothing.
    ready = build or (lab.row is not None and not missing)
    kernels = facts.kernels(profile, chosen, options, emit) if ready else {}
    disks = disk_facts.disks(profile, chosen, images, options, lab.backings) if ready else {}
    uri, home = _libvirt(profile, chosen, lab, options)
    host = planner.HostFacts(
        home=options.home,
        owner=lab.owner,
        choices=chosen,
        images=images,
        kernels=kernels,
        arch=facts.this_arch(),
        disks=disks,
        kernel_names={node.name: facts.kernel_of(node, profile) for node in profile.nodes.values()},
        firmware=places.firmware(profile, chosen),
        hypervisors=facts.hypervisors(profile, chosen, images, options) if ready else {},
        uri=uri,
        libvirt_home=home,
        ports=ports,
        snapshot=options.snapshot,
        busybox=facts.busybox(profile, chosen, options, emit, build=build),
    )
    others = [c.value for c in lab.claims if c.kind == "subnet" and c.lab != lab.owner.lab]
    wanted = addresses.wanted_subnets(profile)
    with inputs.choosing():
        subnets = facts.subnets(wanted, lab.subnets, fixed, others, options)
    where = addresses.plan(profile, lab.owner, subnets, lab.addresses)
    return planner.build(profile, profile.name, host, where), lab, missing


def _libvirt(
    profile: Profile, chosen: Mapping[str, Choice], lab: _Lab, options: Options
) -> tuple[str, Home | None]:
    """The libvirt URI for the lab's VMs: the one asked for, the one it has, or labctl's choice."""
    if not any(facts.is_domain(node, chosen) for node in profile.nodes.values()):
        return "", None
    from labctl.hypervisor import connection, private

    before = next((r.uri for r in lab.records.values() if r.uri), "")
    uri = connection.choose_uri(options.libvirt or before, options.home)
    return uri, options.home if uri == private.uri(options.home) else None


def plan(profile: Profile, options: Options, emit: Emit = silent) -> PlanResult:
    """What `up` would do, touching nothing: no image is built, no daemon started."""
    with opened(options) as ledger:
        planned, lab, missing = _plan(ledger, profile, options, emit, build=False)
        todo = executor.difference(ledger, lab.owner.lab, planned.graph)
        nodes = status_of(
            ledger, profile.name, lab.owner.lab, dict(planned.records), planned_only=not lab.row
        )
        return PlanResult(
            profile.name, lab.owner.lab, lab.row is not None, tuple(todo), nodes, tuple(missing)
        )


def up(profile: Profile, options: Options, emit: Emit = silent) -> UpResult:
    """Make the lab, continue it, or bring it to what the profile says now.

    Raises ProfileError, UsageError, HostCannot and Foreign before anything is made; Busy when another
    labctl is at work on the lab; Failures with every step that failed, what stands being kept.
    """
    began = time.monotonic()
    with opened(options) as ledger:
        mine = lab_id(options.home.instance(), profile.name)
        with (
            locked(options.home.state / "locks" / mine, f"up {profile.name}", wait=options.wait),
            journal.kept(options.home, profile.name, mine, "up", emit) as tell,
        ):
            if known := ledger.lab(mine):
                _finish_stops(ledger, known, options, tell)
            status, done = _made(ledger, profile, options, tell)
    return UpResult(status, done.changes, time.monotonic() - began)


def _made(
    ledger: Ledger, profile: Profile, options: Options, emit: Emit
) -> tuple[LabStatus, executor.Applied]:
    planned, lab, row = _reserve(ledger, profile, options, _doubting(emit, profile))
    watch = inputs.enough()
    try:
        done = executor.apply(
            ledger,
            row,
            planned.graph,
            _phases(emit, planned),
            nodes=planned.nodes,
            claims=planned.claims,
        )
    except LabError:
        if options.rollback and lab.row is None:
            emit(Note(row.id, "taking down what was made, since the lab was new", "warning"))
            from labctl.lab.removing import remove

            remove(ledger, row, options, emit)
        raise
    status = lab_status(ledger, row)
    remember(ledger, planned.graph, planned.records.values(), status, watch, options)
    return status, done


def _finish_stops(ledger: Ledger, row: LabRow, options: Options, emit: Emit) -> None:
    if stopping.begun(options.home, row):
        from labctl.lab import power

        power.finish_stops(ledger, row, options.home, emit)


def _doubting(emit: Emit, profile: Profile) -> Emit:
    """What a person is told while a lab is planned must be told again: no quick answer then.  None either
    where the profile comes from nowhere, or from what isn't noted."""
    if not profile.source or any(secret.env in again.RESTLESS for secret in profile.secrets.values()):
        inputs.doubt("the profile")

    def tell(event: Event) -> None:
        inputs.doubt("something was told")
        emit(event)

    return tell


def _reserve(
    ledger: Ledger, profile: Profile, options: Options, emit: Emit
) -> tuple[planner.Planned, _Lab, LabRow]:
    """Plan, and write the lab with its claims into the ledger; a subnet lost to another labctl in
    between is chosen anew."""
    from labctl.image.store import Store

    # Held until the images are pinned, so that no `image rm` takes one between.
    with Store(options.home.cache / "images").adding():
        return _reserved(ledger, profile, options, emit)


def _reserved(
    ledger: Ledger, profile: Profile, options: Options, emit: Emit
) -> tuple[planner.Planned, _Lab, LabRow]:
    for left in reversed(range(SUBNET_TRIES)):
        planned, lab, _ = _plan(ledger, profile, options, emit, build=True)
        row = LabRow(
            id=lab.owner.lab,
            name=profile.name,
            created=lab.row.created if lab.row else time.time(),
            boot=ledger.boot,
            source=profile.source,
            digest=hashlib.sha256(profile.to_json().encode()).hexdigest(),
            profile=profile.to_json(),
            options=json.dumps({"libvirt": options.libvirt, "fallback": options.fallback}),
        )
        try:
            ledger.intend(row, [], claims=planned.claims)
            _pin(planned, row, options)
            return planned, lab, row
        except Foreign:
            if not left or not addresses.wanted_subnets(profile):
                raise
    raise LabError("no free subnet was found")  # unreachable: the last try raises


def _pin(planned: planner.Planned, row: LabRow, options: Options) -> None:
    """Keep the lab's images from being pruned while it is there."""
    from labctl.image.store import Store

    store = Store(options.home.cache / "images")
    records = planned.records.values()
    digests = {record.digest for record in records} | {d.digest for record in records for d in record.disks}
    for digest in digests - {""}:
        store.pins.put(f"lab:{row.id}", digest)


def _phases(emit: Emit, planned: planner.Planned) -> Emit:
    """Turn the steps of the executor into phases of nodes as well."""
    main = {record.main_key: name for name, record in planned.records.items()}

    def tell(event: Event) -> None:
        emit(event)
        if isinstance(event, (StepStarted, StepDone, StepFailed)) and event.verb == "make" and event.node:
            phase = _phase(event, f"{event.kind}:{event.name}" in main)
            if phase:
                emit(NodePhase(event.lab, event.node, phase))

    return tell


def _phase(event: Event, is_main: bool) -> str:
    if isinstance(event, StepFailed):
        return "failed"
    if isinstance(event, StepStarted) and is_main:
        return "starting"
    if isinstance(event, StepDone):
        return {"reach": "running", "ready": "ready"}.get(event.kind, "")
    return ""
