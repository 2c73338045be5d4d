"""The words of a profile: names, addresses, modes, signals and capabilities, each checked and made uniform.

Every function raises ValueError whose text a person can read.  Standard library only.
"""

from __future__ import annotations

import ipaddress
import re
import signal

NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(NAME, re.ASCII)
DISK = r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}"
_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.ASCII)
_ARCH = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
ARCHES = ("x86_64", "aarch64", "riscv64")
# capabilities(7), in the order of their numbers (linux/capability.h, Linux 6.x).
_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES = tuple("CAP_" + word for word in _CAPABILITIES.split())


def shown(text: object, limit: int = 40) -> str:
    """A value for a message: quoted, control characters escaped, long ones cut."""
    value = text if isinstance(text, str) else str(text)
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut) + "'"


def name(value: str) -> str:
    """A name of a lab, node or network: it becomes a host name, so RFC 1123's letters, plus underscores."""
    if _NAME.fullmatch(value):
        return value
    if not value:
        raise ValueError("a name must not be empty")
    if len(value) > 63:
        raise ValueError(
            f"the name {shown(value)} has {len(value)} characters; 63 are the limit of a host name"
        )
    bad = sorted({c for c in value if not re.fullmatch(r"[A-Za-z0-9_-]", c, re.ASCII)})
    if bad:
        signs = " ".join("space" if c == " " else shown(c) for c in bad[:5])
        raise ValueError(f"the name {shown(value)} has {signs} in it; letters, digits, - and _ are allowed")
    raise ValueError(f"the name {shown(value)} must not begin or end with -")


def dns_name(value: str) -> str:
    """A host name of one or several labels ("db", "db.example.org")."""
    if len(value) > 253:
        raise ValueError(f"the name {shown(value)} has {len(value)} characters; 253 are the limit")
    for label in value.removesuffix(".").split("."):
        name(label)
    return value.removesuffix(".").lower()


def interface(value: str) -> str:
    """A name of a network interface: at most 15 bytes, no slash or space (dev_valid_name in Linux)."""
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", value, re.ASCII) and value not in (
        ".",
        "..",
        "lo",
        "all",
        "default",
    ):
        return value
    raise ValueError(
        f"{shown(value)} can't be an interface's name: up to 15 letters, digits, . _ - (such as eth1)"
    )


def mac(value: str) -> str:
    """A MAC address of one machine (not a group's), in lower case with colons."""
    text = value.lower()
    if not _MAC.fullmatch(text):
        raise ValueError(
            f"{shown(value)} is no MAC address; write six pairs of hex digits, such as 02:00:00:00:00:01"
        )
    if int(text[:2], 16) & 1:
        raise ValueError(f"{value} is a group (multicast) address; the first pair must be even, such as 02")
    if not text.replace("-", "").replace(":", "").strip("0"):
        raise ValueError("the MAC address must not be all zeros")
    return text.replace("-", ":")


def subnet(value: str) -> str:
    """A subnet in its shortest form; the host part must be zero."""
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            f"{shown(value)} is no subnet; write one such as 10.1.0.0/24 or fd00:1::/64"
        ) from None
    raise ValueError(f"{value} is an address in a subnet, not a subnet; did you mean {loose}?")


def address(value: str) -> str:
    """An address with or without a prefix length, in its shortest form."""
    try:
        if "%" in value:
            raise ValueError  # a zone is an interface of one host (RFC 4007), and no part of an address
        return str(ipaddress.ip_interface(value)) if "/" in value else str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(
            f"{shown(value)} is no IP address; write one such as 10.1.0.5 or fd00:1::5"
        ) from None


def bare_address(value: str) -> str:
    """An address without a prefix length."""
    if "/" in value:
        raise ValueError(f"{shown(value)} must be an address without a prefix length")
    return address(value)


def gateway(value: str) -> str:
    """An address without a prefix length, "none", or "" for labctl's choice."""
    return value if value in ("", "none") else bare_address(value)


def destination(value: str) -> str:
    """A route's destination: a subnet, an address (one host) or "default"."""
    if value == "default":
        return value
    return subnet(value) if "/" in value else subnet(str(ipaddress.ip_network(address(value))))


def arch(value: str) -> str:
    """A machine architecture by the kernel's name; amd64 and arm64 are understood."""
    found = _ARCH.get(value.lower(), value.lower())
    if found not in ARCHES:
        raise ValueError(
            f"{shown(value)} is no architecture labctl knows: {', '.join(ARCHES)}{nearest(found, ARCHES)}"
        )
    return found


def disk_name(value: str) -> str:
    """A disk's name or serial: at most 20 bytes (virtio 1.2, 5.2.6.1), and of characters safe anywhere."""
    if re.fullmatch(DISK, value, re.ASCII):
        return value
    raise ValueError(f"{shown(value)} can't be a disk's name: up to 20 letters, digits, . _ - (such as data)")


def cpu_set(value: str) -> str:
    """Numbers of CPUs as libvirt and taskset write them: 0-3,8."""
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", value, re.ASCII):
        raise ValueError(f"{shown(value)} is no set of CPUs (for example 0-3 or 0,2)")
    if len(cpus_in(value)) < len(value.split(",")):
        raise ValueError(f"{shown(value)} names a CPU twice, or a range from high to low")
    return value


def cpus_in(value: str) -> set[int]:
    """The numbers in such a set."""
    found: set[int] = set()
    for part in value.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def mode(value: object) -> str:
    """A file's mode as four octal digits; always read as octal, with or without a leading 0 or 0o."""
    text = str(value).lower().removeprefix("0o")
    if isinstance(value, bool) or not re.fullmatch(r"[0-7]{1,5}", text, re.ASCII) or int(text, 8) > 0o7777:
        raise ValueError(f"{shown(value)} is no file mode; write octal digits such as 0644 or 755")
    return f"{int(text, 8):04o}"


def capability(value: str) -> str:
    """A capability by the kernel's name, or ALL."""
    word = value.upper()
    if word == "ALL":
        return word
    word = word if word.startswith("CAP_") else "CAP_" + word
    if word not in CAPABILITIES:
        short = [known.removeprefix("CAP_") for known in CAPABILITIES]
        guess = nearest(word.removeprefix("CAP_"), short)
        raise ValueError(f"{shown(value)} is no capability of Linux{guess}")
    return word


def stop_signal(value: str) -> str:
    """A signal by its name (SIGTERM); TERM and 15 are understood."""
    text = value.upper()
    try:
        found = (
            signal.Signals(int(text)) if text.isdigit() else signal.Signals["SIG" + text.removeprefix("SIG")]
        )
    except (KeyError, ValueError):
        if re.fullmatch(r"(SIG)?RTM(IN|AX)([+-][0-9]{1,2})?", text, re.ASCII):
            return "SIG" + text.removeprefix("SIG")  # systemd's images ask for SIGRTMIN+3
        raise ValueError(f"{shown(value)} is no signal; write one such as SIGTERM or SIGINT") from None
    return found.name


def absolute(value: str) -> str:
    """A path inside a node: absolute, without .. and without NUL."""
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise ValueError(
            f"{shown(value)} must be an absolute path in the node, such as /etc/motd, without .."
        )
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def nearest(word: str, known: object) -> str:
    """ "; did you mean …?" for the known word nearest to one that isn't, or ""."""
    import difflib  # only in an error, so never in the way

    words = [str(k) for k in known] if hasattr(known, "__iter__") else []
    folded = {k.lower(): k for k in words}
    found = difflib.get_close_matches(word.lower()[:80], list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]}?" if found else ""
