"""What the machine under the tests can do: each capability is tried, never guessed from a file's presence.

A probe returns "" when the thing works, else the reason as a person would say it.  Every probe is
bounded in time, works in namespaces or folders of its own and leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
Probe = Callable[[], str]
PROBES: dict[str, Probe] = {}


def probe(name: str) -> Callable[[Probe], Probe]:
    """Register the trial of one capability."""

    def register(function: Probe) -> Probe:
        PROBES[name] = function
        return function

    return register


@cache
def missing(name: str) -> str:
    """Why this machine lacks a capability; "" when it has it.  Tried once a run, by one worker."""
    folder = os.environ.get("LABCTL_TEST_PROBES")
    if not folder:
        return _tried(name)
    with Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = Path(folder, f"{name}.txt")
        if not answer.exists():
            answer.write_text(_tried(name))
        return answer.read_text()


def _tried(name: str) -> str:
    try:
        return PROBES[name]()
    except subprocess.TimeoutExpired as error:
        return f"no answer within {error.timeout:.0f} s"
    except OSError as error:
        return str(error)


def required() -> list[str]:
    """The capabilities whose absence fails the run.

    LABCTL_REQUIRE is a list with commas, or `file` for tests/required-capabilities.txt; CI=true means `file`.
    """
    asked = os.environ.get("LABCTL_REQUIRE") or ("file" if os.environ.get("CI") == "true" else "")
    if asked == "file":
        lines = (HERE / "required-capabilities.txt").read_text().splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [name for name in asked.split(",") if name]


def _run(argv: Sequence[str], seconds: float = 10, **extra: str) -> str:
    """Run a program; "" when it ended with 0, else its last words."""
    if shutil.which(argv[0]) is None:
        return f"{argv[0]} is not installed"
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **extra},
    )
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"{argv[0]} ended with {done.returncode}: {last[-1] if last else 'no message'}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _serve(argv: Sequence[str], answers: Callable[[], bool], seconds: float = 8) -> str:
    """Start a server, wait until it answers, end it."""
    if shutil.which(argv[0]) is None:
        return f"{argv[0]} is not installed"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if answers():
                        return ""
                except OSError:
                    pass  # not listening yet
                time.sleep(0.03)
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()
            return f"{argv[0]} gave no answer: {words[-1] if words else 'no message'}"
        finally:
            process.kill()
            process.wait(5)


@probe("root")
def _root() -> str:
    if os.geteuid() != 0:
        return "not run as root"
    return _run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])


@probe("netns")
def _netns() -> str:
    script = (
        "ip link add name lp0 type bridge && ip link add name lp1 type veth peer name lp2 "
        "&& ip link set lp1 master lp0 && ip link set lp1 up && ip addr add 10.99.0.1/24 dev lp0"
    )
    return _run(["unshare", "--net", "sh", "-ec", script])


@probe("overlay")
def _overlay() -> str:
    script = (
        "mount -t tmpfs none /mnt && cd /mnt && mkdir l u w m && echo x > l/f "
        "&& mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m "
        "&& rm m/f && test ! -e m/f && test -f l/f"
    )
    return _run(["unshare", "--mount", "sh", "-ec", script])


@probe("cgroup")
def _cgroup() -> str:
    root = Path("/sys/fs/cgroup")
    pure = (root / "cgroup.controllers").exists()
    controllers = (root / "cgroup.controllers").read_text().split() if pure else []
    for controller in ("memory", "pids", "cpu"):
        base = root if pure else root / controller
        if not base.is_dir() or (pure and controller not in controllers):
            return f"no {controller} controller under {root}"
        group = base / f"labctl-probe-{os.getpid()}"
        group.mkdir()
        child = subprocess.Popen(["sleep", "10"])
        try:
            (group / "cgroup.procs").write_text(str(child.pid))
            if group.name not in Path(f"/proc/{child.pid}/cgroup").read_text():
                return f"a process did not move into {group}"
        finally:
            child.kill()
            child.wait(5)
            _remove_cgroup(group)
    return ""


@probe("cgroup-bpf")
def _cgroup_bpf() -> str:
    from labctl.linux import oneaddress

    return oneaddress.lacking()


@probe("cgroup-v1")
def _cgroup_v1() -> str:
    return "" if Path("/sys/fs/cgroup/memory/cgroup.procs").exists() else "no hierarchy of memory's own"


def _remove_cgroup(group: Path) -> None:
    for _attempt in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.01)  # the kernel counts the dead process for a moment


@probe("userns")
def _userns() -> str:
    return _run(["unshare", "--user", "--map-root-user", "sh", "-c", "test $(id -u) = 0"])


_IDMAP = """
import ctypes, os, sys, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno(); sys.exit(f"system call {number}: {os.strerror(code)}")
    return result
where = sys.argv[1].encode()
read, write = os.pipe(); ready, go = os.pipe()
pid = os.fork()
if pid == 0:
    call(272, ctypes.c_int(0x10000000))          # unshare(CLONE_NEWUSER)
    os.write(write, b"x"); os.read(ready, 1); os._exit(0)
os.read(read, 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{pid}/{kind}_map", "w") as file: file.write("0 100000 65536")
namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
tree = call(428, ctypes.c_int(-100), ctypes.c_char_p(where), ctypes.c_uint(0o2000001))  # open_tree
attributes = struct.pack("=QQQQ", 0x100000, 0, 0, namespace)  # MOUNT_ATTR_IDMAP
call(442, ctypes.c_int(tree), ctypes.c_char_p(b""), ctypes.c_uint(0x1000), attributes, ctypes.c_size_t(32))
os.write(go, b"x"); os.waitpid(pid, 0)
if os.stat("file", dir_fd=tree).st_uid != 100000: sys.exit("the owner did not change")
"""


@probe("idmap")
def _idmap() -> str:
    with tempfile.TemporaryDirectory(prefix="labctl-probe-") as folder:
        (Path(folder) / "file").touch()
        return _run([sys.executable, "-I", "-S", "-c", _IDMAP, folder])


@probe("nft")
def _nft() -> str:
    rule = (
        "add table inet t; add chain inet t c { type nat hook postrouting priority 100; }; "
        "add rule inet t c masquerade"
    )
    return _run(["unshare", "--net", "nft", rule])


_DNS = """
import socket, subprocess, sys, time
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen(["dnsmasq", "-k", "-C", "/dev/null", "--user=root", "--no-resolv", "--no-hosts",
    "--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces", "--address=/probe.test/10.9.8.7"])
query = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\5probe\\4test\\0\\0\\1\\0\\1"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.settimeout(0.2)
for attempt in range(25):
    try:
        sock.sendto(query, ("127.0.0.1", 53)); answer = sock.recv(512); break
    except OSError: time.sleep(0.05)
else: answer = b""
server.kill(); server.wait()
sys.exit(0 if answer.endswith(bytes([10, 9, 8, 7])) else "dnsmasq gave no answer")
"""


@probe("dnsmasq")
def _dnsmasq() -> str:
    if shutil.which("dnsmasq") is None:
        return "dnsmasq is not installed"
    return _run(["unshare", "--net", sys.executable, "-I", "-S", "-c", _DNS], 15)


@probe("libvirt")
def _libvirt() -> str:
    script = (
        "import libvirt; c = libvirt.open('test:///default'); "
        "d = c.lookupByName('test'); assert d.isActive(); print(libvirt.getVersion())"
    )
    if problem := _run([sys.executable, "-c", script]):
        return f"libvirt's Python module: {problem}"
    if not list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so")):
        return "libvirt's QEMU driver is not installed"
    return _run(["libvirtd", "--version"])


# mov al, 16; out 0xf4, al; hlt: the guest ends QEMU through isa-debug-exit with 16 * 2 + 1.
_BOOT_SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"


def _boot(accelerator: str, cpu: str) -> str:
    qemu = "qemu-system-x86_64"
    if shutil.which(qemu) is None:
        return f"{qemu} is not installed"
    with tempfile.NamedTemporaryFile(prefix="labctl-probe-", suffix=".img") as disk:
        disk.write(_BOOT_SECTOR)
        disk.flush()
        argv = [
            qemu,
            "-accel",
            accelerator,
            "-cpu",
            cpu,
            "-M",
            "pc",
            "-m",
            "8",
            "-nodefaults",
            "-display",
            "none",
        ]
        argv += ["-device", "isa-debug-exit,iobase=0xf4", "-no-reboot", "-boot", "c"]
        argv += ["-drive", f"file={disk.name},format=raw,if=ide,readonly=off"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    if done.returncode == 33:
        return ""
    words = done.stderr.strip().splitlines()
    return f"a boot sector did not run: {words[0] if words else f'QEMU ended with {done.returncode}'}"


@probe("tcg")
def _tcg() -> str:
    return _boot("tcg", "qemu64")


@probe("kvm")
def _kvm() -> str:
    flags = Path("/proc/cpuinfo").read_text().split()
    if "vmx" not in flags and "svm" not in flags:
        return "the CPU has neither vmx nor svm"
    return _boot("kvm", "host")


@probe("ovmf")
def _ovmf() -> str:
    """Whether machines can start with UEFI."""
    from labctl.errors import HostCannot
    from labctl.hypervisor.firmware import uefi

    try:
        uefi("a machine", "x86_64")
    except HostCannot as error:
        return f"{error}: {error.hint}"
    return ""


@probe("dropbear")
def _dropbear() -> str:
    with tempfile.TemporaryDirectory(prefix="labctl-probe-") as folder:
        key, port = f"{folder}/key", _free_port()
        if problem := _run(["dropbearkey", "-t", "ed25519", "-f", key]):
            return problem

        def banner() -> bool:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                return sock.recv(32).startswith(b"SSH-2.0-dropbear")

        return _serve(
            ["dropbear", "-F", "-E", "-p", f"127.0.0.1:{port}", "-r", key, "-P", f"{folder}/pid"], banner
        )


@probe("kernel")
def _kernel() -> str:
    """Whether a cloud kernel can be had from Debian (its address is known and apt can say it)."""
    argv = ["apt-get", "--print-uris", "download", "linux-image-cloud-amd64"]
    if not (problem := _run(argv, 30)):
        return ""
    return f"{problem} (apt-get update?)"


@probe("binfmt")
def _binfmt() -> str:
    """Whether a user namespace can have a binfmt_misc of its own (Linux 6.7)."""
    from labctl.linux.binfmt import private_refusal

    return private_refusal()


@probe("xen")
def _xen() -> str:
    """Whether a Xen host can be built: its packages can be had from Debian."""
    packages = ("xen-system-amd64", "libvirt-daemon-driver-xen")
    problem = _run(["apt-get", "--print-uris", "download", *packages], 30)
    return f"{problem} (apt-get update?)" if problem else ""


@probe("kvm-host")
def _kvm_host() -> str:
    """Whether a KVM host can be built: its packages can be had from Debian."""
    problem = _run(
        ["apt-get", "--print-uris", "download", "qemu-system-x86", "libvirt-daemon-driver-qemu"], 30
    )
    return f"{problem} (apt-get update?)" if problem else ""


@probe("docker-registry")
def _registry() -> str:
    with tempfile.TemporaryDirectory(prefix="labctl-probe-") as folder:
        port, config = _free_port(), Path(folder) / "config.yml"
        config.write_text(
            f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
            f"http:\n  addr: 127.0.0.1:{port}\n"
        )

        def answers() -> bool:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/v2/", timeout=1) as reply:
                return bool(reply.status == 200)

        return _serve(["docker-registry", "serve", str(config)], answers)


@probe("skopeo")
def _skopeo() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="labctl-probe-", suffix=".json") as manifest:
        manifest.write('{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}')
        manifest.flush()
        return _run(["skopeo", "manifest-digest", manifest.name])


@probe("runc")
def _runc() -> str:
    return _run(["runc", "--version"])


@probe("crun")
def _crun() -> str:
    return _run(["crun", "--version"])


@probe("podman")
def _podman() -> str:
    with tempfile.TemporaryDirectory(prefix="labctl-probe-") as folder:
        places = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--tmpdir", f"{folder}/tmp"]
        quiet = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]
        return _run(["unshare", "--mount", "podman", *places, *quiet, "images"], 20)


@probe("dbus-daemon")
def _dbus_daemon() -> str:
    return _run(["dbus-daemon", "--version"])


@probe("busybox")
def _busybox() -> str:
    return _run(["busybox", "true"])


@probe("buildah")
def _buildah() -> str:
    return _run(["buildah", "--version"])


@probe("containerd")
def _containerd() -> str:
    return _run(["ctr", "--version"]) or _run(["containerd", "--version"])
