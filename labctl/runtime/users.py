"""Who a container's process is: "uid", "uid:gid", "name" or "name:group", looked up in the image's files."""

from __future__ import annotations

from labctl.linux import proc
from labctl.runtime.errors import ContainerError

Identity = tuple[int, int, list[int], str]
"""uid, gid, additional gids, home folder."""


def _rows(path: str, least: int) -> list[list[str]]:
    rows = [line.split(":") for line in (proc.read(path) or "").splitlines()]
    return [row for row in rows if len(row) >= least and row[2].isdigit()]


def look_up(user: str, etc: str = "/etc") -> Identity:
    """As Docker does: a name must exist, a number need not.  Raises ContainerError."""
    name, colon, group = user.partition(":")
    uid, gid, home, login = 0, 0, "/", ""
    found = [row for row in _rows(f"{etc}/passwd", 6) if row[0] == name or row[2] == name]
    found.sort(key=lambda row: row[0] != name)  # a name that looks like a number is a name first
    if found:
        login, uid, home = found[0][0], int(found[0][2]), found[0][5] or "/"
        gid = int(found[0][3]) if found[0][3].isdigit() else 0
    elif name.isdigit():
        uid = int(name)
    elif name:
        raise ContainerError(f"unable to find user {name}: no matching entries in passwd file", code=126)
    groups = _rows(f"{etc}/group", 3)
    if colon:
        gid = _group(group, groups)
        return uid, gid, [], home
    extra = [int(row[2]) for row in groups if login and len(row) > 3 and login in row[3].split(",")]
    return uid, gid, [number for number in extra if number != gid], home


def _group(group: str, rows: list[list[str]]) -> int:
    for row in rows:
        if row[0] == group:
            return int(row[2])
    if group.isdigit():
        return int(group)
    raise ContainerError(f"unable to find group {group}: no matching entries in group file", code=126)


def home_of(uid: int, etc: str = "/etc") -> str:
    """The home folder of a uid, "/" when nobody has it."""
    for row in _rows(f"{etc}/passwd", 6):
        if int(row[2]) == uid:
            return row[5] or "/"
    return "/"
