"""Connections and marks, on libvirt's own test driver: no daemon, no rights, milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.errors import Foreign, HostCannot, TimedOut
from labctl.home import Home
from labctl.hypervisor import power, private
from labctl.hypervisor.connection import Libvirt, Missing, Refused, close_all, connect, reach
from labctl.hypervisor.domain import Domain, holder, read_mark
from labctl.hypervisor.found import find_marked
from labctl.hypervisor.xml import NAMESPACE
from labctl.looks import Owner, Presence

pytestmark = pytest.mark.needs("libvirt")
URI = "test:///default"


NODE = "<node><domain type='test'><name>test</name><memory>1024</memory><os><type>hvm</type></os></domain></node>"  # noqa: E501


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libvirt]:
    """A test driver with one running domain, of this test's own: test:///default is one for the process."""
    path = tmp_path / "node.xml"
    path.write_text(NODE)
    monkeypatch.setattr(f"{__name__}.URI", f"test://{path}")
    yield reach(URI, None)
    close_all()


def machine(name: str = "web", domain: str = "test", instance: str = "feedc0de") -> Domain:
    return Domain(
        owner=Owner(instance, "12345678"), name=name, uri=URI, domain=domain, memory_bytes=1 << 20, title="t"
    )


def put_mark(link: Libvirt, domain: str, text: str) -> None:
    """What defining does for a real one; the test driver takes no QEMU XML."""
    xml = f"<owner mark='{text}' digest='x'/>"
    link.call(domain, lambda conn: conn.lookupByName(domain).setMetadata(2, xml, "labctl", NAMESPACE, 3))


def test_given_uri_is_used_and_pooled(link: Libvirt, tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    assert connect(URI, home) is link
    assert not link.private
    assert not (tmp_path / "state").exists(), "nothing is started for a given URI"
    link.close()
    link.close()
    assert reach(URI, None) is not link


def test_a_wrong_uri_is_one_sentence(tmp_path: Path) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    with pytest.raises(HostCannot, match="libvirt at nonsense") as caught:
        connect("nonsense:///x", home)
    assert caught.value.hint


def test_the_remedy_fits_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "state", tmp_path / "cache")
    with pytest.raises(HostCannot) as caught:
        reach(f"qemu:///system?socket={tmp_path}/none", None)
    assert caught.value.hint == "start it: systemctl start libvirtd"
    monkeypatch.setattr(private, "join", lambda _: -1)  # a private one that is killed before it is asked
    with pytest.raises(HostCannot) as caught:
        reach(private.uri(home), home)
    assert "run the command again" in caught.value.hint and "libvirtd.log" in caught.value.hint


def test_libvirts_refusals_become_ours_and_print_nothing(
    link: Libvirt, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Missing, match=r"^virtual machine x: libvirt has no such domain$"):
        link.call("virtual machine x", lambda conn: conn.lookupByName("x"))
    with pytest.raises(Refused, match=r"^virtual machine y: ") as caught:
        link.call("virtual machine y", lambda conn: conn.defineXML("<domain>"))
    assert caught.value.code
    assert capfd.readouterr() == ("", "")


def test_other_errors_pass_as_they_are(link: Libvirt) -> None:
    with pytest.raises(ZeroDivisionError):
        link.call("x", lambda conn: 1 // 0)


def test_a_call_that_does_not_end_is_left(link: Libvirt) -> None:
    answer = threading.Event()
    with pytest.raises(TimedOut, match=r"node z: libvirt did not answer within 0\.1 s"):
        link.call("node z", lambda conn: answer.wait(), seconds=0.1)
    answer.set()
    assert link.dead
    assert reach(URI, None) is not link


def test_a_domain_without_our_mark_is_foreign(link: Libvirt) -> None:
    look = machine().look()
    assert look.presence is Presence.FOREIGN
    assert "labctl did not make it" in look.detail
    with pytest.raises(Foreign, match="virtual machine web"):
        machine().make()
    machine().unmake()
    with pytest.raises(Foreign):
        power.pause(machine())
    assert link.call("test", lambda conn: conn.lookupByName("test").isActive())
    assert machine(domain="nothing").look().presence is Presence.ABSENT


def test_marks_are_read_from_metadata_never_from_names(link: Libvirt) -> None:
    assert find_marked("feedc0de", link) == []
    put_mark(link, "test", machine().mark)
    [found] = find_marked("feedc0de", link)
    assert (found.kind, found.name, found.lab) == ("domain", "web", "12345678")
    assert find_marked("0ther000", link) == []
    assert machine().look().presence is Presence.BROKEN, "ours, but with another digest"
    assert Domain.look_many([machine(), machine("x", "nothing")])["x"].presence is Presence.ABSENT
    found.remove()
    assert find_marked("feedc0de", link) == []
    found.remove()


@pytest.mark.parametrize("text", ["", "labctl", "labctl:a:b", "something:else:a:b:c"])
def test_a_damaged_mark_is_not_ours(link: Libvirt, text: str) -> None:
    put_mark(link, "test", text)
    assert find_marked("feedc0de", link) == []
    assert machine().look().presence is Presence.FOREIGN
    assert link.call("t", lambda conn: read_mark(conn.lookupByName("test"))) == (text, "x")
    assert "someone else" in holder(text)
