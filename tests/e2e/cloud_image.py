"""A Debian cloud image as its makers make one: systemd, cloud-init, OpenSSH, Debian's kernel, GRUB.

Made of packages without loop devices or mounts: mmdebstrap's tree, `mke2fs -d`, GRUB behind the table.
"""

from __future__ import annotations

import fcntl
import shutil
import struct
import subprocess
from pathlib import Path

from labctl.events import silent
from labctl.image import grub

_MIB = 1 << 20
_SIZE = 1200 * _MIB
_VERSION = 3  # raise when what is made here changes
_PACKAGES = (
    "systemd-sysv,cloud-init,ifupdown,cloud-guest-utils,fdisk,openssh-server,linux-image-cloud-amd64,"
    "initramfs-tools,iproute2,udev,dbus,netbase,zstd"
)
# What a boot under emulation needn't wait for is left out: drivers of other machines, caches that are made at
# first, and the modules of cloud-init (each loads a lot of Python) for which labctl has no words.
_TRIM = """
set -e
echo 'LABEL=cloudimg / ext4 rw 0 1' > "$1/etc/fstab"
rm -rf "$1/var/cache/apt" "$1/var/lib/apt/lists"
rm -f "$1/etc/machine-id" "$1"/etc/ssh/ssh_host_*; : > "$1/etc/machine-id"
systemctl --root "$1" --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service \\
    getty@tty1.service systemd-update-utmp.service dpkg-db-backup.timer systemd-binfmt.service
echo 'MODULES=list' > "$1/etc/initramfs-tools/conf.d/modules"
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >> "$1/etc/initramfs-tools/modules"
chroot "$1" update-initramfs -u
rm -f "$1/etc/cloud/cloud.cfg.d/90_dpkg.cfg"
cat > "$1/etc/cloud/cloud.cfg.d/95_short.cfg" <<'END'
datasource_list: [NoCloud, None]
cloud_init_modules:
  [bootcmd, write-files, growpart, resizefs, set_hostname, update_etc_hosts, users-groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user, final-message]
END
touch "$1/etc/.updated" "$1/var/.updated"
"""
_GRUB = """
set root=(hd0,msdos1)
linux /vmlinuz root=LABEL=cloudimg rw console=ttyS0 net.ifnames=0 quiet
initrd /initrd.img
boot
"""


def cloud_image(cache: Path) -> Path:
    """The image as qcow2, kept in the cache of the tests."""
    final = cache / f"cloud-test.{_VERSION}.qcow2"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".cloud-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = cache / "cloud-test.work"
        if not final.exists():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                _make(cache, work).replace(final)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return final


def _make(cache: Path, work: Path) -> Path:
    tree = work / "tree"
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    options += ['--aptopt=Acquire::Languages "none"', f"--include={_PACKAGES}", f"--customize-hook={_TRIM}"]
    base = ("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory")
    _run(*base, *options, "bookworm", str(tree))
    return assemble(cache, tree, work)


def assemble(cache: Path, tree: Path, work: Path) -> Path:
    """The disk from the tree."""
    root, disk, final = work / "root.ext4", work / "disk.raw", work / "disk.qcow2"
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "cloudimg", "-d", str(tree)]
    _run(*make, str(root), f"{_SIZE // 1024}k")
    head, core = grub.pieces(cache, _GRUB, work, silent)
    far = b"\xfe\xff\xff"  # beyond what cylinders and heads can say
    entry = struct.pack("<B3sB3sII", 0x80, far, 0x83, far, _MIB // 512, _SIZE // 512)
    with disk.open("wb") as file:
        file.write(head[:440] + b"test\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa" + core)
    _run("dd", f"if={root}", f"of={disk}", "bs=1M", "seek=1", "conv=sparse,notrunc", "status=none")
    _run("truncate", "-s", f"{_SIZE + _MIB}", str(disk))
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(final))
    return final


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:]}"
