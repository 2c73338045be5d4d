"""What others published, beside our own figures: only figures that are in the papers' own text.

They were measured on other machines, with other workloads and years ago: a reader may see whether the shape
is the same, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from labctl.bench.numbers import number
from labctl.bench.results import Results, Row

_FELTER, _FIRECRACKER, _LIGHTVM, _GVISOR = "Felter 2015", "Firecracker 2020", "LightVM 2017", "gVisor 2019"

SOURCES = {
    _FELTER: (
        "W. Felter, A. Ferreira, R. Rajamony, J. Rubio: An updated performance comparison of virtual "
        "machines and Linux containers. IEEE ISPASS 2015, doi:10.1109/ISPASS.2015.7095802 (also IBM RC25482)"
    ),
    _FIRECRACKER: (
        "A. Agache et al.: Firecracker: lightweight virtualization for serverless applications. "
        "USENIX NSDI 2020"
    ),
    _LIGHTVM: (
        "F. Manco et al.: My VM is lighter (and safer) than your container. ACM SOSP 2017, "
        "doi:10.1145/3132747.3132763"
    ),
    _GVISOR: (
        "E. G. Young et al.: The true cost of containing: a gVisor case study. USENIX HotCloud 2019"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One figure of a paper.  `ours` is the key of our nearest row; `ratio`: it is over the bare host."""

    source: str
    what: str
    figure: str
    ours: str
    ratio: bool = False


_COMPRESS, _LU, _START = "cpu.compress.seconds", "cpu.lu.rate", "lifecycle.restart.start"

FIGURES = (
    Published(_FELTER, "speed of a compression (PXZ), Docker over native", "0.96×", _COMPRESS, True),
    Published(_FELTER, "speed of a compression (PXZ), untuned KVM over native", "0.78×", _COMPRESS, True),
    Published(_FELTER, "Linpack, Docker over native", "1.00×", _LU, True),
    Published(_FELTER, "Linpack, untuned KVM over native", "0.83×", _LU, True),
    Published(_FIRECRACKER, "boot of a microVM to its application's code", "at most 125 ms", _START),
    Published(_FIRECRACKER, "memory of a microVM beyond the guest's own", "about 3 MB", "cost.idle.pss"),
    Published(_LIGHTVM, "boot of a unikernel's VM", "2.3 ms", _START),
    Published(_GVISOR, "time of a simple system call, gVisor over native", "at least 2.2×",
              "kernel.syscall.time", True),
)  # fmt: skip


def table(results: Results) -> list[tuple[Published, dict[str, str]]]:
    """Each published figure with ours by place; places without one are left out."""
    rows = {row.key: row for row in results.rows}
    return [(item, _ours(item, rows[item.ours]) if item.ours in rows else {}) for item in FIGURES]


def _ours(item: Published, row: Row) -> dict[str, str]:
    found = {}
    for name, cell in row.cells.items():
        if item.ratio and cell.ratio and cell.ratio.ratio:
            # The paper gives speeds where we give the time of a fixed piece of work.
            speed = item.ours == _COMPRESS
            found[name] = f"{number(1 / cell.ratio.ratio if speed else cell.ratio.ratio)}×"
        elif not item.ratio and cell.summary:
            found[name] = f"{number(cell.summary.median)} {row.unit}"
    return found
