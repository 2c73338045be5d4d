"""What is on this host, as comparable lines: taken before and after a lab, the two must be equal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Inventory:
    """Everything labctl may make on a host, one line a thing, by kind."""

    things: dict[str, frozenset[str]] = field(default_factory=dict)

    def difference(self, later: Inventory, only: str = "") -> list[str]:
        """What appeared ("+ link …") or went ("- link …") since; with `only`, lines holding that text.

        `only` serves where other people work on the same host at the same time.
        """
        lines = []
        for kind in sorted({*self.things, *later.things}):
            before, after = self.things.get(kind, frozenset()), later.things.get(kind, frozenset())
            lines += [f"+ {kind} {line}" for line in sorted(after - before) if only in line]
            lines += [f"- {kind} {line}" for line in sorted(before - after) if only in line]
        return lines


def take(base: Path) -> Inventory:
    """Look at the host now.  Processes and files are those of homes whose path begins with `base`."""
    aliases = dict(_links())
    return Inventory(
        {
            "link": frozenset(f"{name} {alias}" for name, alias in aliases.items()),
            "address": frozenset(_addresses(aliases)),
            "route": frozenset(_routes(aliases)),
            "nft": frozenset(_nft()),
            "iptables": frozenset(_iptables()),
            "mount": frozenset(_mounts()),
            "cgroup": frozenset(_cgroups()),
            "netns": frozenset(_named_namespaces()),
            "process": frozenset(_processes(str(base))),
            "domain": frozenset(_domains()),
            "network": frozenset(_virsh("net-list", "--all", "--name")),
            "file": frozenset(_files(base)),
        }
    )


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else ""


def _links() -> Iterator[tuple[str, str]]:
    for path in sorted(Path("/sys/class/net").iterdir()):
        try:
            yield path.name, (path / "ifalias").read_text().strip()
        except OSError:
            continue  # a file such as bonding_masters, or gone meanwhile


def _addresses(aliases: dict[str, str]) -> Iterator[str]:
    for link in json.loads(_output("ip", "-json", "address", "show") or "[]"):
        name = link.get("ifname", "")
        for address in link.get("addr_info", []):
            yield f"{name} {address.get('local')}/{address.get('prefixlen')} {aliases.get(name, '')}"


def _routes(aliases: dict[str, str]) -> Iterator[str]:
    for family in ("-4", "-6"):
        text = _output("ip", family, "route", "show", "table", "all")
        for line in text.splitlines():
            device = re.search(r"\bdev (\S+)", line)
            yield (
                re.sub(r" expires \S+", "", line).strip() + " " + aliases.get(device[1] if device else "", "")
            )


def _nft() -> Iterator[str]:
    table = ""
    for line in _output("nft", "list", "ruleset").splitlines():
        text = re.sub(r"counter packets \d+ bytes \d+", "counter", line.strip())
        text = re.sub(r"expires \S+", "", text)
        table = text if text.startswith("table ") else table
        if text and text != "}":
            yield f"{table} / {text}"


def _iptables() -> Iterator[str]:
    for program in ("iptables-save", "ip6tables-save"):
        table = ""
        for line in _output(program).splitlines():
            if line.startswith("*"):
                table = line
            elif line.startswith(("-", ":")):
                rule = re.sub(r"\[\d+:\d+\]", "", line)
                yield f"{program} {table} {rule}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        yield f"{fields[4]} {fields[fields.index('-') + 1]}"


def _cgroups() -> Iterator[str]:
    base = Path("/sys/fs/cgroup")
    roots = [base, *(path for path in base.iterdir() if path.is_dir())] if base.is_dir() else []
    for root in roots:
        ours = root / "labctl"
        if ours.is_dir():
            yield from (str(path) for path, _folders, _files in os.walk(ours) if path != str(ours))


def _named_namespaces() -> Iterator[str]:
    folder = Path("/run/netns")
    if folder.is_dir():
        yield from (path.name for path in folder.iterdir())


def _processes(base: str) -> Iterator[str]:
    """Processes that carry this home in their command line or working folder."""
    for path in Path("/proc").glob("[0-9]*"):
        if path.name == str(os.getpid()):
            continue
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            folder = str((path / "cwd").readlink())
        except OSError:
            continue  # gone meanwhile, or a kernel thread
        if base in command or folder.startswith(base):
            yield f"{path.name} {command}"


def _virsh(*words: str) -> Iterator[str]:
    # Only a libvirtd that runs is asked: asking must not start one.
    if Path("/run/libvirt/libvirt-sock").is_socket():
        text = _output("virsh", "--connect", "qemu:///system", *words)
        yield from (line.strip() for line in text.splitlines() if line.strip())


def _domains() -> Iterator[str]:
    yield from _virsh("list", "--all", "--name")


def _files(base: Path) -> Iterator[str]:
    """The files of labs: not the ledger, the instance's id and the cache, which stay."""
    for home in base.parent.glob(f"{base.name}*"):
        for folder, folders, files in os.walk(home / "state/labs"):
            yield from (f"{folder}/{name}" for name in (*folders, *files))
