"""Verbs that go into nodes: exec, run, ssh, console, cp, logs, attach."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from labctl.cli import light as typer
from labctl.cli import moments, names, report, screen
from labctl.cli.backend import options
from labctl.cli.session import Session, key_values, verb
from labctl.errors import LabError, UsageError
from labctl.lab import api
from labctl.records import dataclass
from labctl.workers import Pool

if TYPE_CHECKING:
    from labctl.guest.machine import LogChunk

app = typer.Typer(rich_markup_mode=None)

# What comes after the node belongs to its command, even when it looks like an option.
PASS_ON = {"allow_interspersed_args": False}

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="LAB/NODE, or NODE.", autocompletion=names.complete_node)
]
Command = Annotated[
    list[str], typer.Argument(metavar="[--] COMMAND...", help="The command and its arguments.")
]
Env = Annotated[
    list[str],
    typer.Option("--env", "-e", metavar="KEY=VALUE", help="Set a variable; KEY alone passes this one's on."),
]
Workdir = Annotated[str, typer.Option("--workdir", "-w", metavar="DIR", help="The folder to run in.")]
User = Annotated[str, typer.Option("--user", "-u", metavar="USER", help="user, user:group or numbers.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Kill it after so long; 0: never.")
]


def machine_of(session: Session, address: names.Address) -> Any:
    """The machine of a node (labctl.guest.machine.Machine)."""
    return api.machine(address.lab, address.node, options(session))


def _find(session: Session, node: str) -> tuple[names.Address, Any]:
    address = names.Names.read(session.home).node(node)
    return address, machine_of(session, address)


def _command(words: list[str]) -> list[str]:
    rest = words[1:] if words[:1] == ["--"] else words
    if not rest:
        raise UsageError("no command was given", hint="labctl exec NODE -- COMMAND")
    return rest


@app.command("exec", context_settings=PASS_ON)
@verb(data=False)
def execute(
    session: Session,
    node: Node,
    command: Command,
    env: Env = [],  # noqa: B006
    workdir: Workdir = "",
    user: User = "",
    tty: Annotated[
        bool | None,
        typer.Option(
            "--tty/--no-tty", "-t/-T", help="Give it a terminal or not; else: when stdin and stdout are one."
        ),
    ] = None,
    timeout: Timeout = 0.0,
) -> int:
    """Run a command in a node, as if it were here.

    stdin, stdout and stderr are the command's, and so is the exit code: 127 when it was not found,
    126 when it can't be executed, 128 + n when signal n ended it.  The same for VMs and containers.

    \b
    Examples:
      labctl exec web -- ls -l /
      labctl exec spectrum/emu -- uname -r
      tar c src | labctl exec web -- tar x -C /srv
      labctl exec -e LANG=C.UTF-8 -u www-data web -- id
    """
    words = _command(command)
    _address, machine = _find(session, node)
    terminal = sys.stdin.isatty() and sys.stdout.isatty() if tty is None else tty
    code: int = machine.exec(
        words,
        stdin=0,
        stdout=1,
        stderr=2,
        tty=terminal,
        env=key_values(env, "--env"),
        cwd=workdir,
        user=user,
        timeout=timeout or None,
    )
    return code


@dataclass(frozen=True)
class Ran:
    """A command that ran in one of many nodes; `error` when it could not be run at all."""

    node: str
    code: int
    stdout: str
    stderr: str
    error: str = ""


@app.command(context_settings=PASS_ON)
@verb()
def run(
    session: Session,
    nodes: Annotated[
        str,
        typer.Argument(
            metavar="NODES",
            help="A lab, nodes with commas, or a pattern.",
            autocompletion=names.complete_node,
        ),
    ],
    command: Command,
    tier: Annotated[str, typer.Option("--tier", metavar="TIER", help="Only nodes of this tier.")] = "",
    labels: Annotated[
        list[str], typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only nodes with this label.")
    ] = [],  # noqa: B006
    env: Env = [],  # noqa: B006
    workdir: Workdir = "",
    user: User = "",
    timeout: Timeout = 60.0,
    parallel: Annotated[
        int, typer.Option("--parallel", "-p", metavar="N", min=1, help="So many at a time.")
    ] = 16,
) -> int:
    """Run a command in many nodes.

    Each line of output begins with its node.  Exit code 1 when it failed in any of them.

    \b
    Examples:
      labctl run spectrum -- uname -r
      labctl run 'web-*' -- systemctl is-active nginx
      labctl run --tier container spectrum -- cat /proc/1/comm
      labctl run --json spectrum -- hostname | jq -r '.results[].stdout'
    """
    words = _command(command)
    chosen = names.Names.read(session.home).select(nodes, tier=tier, labels=key_values(labels, "--label"))
    variables = key_values(env, "--env")
    many = len({address.lab for address in chosen}) > 1

    def one(address: names.Address) -> Ran:
        name = str(address) if many else address.node
        try:
            machine = machine_of(session, address)
            done = machine.run(words, env=variables, cwd=workdir, user=user, timeout=timeout or None)
        except LabError as error:
            return Ran(name, 1, "", "", str(error))
        return Ran(name, done.code, done.text, done.errors)

    results = []
    wide = max(screen.width(str(a) if many else a.node) for a in chosen)
    with Pool(min(parallel, len(chosen))) as pool:
        for result in pool.map(one, chosen):
            results.append(result)
            if not session.json:
                _show_run(result, wide)
    if session.json:
        screen.document({"command": words, "results": results})
    failed = [f"{result.node} ({result.error or result.code})" for result in results if result.code]
    if failed:
        report.warn(f"failed in {len(failed)} of {len(results)} nodes: {', '.join(failed)}")
    return 1 if failed else 0


def _show_run(result: Ran, wide: int) -> None:
    head = result.node + " " * (wide - screen.width(result.node))
    for text, stream in ((result.stdout, sys.stdout), (result.stderr, sys.stderr)):
        for line in text.splitlines():
            print(f"{head} | {screen.clean(line)}", file=stream)
        stream.flush()


# The first shell that the image has; `exec` so that the shell's exit code is the session's.
LOGIN = 'for s in "$SHELL" /bin/bash /bin/sh; do [ -x "$s" ] && exec "$s" -l; done; exec sh'


@app.command(context_settings=PASS_ON)
@verb(data=False)
def ssh(
    session: Session,
    node: Node,
    command: Annotated[
        list[str], typer.Argument(metavar="[[--] COMMAND...]", help="A command instead.")
    ] = [],  # noqa: B006
    user: User = "",
) -> int:
    """Open a login shell in a node.

    The same for VMs (over SSH, with the lab's own key and a pinned host key) and containers.

    \b
    Examples:
      labctl ssh web
      labctl ssh spectrum/emu
      labctl ssh web -- df -h /
    """
    _address, machine = _find(session, node)
    words = command[1:] if command[:1] == ["--"] else command
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    argv = words or ["/bin/sh", "-c", LOGIN]
    code: int = machine.exec(argv, stdin=0, stdout=1, stderr=2, tty=terminal, user=user)
    return code


@app.command()
@verb(data=False)
def console(
    session: Session,
    node: Node,
    force: Annotated[bool, typer.Option("--force", help="Join beside someone who is there.")] = False,
    graphical: Annotated[
        bool, typer.Option("--graphical", help="Print the command that shows its screen instead.")
    ] = False,
) -> None:
    """Attach to a machine's console (leave with Ctrl-]).

    Enter brings a shell there.  A machine with `vm: {graphics: vnc}` has a screen as well.

    \b
    Examples:
      labctl console emu
      $(labctl console emu --graphical)
    """
    address = names.Names.read(session.home).node(node)
    if graphical:
        screen.line(api.viewer(address.lab, address.node, options(session)))
        return
    if sys.stdin.isatty():
        session.say(f"console of {address}; leave with Ctrl-]")
    api.console(address.lab, address.node, options(session), 0, 1, force=force)


def split_place(text: str, known: names.Names) -> tuple[names.Address | None, str]:
    """NODE:PATH or LAB/NODE:PATH as a node and a path there; anything else is a path here.

    A path with a colon of its own is written with a slash before it: ./a:b.
    """
    node, colon, path = text.partition(":")
    if not colon or node.startswith((".", "/")) or not node or node.count("/") > 1:
        return None, text
    return known.node(node), path


@app.command()
@verb()
def cp(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", help="PATH here or NODE:PATH; - is a tar archive.")],
    target: Annotated[
        str, typer.Argument(metavar="DEST", help="PATH here or NODE:PATH; - is a tar archive.")
    ],
) -> None:
    """Copy files into a node or out of it.

    Folders with all they hold; modes, numeric owners, times and links are kept.  SRC/. means the
    content of the folder.

    \b
    Examples:
      labctl cp site/. web:/srv/www
      labctl cp spectrum/emu:/etc/os-release .
      labctl cp web:/var/log - | tar t
    """
    known = names.Names.read(session.home)
    (from_node, src), (to_node, dest) = split_place(source, known), split_place(target, known)
    if from_node and to_node:
        raise UsageError("one side must be here", hint="copy out first, then in")
    if to_node:
        copied = machine_of(session, to_node).copy_in(
            src, dest or "/", stream=sys.stdin.buffer if src == "-" else None
        )
    elif from_node:
        stream = sys.stdout.buffer if dest == "-" else None
        copied = machine_of(session, from_node).copy_out(src or "/", dest, stream=stream)
    else:
        raise UsageError("neither side is in a node", hint="write NODE:PATH for the side that is")
    for name in copied.skipped:
        report.warn(f"left out (a socket or a device): {name}")
    if session.json and not (from_node and dest == "-"):
        screen.document(screen.plain(copied))


@app.command()
@verb(data=False)
def logs(
    session: Session,
    node: Node,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", metavar="LINES", min=-1, help="Only the last ones.")
    ] = -1,
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="Lines from then on: 10m (ago) or a date and time."),
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Lines until then.")] = "",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Begin each line with the time it came.")
    ] = False,
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="stdout or stderr alone.")] = "",
) -> None:
    """Show what a node's command printed.

    Its stdout goes to stdout, its stderr to stderr. Containers keep the last 30 MiB, or what the profile's
    logging says; the times are those of the host, or of the machine that a container is inside of. What a
    machine's command prints has no times.

    \b
    Examples:
      labctl logs web
      labctl logs -f -n 20 spectrum/box
      labctl logs web --stream stderr
      labctl logs -t --since 10m web
    """
    from labctl.guest.machine import HasLogs, HasTimedLogs

    if stream not in ("", "stdout", "stderr"):
        raise UsageError(f"--stream {stream}: stdout or stderr is expected")
    first, last = (round(moments.parse(*pair) * 1e9) for pair in ((since, "--since"), (until, "--until")))
    if first and last and first > last:
        raise UsageError("--since is later than --until")
    address, machine = _find(session, node)
    if not isinstance(machine, HasLogs):
        raise UsageError(f"{address} keeps no log", hint=f"labctl console {address}")
    wanted: Any = stream or None
    lines = None if tail < 0 else tail
    if isinstance(machine, HasTimedLogs):
        chunks = machine.timed_logs(wanted, follow=follow, tail=lines, since=first, until=last)
    elif first or last or timestamps:
        raise UsageError(
            f"{address} is a machine: what its command prints is kept without times",
            hint=f"labctl logs {address} without --since, --until and --timestamps",
        )
    else:
        chunks = machine.logs(wanted, follow=follow, tail=lines)
    show(stamped(chunks) if timestamps else chunks)


def stamped(chunks: Iterable[LogChunk]) -> Iterator[LogChunk]:
    """Each line with the time at which its first byte came (RFC 3339, UTC); "-" where nobody knows."""
    from labctl.guest.machine import LogChunk
    from labctl.runtime import logbook, logread

    lines = logread.Lines()
    for chunk in chunks:
        if chunk.note:
            yield chunk
            continue
        text = b""
        for at, piece, begins in lines.pieces(logbook.STREAMS[chunk.stream], chunk.at, chunk.data):
            text += (moments.stamp(at).encode() + b" " if begins else b"") + piece
        yield LogChunk(chunk.stream, text, chunk.at)


def show(chunks: Iterable[LogChunk]) -> None:
    """Its stdout goes to stdout, its stderr to stderr; what the log says of itself is a warning."""
    for chunk in chunks:
        if chunk.note:
            report.warn(f"log: {chunk.data.decode('utf-8', 'replace').strip()}")
            continue
        out = sys.stdout.buffer if chunk.stream == "stdout" else sys.stderr.buffer
        out.write(chunk.data)
        out.flush()


@app.command()
@verb(data=False)
def attach(session: Session, node: Node) -> int:
    """Sit at a node: its console, or its command's output as it comes.

    A machine has a console (leave with Ctrl-]). The command of a container has no terminal and its input
    is empty: what it prints is shown from now on, until Ctrl-C, which it does not notice, or until it
    ends, with its exit code. For a shell in it: labctl ssh.

    \b
    Examples:
      labctl attach web
      labctl attach spectrum/emu
    """
    from labctl.guest.ssh import SshMachine

    address, machine = _find(session, node)
    if isinstance(machine, SshMachine):
        if sys.stdin.isatty():
            session.say(f"console of {address}; leave with Ctrl-]")
        api.console(address.lab, address.node, options(session), 0, 1)
        return 0
    if sys.stdin.isatty():
        session.say(f"output of {address}; leave with Ctrl-C; a shell: labctl ssh {address}")
    if machine.ended():
        raise LabError(f"{address} does not run", hint=f"labctl logs {address}, or labctl start {address}")
    show(machine.logs(None, follow=True, tail=0))
    code: int | None = machine.exit_code()
    if code is None:
        raise LabError(f"{address} ended unseen: its exit code is not known", hint=f"labctl logs {address}")
    return code
