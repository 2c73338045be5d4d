"""The serial console of a machine, on this host or inside a machine of the lab."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from labctl.errors import LabError
from labctl.hypervisor import console
from labctl.hypervisor.domain import Domain
from labctl.tiers.guests import Guest

# In the host machine: join our two streams to the guest's terminal, until either side ends, or until the
# process whose number stands in the second file is told to end: an end of input alone is not always heard.
# dd and not cat for what the terminal says: cat has the kernel move it to the pipe (sendfile), which on a
# terminal waits for more and holds what is there.
_RELAY = """
exec 3<>"$1" 4<&0 || exit 1
stty raw -echo <&3
dd bs=4096 <&3 2>/dev/null & shown=$!
cat <&4 >&3 & typed=$!
trap 'kill $shown $typed 2>/dev/null; exit 0' TERM
echo $$ >"$2"
while kill -0 $shown 2>/dev/null && kill -0 $typed 2>/dev/null; do sleep 1; done
kill $shown $typed 2>/dev/null
rm -f "$2"
"""
_END = 'read -r pid <"$1" && rm -f "$1" && kill "$pid"'


_LINGER = 0.3  # seconds for what was typed last to arrive


def attach(
    machine: Domain, fd_in: int, fd_out: int, *, escape: bytes = console.ESCAPE, force: bool = False
) -> None:
    """Join two descriptors to the console until one side ends or `escape` is typed.

    A terminal on `fd_in` is in raw mode meanwhile.  Raises LabError when the machine is off, Busy when
    someone else is at the console of a machine of this host (`force` joins beside them).
    """
    if not isinstance(machine, Guest):
        console.attach(machine, fd_in, fd_out, escape=escape, force=force)
        return
    from labctl.tiers.machines import host_machine

    terminal = _terminal(machine)
    host = host_machine(machine.host, machine.host_domain.name)
    note = f"/run/labctl/console.{machine.short}.{os.getpid()}"
    reader, writer = os.pipe()

    def typed() -> None:
        _pass_on(fd_in, writer, escape)
        with contextlib.suppress(LabError):  # the relay has ended by itself
            time.sleep(_LINGER)
            host.run(["sh", "-c", _END, "sh", note], user="0", cwd="/", timeout=10)

    threading.Thread(target=typed, name="console", daemon=True).start()
    try:
        with console.raw(fd_in):
            argv = ["sh", "-c", _RELAY, "sh", terminal, note]
            host.exec(argv, stdin=reader, stdout=fd_out, user="0", cwd="/")
    finally:
        os.close(reader)


def _terminal(machine: Guest) -> str:
    """The pseudo terminal in the host machine that is the guest's console."""
    path = console.terminal(machine, "console")
    if not path:
        raise LabError(f"the libvirt of {machine.host_domain.name} names no console of {machine.name}")
    return path


def _pass_on(fd_in: int, writer: int, escape: bytes) -> None:
    """Pass on what is typed until the escape character, the end of input, or the end of the other side."""
    try:
        while data := os.read(fd_in, 4096):
            typed, found, _ = data.partition(escape)
            os.write(writer, typed)
            if found:
                break
    except OSError:
        pass  # the other side has ended
    finally:
        os.close(writer)
