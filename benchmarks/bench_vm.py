"""(a) `labctl up` of one emulated micro VM to SSH, against bare QEMU with the same kernel, initramfs, disks.

Bare QEMU gets a bridge, a tap and a name-server-free segment made beforehand, and no libvirt.  Both are
timed to the first byte of the SSH server's banner.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import Bench, arguments, bench, goal, machine, median, spread, table

PROFILE = """
name: bench
networks: {lan: {}}
nodes: {vm: {tier: emulation, image: micro, memory: 128MiB, command: [sleep, infinity]}}
"""
BRIDGE, TAP = "lbbare0", "ltbare0"
SSH_SECONDS = 60.0


def labctl_up(made: Bench, profile: Path, *words: str) -> dict[str, float]:
    """One `up`, by its phases in ms: until the first step, steps before the machine's, define and start,
    from the started machine to the banner, and what is left until the program has ended."""
    began = time.time()
    done = made.run("up", "--progress", "json", *words, str(profile))
    ended = time.time()
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    steps = [event for event in events if event["event"] in ("StepStarted", "StepDone")]
    at = {(event["event"], event["kind"]): event["at"] for event in steps}
    marks = [
        began,
        min(event["at"] for event in steps),
        at["StepStarted", "domain"],
        at["StepDone", "domain"],
        at["StepDone", "reach"],
        ended,
    ]
    names = ("before", "others", "start", "boot", "after")
    spans = [(later - earlier) * 1000 for earlier, later in itertools.pairwise(marks)]
    return {**dict(zip(names, spans, strict=True)), "total": (marks[4] - began) * 1000}


def specification(made: Bench) -> tuple[dict[str, Any], str, str]:
    """The machine as labctl planned it, its address, and the host's on its segment with the prefix."""
    database = sqlite3.connect(made.home / "state" / "ledger.db")
    (text,) = database.execute("SELECT spec FROM resources WHERE kind='domain'").fetchone()
    database.close()
    status = made.json("status", "bench")
    address = status["nodes"][0]["addresses"][0]
    subnet = ipaddress.ip_network(status["networks"][0]["subnet4"])
    host = f"{next(subnet.hosts())}/{subnet.prefixlen}"
    return json.loads(text), address.partition("/")[0], host


def keep_disks(spec: dict[str, Any], folder: Path) -> None:
    """Copy the small disks aside before the lab goes: an overlay as it was when it was new, the config."""
    for disk in spec["disks"]:
        target = folder / Path(disk["path"]).name
        if disk["backing"]:
            base = ["-b", disk["backing"], "-F", disk["backing_format"]]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(target)], check=True)
        else:
            shutil.copyfile(disk["path"], target)
        disk["path"] = str(target)


@contextlib.contextmanager
def segment(host: str) -> Iterator[None]:
    """A bridge with the host's address and a tap in it."""
    made: list[str] = []
    try:
        for name, words in ((BRIDGE, "link add {} type bridge"), (TAP, "tuntap add {} mode tap")):
            subprocess.run(["ip", *words.format(name).split()], check=True)
            made.append(name)
        subprocess.run(["ip", "address", "add", host, "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", TAP, "master", BRIDGE], check=True)
        for name in made:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield
    finally:
        for name in reversed(made):
            subprocess.run(["ip", "link", "delete", name], check=True)


def command(spec: dict[str, Any], folder: Path) -> list[str]:
    """QEMU's command line: the devices that libvirt gives the same machine."""
    argv = ["qemu-system-x86_64", "-machine", "pc,usb=off", "-accel", "tcg", "-cpu", "qemu64,+rdrand"]
    argv += ["-m", str(spec["memory_bytes"] >> 20), "-smp", str(spec["vcpus"]), "-display", "none"]
    argv += ["-no-user-config", "-nodefaults", "-serial", "null"]
    argv += ["-kernel", spec["kernel"], "-initrd", spec["initrd"], "-append", spec["cmdline"]]
    for number, disk in enumerate(spec["disks"]):
        only = "on" if disk["readonly"] else "off"
        drive = f"file={disk['path']},format={disk['format']},if=none,id=d{number},cache=unsafe"
        argv += ["-drive", f"{drive},readonly={only}"]
        argv += ["-device", f"virtio-blk-pci,drive=d{number},serial={disk['serial']}"]
    argv += ["-netdev", f"tap,id=n0,ifname={TAP},script=no,downscript=no"]
    argv += ["-device", f"virtio-net-pci,netdev=n0,mac={spec['nics'][0]['mac']},romfile="]
    argv += ["-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0"]
    for number, name in enumerate(spec["channels"]):
        argv += ["-device", f"virtio-serial-pci,id=s{number}"]
        argv += ["-chardev", f"socket,id=c{number},path={folder}/channel{number},server=on,wait=off"]
        argv += ["-device", f"virtserialport,bus=s{number}.0,chardev=c{number},name={name}"]
    return argv


def bare(spec: dict[str, Any], address: str, folder: Path) -> float:
    """Start QEMU; ms until the banner."""
    began = time.perf_counter()
    running = subprocess.Popen(command(spec, folder), stdin=subprocess.DEVNULL)
    try:
        while not banner(address):
            if running.poll() is not None or time.perf_counter() - began > SSH_SECONDS:
                raise RuntimeError("bare QEMU did not come up")
            time.sleep(0.02)
        return (time.perf_counter() - began) * 1000
    finally:
        running.kill()
        running.wait()


def banner(address: str) -> bool:
    """Whether an SSH server says its first words."""
    try:
        with socket.create_connection((address, 22), timeout=1.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def main() -> None:
    """Both, interleaved."""
    given = arguments(__doc__ or "", rounds=7)
    machine()
    with bench(given.cache) as made:
        profile = made.folder / "vm.yaml"
        profile.write_text(PROFILE)
        labctl_up(made, profile)  # fetches the kernel, builds the image, probes this host
        spec, address, host = specification(made)
        keep_disks(spec, made.folder)
        made.down()
        phases: list[dict[str, float]] = []
        alone: list[float] = []
        restored: list[float] = []
        for _ in range(given.rounds):
            phases.append(labctl_up(made, profile, "--boot"))
            made.down()
            with segment(host):
                alone.append(bare(spec, address, made.folder))
            restored.append(labctl_up(made, profile, "--from-snapshot")["total"])
            made.down()
    total = [phase["total"] for phase in phases]
    print("## One emulated machine, from nothing to SSH\n")
    rows = [("labctl up --boot", spread(total)), ("bare QEMU", spread(alone))]
    table(("", "ms, min / median / max"), [*rows, ("labctl up, from a snapshot", spread(restored))])
    words = {
        "before": "Python, imports, profile, plan",
        "others": "folder, keys, disks, bridge, firewall, DNS, libvirtd",
        "start": "libvirt: define and start",
        "boot": "boot to the banner, polled every 20 ms",
        "after": "(after SSH: status, end of the program)",
    }
    table(("phase of labctl", "ms"), [(words[k], spread([p[k] for p in phases])) for k in words])
    goal("(a) labctl / bare QEMU", median(total) / median(alone), 1.3)
    pairs = [mine / its for mine, its in zip(restored, total, strict=True)]
    goal("(a) from a snapshot / booted, in pairs", median(pairs), 0.45)
    if given.json:
        given.json.write_text(json.dumps({"labctl": phases, "bare": alone}, indent=1))


if __name__ == "__main__":
    main()
