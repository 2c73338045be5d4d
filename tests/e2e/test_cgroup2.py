"""`labrun` where most people's machines are: pure cgroup v2 and systemd, in a machine of a lab."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labctl.home import Home
from labctl.runtime import spec
from labctl.runtime.archive import runtime_zip
from tests.e2e.labs import CONTAINERS, Lab

pytestmark = [
    pytest.mark.needs("libvirt", "tcg", "kernel", *CONTAINERS),
    pytest.mark.timeout(900),
    pytest.mark.long,
]

PROFILE = """
name: scopes
nodes:
  vm: {tier: emulation, image: ./box, init: true, memory: 512MiB}
"""
RECIPE = """
description: base with systemd for its init, and what labrun is tried with
method: install
from: base
packages: [systemd-sysv, dbus-user-session, libpam-systemd, busybox-static]
run:                      # nobody logs in at a terminal here, and nothing comes up twice
  - for unit in getty.target systemd-update-utmp.service systemd-update-utmp-runlevel.service timers.target
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-binfmt.service systemd-udevd.service;
    do ln -sf /dev/null /etc/systemd/system/$unit; done
"""
# What every script begins with; `person` is an ordinary user with a manager of its own.
PRELUDE = """
set -e
labrun() { python3 -IS /opt/labrun.pyz "$@"; }
person() { setpriv --reuid 1000 --regid 1000 --init-groups env HOME=/home/person \
    XDG_RUNTIME_DIR=/run/user/1000 LABRUN_UNPACK=/run/user/1000 "$@"; }
value() { systemctl show -P "$2" "$1"; }
values() { systemctl show $(printf ' -p %s' "$@") labrun-c.scope; }
quiet() { "$@" >/tmp/log 2>&1 </dev/null || { cat /tmp/log; exit 1; }; }
"""
PREPARE = """
n=0; until [ -S /run/dbus/system_bus_socket ] || [ $n = 600 ]; do sleep 0.1; n=$((n+1)); done
n=0; until loginctl list-users >/dev/null 2>&1 || [ $n = 100 ]; do sleep 0.3; n=$((n+1)); done
useradd --create-home --uid 1000 --shell /bin/sh person
loginctl enable-linger person
for name in bin proc sys dev; do mkdir -p /opt/root/$name; done
cp /usr/bin/busybox /opt/root/bin
chroot /opt/root /bin/busybox --install -s /bin
for name in /opt/bundles/*; do ln -s /opt/root "$name/rootfs"; done
chmod -R a+rX /opt
n=0; until [ -S /run/user/1000/bus ] || [ $n = 100 ]; do sleep 0.2; n=$((n+1)); done
stat -fc %T /sys/fs/cgroup; cat /proc/1/comm; wc -l </proc/self/cgroup
"""
HOG = "exec dd if=/dev/zero of=/dev/null bs=200M count=1"


def config(path: str, resources: dict[str, Any], *, rootless: bool = False, **notes: str) -> dict[str, Any]:
    """A container that sleeps, with limits."""
    found = spec.starting_config(rootless=rootless)
    found["process"] |= {"terminal": False, "args": ["sleep", "1000"]}
    found["root"]["readonly"] = False
    found["annotations"] = notes
    found["linux"] |= {"cgroupsPath": path, "resources": resources}
    if rootless:
        for key in ("uidMappings", "gidMappings"):
            found["linux"][key] = [{"containerID": 0, "hostID": 1000, "size": 1}]
    return found


LIMITS: dict[str, Any] = {
    "memory": {"limit": 64 << 20, "swap": 64 << 20},
    "cpu": {"quota": 20000, "period": 100000, "shares": 512},
    "pids": {"limit": 30},
    "unified": {"memory.high": str(100 << 20), "cpu.weight": "42"},
    "devices": [{"allow": False, "access": "rwm"}],
}
BUNDLES = {
    "scope": config(
        "machine-labs.slice:labrun:c",
        LIMITS,
        **{
            "org.systemd.property.TimeoutStopSec": "uint64 7",
            "org.systemd.property.CollectMode": "'inactive'",
        },
    ),
    "plain": config("/plain/c", {**LIMITS, "unified": {"memory.high": "max", "memory.oom.group": "0"}}),
    "broken": config("machine-labs.slice:labrun:c", {"unified": {"nope.max": "1"}}),
    "address": config("/plain/a", {}, **{spec.ADDRESS: "127.0.0.7"}),
    "own": config(
        "app.slice:labrun:c", {key: LIMITS[key] for key in ("memory", "pids", "cpu")}, rootless=True
    ),
    "user": config("", {"pids": {"limit": 20}, "memory": {"limit": 32 << 20}}, rootless=True),
}
# `isolation: vserver`: the machine's network, and one address of it.
LISTEN = """
nc -l -p 4000 & n=0
until grep -q :0FA0 /proc/net/tcp* || [ $n = 50 ]; do sleep 0.2; n=$((n+1)); done
awk '/:0FA0/ { print $2 }' /proc/net/tcp*; kill $!
"""
BUNDLES["address"]["process"]["args"] = ["sh", "-c", LISTEN]
BUNDLES["address"]["linux"]["namespaces"] = [
    row for row in BUNDLES["address"]["linux"]["namespaces"] if row["type"] != "network"
]
# As root with a scope of systemd's.
SCOPE = f"""
cd /opt/bundles/scope
quiet labrun --systemd-cgroup run -d c
unit=labrun-c.scope
values Slice Delegate MemoryMax MemorySwapMax MemoryHigh TasksMax CPUQuotaPerSecUSec CPUWeight \
    TimeoutStopUSec CollectMode DevicePolicy ControlGroup
group=/sys/fs/cgroup$(value $unit ControlGroup)
systemctl daemon-reload
for name in memory.max memory.swap.max memory.high pids.max cpu.max cpu.weight; do
    echo $name=$(cat $group/$name); done
echo inside=$(labrun exec c cat /proc/self/cgroup)
echo device=$(labrun exec c sh -c 'mknod /dev/x b 254 0 && cat /dev/x' 2>&1)
labrun update --memory 80m --memory-swap 80m --pids-limit 25 --cpu-quota 50000 c
values MemoryMax TasksMax CPUQuotaPerSecUSec | sed 's/^/new./'
for name in memory.max pids.max cpu.max; do echo new.$name=$(cat $group/$name); done
labrun pause c
echo paused=$(cat $group/cgroup.freeze),$(grep frozen $group/cgroup.events),$(labrun list | grep -c paused)
labrun resume c
labrun exec c sh -c {shlex.quote(HOG)} || echo hog=$?
echo killed=$(grep -c 'oom_kill [1-9]' $group/memory.events)
labrun exec c sh -c 'n=0; while [ $n -lt 60 ]; do sleep 99 & n=$((n+1)); done' 2>&1 | grep -m1 -o "can't fork"
labrun events --stats c
labrun delete -f c
[ ! -e $group ] && echo gone=$(value $unit LoadState)
"""
# As root with folders of labrun's own.
PLAIN = f"""
cd /opt/bundles/plain
quiet labrun run -d c
group=/sys/fs/cgroup/plain/c
for name in memory.max pids.max cpu.max cpu.weight memory.oom.group; do echo $name=$(cat $group/$name); done
labrun events --interval 1h c >/tmp/events & watcher=$!
sleep 1.5
mkdir $group/inner
echo inner=$(labrun exec --cgroup inner c cat /proc/self/cgroup)
rmdir $group/inner
labrun update -r - c <<'END'
{{"pids": {{"limit": 77}}, "unified": {{"memory.high": "70000000"}}}}
END
echo new.pids=$(cat $group/pids.max) new.high=$(cat $group/memory.high)
labrun exec c sh -c {shlex.quote(HOG)} || echo hog=$?
sleep 1
echo oom=$(grep -c '"type":"oom"' /tmp/events)
labrun exec -d c sleep 1000 </dev/null >/dev/null 2>&1
echo many=$(labrun ps -f json c)
labrun kill -a c KILL
sleep 0.5
labrun delete c
kill $watcher 2>/dev/null || true
cd ../address
echo bound=$(labrun run c)
[ ! -e $group ] && echo gone=yes
cd ../broken
labrun --systemd-cgroup create c 2>&1 | grep -o 'invalid configuration.*' || true
echo left=$(systemctl list-units --all --plain --no-legend 'labrun*' | wc -l)
"""
# As an ordinary user: a scope of the user's manager; and folders below what was delegated.
PERSON = """
cd /opt/bundles/own
labrun() { person python3 -IS /opt/labrun.pyz "$@"; }
quiet labrun --systemd-cgroup run -d c
show() { person systemctl --user show -P "$1" labrun-c.scope; }
group=/sys/fs/cgroup$(show ControlGroup)
echo ControlGroup=$(show ControlGroup)
echo TasksMax=$(show TasksMax)
for name in memory.max pids.max cpu.max; do echo $name=$(cat $group/$name); done
echo exec=$(labrun exec c sh -c 'id -u; cat /proc/self/cgroup')
labrun update --pids-limit 12 c
echo new.pids=$(cat $group/pids.max)
labrun pause c
echo paused=$(grep frozen $group/cgroup.events)
labrun resume c
labrun delete -f c
[ ! -e $group ] && echo gone=$(show LoadState)
cd ../user
labrun create c 2>&1 | grep -o 'rootless needs no limits.*' || true
person systemd-run --user --scope -q -p Delegate=yes sh -c '
    python3 -IS /opt/labrun.pyz run -d c >/dev/null 2>&1 </dev/null
    pid=$(python3 -IS /opt/labrun.pyz ps -f json c | tr -d "[]")
    echo place=$(cat /proc/$pid/cgroup)
    group=/sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup)
    echo delegated=$(cat $group/pids.max),$(cat $group/memory.max)
    echo joined=$(python3 -IS /opt/labrun.pyz exec c cat /proc/self/cgroup)
    python3 -IS /opt/labrun.pyz delete -f c
    [ ! -e $group ] && echo removed=yes'
"""


@pytest.fixture
def lab(home: Home, tmp_path: Path) -> Lab:
    box = tmp_path / "box"
    box.mkdir()
    (box / "recipe.yaml").write_text(RECIPE)
    return Lab(home, tmp_path, "scopes", PROFILE)


def told(lab: Lab, script: str) -> str:
    """What a script in the machine prints; a slow emulator may take its time."""
    return lab.good("exec", f"{lab.name}/vm", "--", "sh", "-c", PRELUDE + script, timeout=240).strip()


def said(lab: Lab, script: str) -> dict[str, str]:
    """The lines NAME=VALUE that a script in the machine prints; others by their own text."""
    lines = told(lab, script).splitlines()
    return dict(line.partition("=")[::2] for line in lines if line)


def test_limits_freezing_ends_and_scopes(
    lab: Lab, tmp_path: Path, host_inventory: Callable[[], list[str]]
) -> None:
    lab.up()
    bundles = tmp_path / "bundles"
    for name, row in BUNDLES.items():
        (bundles / name).mkdir(parents=True)
        (bundles / name / "config.json").write_text(json.dumps(row))
    runtime_zip(tmp_path / "labrun.pyz")
    lab.good("cp", str(bundles), "scopes/vm:/opt/")
    lab.good("cp", str(tmp_path / "labrun.pyz"), "scopes/vm:/opt/labrun.pyz")
    assert told(lab, PREPARE).split() == ["cgroup2fs", "systemd", "1"]
    _scope(said(lab, SCOPE))
    _plain(said(lab, PLAIN))
    _person(said(lab, PERSON))
    lab.down()
    assert host_inventory() == []


def _scope(seen: dict[str, str]) -> None:
    mib = 1 << 20
    group = "/machine.slice/machine-labs.slice/labrun-c.scope"
    assert (
        seen.items()
        >= {
            "Slice": "machine-labs.slice",
            "Delegate": "yes",
            "MemoryMax": str(64 * mib),
            "MemorySwapMax": "0",
            "MemoryHigh": str(100 * mib),
            "TasksMax": "30",
            "CPUQuotaPerSecUSec": "200ms",
            "CPUWeight": "42",
            "TimeoutStopUSec": "7s",
            "CollectMode": "inactive",
            "DevicePolicy": "strict",
            "ControlGroup": group,
            # The same in force, also after systemd has written all of its own anew.
            "memory.max": str(64 * mib),
            "memory.swap.max": "0",
            "memory.high": str(100 * mib),
            "pids.max": "30",
            "cpu.max": "20000 100000",
            "cpu.weight": "42",
            "inside": "0::/",
            "new.MemoryMax": str(80 * mib),
            "new.TasksMax": "25",
            "new.CPUQuotaPerSecUSec": "500ms",
            "new.memory.max": str(80 * mib),
            "new.pids.max": "25",
            "new.cpu.max": "50000 100000",
            "paused": "1,frozen 1,1",
            "hog": "137",
            "killed": "1",
            "gone": "not-found",
        }.items()
    )
    assert "Operation not permitted" in seen["device"]
    assert "can't fork" in seen
    (events,) = [line for line in seen if line.startswith('{"type":"stats"')]
    assert re.search('"(psi|PSI)":', events)


def _plain(seen: dict[str, str]) -> None:
    assert (
        seen.items()
        >= {
            "memory.max": str(64 << 20),
            "pids.max": "30",
            "cpu.max": "20000 100000",
            "memory.oom.group": "0",
            "inner": "0::/inner",
            "new.pids": "77 new.high=69996544",
            "hog": "137",
            "oom": "1",
            "gone": "yes",
            "left": "0",
        }.items()
    )
    assert len(json.loads(seen["many"])) == 2
    assert seen["bound"].endswith("0700007F:0FA0"), "asked for any address, of IPv6 too; got the one"
    assert any("nope.max" in line for line in seen)


def _person(seen: dict[str, str]) -> None:
    group = "/user.slice/user-1000.slice/user@1000.service/app.slice/labrun-c.scope"
    assert (
        seen.items()
        >= {
            "ControlGroup": group,
            "TasksMax": "30",
            "memory.max": str(64 << 20),
            "pids.max": "30",
            "cpu.max": "20000 100000",
            "exec": "0 0::/",
            "new.pids": "12",
            "paused": "frozen 1",
            "gone": "not-found",
            "delegated": f"20,{32 << 20}",
            "joined": "0::/",
            "removed": "yes",
        }.items()
    )
    assert any("limits asked for: pids, memory" in line for line in seen)
    assert "/user@1000.service/" in seen["place"]
