"""The description of a machine in an OVA: Open Virtualization Format 1.1 (DMTF DSP0243)."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

_TEXT = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
 <References><File ovf:href={file} ovf:id="file1" ovf:size="{stored}"/></References>
 <DiskSection><Info>Disks</Info>
  <Disk ovf:capacity="{size}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk1" ovf:fileRef="file1"
   ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
 </DiskSection>
 <NetworkSection><Info>Networks</Info>
  <Network ovf:name="nat"><Description>The network of the host</Description></Network>
 </NetworkSection>
 <VirtualSystem ovf:id={id}><Info>A machine made by labctl</Info><Name>{name}</Name>
  <OperatingSystemSection ovf:id="96"><Info>Debian, 64 bit</Info></OperatingSystemSection>
  <VirtualHardwareSection><Info>Hardware</Info>
   <System><vssd:ElementName>Hardware</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
    <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
    <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType></System>
{items}
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
"""

#: Of each piece: element name, resource type (CIM), and further elements, in the schema's alphabetical order.
_PROCESSOR, _MEMORY, _SATA, _NETWORK, _DISK = 3, 4, 20, 10, 17


def description(name: str, file: str, stored: int, size: int, memory: int, cpus: int = 1) -> str:
    """The .ovf text: one disk `file` of `stored` bytes for a disk of `size` bytes; `memory` in MiB."""
    items = [
        _item({"ElementName": f"{cpus} CPU", "InstanceID": 1, "ResourceType": _PROCESSOR,
               "VirtualQuantity": cpus}),
        _item({"AllocationUnits": "byte * 2^20", "ElementName": f"{memory} MiB of memory", "InstanceID": 2,
               "ResourceType": _MEMORY, "VirtualQuantity": memory}),
        _item({"Address": 0, "ElementName": "SATA controller", "InstanceID": 3,
               "ResourceSubType": "AHCI", "ResourceType": _SATA}),
        _item({"AddressOnParent": 0, "ElementName": "Disk", "HostResource": "ovf:/disk/disk1",
               "InstanceID": 4, "Parent": 3, "ResourceType": _DISK}),
        _item({"AutomaticAllocation": "true", "Connection": "nat", "ElementName": "Network card",
               "InstanceID": 5, "ResourceSubType": "E1000", "ResourceType": _NETWORK}),
    ]  # fmt: skip
    return _TEXT.format(
        file=quoteattr(file),
        stored=stored,
        size=size,
        id=quoteattr(name),
        name=escape(name),
        items="\n".join(items),
    )


def _item(fields: dict[str, object]) -> str:
    inner = "".join(f"<rasd:{key}>{escape(str(value))}</rasd:{key}>" for key, value in fields.items())
    return f"   <Item>{inner}</Item>"
