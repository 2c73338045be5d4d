"""Files for a QEMU that runs as a user of its own: reachable, and no more open than that."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.errors import HostCannot, LabError
from labctl.home import Home
from labctl.hypervisor import access
from labctl.hypervisor.domain import Domain, DomainDisk
from labctl.looks import Owner

pytestmark = pytest.mark.needs("root")
UID = GID = 64999
LABEL = f"+{UID}:+{GID}"


@pytest.fixture
def closed() -> Iterator[int]:
    before = os.umask(0o077)
    yield before
    os.umask(before)


@pytest.fixture
def domain(home: Home, closed: int) -> Domain:
    """A node whose every file and folder is root's alone."""
    node = home.lab("12345678") / "nodes" / "web"
    node.mkdir(parents=True)
    home.cache.mkdir(parents=True)
    home.state.parent.chmod(0o755)
    for path in (node / "disk.qcow2", node / "config.tar", home.cache / "base.raw", home.cache / "vmlinux"):
        path.write_bytes(b"content")
    keys = home.lab("12345678") / "ssh"
    keys.mkdir()
    (keys / "id_ed25519").write_text("secret")
    return Domain(
        owner=Owner("feedc0de", "12345678"),
        name="web",
        uri="qemu:///system",
        home_state=str(home.state),
        home_cache=str(home.cache),
        domain="web",
        memory_bytes=1 << 20,
        kernel=str(home.cache / "vmlinux"),
        disks=(
            DomainDisk(path=str(node / "disk.qcow2"), format="qcow2", backing=str(home.cache / "base.raw")),
            DomainDisk(path=str(node / "config.tar"), serial="labconfig", readonly=True),
        ),
    )


def can(uid: int, flag: str, path: str) -> bool:
    """Whether that user may read (-r) or write (-w) the file, by the kernel's word."""
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "test", flag, path]
    return subprocess.run(argv, timeout=10).returncode == 0


def test_qemus_user_gets_what_it_needs_and_others_nothing(domain: Domain, home: Home) -> None:
    disk, config = domain.disks
    assert not can(UID, "-r", disk.path)
    access.prepare(domain, LABEL)
    access.prepare(domain, LABEL)
    assert can(UID, "-w", disk.path) and can(UID, "-r", config.path)
    assert can(UID, "-r", disk.backing) and can(UID, "-r", domain.kernel)
    assert not can(UID, "-w", disk.backing) and not can(UID, "-w", domain.kernel)
    stranger = UID + 1
    assert not can(stranger, "-r", disk.path) and not can(stranger, "-r", config.path)
    key = home.lab("12345678") / "ssh" / "id_ed25519"
    for uid in (UID, stranger):
        assert not can(uid, "-r", str(key))
        assert not can(uid, "-r", str(home.state)), "folders may be passed, not listed"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_uid == 0
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_without_a_label_nothing_changes(domain: Domain) -> None:
    before = [Path(disk.path).stat() for disk in domain.disks]
    access.prepare(domain, "")
    assert [Path(disk.path).stat() for disk in domain.disks] == before


def test_a_closed_folder_outside_the_home_is_named(domain: Domain, home: Home) -> None:
    home.state.parent.chmod(0o700)
    with pytest.raises(HostCannot, match=str(home.state.parent)) as caught:
        access.prepare(domain, LABEL)
    assert "chmod o+x" in caught.value.hint
    assert stat.S_IMODE(home.state.parent.stat().st_mode) == 0o700


def test_a_missing_file_is_named(domain: Domain) -> None:
    Path(domain.disks[1].path).unlink()
    with pytest.raises(LabError, match=r"virtual machine web: .*config\.tar: No such file"):
        access.prepare(domain, LABEL)
