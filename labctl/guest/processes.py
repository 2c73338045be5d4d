"""The processes of a machine, asked by a script that any POSIX shell runs."""

from __future__ import annotations

from typing import Any

from labctl.guest.machine import Process
from labctl.linux import proctable

# A line a process: user id, kibibytes of memory, /proc/PID/stat; and one with its command line.  Only who has
# memory of its own has a command line, so the kernel's tasks cost no program.
SCRIPT = r"""
LC_ALL=C; export LC_ALL
cd /proc || exit 1
for p in [0-9]*; do
	[ "$p" = "$$" ] && continue
	s= u=0 r=0 c=
	{ IFS= read -r s <"$p/stat"; } 2>/dev/null || continue
	{ while read -r key value rest; do
		case $key in Uid:) u=$value ;; VmRSS:) r=$value ;; esac
	done <"$p/status"; } 2>/dev/null
	[ "$r" = 0 ] || c=$(tr '\000\n' '  ' <"$p/cmdline" 2>/dev/null)
	printf '%s %s %s\n%s\n' "$u" "$r" "$s" "$c"
done
echo done
"""


def processes_of(row: dict[str, Any]) -> Process:
    """A row of the table (labctl.linux.proctable)."""
    return Process(**{name: row[name] for name in row if name in Process.__dataclass_fields__})


def parse(text: str) -> list[Process] | None:
    """What the script said; None when it did not come to its end."""
    lines = text.split("\n")
    if len(lines) < 2 or lines[-2:] != ["done", ""]:
        return None
    found = []
    for head, command in zip(lines[0:-2:2], lines[1:-2:2], strict=False):
        uid, _, rest = head.partition(" ")
        memory, _, stat = rest.partition(" ")
        clean = "".join(char if char.isprintable() else "?" for char in command)
        try:
            row = proctable.parse(stat, {"Uid": [uid], "VmRSS": [memory]}, clean)
        except (ValueError, IndexError):
            continue  # not a process that this kernel describes as Linux does
        found.append(processes_of(row))
    return sorted(found, key=lambda process: process.pid)
