"""Where it is measured: the bare host and the nodes of a lab, one interface for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from labctl.bench.model import filled
from labctl.guest.machine import Completed

HOST = "host"  # the bare host's name here, and in --baseline
DATA = "/var/tmp/labctl-bench"
PEER_LABEL = "bench"  # `labels: {bench: peer}`: a node at the other end, which is not measured itself


class Runs(Protocol):
    """What a place must be able to do."""

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Completed:
        """See guest.machine.Executes.run."""


@dataclass(frozen=True)
class Place:
    """One place.  `emulated` and `nested` figures say nothing about the technology on real hardware."""

    name: str
    tier: str  # as shown: "hardware → emulation" for a fallback
    machine: Runs
    accelerator: str = ""
    emulated: bool = False
    nested: bool = False
    inside: str = ""
    addresses: tuple[str, ...] = ()
    cpus: int = 1
    memory: int = 0  # bytes it was given, 0: no limit
    cpu_limit: float = 0.0
    pids_limit: int = 0
    volume: str = ""  # where its first volume is mounted
    seconds: float = 0.0  # from its start to reachable, at this `up`

    @property
    def is_host(self) -> bool:
        """Whether it is the bare host."""
        return self.name == HOST

    @property
    def mark(self) -> str:
        """What stands at its name wherever its figures do; "" for one that runs natively."""
        return ", ".join(
            word for word, is_so in (("emulated", self.emulated), ("nested", self.nested)) if is_so
        )

    def words(self, seconds: float, **more: str) -> dict[str, str]:
        """What the {words} of a command stand for here."""
        return {"seconds": f"{seconds:g}", "data": DATA, "cpus": str(self.cpus), **more}

    def shell(self, script: str, timeout: float, words: Mapping[str, str] | None = None) -> Completed:
        """Run a shell script here, with its {words} filled in."""
        return self.machine.run(["sh", "-c", filled(script, dict(words or {}))], timeout=timeout)

    def to_json(self) -> dict[str, Any]:
        """What is kept of it with the samples."""
        return {
            "name": self.name,
            "tier": self.tier,
            "accelerator": self.accelerator,
            "emulated": self.emulated,
            "nested": self.nested,
            "inside": self.inside,
            "cpus": self.cpus,
            "memory": self.memory,
            "cpu_limit": self.cpu_limit,
            "pids_limit": self.pids_limit,
            "volume": self.volume,
        }
