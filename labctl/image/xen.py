"""The Xen hypervisor out of an image that holds Debian's package of it: a file that QEMU boots."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

from labctl.errors import LabError
from labctl.image.boot_files import fresh_file, locked


def hypervisor(cache: Path, layers: Sequence[Path], image: str) -> Path:
    """The newest hypervisor in the image's layers as a plain ELF file in the cache (multiboot, as QEMU loads
    it); made on first use.  `image` names the image for a person.

    Raises LabError when there is none or it is damaged.
    """
    found = sorted(path for layer in layers for path in layer.glob("boot/xen-*.gz"))
    if not found:
        raise LabError(
            f"image {image} holds no Xen hypervisor (/boot/xen-*.gz)",
            hint="build the image anew, or name one that has it (xen-host)",
        )
    packed = found[-1].read_bytes()
    final = cache / "boot" / "xen" / f"{hashlib.sha256(packed).hexdigest()[:32]}.elf"
    with locked(final.parent / ".lock"):
        if not final.exists():
            try:
                plain = gzip.decompress(packed)
            except (OSError, EOFError, zlib.error) as error:
                raise LabError(f"{found[-1].name} in image {image} is damaged: {error}") from error
            with fresh_file(final) as work:
                work.write_bytes(plain)
    return final
