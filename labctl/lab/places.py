"""What machines need of this host besides their tier, looked at before anything is made."""

from __future__ import annotations

from collections.abc import Mapping

from labctl.errors import HostCannot
from labctl.lab.facts import arch_of
from labctl.profile.models import Profile
from labctl.profile.types import Firmware, Isolation, Tier
from labctl.profile.words import cpus_in
from labctl.tiers.context import Choice
from labctl.tiers.hosts import DEFAULT_GUEST as DEFAULT_MEMORY


def refuse_without_daemon(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """See that this host can share folders where a machine has volumes.  Raises HostCannot."""
    if any(
        n.volumes and n.tier is not Tier.CONTAINER and not chosen[n.name].skipped
        for n in profile.nodes.values()
    ):
        from labctl.hypervisor import shares

        shares.daemon()


def refuse_beyond_host(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """See that this host has the CPUs and huge pages that machines ask for.  Raises HostCannot."""
    for node in profile.nodes.values():
        if node.vm is None or node.tier is Tier.CONTAINER or node.inside or chosen[node.name].skipped:
            continue
        from labctl.hypervisor import resources

        wanted = set().union(*(cpus_in(pin) for pin in node.vm.pin))
        resources.refuse_missing_cpus(node.name, wanted)
        if node.vm.hugepages:
            resources.refuse_without_hugepages(node.name, node.memory or DEFAULT_MEMORY)


def firmware(profile: Profile, chosen: Mapping[str, Choice]) -> dict[str, tuple[str, str]]:
    """node → UEFI's program and the template of its memory, for those that start with it.

    Raises HostCannot.
    """
    from labctl.hypervisor.firmware import uefi

    found: dict[str, tuple[str, str]] = {}
    for node in profile.nodes.values():
        asked = node.vm is not None and node.vm.firmware is Firmware.UEFI
        if asked and node.tier is not Tier.CONTAINER and not node.inside and not chosen[node.name].skipped:
            files = uefi(node.name, arch_of(node, profile), node.machine)
            found[node.name] = (files.code, files.template)
    return found


def refuse_without_hooks(profile: Profile, chosen: Mapping[str, Choice]) -> None:
    """See that this kernel can keep a vserver to its address.  Raises HostCannot."""
    names = [
        node.name
        for node in profile.nodes.values()
        if node.tier is Tier.CONTAINER
        and node.isolation is Isolation.VSERVER
        and not chosen[node.name].skipped
    ]
    if not names:
        return
    from labctl.linux import oneaddress

    if why := oneaddress.lacking():
        raise HostCannot(
            f"{', '.join(names)}: nothing here would keep a vserver to its address: {why}",
            hint="boot a kernel with CONFIG_CGROUP_BPF and mount cgroup2, or choose isolation: lxc",
        )
