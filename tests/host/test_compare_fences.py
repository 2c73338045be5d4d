"""Namespaces made by the kernel, as the comparison sees them from inside."""

from __future__ import annotations

import pytest

from labctl.lab.compare import HOST, Column, compared
from labctl.lab.observe import NAMESPACES, observe_host

FENCE = ("unshare", "--user", "--map-root-user", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")


@pytest.mark.needs("userns")
@pytest.mark.parametrize("shell", [("sh",), ("busybox", "sh")], ids=" ".join)
def test_what_was_unshared_is_its_own_and_the_rest_is_the_hosts(shell: tuple[str, ...]) -> None:
    seen = observe_host(shell=(*FENCE, *shell))
    found = compared("x", [Column(HOST, seen=observe_host()), Column("box", "container", seen=seen)])
    rows = {row.key: row for row in found.rows}
    own = {"user", "uts", "ipc", "pid", "mnt"}
    assert {kind for kind in NAMESPACES if rows[f"ns-{kind}"].raw["box"] == "own"} == own
    assert {kind for kind in NAMESPACES if rows[f"ns-{kind}"].raw["box"] == "same"} == set(NAMESPACES) - own
    assert rows["kernel-shared"].values["box"] == "yes, the host's"
    assert rows["processes"].raw["box"] <= 2 < rows["processes"].raw[HOST]
    assert rows["users"].values["box"] == "1 user; root here is user 0 on the host"
