"""A program of its own that becomes an OCI runtime: it mounts the root first, where nobody else sees it.

The root is an overlay of the image's own layers in a mount namespace that the runtime takes over and the
container keeps: nothing is copied, and no mount of the host is left behind, whatever ends this.  Standard
library only, for a quick start.
"""

from __future__ import annotations

import os

from labctl.linux import mounts
from labctl.linux import syscalls as sc
from labctl.runtime import jsonio, spec, users
from labctl.runtime.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Config = dict[str, Any]

PR_SET_PDEATHSIG = 1  # prctl(2)
OCI_VERSION = "1.0.2"  # what all releases of runc and crun that are in use take
TEMPLATE = "labctl.json"  # in the bundle: config.json with labctl's own annotations
LAUNCH = (  # how to run this: with the folder that has labctl in it as the first argument
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from labctl.engines.launch import main; sys.exit(main(sys.argv[2:]))"
)
PLACE = "/dev/shm"  # where an engine's store is put whose tool bears no long names
_OWN = "org.labctl."
_MOST = 1 << 20  # bytes of /etc/passwd that are read


def main(words: Sequence[str]) -> int:
    """FOLDER ERRORS PARENT HIDE STORE PROGRAM ARGUMENTS: never returns when all goes well."""
    folder, errors, parent, hide, store, *argv = words
    try:
        sc.prctl(PR_SET_PDEATHSIG, 9)  # who dies leaves nothing half made behind
        if os.getppid() != int(parent):
            return 1
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        if hide:
            sc.umount(hide, 0)
        process = prepare(folder, always_upper=bool(store))["process"]
        if store:
            given = [pair for pair in process.get("env") or () if pair.startswith("HOME=")]
            with open(f"{store}/env", "w", encoding="utf-8") as file:
                file.write(given[-1] if given else f"HOME={identity(f'{folder}/rootfs', '0')[3]}")
            sc.mount(store, PLACE, None, sc.MS_BIND)
        os.execv(argv[0], argv)
    except (OSError, ContainerError, ValueError, KeyError) as error:
        with open(errors, "w", encoding="utf-8") as file:
            file.write(jsonio.dumps({"level": "error", "msg": str(error)}) + "\n")
        return 1


def prepare(folder: str, *, always_upper: bool = False) -> Config:
    """Mount the root at FOLDER/rootfs and write FOLDER/config.json, which it returns.

    Raises OSError, ContainerError.

    `always_upper`: a root that is to be read-only can be written until the engine makes it so.
    """
    with open(f"{folder}/{TEMPLATE}", encoding="utf-8") as file:
        config = jsonio.loads(file.read())
    notes = config.get("annotations") or {}
    root = f"{folder}/rootfs"
    os.makedirs(root, exist_ok=True)
    lowers = jsonio.loads(notes[spec.LOWER])
    with mounts.OverlayMaker(root) as maker:
        upper, work = notes.get(spec.UPPER, ""), notes.get(spec.WORK, "")
        if always_upper and not upper:
            upper, work = f"{folder}/upper", f"{folder}/work"
        if upper:
            mounts.prepare_upper(upper, work, lowers, (0, 0))
        overlay = maker.make(lowers, upper, work)
    sc.move_mount(overlay, sc.AT_FDCWD, root, root)
    os.close(overlay)
    plain = plain_config(config, root)
    with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
        file.write(jsonio.dumps(plain))
    return plain


def plain_config(config: Config, root: str) -> Config:
    """labctl's configuration in the words that any OCI runtime knows; users are looked up in `root`."""
    notes = config.pop("annotations", None) or {}
    config["annotations"] = {key: value for key, value in notes.items() if not key.startswith(_OWN)}
    config["ociVersion"] = OCI_VERSION
    config["root"]["path"] = "rootfs"
    for row in config["mounts"]:
        row["options"] = [word for word in row.get("options") or () if word != "idmap"]
    if profile := (config.get("linux") or {}).get("seccomp"):
        profile["syscalls"] = for_libseccomp(profile["syscalls"])
    settle_user(config["process"], notes.get(spec.USER, ""), root)
    return config


def for_libseccomp(rows: Sequence[Config]) -> list[Config]:
    """The rules without those that are to take what others on the same call's arguments have left.

    Ours are taken in their order; libseccomp knows no order, and lets a rule without arguments win over all
    others (seccomp_rule_add(3), NOTES).  What is left so meets the default action, which refuses it as well.
    """
    partly = {name for row in rows if row.get("args") for name in row["names"]}
    found = []
    for row in rows:
        names = row["names"] if row.get("args") else [name for name in row["names"] if name not in partly]
        if names:
            found.append({**row, "names": names})
    return found


def settle_user(process: Config, asked: str, root: str) -> None:
    """Numbers for a user that was given by name; rights are for root alone, as engines have it."""
    who = process.get("user") or {}
    if asked:
        uid, gid, extra, home = identity(root, asked)
        umask = {"umask": who["umask"]} if who.get("umask") is not None else {}
        process["user"] = who = {"uid": uid, "gid": gid, "additionalGids": extra, **umask}
        if not any(pair.startswith("HOME=") for pair in process.get("env") or ()):
            process["env"] = [*(process.get("env") or ()), f"HOME={home}"]
    if who.get("uid") and process.get("capabilities"):
        process["capabilities"] = {"bounding": process["capabilities"].get("bounding") or []}


def identity(root: str, user: str) -> users.Identity:
    """A user as the files below `root` have it; no link in there leads out of it.  Raises ContainerError."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="labctl-etc-") as etc:
        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in ("passwd", "group"):
                _copy(top, f"etc/{name}", f"{etc}/{name}")
        finally:
            os.close(top)
        return users.look_up(user, etc)


def _copy(root: int, source: str, target: str) -> None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = mounts.open_in_root(root, source, flags)
    except OSError:
        return  # an image without users
    with os.fdopen(fd, "rb") as inp, open(target, "wb") as out:
        out.write(inp.read(_MOST))
