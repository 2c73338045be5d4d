"""firewalld, where it runs: our bridges are put into its trusted zone, at runtime only.

firewalld rejects what comes from an interface of no zone.  In the zone `trusted` it lets everything pass
and leaves the say to our own table.  Its permanent configuration is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from labctl.errors import LabError
from labctl.network import nft, tools

_ZONE = "trusted"


def _program() -> str | None:
    """firewall-cmd, when firewalld is at work here: it always has a table of its own."""
    path = tools.find("firewall-cmd")
    return path if path and ("inet", "firewalld") in nft.tables() else None


def trust(bridges: Sequence[str]) -> None:
    """Put the bridges into the trusted zone; raises LabError with firewalld's words."""
    program = _program()
    if program:
        for bridge in bridges:
            tools.run(
                [program, f"--zone={_ZONE}", f"--change-interface={bridge}"],
                what=f"cannot put {bridge} into firewalld's zone {_ZONE}",
            )


def distrust(bridges: Sequence[str]) -> None:
    """Take the bridges out of the trusted zone again; absence is fine."""
    program = _program()
    if program:
        for bridge in bridges:
            argv = [program, f"--zone={_ZONE}", f"--remove-interface={bridge}"]
            code, _, err = tools.attempt_run(argv)
            if code and "NOT_ENABLED" not in err and "UNKNOWN_INTERFACE" not in err:
                raise LabError(f"cannot take {bridge} out of firewalld's zone {_ZONE}: {err.strip()}")
