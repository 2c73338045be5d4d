"""What a cloud image is told by its seed: read back as YAML, as cloud-init does."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from labctl.errors import HostCannot, UsageError
from labctl.image import clouddisk
from labctl.image.boot_keys import make_key
from labctl.image.bootconfig import BootConfig, Nic, Route
from labctl.image.model import BadImage
from labctl.image.nocloud import texts

KEY = make_key("host")
CONFIG = BootConfig(
    hostname="vm",
    interfaces=(
        Nic("eth0", "52:54:00:AA:BB:CC", ("10.1.2.3/24", "fd00::3/64"), mtu=1400),
        Nic("lan", "52:54:00:aa:bb:cd", ("10.5.0.2/30",)),
    ),
    gateway4="10.1.2.1",
    routes=(
        Route("10.9.0.0/16", "10.5.0.1", metric=5),
        Route("default", "fd00::1"),
        Route("10.8.0.0/16", dev="lan"),
    ),
    dns=("10.1.2.1",),
    search=("lab",),
    authorized_keys=(make_key("lab").public,),
    host_key=KEY.private,
    env={"A": "it's {{ <b>: #1 }}", "B": "plain"},
)


def test_who_it_is() -> None:
    told = texts(CONFIG)
    assert told.user.startswith("#cloud-config\n")
    user = yaml.safe_load(told.user)
    assert user["hostname"] == "vm" and user["disable_root"] is False
    assert "bootcmd" not in yaml.safe_load(texts(replace(CONFIG, dns=())).user)
    assert user["ssh_keys"]["ed25519_private"] == KEY.private
    assert user["ssh_keys"]["ed25519_public"] == KEY.public.removesuffix(" host")
    root = next(one for one in user["users"] if one != "default")
    assert root["name"] == "root" and root["ssh_authorized_keys"] == list(CONFIG.authorized_keys)
    assert user["write_files"][0]["content"] == 'A="it\'s {{ <b>: #1 }}"\nB=plain\n'


def test_where_it_is() -> None:
    cards = yaml.safe_load(texts(CONFIG).network)["ethernets"]
    first, second = cards["eth0"], cards["lan"]
    assert first["match"] == {"macaddress": "52:54:00:aa:bb:cc"} and first["mtu"] == 1400
    assert first["addresses"] == ["10.1.2.3/24", "fd00::3/64"] and first["nameservers"]["search"] == ["lab"]
    assert first["routes"] == [{"to": "0.0.0.0/0", "via": "10.1.2.1"}, {"to": "::/0", "via": "fd00::1"}]
    assert second["routes"] == [
        {"to": "10.9.0.0/16", "via": "10.5.0.1", "metric": 5},
        {"to": "10.8.0.0/16", "scope": "link"},
    ]
    four = texts(replace(CONFIG, ipv6=False))
    assert yaml.safe_load(four.network)["ethernets"]["eth0"]["addresses"] == ["10.1.2.3/24"]
    assert "net.ipv6.conf.all.disable_ipv6=1" in yaml.safe_load(four.user)["bootcmd"][0]
    assert yaml.safe_load(texts(replace(CONFIG, interfaces=())).network)["ethernets"] == {}


def test_files_and_the_instance(tmp_path: Path) -> None:
    tar = tmp_path / "f.tar"
    tar.write_bytes(b"1")
    last = yaml.safe_load(texts(CONFIG).user)["bootcmd"][-1]
    assert last[:3] == ["cloud-init-per", "instance", "labctl-resolver"] and last[-2:] == ["sh", "10.1.2.1"]
    with_files = replace(CONFIG, files=str(tar))
    one, same = texts(with_files), texts(with_files)
    tar.write_bytes(b"2")
    other = texts(with_files)
    assert yaml.safe_load(one.user)["bootcmd"][0][:3] == ["cloud-init-per", "instance", "labctl-files"]
    names = [yaml.safe_load(told.meta)["instance-id"] for told in (one, same, other)]
    assert names[0] == names[1] != names[2]


def test_disks(tmp_path: Path) -> None:
    cache, disk, backed = tmp_path / "cache", tmp_path / "d.qcow2", tmp_path / "b.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*make, str(disk), "64M"], check=True, timeout=60)
    subprocess.run([*make, "-F", "qcow2", "-b", str(disk), str(backed)], check=True, timeout=60)
    assert clouddisk.find(cache, str(disk)) is None
    kept = clouddisk.ensure(cache, str(disk), "x86_64")
    assert clouddisk.find(cache, str(disk)) == kept == clouddisk.ensure(cache, str(disk), "x86_64")
    assert clouddisk.form_of(kept.path) == "qcow2" and clouddisk.size_of(Path(kept.path)) == 64 << 20
    assert Path(kept.path).read_bytes() == disk.read_bytes()
    with disk.open("ab") as file:
        file.write(b"more")
    assert clouddisk.find(cache, str(disk)) is None
    with pytest.raises(BadImage):
        clouddisk.ensure(cache, str(backed), "x86_64")
    with pytest.raises(HostCannot, match="not for x86_64"):
        clouddisk.ensure(cache, str(disk), "aarch64")
    with pytest.raises(HostCannot, match="not for x86_64"):
        clouddisk.ensure(cache, "debian-12-arm64", "x86_64")
    (tmp_path / "text").write_text("no disk")
    with pytest.raises(UsageError, match="no disk that a machine boots from"):
        clouddisk.ensure(cache, str(tmp_path / "text"), "x86_64")
    with pytest.raises(UsageError, match="there is no"):
        clouddisk.find(cache, str(tmp_path / "gone"))
