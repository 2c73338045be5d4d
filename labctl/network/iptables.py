"""Living with other people's iptables: Docker and ufw set FORWARD's policy to DROP.

An `accept` in our own nft table doesn't save a packet that another table drops, and with br_netfilter
even the frames between two nodes of one bridge come by FORWARD.  So where the host's iptables would drop
them, our bridges get an accept rule there, marked by a comment, in DOCKER-USER (the chain that Docker
keeps for others) or in FORWARD, and in INPUT.  What may pass is still our own table's decision.
Nothing else of the user's rules is ever changed.  Works with iptables-nft and iptables-legacy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from labctl.looks import parse_mark
from labctl.network import nft, tools
from labctl.records import dataclass

_DROPS = re.compile(r"-j (DROP|REJECT|QUEUE|NFQUEUE)\b")
_WAIT = ("-w", "5")  # s to wait for the xtables lock


@dataclass(frozen=True)
class Variant:
    """One iptables whose filter table is in use: its program."""

    program: str

    def question(self, table: str = "filter") -> tuple[str, ...]:
        """The command that prints its rules, without counters."""
        return (self.program, *_WAIT, "-t", table, "-S")

    def rules(self, table: str = "filter") -> list[str]:
        """Its rules as `-S` prints them; empty when they can't be read."""
        code, out, _ = tools.attempt_run(self.question(table))
        return out.splitlines() if code == 0 else []


def loaded(version: int) -> set[str]:
    """The legacy tables in use.  Only to ask iptables-legacy for a table would bring it into being."""
    name = "ip_tables_names" if version == 4 else "ip6_tables_names"
    try:
        return set(Path("/proc/thread-self/net", name).read_text().split())
    except OSError:
        return set()


def variants() -> list[Variant]:
    """Every iptables with a filter table in this network namespace, v4 and v6, nft and legacy."""
    found = []
    present = nft.tables()
    for program, family, version in (("iptables", "ip", 4), ("ip6tables", "ip6", 6)):
        for flavour, used in (
            ("nft", (family, "filter") in present),
            ("legacy", "filter" in loaded(version)),
        ):
            path = tools.find(f"{program}-{flavour}") if used else None
            if path:
                found.append(Variant(path))
    return found


def questions() -> list[tuple[str, ...]]:
    """The commands that print the rules which are none of nftables'."""
    return [variant.question() for variant in variants() if variant.program.endswith("legacy")]


def wanted(rules: Sequence[str], bridges: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The rules (chain, match) that our bridges need among these; none where nothing would drop them."""
    out: list[tuple[str, tuple[str, ...]]] = []
    chains = {rule.split()[1] for rule in rules if rule.startswith(("-P", "-N"))}
    drops = any(_DROPS.search(rule) for rule in rules)
    if "FORWARD" in chains and ("-P FORWARD DROP" in rules or drops):
        chain = "DOCKER-USER" if "DOCKER-USER" in chains else "FORWARD"
        out += [(chain, (flag, bridge)) for bridge in bridges for flag in ("-i", "-o")]
    if "INPUT" in chains and ("-P INPUT DROP" in rules or drops):
        out += [("INPUT", ("-i", bridge)) for bridge in bridges]
    return out


def missing(rules: Sequence[str], mark: str, bridges: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Those of `wanted` that are not there."""
    have = {(words[1], tuple(words[2:4])) for words in ours(rules, mark)}
    return [rule for rule in wanted(rules, bridges) if rule not in have]


def ours(rules: Sequence[str], mark: str) -> list[list[str]]:
    """The rules that carry exactly this mark, as words."""
    found = [shlex.split(rule) for rule in rules if rule.startswith("-A") and "labctl:" in rule]
    return [words for words in found if _comment(words) == mark]


def _comment(words: Sequence[str]) -> str:
    at = list(words).index("--comment") if "--comment" in words else -1
    return words[at + 1] if 0 <= at < len(words) - 1 else ""


def make(mark: str, bridges: Sequence[str]) -> None:
    """Add the accept rules that are needed and not there.  Raises LabError with iptables' words."""
    for variant in variants():
        for chain, match in missing(variant.rules(), mark, bridges):
            tail = ["-m", "comment", "--comment", mark, "-j", "ACCEPT"]
            tools.run(
                [variant.program, *_WAIT, "-I", chain, "1", *match, *tail],
                what=f"cannot let {match[1]} through {chain} ({variant.program})",
            )


def lacking(mark: str, bridges: Sequence[str]) -> str:
    """Which rule is needed and not there, in words; "" when none."""
    for variant in variants():
        for chain, match in missing(variant.rules(), mark, bridges):
            return f"{Path(variant.program).name} {chain} drops {match[1]}"
    return ""


def unmake(mark: str) -> None:
    """Delete every rule that carries the mark; absence is fine.  Raises LabError."""
    for variant in variants():
        for words in ours(variant.rules(), mark):
            tools.run(
                [variant.program, *_WAIT, "-D", *words[1:]],
                what=f"cannot delete our rule from {words[1]} ({variant.program})",
            )


def marks() -> set[str]:
    """All marks of ours found on rules."""
    found = set()
    for variant in variants():
        for rule in variant.rules():
            if rule.startswith("-A") and "labctl:" in rule:
                text = _comment(shlex.split(rule))
                if parse_mark(text):
                    found.add(text)
    return found


def masquerades(ruleset: str) -> bool:
    """Whether anybody but labctl translates addresses here, by nft (the text of all tables) or legacy."""
    for table in re.split(r"^(?=table )", ruleset, flags=re.MULTILINE):
        if re.search(r"masquerade|\bsnat\b", table, re.IGNORECASE) and 'comment "labctl:' not in table:
            return True
    for program, version in (("iptables-legacy", 4), ("ip6tables-legacy", 6)):
        path = tools.find(program) if "nat" in loaded(version) else None
        if path and any(re.search(r"MASQUERADE|SNAT", rule) for rule in Variant(path).rules("nat")):
            return True
    return False
