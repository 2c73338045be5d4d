"""D-Bus messages and what is asked of systemd in them."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

import pytest

from labctl.linux import dbus, systemd
from labctl.linux.dbus import Bus, BusError
from labctl.runtime import scope
from labctl.runtime.errors import ContainerError

MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def test_the_bytes_of_values() -> None:
    # The specification's own examples, little-endian: "Marshaling containers", "Summary of D-Bus marshaling".
    assert dbus.marshal("s", ["foo"]) == b"\x03\0\0\0foo\0"
    assert dbus.marshal("ax", [[5]]) == b"\x08\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0"
    assert dbus.marshal("yv", [1, ("u", 7)]) == b"\x01\x01u\0\x07\0\0\0"
    assert dbus.marshal("a(sv)", [[]]) == b"\0\0\0\0\0\0\0\0"
    assert list(dbus.types_of("ssa(sv)a(sa(sv))")) == ["s", "s", "a(sv)", "a(sa(sv))"]
    for bad in ("a", "(s", "z"):
        with pytest.raises(ValueError, match="signature"):
            list(dbus.types_of(bad))


def test_addresses_of_a_bus() -> None:
    assert dbus.socket_of("tcp:host=x;unix:path=/a%20b,guid=1") == "/a b"
    assert dbus.socket_of("unix:abstract=/tmp/x") == "\0/tmp/x"
    with pytest.raises(BusError, match="only unix sockets"):
        dbus.socket_of("tcp:host=x")


@pytest.mark.needs("dbus-daemon")
def test_a_real_bus_understands_and_is_understood(tmp_path: Path) -> None:
    """dbus-daemon checks every byte of what it is sent, and would hang up at the first that is wrong."""
    argv = ["dbus-daemon", "--session", "--nofork", "--nosyslog", f"--address=unix:path={tmp_path}/bus"]
    with subprocess.Popen([*argv, "--print-address=1"], stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            address = daemon.stdout.readline().strip()
            with Bus(dbus.socket_of(address), timeout=10) as bus, Bus(f"{tmp_path}/bus", timeout=10) as other:
                (name,) = bus.call(dbus.BUS, "GetNameOwner", "s", ("org.freedesktop.DBus",))
                assert name == "org.freedesktop.DBus"
                rows = (("s", "one"), ("u", 2), ("b", True), ("a(ss)", [("a", "b")]), ("ay", [1, 2]))
                properties = [(f"P{index}", row) for index, row in enumerate(rows)]
                with pytest.raises(BusError) as caught:
                    bus.call(MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", ("u", "x", properties, ()))
                assert caught.value.name.startswith("org.freedesktop.DBus.Error.")
                bus.call(dbus.BUS, "AddMatch", "s", ("type='signal',member='NameOwnerChanged'",))
                other.call(dbus.BUS, "RequestName", "su", ("org.labctl.Test", 0))
                assert next(bus.signals("NameOwnerChanged"))[0] == "org.labctl.Test"
        finally:
            daemon.terminate()


def test_a_bus_that_is_not_there_or_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=r"unable to connect to D-Bus at .*/nothing: No such file"):
        Bus(f"{tmp_path}/nothing")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/silent")
        server.listen()
        with pytest.raises(BusError, match="timed out"):
            Bus(f"{tmp_path}/silent", timeout=0.2)
        server.settimeout(5)

        def refuse() -> None:
            server.accept()[0].close()  # the one that timed out
            connection = server.accept()[0]
            connection.recv(1000)  # else its end would be a reset, which can overtake what it said
            connection.sendall(b"REJECTED EXTERNAL\r\n")
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(BusError, match="authentication failed: REJECTED"):
            Bus(f"{tmp_path}/silent", timeout=5)
        thread.join(10)


def test_slices() -> None:
    assert systemd.slice_path("-.slice") == ""
    assert systemd.slice_path("a-b.slice") == "/a.slice/a-b.slice"
    for bad in ("a", "a/b.slice", "a--b.slice", "-a.slice", ".slice"):
        with pytest.raises(ValueError, match="invalid slice name"):
            systemd.slice_path(bad)


def test_limits_as_properties() -> None:
    rows = dict(
        scope.limit_properties(
            {
                "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
                "cpu": {"shares": 1024, "quota": 33333, "period": 100000, "cpus": "0-2,9"},
                "pids": {"limit": -1},
                "unified": {"memory.high": "max", "memory.min": "7", "cpuset.mems": "0"},
            }
        )
    )
    assert {name: value for name, (kind, value) in rows.items() if kind == "t"} == {
        "MemoryMax": 1000,
        "MemorySwapMax": 500,
        "MemoryLow": 500,
        "CPUWeight": 39,
        "CPUQuotaPerSecUSec": 340000,
        "CPUQuotaPeriodUSec": 100000,
        "TasksMax": systemd.INFINITY,
        "MemoryHigh": systemd.INFINITY,
        "MemoryMin": 7,
    }
    assert rows["AllowedCPUs"] == ("ay", [7, 2]) and rows["AllowedMemoryNodes"] == ("ay", [1])
    assert dict(scope.limit_properties({"unified": {"cpu.max": "max"}}))["CPUQuotaPerSecUSec"][1] == (
        systemd.INFINITY
    )
    assert scope.limit_properties({}) == []


def test_device_rules_as_properties() -> None:
    rules = [(False, "a", -1, -1, "rwm"), (True, "c", 1, 3, "rw"), (True, "b", -1, -1, "m")]
    assert scope.device_properties(rules) == [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [("/dev/char/1:3", "rw"), ("block-*", "m")])),
    ]
    assert scope.device_properties([*rules, (True, "a", -1, -1, "rwm")])[0] == ("DevicePolicy", ("s", "auto"))


def test_properties_by_annotation() -> None:
    asked = {
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.TimeoutStopSec": "uint64 5",
        "org.systemd.property.After": "['a.service', 'b,c.service']",
        "org.systemd.property.Before": "@as []",
        "org.systemd.property.SendSIGHUP": "true",
        "another": "one",
    }
    assert scope.asked_properties(asked) == [
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TimeoutStopUSec", ("t", 5000000)),
        ("After", ("as", ["a.service", "b,c.service"])),
        ("Before", ("as", [])),
        ("SendSIGHUP", ("b", True)),
    ]
    for bad in ("open 'quote", "[1, 'x']", "uint64 x", "true x", "[]"):
        with pytest.raises(ContainerError, match="GVariant"):
            scope.asked_properties({"org.systemd.property.Name": bad})
    with pytest.raises(ContainerError, match="does not name a property"):
        scope.asked_properties({"org.systemd.property.a/b": "1"})
    with pytest.raises(ContainerError, match="seconds"):
        scope.asked_properties({"org.systemd.property.TimeoutStopSec": "true"})
