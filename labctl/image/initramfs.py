"""labctl's own initramfs: busybox, dropbear, the modules a machine needs, and templates/init.

Written as a cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)
without root, and left unpacked: under emulation the guest copies 10 MB faster than it decompresses 4.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from labctl.data import data
from labctl.events import Emit, silent
from labctl.image.boot_files import fresh_file, locked, sweep
from labctl.image.boot_modules import Module, alias_file, dep_file
from labctl.image.boot_programs import programs
from labctl.image.boot_reseed import reseed_program
from labctl.image.boot_tsc import host_tsc_khz
from labctl.image.kernels import Kernel
from labctl.records import dataclass

__all__ = ["command_line", "cpio", "host_tsc_khz", "initramfs", "module_names"]

_FORMAT = 2

_SCRIPTS = ("common", "network", "dhcp", "main", "exec", "login", "power", "fstab.early", "fstab.root")


@dataclass(frozen=True)
class Node:
    """One entry of the archive: `mode` with the file type, `content` a file's bytes or a link's target."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(nodes: Iterable[Node]) -> Iterator[bytes]:
    """The archive, piece by piece.  All belongs to root; times are 0, so that equal input is equal output."""
    number = 0
    for number, node in enumerate(nodes, start=1):
        yield from _record(number, node)
    yield from _record(number + 1, Node("TRAILER!!!", 0))


def _record(number: int, node: Node) -> Iterator[bytes]:
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    major, minor = node.device
    fields = (number, node.mode, 0, 0, links, 0, len(node.content), 0, 0, major, minor, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    yield head + bytes(-len(head) % 4)
    yield node.content + bytes(-len(node.content) % 4)


def initramfs(cache: Path, kernel: Kernel, emit: Emit = silent, *, portable: bool = False) -> Path:
    """The initramfs for a kernel, made when it isn't in the cache yet; named by the digest of what goes in.

    A `portable` one has the drivers of other hypervisors as well.  Raises HostCannot when programs have to be
    downloaded and can't be.
    """
    found = programs(cache, kernel.debian, emit)
    key = hashlib.sha256(f"{_FORMAT} {kernel.arch} {kernel.vmlinuz.parent.name} {found.digest}\0".encode())
    lists = _module_lists(portable)
    for path in [*lists, *sorted(data("templates", "init").iterdir())]:
        if path.is_file():
            key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    final = cache / "boot" / "initramfs" / kernel.arch / f"{key.hexdigest()[:32]}.cpio"
    if final.exists():
        return final
    with locked(final.parent / ".lock"):
        if not final.exists():
            sweep(final)
            nodes = _with_folders(
                [*_little_root(kernel.arch), *_programs(found.folder), *_modules(kernel, portable)]
            )
            with fresh_file(final) as path, path.open("wb") as file:
                file.writelines(cpio(nodes))
    return final


def _file(path: str, content: bytes, mode: int = 0o644) -> Node:
    return Node(path, stat.S_IFREG | mode, content)


def _link(path: str, target: str) -> Node:
    return Node(path, stat.S_IFLNK | 0o777, target.encode())


def _folder(path: str, mode: int = 0o755) -> Node:
    return Node(path, stat.S_IFDIR | mode)


def _with_folders(nodes: list[Node]) -> list[Node]:
    """The nodes with every folder above them, each before what is in it."""
    named = {node.path: node for node in nodes}
    for node in nodes:
        for parent in list(Path(node.path).parents)[:-1]:
            named.setdefault(str(parent), _folder(str(parent)))
    return [named[path] for path in sorted(named)]


def _little_root(arch: str) -> list[Node]:
    """/init, and the folder that becomes /run/labctl: scripts, and the users that SSH's little root knows."""
    templates = data("templates", "init")
    nodes = [
        _file("init", (templates / "init").read_bytes(), 0o755),
        # Nothing ever comes of it: what a shell reads from to wait without a process for it.
        Node("labctl/never", stat.S_IFIFO | 0o600),
        Node("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        Node("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        _folder("newroot"),
        _link("proc", "labctl/proc"),
        _link("sys", "labctl/sys"),
        _link("lib", "labctl/lib"),
        _link("run/labctl", "../labctl"),
        _link("labctl/bin/sh", "busybox"),
        _file("labctl/bin/enter", (templates / "enter").read_bytes(), 0o755),
        _file("labctl/bin/modprobe", (templates / "modprobe").read_bytes(), 0o755),
        _file("labctl/etc/passwd", b"root:x:0:0:root:/root:/bin/enter\n"),
        _file("labctl/etc/group", b"root:x:0:\n"),
        _file("labctl/etc/shells", b"/bin/enter\n/bin/sh\n"),
        _link("labctl/etc/acpi/PWRF/00000080", "../../../boot/power"),
        _link("labctl/log", "/var/lib/labctl/log"),
        _folder("labctl/root", 0o700),
        _link("labctl/root/.ssh", "/cfg/ssh"),
    ]
    nodes += [_folder(f"labctl/{name}") for name in ("cfg", "dev", "proc", "running", "sys", "tmp")]
    if own := reseed_program(arch):
        nodes.append(_file("labctl/bin/reseed", own, 0o755))
    for name in _SCRIPTS:
        mode = 0o755 if name in ("power", "dhcp") else 0o644
        nodes.append(_file(f"labctl/boot/{name}", (templates / name).read_bytes(), mode))
    return nodes


def _programs(folder: Path) -> Iterator[Node]:
    for path in sorted(folder.rglob("*")):
        target = f"labctl/{path.relative_to(folder)}"
        if path.is_symlink():
            yield _link(target, str(path.readlink()))
        elif path.is_file():
            yield _file(target, path.read_bytes(), 0o755)


def _modules(kernel: Kernel, portable: bool) -> Iterator[Node]:
    tree = kernel.tree()
    wanted: list[Module] = tree.closure(module_names(portable))
    base = f"labctl/lib/modules/{kernel.version}"
    paths = {module.name: f"{module.name}.ko" for module in wanted}
    for module in wanted:
        yield _file(f"{base}/{paths[module.name]}", tree.read(module))
    yield _file(f"{base}/modules.dep", dep_file(wanted, paths, tree).encode())
    yield _file(f"{base}/modules.alias", alias_file(wanted).encode())
    yield _file(f"{base}/modules.symbols", b"")


def _module_lists(portable: bool) -> list[Path]:
    names = ["modules.txt", *(["modules-portable.txt"] if portable else [])]
    return [data("images", "kernels", name) for name in names]


def module_names(portable: bool = False) -> list[str]:
    """The modules named in images/kernels/modules.txt; with `portable`, those of modules-portable.txt too."""
    lines = [line for path in _module_lists(portable) for line in path.read_text().splitlines()]
    words = [word for line in lines for word in line.partition("#")[0].split()]
    return [word for word in words if not word.startswith("[")]


def command_line(
    kernel: Kernel,
    *,
    console: str = "",
    host_arch: str = "",
    tsc_khz: int = 0,
    quiet: bool = True,
    xen: bool = False,
    extra: Iterable[str] = (),
) -> str:
    """The kernel's command line for a quick boot.

    `console` is the kernel's device ("" : the usual one of the architecture).  `tsc_khz` is the host's TSC
    frequency, see host_tsc_khz: without it an emulated `microvm` sometimes hangs while it measures.
    It counts only where `host_arch`, when given, is the kernel's own.  With `xen` it is for a kernel that
    Xen starts, which has Xen's console and no PC around it.  `extra` goes to the end.
    (Documentation/admin-guide/kernel-parameters.txt)
    """
    usual = "hvc0" if xen else _CONSOLES.get(kernel.arch, "ttyS0")
    words = [f"console={console or usual}"]
    if quiet:
        words.append("quiet")
    words += [
        "panic=-1",  # reboot at once: the hypervisor sees it, and no machine stands still unseen
        "mitigations=off",
        "cryptomgr.notests",
        "random.trust_cpu=on",
        "rcupdate.rcu_expedited=1",
        "net.ifnames=0",
    ]
    if kernel.arch == "x86_64" and not xen:
        # noreplace-smp: rewriting thousands of lock prefixes takes an emulator 0.25 s, and nothing needs it
        words += ["no_timer_check", "tsc=reliable", "8250.nr_uarts=1", "noreplace-smp"]
        if tsc_khz and host_arch in ("", kernel.arch):
            words.append(f"tsc_early_khz={tsc_khz}")
    words += extra
    return " ".join(words)


_CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0", "riscv64": "ttyS0"}
