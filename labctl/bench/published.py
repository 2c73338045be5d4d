"""What others published, beside our own figures: only figures that could be found where SOURCES says.

They were measured on other machines, with other workloads and years ago: a reader may see whether the shape
is the same, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from labctl.bench.numbers import number
from labctl.bench.results import Results, Row

_FELTER, _FIRECRACKER, _LIGHTVM, _GVISOR = "Felter 2015", "Firecracker", "LightVM 2017", "gVisor 2019"

# Where a figure was read.  A paper whose own text could not be read is named with who quotes it.
SOURCES = {
    _FELTER: (
        "W. Felter, A. Ferreira, R. Rajamony, J. Rubio: An updated performance comparison of virtual "
        "machines and Linux containers. ISPASS 2015, doi:10.1109/ISPASS.2015.7095802 (also IBM RC25482), "
        "its sections on the network, as retold in github.com/rhiswell/container-networking-notes, "
        "paper-notes/ispass15-vm-vs-container.md"
    ),
    _FIRECRACKER: (
        "SPECIFICATION.md of github.com/firecracker-microvm/firecracker: one processor, 128 MiB, a minimal "
        "kernel, no serial console. The paper is A. Agache et al.: Firecracker: lightweight virtualization "
        "for serverless applications. USENIX NSDI 2020"
    ),
    _LIGHTVM: (
        "F. Manco et al.: My VM is lighter (and safer) than your container. ACM SOSP 2017, "
        "doi:10.1145/3132747.3132763: its abstract"
    ),
    _GVISOR: (
        "E. G. Young et al.: The true cost of containing: a gVisor case study. USENIX HotCloud 2019, as "
        "quoted in github.com/GWU-Advanced-OS/project-project-gvisor, research/performance.md"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One figure of a source.  `ours` is the key of our nearest row; `ratio`: it is over the bare host."""

    source: str
    what: str
    figure: str
    ours: str
    ratio: bool = False


_BULK, _LATENCY = "network.bulk-host-in-1.rate", "network.rr-host.median"
_START = "lifecycle.restart.start"

FIGURES = (
    Published(_FELTER, "bulk TCP over a 10 Gbit/s link, Docker or KVM over native (the link was the limit)",
              "1.00×", _BULK, True),
    Published(_FELTER, "time of a request and its response, Docker with NAT over native", "about 2×",
              _LATENCY, True),
    Published(_FELTER, "time of a request and its response, KVM over native", "1.8×", _LATENCY, True),
    Published(_FIRECRACKER, "start of a microVM to its init", "at most 125 ms", _START),
    Published(_FIRECRACKER, "memory of a microVM without the guest's own (ours: with it)", "at most 5 MiB",
              "cost.idle.pss"),
    Published(_LIGHTVM, "boot of a VM with a unikernel", "2.3 ms", _START),
    Published(_GVISOR, "time of a simple system call, gVisor over runc", "2.2×", "kernel.syscall.time", True),
)  # fmt: skip


def table(results: Results) -> list[tuple[Published, dict[str, str]]]:
    """Each published figure with ours by place; places without one are left out."""
    rows = {row.key: row for row in results.rows}
    return [(item, _ours(item, rows[item.ours]) if item.ours in rows else {}) for item in FIGURES]


def _ours(item: Published, row: Row) -> dict[str, str]:
    found = {}
    for name, cell in row.cells.items():
        if item.ratio and cell.ratio:
            found[name] = f"{number(cell.ratio.ratio)}×"
        elif not item.ratio and cell.summary:
            found[name] = f"{number(cell.summary.median)} {row.unit}"
    return found
