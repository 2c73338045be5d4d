"""Registries for a class: each a lab of its own without nodes, so that `down` and `gc` find it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from labctl.errors import Foreign, LabError, UsageError
from labctl.events import Emit, silent
from labctl.lab.looking import opened
from labctl.lab.model import Options
from labctl.lab.names import lab_id
from labctl.looks import Owner
from labctl.records import dataclass
from labctl.resource import executor
from labctl.resource.graph import Graph
from labctl.resource.ledger import Claim, LabRow, Ledger
from labctl.resource.lock import locked
from labctl.tiers.folders import LabFolder
from labctl.tiers.registry_server import RegistryServer

SOURCE = "registry serve"  # what the ledger says where such a lab came from


@dataclass(frozen=True)
class Wanted:
    """What a registry is to be.  `data` "": a folder of the cache, which outlives `down`."""

    name: str = "registry"
    listen: str = "127.0.0.1:5000"
    data: str = ""
    certificate: str = ""
    key: str = ""
    htpasswd: str = ""


def serve(wanted: Wanted, options: Options, emit: Emit = silent) -> dict[str, Any]:
    """Start it, or bring it to what is wanted now.  Raises UsageError, Foreign, HostCannot, Failures."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", wanted.name):
        raise UsageError(f"{wanted.name!r} is no name for a registry", hint="letters, digits, - and _")
    server = _server(wanted, options)
    owner = server.owner
    base = LabFolder(owner=owner, name="lab", path=str(options.home.lab(owner.lab)), keys=False)
    with (
        opened(options) as ledger,
        locked(options.home.state / "locks" / owner.lab, f"registry {wanted.name}", wait=options.wait),
    ):
        there = ledger.lab(wanted.name)
        if there and there.source != SOURCE:
            raise Foreign(f"{wanted.name} is a lab that is up", hint="give the registry another --name")
        row = LabRow(
            id=owner.lab,
            name=wanted.name,
            created=there.created if there else time.time(),
            boot=ledger.boot,
            source=SOURCE,
            digest="",
            profile=json.dumps({"name": wanted.name, "nodes": {}}),
            options="{}",
        )
        claims = [Claim("port", f"tcp/{server.host}/{server.port}", owner.lab, f"registry {wanted.name}")]
        ledger.intend(row, [], claims=claims)
        try:
            executor.apply(ledger, row, Graph([base, server]), emit, nodes={}, claims=claims)
        except LabError:
            if there is None:  # nothing ran before: leave nothing
                from labctl.lab.removing import remove

                remove(ledger, row, options, silent)
            raise
    return _told(server, wanted.name)


def _server(wanted: Wanted, options: Options) -> RegistryServer:
    host, port = _listen(wanted.listen)
    owner = Owner(options.home.instance(), "")
    owner = replace(owner, lab=lab_id(owner.instance, wanted.name))
    folder = options.home.lab(owner.lab)
    data = Path(wanted.data).expanduser() if wanted.data else options.home.cache / "registries" / wanted.name
    files = {}
    for word in ("certificate", "key", "htpasswd"):
        path = str(getattr(wanted, word))
        if path and not Path(path).expanduser().is_file():
            raise UsageError(f"there is no {word} {path}")
        files[word] = str(Path(path).expanduser().absolute()) if path else ""
    if bool(files["certificate"]) != bool(files["key"]):
        raise UsageError("TLS needs both a certificate and its key")
    return RegistryServer(
        owner=owner,
        name=wanted.name,
        needs=("folder:lab",),
        directory=str(folder / "registry"),
        data=str(data.absolute()),
        host=host,
        port=port,
        certificate=files["certificate"],
        key=files["key"],
        htpasswd=files["htpasswd"],
    )


def listed(options: Options) -> list[dict[str, Any]]:
    """All registries of this home."""
    if not options.home.used():
        return []
    with opened(options) as ledger:
        return [_told(server, name) for name, server in _all(ledger)]


def _all(ledger: Ledger) -> list[tuple[str, RegistryServer]]:
    found = []
    for lab in ledger.labs():
        for row in ledger.resources(lab.id) if lab.source == SOURCE else ():
            thing = executor.load(row)
            if isinstance(thing, RegistryServer):
                found.append((lab.name, thing))
    return found


def stop(name: str, options: Options, emit: Emit = silent) -> bool:
    """End it; whether there was one.  What was pushed into it stays.  Raises UsageError, Failures."""
    from labctl.lab.removing import down

    if options.home.used():
        with opened(options) as ledger:
            row = ledger.lab(name)
        if row and row.source != SOURCE:
            raise UsageError(f"{name} is a lab, not a registry", hint=f"labctl down {name}")
        if row:
            return bool(down(name, options, emit)["labs"])
    return False


def _told(server: RegistryServer, name: str) -> dict[str, Any]:
    look = server.look()
    return {
        "name": name,
        "address": server.address,
        "url": f"{'https' if server.certificate else 'http'}://{server.address}",
        "data": server.data,
        "state": "running" if look.there else (look.detail or "stopped"),
        "pid": server.pid(),
    }


def _listen(text: str) -> tuple[str, int]:
    import ipaddress

    host, colon, port = text.rpartition(":")
    host = host.strip("[]") if colon else "127.0.0.1"
    host = {"localhost": "127.0.0.1", "": "0.0.0.0"}.get(host, host)
    try:
        number = int(port)
        ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"--listen {text}: ADDRESS:PORT is expected", hint="127.0.0.1:5000") from None
    if not 0 < number < 65536:
        raise UsageError(f"--listen {text}: there is no port {number}")
    return host, number
