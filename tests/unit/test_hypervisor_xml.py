"""Domain XML: golden files, hostile names, and what follows from architecture and type."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import UsageError
from labctl.hypervisor.connection import library
from labctl.hypervisor.domain import Domain, DomainDisk, DomainNic, DomainShare
from labctl.hypervisor.xml import NAMESPACE, digest_of, domain_xml, mark_of, shape, target_names, uuid_of
from labctl.looks import Owner
from labctl.resource.codec import decode, encode

GOLDEN = Path(__file__).parent / "golden"


def domain(**changes: object) -> Domain:
    base = Domain(
        owner=Owner("feedc0de", "12345678"),
        name="web",
        uri="qemu:///system",
        domain="hello-web",
        title="web of lab hello",
        memory_bytes=128 << 20,
        kernel="/cache/vmlinux",
        initrd="/cache/initramfs",
        cmdline='console=ttyS0 quiet x="1 < 2 & 3"',
        disks=(
            DomainDisk(path="/lab/disk.qcow2", format="qcow2", serial="labroot", backing="/cache/base.raw"),
            DomainDisk(path="/lab/config.tar", serial="labconfig", readonly=True),
        ),
        nics=(
            DomainNic(bridge="lb0123456789", ifname="lt0000000001", mac="52:54:00:00:00:01"),
            DomainNic(bridge="lbabcdef0123", ifname="lt0000000002", mac="52:54:00:00:00:02", mtu=1400),
        ),
        console_log="/lab/console.log",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


CASES = {
    "emulated": domain(),
    "hardware": domain(type="kvm", machine="q35", vcpus=2),
    "arm": domain(arch="aarch64", kernel="/cache/vmlinuz-arm64"),
    "riscv": domain(arch="riscv64", kernel="/cache/vmlinuz-riscv64"),
    "bare": domain(kernel="", initrd="", cmdline="", disks=(), nics=(), console_log="", title="", rng=False),
    "built": domain(
        vcpus=4,
        topology=(1, 2, 2),
        pin=("0-1",),
        hugepages=True,
        balloon=True,
        disks=(
            DomainDisk(path="/lab/disk.qcow2", format="qcow2", serial="labroot", cache="none", io="native"),
        ),
    ),
    "unaware": domain(
        type="kvm",
        kvm_paravirt=False,
        vcpus=2,
        topology=(1, 2, 1),
        pin=("0", "1,3"),
        hugepages=True,
        shares=(DomainShare(path="/lab/volumes/data", tag="labshare0"),),
    ),
    "shared": domain(shares=(DomainShare(path="/lab/volumes/data", tag="labshare0"),)),
    "disks": domain(
        scsi=True,
        disks=(
            *domain().disks,
            DomainDisk(path="/lab/disk-data.qcow2", format="qcow2", serial="data"),
            DomainDisk(path="/lab/disk-fast.raw", serial="fast", bus="scsi", cache="none", io="native"),
            DomainDisk(path="/srv/tools.img", serial="tools", bus="sata", readonly=True),
            DomainDisk(
                path="/lab/disk-given.qcow2",
                format="qcow2",
                serial="SN-1",
                backing="/srv/given.qcow2",
                backing_format="qcow2",
            ),
        ),
    ),
    "uefi": domain(firmware="/usr/share/OVMF/OVMF_CODE_4M.fd", nvram="/lab/nvram.fd", graphics=True),
    "rich": domain(
        graphics=True, balloon=True, channels=("org.labctl.0",), firmware="/usr/share/qemu/qboot.rom"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    """LABCTL_GOLDEN=write renews the files; look at the difference before committing it."""
    run_as = "+64055:+64055" if case in ("rich", "shared") else ""
    item = CASES[case]
    # The digest changes with every word of the template; it has a test of its own.
    text = domain_xml(item, run_as).replace(digest_of(item), "DIGEST")
    path = GOLDEN / f"hypervisor_domain_{case}.xml"
    if os.environ.get("LABCTL_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    ElementTree.fromstring(text)


@pytest.mark.parametrize("case", CASES)
def test_libvirt_reads_it_as_it_was_meant(case: str) -> None:
    """By libvirt's own parser, in its driver for tests, which runs nothing."""
    item = CASES[case]
    text = domain_xml(item)
    libvirt = library()
    conn = libvirt.open("test:///default")
    try:
        # Its test driver knows one domain type alone; QEMU's namespace is QEMU's driver's.
        plain = re.sub("<qemu:commandline>.*</qemu:commandline>", "", text, flags=re.DOTALL)
        read = ElementTree.fromstring(
            conn.defineXML(plain.replace(f"type='{item.type}'", "type='test'", 1)).XMLDesc()
        )
    finally:
        conn.close()
    assert [pin.get("cpuset") for pin in read.iterfind("cputune/vcpupin")] == [
        pin.replace("0,1", "0-1") for pin in (item.pin * item.vcpus if len(item.pin) == 1 else item.pin)
    ]
    topology = read.find("cpu/topology")
    seen = (
        () if topology is None else tuple(int(topology.get(w, "0")) for w in ("sockets", "cores", "threads"))
    )
    assert seen == item.topology
    assert (read.find("memoryBacking/hugepages") is not None) == item.hugepages
    assert [share.get("dir") for share in read.iterfind("devices/filesystem/source")] == [
        s.path for s in item.shares
    ]
    drivers = [disk.find("driver") for disk in read.iterfind("devices/disk")]
    # libvirt puts them in the order of their buses.
    assert sorted((d.get("cache"), d.get("io") or "") for d in drivers if d is not None) == sorted(
        (disk.cache, disk.io) for disk in item.disks
    )
    hidden = item.type == "kvm" and not item.kvm_paravirt
    assert (read.find("features/kvm/hidden") is not None) == hidden
    assert (read.find("clock/timer[@name='kvmclock']") is not None) == hidden


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=60)


@given(title=texts, cmdline=texts, path=texts)
def test_hostile_text_stays_text(title: str, cmdline: str, path: str) -> None:
    awkward = [title, cmdline, path]
    if any(mark in text for text in awkward for mark in "\ufffe\uffff"):
        return
    item = domain(title=title, cmdline=cmdline, disks=(DomainDisk(path="/lab/" + path),))
    root = ElementTree.fromstring(domain_xml(item))
    assert (root.findtext("title") or "") == title
    assert (root.findtext("os/cmdline") or "") == cmdline
    source = root.find("devices/disk/source")
    assert source is not None and source.get("file") == "/lab/" + path
    assert len(root.findall("devices/disk")) == 1


@pytest.mark.parametrize("name", ["'/><evil a='", "]]>", "</name>", '"', "&amp;", "<!--", "a\nb", "日本"])
def test_hostile_names_reach_the_metadata_whole(name: str) -> None:
    item = domain(name=name, title=name)
    root = ElementTree.fromstring(domain_xml(item))
    owner = root.find(f"metadata/{{{NAMESPACE}}}owner")
    assert owner is not None and len(root.findall("metadata/*")) == 1
    # XML 1.0, 3.3.3: a newline in an attribute is read as a blank.
    assert owner.get("mark") == mark_of(item).replace("\n", " ")
    assert root.findtext("title") == name


@pytest.mark.parametrize("text", ["a\0b", "\x1b[31m", "\x08", "\ufffe", "\ud800"])
def test_what_no_xml_can_carry_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        domain_xml(domain(title=text))


def test_the_digest_tells_what_matters() -> None:
    same = digest_of(domain())
    assert (
        digest_of(domain(needs=("bridge:a",), after=("dns:b",), node="web", home_state="/elsewhere")) == same
    )
    for change in (
        {"memory_bytes": 1 << 28},
        {"cmdline": "other"},
        {"cpu": "max"},
        {"disks": ()},
        {"type": "kvm"},
        {"nics": domain().nics[::-1]},
    ):
        assert digest_of(domain(**change)) != same


def test_the_uuid_follows_from_the_mark() -> None:
    assert uuid_of(domain()) == uuid_of(domain(memory_bytes=1, title="x"))
    assert uuid_of(domain()) != uuid_of(domain(owner=Owner("feedc0de", "87654321")))
    assert uuid_of(domain()) != uuid_of(domain(name="other"))


def test_cpu_by_tier_and_wish() -> None:
    assert (shape(domain()).cpu_model, shape(domain()).cpu_features) == ("qemu64", (("require", "rdrand"),))
    assert shape(domain(type="kvm")).cpu_mode == "host-passthrough"
    wished = shape(domain(cpu="Nehalem,+svm,-aes"))
    assert (wished.cpu_model, wished.cpu_features) == ("Nehalem", (("require", "svm"), ("disable", "aes")))
    with pytest.raises(UsageError, match="architecture vax"):
        shape(domain(arch="vax"))


def test_disk_names_go_past_the_alphabet() -> None:
    names = target_names([DomainDisk(path="x")] * 28)
    assert names[0] == "vda" and names[25:] == ["vdz", "vdaa", "vdab"]
    assert target_names([DomainDisk(path="x", bus="sata"), DomainDisk(path="x")]) == ["sda", "vda"]


def test_round_trip_through_json() -> None:
    for item in CASES.values():
        assert decode(Domain, encode(item)) == item
