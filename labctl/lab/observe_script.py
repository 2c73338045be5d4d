"""The questions that are asked in every node, as one script for any POSIX shell.

Only the shell's own words and, where there are, readlink, ls, cat and dmesg: it runs in an image with
nothing but busybox, in a VM by labctl's own busybox, and on the host.  It writes lines of `key value`; a key
may come several times.  A file that can't be read leaves its line out.
"""

from __future__ import annotations

SCRIPT = r"""
LC_ALL=C; export LC_ALL
say() { printf '%s %s\n' "$1" "$2"; }
first() { # KEY FILE: its first line
	[ -r "$2" ] || return 0
	line=
	IFS= read -r line <"$2" 2>/dev/null
	[ -n "$line" ] && say "$1" "$line"
	return 0
}
first kernel /proc/sys/kernel/osrelease
first kernel-build /proc/sys/kernel/version
first boot-id /proc/sys/kernel/random/boot_id
first arch /proc/sys/kernel/arch
first hostname /proc/sys/kernel/hostname
first pid1 /proc/1/comm
first clocksource /sys/devices/system/clocksource/clocksource0/current_clocksource
first hypervisor-type /sys/hypervisor/type
first guest-type /sys/hypervisor/guest_type
first dmi-vendor /sys/class/dmi/id/sys_vendor
first dmi-product /sys/class/dmi/id/product_name
first device-tree /proc/device-tree/model
first uptime /proc/uptime
first memory-max /sys/fs/cgroup/memory.max
first memory-max /sys/fs/cgroup/memory/memory.limit_in_bytes
first cpu-max /sys/fs/cgroup/cpu.max
# A shell reads byte by byte, and the kernel gives a number in /proc/sys to the first read only.
say cap-last "$(cat /proc/sys/kernel/cap_last_cap 2>/dev/null)"

processes=0
for d in /proc/[0-9]*; do
	[ "$d" = "/proc/$$" ] && continue
	processes=$((processes + 1))
done
say processes $processes

while read -r name rest; do
	case $name in
	CapEff: | Seccomp: | NoNewPrivs:) say "status-${name%:}" "$rest" ;;
	esac
done </proc/self/status

for kind in uid gid; do
	while read -r inside outside count; do
		say ${kind}-map "$inside $outside $count"
	done </proc/self/${kind}_map
done 2>/dev/null

for n in cgroup ipc mnt net pid time user uts; do
	id=$(readlink /proc/self/ns/$n 2>/dev/null) || id=$(ls -l /proc/self/ns/$n 2>/dev/null)
	[ -n "$id" ] && say "ns-$n" "${id##* }"
done

while read -r name rest; do
	case $name in *:*) say netdev "${name%%:*}" ;; esac
done </proc/self/net/dev 2>/dev/null

address=
while read -r mark word rest; do
	case $mark in
	'|--' | '+--') address=$word ;;
	*) case "$mark $word $rest" in '/32 host LOCAL'*) say address4 "$address" ;; esac ;;
	esac
done </proc/self/net/fib_trie 2>/dev/null
while read -r hex index prefix scope flags device; do say address6 "$hex $device"; done \
	</proc/self/net/if_inet6 2>/dev/null

for n in shm sem msg; do
	[ -r /proc/sysvipc/$n ] || continue
	count=-1
	while read -r rest; do count=$((count + 1)); done </proc/sysvipc/$n
	say "ipc-$n" $count
done

mounts=0
while read -r id parent device root point rest; do
	mounts=$((mounts + 1))
	[ "$point" = / ] && rest=${rest#*- } && say root-type "${rest%% *}"
done </proc/self/mountinfo
say mounts $mounts

for d in /dev/*; do
	[ -b "$d" ] && say block-device "${d#/dev/}"
	[ -c "$d" ] && say char-device "${d#/dev/}"
done

cpus=0 model= flag=
while IFS= read -r line; do
	case $line in
	processor*) cpus=$((cpus + 1)) ;;
	'model name'* | 'Model Name'* | uarch* | 'CPU part'*) [ -z "$model" ] && model=$line ;;
	flags*' hypervisor'*) flag=1 ;;
	esac
done </proc/cpuinfo
say cpus $cpus
[ -n "$model" ] && say cpu "${model#*: }"
case $model in 'CPU part'*) say cpu-part 1 ;; esac
[ -n "$flag" ] && say hypervisor-flag 1

while read -r name size rest; do
	case $name in MemTotal: | MemAvailable:) say "${name%:}" "$size" ;; esac
done </proc/meminfo
while read -r name rest; do
	case $name in btime) say boot-time "$rest" ;; esac
done </proc/stat
while IFS= read -r line; do
	case $line in PRETTY_NAME=*) line=${line#*=}; line=${line#\"}; say os "${line%\"}" ;; esac
done 2>/dev/null </etc/os-release
while IFS= read -r line; do
	case $line in *'Hypervisor detected: '*) say hypervisor "${line##*Hypervisor detected: }" ;;
	*'Booting paravirtualized kernel on '*) say paravirt "${line##*Booting paravirtualized kernel on }" ;;
	esac
done <<END
$(dmesg 2>/dev/null)
END
say done 1
"""
