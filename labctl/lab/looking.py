"""What is there now: labs, nodes and their states, from the ledger's names and the host's word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from labctl.errors import LabError, UsageError
from labctl.lab import nesting
from labctl.lab.model import DiskStatus, InterfaceStatus, LabStatus, NetworkStatus, NodeStatus, Options
from labctl.looks import Look, Presence
from labctl.resource import executor
from labctl.resource.ledger import LabRow, Ledger, Row
from labctl.tiers import kinds
from labctl.tiers.record import NodeRecord

# What a look costs when the thing can't be asked (libvirt is down): the state is then told as failed.
_UNKNOWN = "cannot be asked"


_RESTS = {"paused": "resume", "stopped": "start"}  # state → the verb that ends it


@contextmanager
def opened(options: Options) -> Iterator[Ledger]:
    """The ledger of a home, with every kind of resource known."""
    kinds.register()
    ledger = Ledger(options.home.ledger)
    try:
        yield ledger
    finally:
        ledger.close()


def lab_named(ledger: Ledger, name: str) -> LabRow:
    """The lab of that name.  Raises UsageError with the nearest name when there is none."""
    import difflib

    row = ledger.lab(name)
    if row:
        return row
    known = [lab.name for lab in ledger.labs()]
    near = difflib.get_close_matches(name, known, 1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else (f"there are: {', '.join(known)}" if known else "none is up")
    )
    raise UsageError(f"there is no lab {name!r}", hint=hint)


def record_named(ledger: Ledger, lab: str, node: str) -> tuple[LabRow, NodeRecord]:
    """A node's record.  Raises UsageError when the lab or the node isn't there."""
    row = lab_named(ledger, lab)
    records = ledger.nodes(row.id)
    if node not in records:
        raise UsageError(f"lab {row.name} has no node {node!r}", hint=f"it has: {', '.join(records)}")
    return row, NodeRecord.from_json(records[node])


def refuse_resting(lab: str, node: str, options: Options) -> None:
    """See that the node, and every machine that it is inside of, is up.  Raises LabError for the outermost
    one that is paused or stopped."""
    with opened(options) as ledger:
        row, record = record_named(ledger, lab, node)
        texts = ledger.nodes(row.id)
        chain = [record]
        while chain[0].inside:
            chain.insert(0, NodeRecord.from_json(texts[chain[0].inside]))
        for one in status_of(ledger, row.name, row.id, {r.name: r for r in chain}):
            if one.state in _RESTS:
                about = "" if one.name == node else f", and {node} is inside it"
                hint = f"labctl {_RESTS[one.state]} {row.name}/{one.name}"
                raise LabError(f"{row.name}/{one.name} is {one.state}{about}", hint=hint)


def labs(options: Options) -> list[LabStatus]:
    """All labs of the home with their nodes."""
    with opened(options) as ledger:
        return [lab_status(ledger, row) for row in ledger.labs()]


def status(name: str, options: Options) -> LabStatus:
    """One lab.  Raises UsageError when there is none of that name."""
    with opened(options) as ledger:
        return lab_status(ledger, lab_named(ledger, name))


def lab_status(ledger: Ledger, row: LabRow) -> LabStatus:
    """A lab as it is now."""
    records = {name: NodeRecord.from_json(text) for name, text in ledger.nodes(row.id).items()}
    rows = ledger.resources(row.id)
    return LabStatus(
        lab=row.name,
        id=row.id,
        created=row.created,
        source=row.source,
        nodes=status_of(ledger, row.name, row.id, records),
        networks=_networks(rows),
        leftovers=sum(r.state == "leaving" for r in rows),
    )


def status_of(
    ledger: Ledger, name: str, lab: str, records: Mapping[str, NodeRecord], *, planned_only: bool = False
) -> tuple[NodeStatus, ...]:
    """The nodes' states: what the ledger says was done, corrected by what the host says is there."""
    rows = {} if planned_only else {row.key: row for row in ledger.resources(lab)}
    made = [record for record in records.values() if record.main_key in rows]
    looks = nesting.looks(made, lambda some: _looks([rows[record.main_key] for record in some]))
    return tuple(_node(name, record, rows, looks.get(record.main_key)) for record in records.values())


def _looks(rows: Sequence[Row]) -> dict[str, Look]:
    try:
        return executor.look_all(executor.load(row) for row in rows)
    except LabError:
        pass
    found: dict[str, Look] = {}
    for row in rows:  # one that can't be asked must not hide the others
        try:
            found[row.key] = executor.load(row).look()
        except LabError as error:
            found[row.key] = Look(Presence.BROKEN, f"{_UNKNOWN}: {error.message}")
    return found


def _node(lab: str, record: NodeRecord, rows: Mapping[str, Row], look: Look | None) -> NodeStatus:
    state, reason = _state(record, rows, look)
    broken = look is not None and look.presence is Presence.BROKEN and not look.detail.startswith(_UNKNOWN)
    remedy = f"labctl start {lab}/{record.name}" if state == "failed" and broken else ""
    main, reach = rows.get(record.main_key), rows.get(f"reach:{record.name}")
    seconds = sum(row.seconds for row in (main, reach) if row)
    return NodeStatus(
        name=record.name,
        tier=record.label,
        state=state,
        runs_on=record.runs_on,
        addresses=record.addresses,
        image=record.image,
        arch=record.arch,
        accelerator=record.accelerator,
        inside=record.inside,
        reason=reason,
        remedy=record.remedy or remedy,
        seconds=round(seconds, 3),
        ports=tuple(f"{p.host_ip or '*'}:{p.host_port}->{p.node_port}/{p.proto}" for p in record.ports),
        interfaces=tuple(InterfaceStatus(i.name, i.network, i.mac, i.addresses) for i in record.interfaces),
        disks=tuple(
            DiskStatus(d.name, d.size, d.format, d.bus, d.serial, d.path, d.mount, d.read_only)
            for d in record.disks
        ),
        viewer=_viewer(look),
        labels=dict(record.labels),
    )


def _viewer(look: Look | None) -> str:
    """The command that shows the screen of a machine that looks so (vncviewer(1): ADDRESS::PORT)."""
    address, _, port = str(look.data.get("screen", "") if look else "").rpartition(":")
    return f"vncviewer {address}::{port}" if port else ""


def viewer(lab: str, node: str, options: Options) -> str:
    """The command that shows a node's screen.  Raises UsageError for one without, LabError when it is off."""
    with opened(options) as ledger:
        row, record = record_named(ledger, lab, node)
        if not record.graphics:
            raise UsageError(
                f"{lab}/{node} has no screen",
                hint=f"nodes.{node}.vm: {{graphics: vnc}} gives a machine one; labctl console {node}",
            )
        now = status_of(ledger, row.name, row.id, {node: record})[0]
    if not now.viewer:
        raise LabError(f"{lab}/{node} is {now.state}: its screen is dark", hint=f"labctl start {lab}/{node}")
    return now.viewer


def _state(record: NodeRecord, rows: Mapping[str, Row], look: Look | None) -> tuple[str, str]:
    if record.skipped:
        return "skipped", record.skipped
    main = rows.get(record.main_key)
    if main is None:
        return "planned", ""
    steps = [rows[key] for key in _life(record.name) if key in rows]
    failed = next((row for row in (main, *steps) if row.error), None)
    presence = look.presence if look else Presence.ABSENT
    detail = look.detail if look else ""
    if presence is Presence.ABSENT:
        if main.state == "intent":
            return ("failed", failed.error) if failed else ("planned", "")
        return "failed", detail or "it is gone from the host: `labctl up` makes it again"
    if presence is Presence.STOPPED:
        return "stopped", detail
    if presence is not Presence.PRESENT:
        return "failed", detail or presence.value
    if detail.startswith("paused"):
        return "paused", detail
    if failed:
        return "failed", failed.error
    if all(row.state == "made" for row in steps):
        return "ready", ""
    return ("running" if steps and steps[0].state == "made" else "starting"), ""


def _life(name: str) -> tuple[str, ...]:
    return (f"reach:{name}", f"provision:{name}", f"ready:{name}")


def _networks(rows: Sequence[Row]) -> tuple[NetworkStatus, ...]:
    rules = {
        rule["ifname"]: rule
        for row in rows
        if row.kind == "firewall"
        for rule in json.loads(row.spec).get("bridges", ())
    }
    found = []
    for row in rows:
        if row.kind == "bridge":
            ifname = json.loads(row.spec)["ifname"]
            rule = rules.get(ifname, {})
            found.append(
                NetworkStatus(
                    row.name,
                    ifname,
                    rule.get("subnet4", ""),
                    rule.get("subnet6", ""),
                    bool(rule.get("internet")),
                )
            )
    return tuple(found)


def inspect(lab: str, node: str, options: Options) -> dict[str, Any]:
    """Everything that is known of a node (or, with node "", of a lab): record, resources, profile."""
    with opened(options) as ledger:
        if node:
            row, record = record_named(ledger, lab, node)
            rows = [r for r in ledger.resources(row.id) if r.node == node]
            now = status_of(ledger, row.name, row.id, {node: record})[0]
            told = json.loads(row.profile).get("nodes", {}).get(node, {})
            head: dict[str, Any] = {"lab": row.name, "node": node, "state": now.state, "reason": now.reason}
            if now.viewer:
                head["viewer"] = now.viewer
            return {
                **head,
                "record": json.loads(record.to_json()),
                "profile": told,
                "resources": _plain(rows),
            }
        row = lab_named(ledger, lab)
        rows = ledger.resources(row.id)
        claims = [
            {"kind": c.kind, "value": c.value, "note": c.note} for c in ledger.claims() if c.lab == row.id
        ]
        return {
            "lab": row.name,
            "id": row.id,
            "source": row.source,
            "profile": json.loads(row.profile),
            "claims": claims,
            "resources": _plain(rows),
        }


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "key": row.key,
            "state": row.state,
            "seconds": row.seconds,
            "error": row.error,
            "needs": list(row.needs),
            "spec": json.loads(row.spec),
        }
        for row in rows
    ]
