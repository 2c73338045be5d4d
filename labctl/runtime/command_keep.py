"""labrun keep OPERATION: what a lab does with its keeper, for one that sits in another machine.

The request is JSON on stdin, the answer JSON on stdout:

- launch: {"items": [[ID, BUNDLE], …], "timeout": s} → {ID: error text}
- states: {} → {ID: {"status", "pid", "exit_code", "created", "started", "finished", …}}
- stop: {"ids": […], "signal": null|n, "timeout": s}; delete, pause, resume: {"ids": […]} → {ID: error text}
- wait: {"id": ID, "timeout": s} → {"exit_code": n}
- update: {"id": ID, "resources": {…}} → {}; stats: {"ids": […]} → {ID: figures}; close: {} → {}
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from labctl.runtime.client import KeeperClient, Launch
from labctl.runtime.errors import ContainerError
from labctl.runtime.main import Context


def keep(words: list[str], context: Context) -> int:
    """Run one operation on the containers below --root."""
    if len(words) != 1:
        raise ContainerError('labrun: "keep" requires exactly 1 argument(s)')
    try:
        request = json.loads(sys.stdin.read() or "{}")
        answer = _answer(words[0], request, KeeperClient(Path(context.root)))
    except (ValueError, KeyError, TypeError) as error:
        raise ContainerError(f"keep {words[0]}: bad request: {error!r}") from error
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _answer(operation: str, request: dict[str, Any], client: KeeperClient) -> Any:
    if operation == "launch":
        items = [Launch(id_, bundle) for id_, bundle in request["items"]]
        return client.launch(items, float(request.get("timeout", 60.0)))
    if operation == "states":
        return {id_: dataclasses.asdict(one) for id_, one in client.states().items()}
    if operation == "stop":
        timeout = float(request.get("timeout", 10.0))
        return client.stop(request["ids"], signal=request.get("signal"), timeout=timeout)
    if operation in ("delete", "pause", "resume"):
        return getattr(client, operation)(request["ids"])
    if operation == "wait":
        return {"exit_code": client.wait(request["id"], float(request.get("timeout", 60.0)))}
    if operation == "update":
        client.update(request["id"], request["resources"])
        return {}
    if operation == "stats":
        return {id_: dataclasses.asdict(one) for id_, one in client.stats(request["ids"]).items()}
    if operation == "close":
        client.close()
        return {}
    raise ContainerError(f"keep: unknown operation {operation!r}")
