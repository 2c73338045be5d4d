"""From a profile and the facts of a host to a graph: the plans of shipped profiles, and tiers chosen."""

from __future__ import annotations

import difflib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labctl import engines
from labctl.data import data
from labctl.errors import Failures, HostCannot, UsageError
from labctl.home import Home
from labctl.hypervisor.domain import Domain
from labctl.hypervisor.snapshot import parks
from labctl.hypervisor.xml import domain_xml
from labctl.image.model import ImageConfig
from labctl.lab import addresses, facts, planner
from labctl.lab.facts import arch_of, check_room, kernel_of
from labctl.lab.model import Options
from labctl.lab.names import lab_id
from labctl.looks import Owner
from labctl.profile import Profile, load, load_text
from labctl.resource.protocol import key_of
from labctl.tiers.context import Choice, ImageFacts, KernelFacts
from labctl.tiers.guests import Guest
from labctl.tiers.hosts import crowded, with_hosts
from labctl.tiers.select import Ability, abilities, choose

PLANS = Path(__file__).parent / "plans"
SHIPPED = sorted(path.stem for path in data("profiles").glob("*.yaml"))
YES = Ability(True)
EVERYTHING = {("container", ""): YES, ("emulation", ""): YES, ("hardware", ""): YES}
EVERYTHING |= {(f"engine:{name}", ""): Ability(True, detail=f"{name} 1.1") for name in engines.NAMES}
NO_KVM = Ability(False, "this CPU offers no virtualization", "turn it on in the firmware")
NO_XEN = Ability(False, "Xen does not run here", "boot Xen")
XEN_HOST = Ability(True, detail="Xen 4.17 PV")
NO_HOSTS = {("xen-host", ""): Ability(False, "no packages"), ("kvm-host", ""): Ability(False, "no image")}
THIS_HOST = {**EVERYTHING, **NO_HOSTS, ("hardware", ""): NO_KVM, ("para", ""): NO_XEN}
WITH_XEN = {**THIS_HOST, ("xen-host", ""): XEN_HOST}


def planned(
    profile: Profile,
    *,
    before: dict[str, dict[str, Sequence[str]]] | None = None,
    host: dict[tuple[str, str], Ability] = WITH_XEN,
    nested: str = "auto",
) -> planner.Planned:
    """The plan on a host of fixed facts: nothing of the machine under the test goes in."""
    owner = Owner("feedbeef", lab_id("feedbeef", profile.name))
    profile = with_hosts(profile, abilities(host), "x86_64", nested)
    chosen = choose(profile, "x86_64", abilities(host), skip_unavailable=True, fallback="")
    nodes = profile.nodes.values()
    wanted = addresses.wanted_subnets(profile)
    subnets = {
        name: (f"10.{100 + i}.0.0/24" if four else "", f"fd00:{i}::/64" if six else "")
        for i, (name, (four, six)) in enumerate(wanted.items())
    }
    facts = planner.HostFacts(
        home=Home(Path("/state"), Path("/cache")),
        owner=owner,
        choices=chosen,
        images={
            (n.image, arch_of(n, profile)): ImageFacts(
                n.image, arch_of(n, profile), "sha256:00", ("/layer",), ImageConfig(cmd=("sh",))
            )
            for n in nodes
        },
        kernels={
            (kernel_of(n, profile), arch_of(n, profile)): KernelFacts("/vmlinuz", "/initrd", "quiet", "6")
            for n in nodes
        },
        arch="x86_64",
        disks={n.name: "/disk" for n in nodes},
        kernel_names={n.name: kernel_of(n, profile) for n in nodes},
        uri="qemu:///system",
        ports={(n.name, i): p.host_port or 40000 + i for n in nodes for i, p in enumerate(n.ports)},
    )
    where = addresses.plan(profile, owner, subnets, before or {})
    return planner.build(profile, profile.name, facts, where)


def drawn(plan: planner.Planned) -> str:
    """The graph as text: in making order, what each needs and comes after."""
    lines = []
    for item in plan.graph:
        lines.append(key_of(item) + (f"  of {item.node}" if item.node else ""))
        lines += [f"    needs {key}" for key in item.needs]
        lines += [f"    after {key}" for key in item.after if key in plan.graph]
    for name, record in plan.records.items():
        told = f"skipped: {record.skipped}" if record.skipped else f"{record.label} on {record.runs_on}"
        lines.append(f"node {name}: {told}; {', '.join(record.addresses) or 'no address'}")
    lines += [f"claim {claim.kind} {claim.value} for {claim.note}" for claim in plan.claims]
    return "\n".join(lines) + "\n"


def profile_of(text: str, name: str = "lab") -> Profile:
    return load_text(text, name=name)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_plan_of_a_shipped_profile_is_the_one_on_file(name: str) -> None:
    """LABCTL_WRITE_PLANS=1 writes the files anew, for a change that means to change them."""
    text = drawn(planned(load(data("profiles") / f"{name}.yaml")))
    file = PLANS / f"{name}.txt"
    if os.environ.get("LABCTL_WRITE_PLANS") == "1":
        file.write_text(text)
    wanted = file.read_text()
    lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), str(file), "now", lineterm="")
    assert text == wanted, "\n".join(lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_plan_is_the_same_every_time(name: str) -> None:
    path = data("profiles") / f"{name}.yaml"
    one, two = planned(load(path)), planned(load(path))
    assert drawn(one) == drawn(two)
    assert list(one.graph) == list(two.graph)


def test_two_labs_of_one_profile_share_no_name_on_the_host() -> None:
    text = "nodes: {a: {ports: ['8080:80']}, b: {tier: emulation}}\nnetworks: {x: {}, y: {}}\n"
    text = "defaults: {networks: [x, y]}\n" + text
    one, two = planned(profile_of(text, "one")), planned(profile_of(text, "two"))

    def host_names(plan: planner.Planned) -> set[str]:
        found = {seg.bridge for seg in plan.addresses.segments.values()}
        for record in plan.records.values():
            found |= {i.host_name for i in record.interfaces} | {i.mac for i in record.interfaces}
            found |= {record.folder, record.domain or record.run_root}
        return found | {str(getattr(item, "table", "")) for item in plan.graph if item.kind == "firewall"}

    assert not host_names(one) & host_names(two)
    links = [seg.bridge for seg in one.addresses.segments.values()]
    links += [i.host_name for record in one.records.values() for i in record.interfaces]
    assert len(set(links)) == len(links) and all(len(name) <= 15 for name in links)


def test_who_depends_on_another_comes_after_what_it_waits_for() -> None:
    text = "nodes:\n  a: {depends_on: {b: ready, c: started}}\n  b: {}\n  c: {tier: emulation}\n"
    order = [key_of(item) for item in planned(profile_of(text)).graph]
    assert order.index("container:a") > max(order.index("ready:b"), order.index("reach:c"))


def test_a_node_is_not_waited_for_when_it_is_skipped() -> None:
    text = "nodes:\n  a: {depends_on: {h: ready}}\n  h: {tier: hardware}\n"
    plan = planned(profile_of(text))
    assert "container:a" in plan.graph and "ready:h" not in plan.graph
    assert plan.records["h"].skipped == NO_KVM.reason
    assert plan.records["h"].addresses == ()


def test_a_skipped_node_publishes_no_port_and_claims_none() -> None:
    plan = planned(
        profile_of("nodes:\n  h: {tier: hardware, ports: ['8080:80']}\n  a: {ports: ['8081:80']}\n")
    )
    assert [claim.value for claim in plan.claims if claim.kind == "port"] == ["tcp/*/8081"]
    firewall = plan.graph["firewall:lab"]
    assert [port.host_port for port in firewall.ports] == [8081]  # type: ignore[attr-defined]


HARD = "nodes:\n  h: {tier: hardware}\n  k: {tier: hardware}\n  a: {}\n"


def chosen(
    text: str, *, skip: bool = False, fallback: str = "", host: dict[tuple[str, str], Ability] = THIS_HOST
) -> dict[str, Choice]:
    probe = abilities(host)
    return choose(profile_of(text), "x86_64", probe, skip_unavailable=skip, fallback=fallback)


def test_a_tier_that_can_run_is_taken() -> None:
    found = chosen(HARD, host=EVERYTHING)
    assert {name: choice.tier for name, choice in found.items()} == {
        "h": "hardware",
        "k": "hardware",
        "a": "container",
    }
    assert all(choice.runs_on and not choice.skipped for choice in found.values())


def test_all_that_cannot_run_is_refused_at_once() -> None:
    with pytest.raises(HostCannot) as caught:
        chosen(HARD)
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, Failures)
    told = [cause.message for cause in caught.value.causes]
    assert told == [f"{name}: hardware can't run here: {NO_KVM.reason}" for name in ("h", "k")]
    for cause in caught.value.causes:
        assert NO_KVM.remedy in cause.hint
        assert "--skip-unavailable" in cause.hint and "--fallback emulation" in cause.hint


def test_skipping_keeps_the_rest_and_the_reason() -> None:
    found = chosen(HARD, skip=True)
    assert found["h"].skipped == NO_KVM.reason and found["h"].remedy == NO_KVM.remedy
    assert not found["a"].skipped


def test_a_fallback_is_named_and_never_taken_silently() -> None:
    found = chosen(HARD, fallback="emulation")
    assert found["h"].tier == "emulation" and "TCG" in found["h"].accelerator
    plan_records = planned(profile_of(HARD)).records
    assert plan_records["a"].label == "container"


def test_a_fallback_that_cannot_run_either_is_refused() -> None:
    host = {**THIS_HOST, ("emulation", ""): Ability(False, "QEMU is not installed", "apt install qemu")}
    with pytest.raises(HostCannot) as caught:
        chosen("nodes: {h: {tier: hardware}}\n", fallback="emulation", host=host)
    assert NO_KVM.reason in caught.value.message


def test_hardware_of_a_foreign_architecture_is_refused_with_the_way_out() -> None:
    text = "nodes: {h: {tier: hardware, arch: aarch64}}\n"
    with pytest.raises(HostCannot) as caught:
        chosen(text, host=EVERYTHING)
    assert "aarch64" in caught.value.message and "emulation" in caught.value.hint
    assert chosen(text, host=EVERYTHING, fallback="emulation")["h"].tier == "emulation"


def test_paravirtualization_is_refused_with_a_sentence() -> None:
    with pytest.raises(HostCannot) as caught:
        chosen("nodes: {p: {tier: para}}\n")
    assert NO_XEN.reason in caught.value.message and NO_XEN.remedy in caught.value.hint


def test_a_container_inside_a_machine_that_is_skipped_is_skipped_with_it() -> None:
    text = "nodes:\n  vm: {tier: hardware}\n  in: {inside: vm}\n"
    found = chosen(text, skip=True)
    assert "vm" in found["in"].skipped
    with pytest.raises(HostCannot):
        chosen(text)


def test_a_para_node_gets_a_xen_host_on_its_networks() -> None:
    text = "networks: {a: {}, b: {}, c: {}}\nnodes:\n"
    text += "  one: {tier: para, networks: [b]}\n  two: {tier: para, networks: [b, a], memory: 512MiB}\n"
    plan = planned(profile_of(text))
    host, one, two = plan.records["xen-host"], plan.records["one"], plan.records["two"]
    assert (host.tier, host.runs_on, [i.network for i in host.interfaces]) == (
        "emulation", "this host", ["b", "a"],
    )  # fmt: skip
    assert one.inside == two.inside == "xen-host" and one.main_key == "guest:one"
    assert one.accelerator == "Xen 4.17 PV, on a Xen host under TCG"
    domain, guest = plan.graph["domain:xen-host"], plan.graph["guest:two"]
    assert isinstance(domain, Domain) and isinstance(guest, Guest)
    assert domain.memory_bytes == 1536 << 20
    assert [nic.bridge for nic in guest.nics] == ["lab0", "lab1"]
    address = host.addresses[0]
    assert guest.uri.startswith(f"xen+libssh2://root@{address}/system?keyfile=")
    assert "known_hosts_verify=normal" in guest.uri


def test_a_host_that_no_guest_network_leads_to_gets_one_of_its_own() -> None:
    plan = planned(
        profile_of("networks: {wire: {host_address: no}}\nnodes: {p: {tier: para, networks: [wire]}}\n")
    )
    assert [i.network for i in plan.records["xen-host"].interfaces] == ["wire", "xen-host"]
    assert not plan.addresses.segments["wire"].host4 and plan.addresses.segments["xen-host"].host4
    guest = plan.graph["guest:p"]
    assert isinstance(guest, Guest) and [nic.bridge for nic in guest.nics] == ["lab0"]


def test_the_name_of_a_host_gives_way_to_a_node_of_the_profile() -> None:
    plan = planned(profile_of("nodes: {xen-host: {}, p: {tier: para}}\n"))
    assert plan.records["p"].inside == "xen-host-2" and plan.records["xen-host"].tier == "container"


def test_no_host_is_added_where_none_is_wanted_or_possible() -> None:
    profile = profile_of("nodes: {p: {tier: para}, h: {tier: hardware}}\n")
    never = planned(profile, nested="never")
    assert set(never.records) == {"p", "h"} and never.records["p"].skipped == NO_XEN.reason
    assert "xen-host" not in planned(profile, host=THIS_HOST).records
    both = {**WITH_XEN, ("kvm-host", ""): Ability(True, detail="KVM")}
    assert planned(profile, host=both).records["h"].skipped, "hardware is nested only when asked"
    nested = planned(profile, host=both, nested="always").records["h"]
    assert (nested.inside, nested.accelerator) == ("kvm-host", "KVM, on a KVM host under TCG")
    with pytest.raises(UsageError, match="one of auto, never, always"):
        planned(profile, nested="sometimes")


def test_a_guest_of_a_kvm_host_is_a_domain_of_kvm_on_block_devices() -> None:
    profile = profile_of("nodes: {h: {tier: hardware}}\n")
    plan = planned(profile, host={**WITH_XEN, ("kvm-host", ""): Ability(True, detail="KVM")}, nested="always")
    host, guest = plan.graph["domain:kvm-host"], plan.graph["guest:h"]
    assert isinstance(host, Domain) and isinstance(guest, Guest)
    assert (host.type, host.cpu, host.vcpus) == ("qemu", "qemu64,+svm,+npt,+rdrand", 1)
    root = ElementTree.fromstring(domain_xml(guest))
    assert root.get("type") == "kvm" and guest.uri.startswith("qemu+libssh2://root@")
    kinds = [(disk.get("type"), disk.find("source").get("dev")) for disk in root.iterfind("devices/disk")]  # type: ignore[union-attr]
    assert kinds == [("block", f"/run/labctl-guests/{guest.short}-{what}") for what in ("root", "config")]
    interface, log = root.find("devices/interface"), root.find("devices/serial/log")
    assert interface is not None and interface.find("target") is None, "its host names the tap"
    assert log is not None and log.get("append") == "off", "an earlier boot's words are not this one's"
    assert not parks(guest)


@pytest.mark.needs("busybox")
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("BIOS\n[ 0.1 ] Linux\nLABCTL-READY\n", 0),
        ("LABCTL-FAILED: no disk", 3),  # no end of the line yet: more may come
        ("LABCTL-FAILED: no disk\n", 0),
        ("[ 0.1 ] Linux\n", 3),
        ("", 3),
    ],
)
def test_a_guest_that_says_nothing_more_has_hung(tmp_path: Path, said: str, code: int) -> None:
    (tmp_path / "console").write_text(said)
    argv = ["busybox", "sh", "-s", str(tmp_path / "console"), "/dev/none", "1"]
    script = data("templates", "host", "watch").read_bytes()
    assert subprocess.run(argv, input=script, timeout=20).returncode == code


def test_whether_hosts_are_added_is_asked_of_the_command_line_the_profile_and_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    host = abilities({**WITH_XEN, ("kvm-host", ""): Ability(True, detail="KVM")})
    monkeypatch.setattr(facts, "probe", lambda home, nested: asked.append(nested) or host)
    for text, options, in_a_host in (
        ("", Options(), False),
        ("", Options(usual_nested="always"), True),
        ("nested: never\n", Options(usual_nested="always"), False),
        ("nested: always\n", Options(), True),
        ("nested: always\n", Options(nested="never"), False),
    ):
        profile = profile_of(text + "nodes: {h: {tier: hardware}}\n")
        found, chosen_tiers = facts.choices(profile, replace(options, skip_unavailable=True))
        assert bool(found.nodes["h"].inside) == in_a_host and bool(chosen_tiers["h"].skipped) != in_a_host
    assert asked == ["auto", "always", "never", "always", "never"]


def test_a_host_of_the_profile_is_completed_and_measured() -> None:
    text = "nodes: {h: {tier: emulation, hypervisor: xen}, p: {tier: para, inside: h, memory: 1GiB}}\n"
    done = with_hosts(profile_of(text), abilities(WITH_XEN), "x86_64", "auto")
    host = done.nodes["h"]
    assert (host.image, host.memory, set(done.nodes)) == ("xen-host", 1536 << 20, {"h", "p"})
    assert host.ready and not crowded(done)
    small = text.replace("hypervisor: xen", "hypervisor: xen, memory: 512MiB")
    told = crowded(with_hosts(profile_of(small), abilities(WITH_XEN), "x86_64", "auto"))
    assert "h has 512 MiB of memory; with 1 machine inside it needs 1436 MiB" in told["h"]


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            "tier: emulation",
            r"^the 20 machines of lab lab take 20971520 MiB of memory together; this host has",
        ),
        (
            "tier: para",
            r"^node xen-host with the 20 machines inside it wants \d+ MiB of memory; this host has",
        ),
    ],
)
def test_machines_that_together_take_more_memory_than_the_host_has(
    node: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PAGE_SIZE": 1 << 20, "SC_PHYS_PAGES": 4 << 20}  # 4 TiB, which hold four of them
    monkeypatch.setattr("labctl.lab.facts.os.sysconf", pages.__getitem__)
    ability = abilities(WITH_XEN)
    profile = profile_of(f"nodes: {{m: {{{node}, memory: 1TiB, replicas: 20}}}}")
    profile = with_hosts(profile, ability, "x86_64", "auto")
    chosen = choose(profile, "x86_64", ability, skip_unavailable=False, fallback="")
    with pytest.raises(HostCannot, match=said) as caught:
        check_room(profile, chosen)
    assert "smaller ones" in caught.value.hint
