"""labrun state, list, ps, events, features, spec: what only prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from labctl.linux import capabilities, limits, namespaces, seccomp, syscall_numbers
from labctl.linux.cgroups import Layout
from labctl.linux.eventstats import event_data
from labctl.linux.mounts import OPTION_NAMES
from labctl.runtime import options, spec, state
from labctl.runtime.errors import ContainerError, NotFoundError
from labctl.runtime.main import VERSION, Context, one_name
from labctl.runtime.state import Store


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def _print_line(value: Any) -> None:
    """On one line and without blanks, as runc's: there are readers that compare its beginning."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _row(store: Store, id_: str, layout: Layout) -> dict[str, Any]:
    """One container as runc's `state` and `list` have it."""
    document = store.read(id_)
    now = state.status(store, document, layout)
    root = (store.config(id_).get("root") or {}).get("path") or ""
    bundle = document.get("bundle") or ""
    row: dict[str, Any] = {
        "ociVersion": state.OCI_VERSION,
        "id": id_,
        "pid": 0 if now == "stopped" else document.get("pid") or 0,
        "status": now,
        "bundle": bundle,
        "rootfs": os.path.join(bundle, root),
        "created": state.iso_time(document.get("created")),
        "owner": "",
    }
    if document.get("annotations"):
        row["annotations"] = document["annotations"]
    return row


def show_state(words: list[str], context: Context) -> int:
    """labrun state ID."""
    given = options.parse(words, {}, anywhere=True)
    _print(_row(Store(context.root), one_name(given, "state"), Layout.detect()))
    return 0


def _owner(folder: str) -> str:
    """Who a container belongs to, "#NUMBER" where that id has no name, as in runc."""
    import pwd

    uid = os.stat(folder).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def show_list(words: list[str], context: Context) -> int:
    """labrun list."""
    given = options.parse(
        words, {"format": "text", "quiet": "flag"}, {"f": "format", "q": "quiet"}, anywhere=True
    )
    store, layout = Store(context.root), Layout.detect()
    rows = []
    for id_ in store.ids():
        try:
            rows.append({**_row(store, id_, layout), "owner": _owner(store.folder(id_))})
        except (NotFoundError, FileNotFoundError):
            continue  # removed while we looked
    if given.flag("quiet"):
        sys.stdout.write("".join(f"{row['id']}\n" for row in rows))
    elif given.text("format") == "json":
        _print_line(rows or None)
    elif given.text("format") in ("", "table"):
        table = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        table += [
            (row["id"], str(row["pid"]), row["status"], row["bundle"], row["created"], row["owner"])
            for row in rows
        ]
        widths = [max(9, *(len(row[column]) for row in table)) + 3 for column in range(6)]
        for row in table:
            cells = [cell.ljust(widths[column]) for column, cell in enumerate(row)]
            sys.stdout.write("".join(cells).rstrip() + "\n")
    else:
        raise ContainerError("invalid format option")
    return 0


def show_ps(words: list[str], context: Context) -> int:
    """labrun ps ID [ps options]."""
    given = options.parse(words, {"format": "text"}, {"f": "format"})
    if not given.words:
        raise ContainerError('labrun: "ps" requires a minimum of 1 argument(s)')
    store = Store(context.root)
    document = store.read(given.words[0])
    pids = state.processes(store, document, Layout.detect())
    kind = given.text("format") or "table"
    if kind == "json":
        _print_line(pids)
        return 0
    if kind != "table":
        raise ContainerError("invalid format option")
    command = ["ps", *(given.words[1:] or ["-ef"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise ContainerError('exec: "ps": executable file not found in $PATH') from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise ContainerError(f"{' '.join(command)}: {done.stderr.strip()}")
    head = lines[0].split()
    if "PID" not in head:
        raise ContainerError("couldn't find PID field in ps output")
    column = head.index("PID")
    wanted = {str(pid) for pid in pids}
    found = [line for line in lines[1:] if line.split()[column] in wanted]
    sys.stdout.write("\n".join([lines[0], *found]) + "\n")
    return 0


def show_events(words: list[str], context: Context) -> int:
    """labrun events ID: figures every --interval, once with --stats; a line for each OOM kill."""
    given = options.parse(words, {"interval": "text", "stats": "flag"}, anywhere=True)
    id_ = one_name(given, "events")
    store, layout = Store(context.root), Layout.detect()
    document = store.read(id_)
    if not state.running_pid(document):
        raise ContainerError(f"container with id {id_} is not running")
    interval = _seconds(given.text("interval") or "5s")
    if interval <= 0:
        raise ContainerError("duration interval must be greater than 0")
    group = state.own_cgroup(document, layout, "watch")
    known = limits.stats(group).get("oom_kills", 0)
    last = 0.0
    while state.running_pid(document):
        row = limits.stats(group)
        if row.get("oom_kills", 0) > known:
            known = row["oom_kills"]
            _print_line({"type": "oom", "id": id_})
        if time.monotonic() - last >= interval or not last:
            last = time.monotonic()
            _print_line({"type": "stats", "id": id_, "data": event_data(group)})
        if given.flag("stats"):
            break
        time.sleep(min(interval, 0.2))
    return 0


def _seconds(text: str) -> float:
    """Go's durations: "500ms", "5s", "1m"."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text[: -len(suffix)]
        if text.endswith(suffix) and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise ContainerError(f'invalid value "{text}" for flag -interval: time: invalid duration')


def show_features(words: list[str], context: Context) -> int:
    """labrun features (features.md of the runtime spec 1.1)."""
    options.parse(words, {}, anywhere=True)
    native = syscall_numbers.NATIVE.get(os.uname().machine, ())
    _print(
        {
            "ociVersionMin": "1.0.0",
            "ociVersionMax": state.OCI_VERSION,
            "hooks": [
                "prestart",
                "createRuntime",
                "createContainer",
                "startContainer",
                "poststart",
                "poststop",
            ],
            "mountOptions": OPTION_NAMES,
            "linux": {
                "namespaces": sorted(namespaces.FLAGS),
                "capabilities": capabilities.names(capabilities.known()),
                "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
                "seccomp": {
                    "enabled": bool(native),
                    "actions": sorted(seccomp.ACTIONS),
                    "operators": sorted(seccomp.OPERATORS),
                    "archs": sorted(native),
                    "knownFlags": sorted(seccomp.FLAGS),
                    "supportedFlags": sorted(seccomp.FLAGS),
                },
                "apparmor": {"enabled": True},
                "selinux": {"enabled": True},
                "intelRdt": {"enabled": False},
                "mountExtensions": {"idmap": {"enabled": True}},
            },
            "annotations": {"org.labctl.labrun.version": VERSION},
            "potentiallyUnsafeConfigAnnotations": ["org.labctl.overlay.", "org.labctl.log."],
        }
    )
    return 0


def write_spec(words: list[str], context: Context) -> int:
    """labrun spec: a config.json to start from."""
    given = options.parse(words, {"bundle": "text", "rootless": "flag"}, {"b": "bundle"}, anywhere=True)
    path = os.path.join(given.text("bundle") or ".", "config.json")
    config = spec.starting_config(rootless=given.flag("rootless"))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise ContainerError("file config.json exists. Remove it first") from None
    with os.fdopen(fd, "w") as file:
        file.write(json.dumps(config, indent="\t") + "\n")
    return 0


def no_checkpoint(words: list[str], context: Context) -> int:
    """labrun checkpoint, labrun restore: CRIU is not built in, and says so."""
    raise ContainerError("checkpoint and restore are not supported by labrun: use runc or crun with CRIU")


COMMANDS = {
    "checkpoint": no_checkpoint,
    "restore": no_checkpoint,
    "state": show_state,
    "list": show_list,
    "ps": show_ps,
    "events": show_events,
    "features": show_features,
    "spec": write_spec,
}
