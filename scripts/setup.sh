#!/bin/bash
# Make a checkout usable: Debian packages, the virtual environment in .venv, labctl and labrun in it.
#
#   scripts/setup.sh           what `labctl` needs to run
#   scripts/setup.sh --test    also what the tests need
#
# Safe to run again: it asks apt only when a package is missing, and pip only when pyproject.toml or
# the interpreter changed.  Needs root, or a user who may use sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

groups=run
[ "${1:-}" = --test ] && groups='run test'

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "installing packages needs root: run this as root, or install sudo"
    fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
known() { apt-cache show "$1" >/dev/null 2>&1; }

# Each line's alternatives: the first that apt knows, or one before it that is installed.  Where apt knows
# none (no lists yet), any that is installed.
missing_packages() {
    local group alternatives _reason package
    while read -r group alternatives _reason; do
        case " $groups " in *" $group "*) ;; *) continue ;; esac
        for package in ${alternatives//|/ }; do
            installed "$package" && continue 2
            known "$package" && break
        done
        echo "$alternatives"
    done < <(grep -v '^#' scripts/packages.txt)
}

choose() {
    local alternatives package
    for alternatives in "$@"; do
        for package in ${alternatives//|/ }; do
            if known "$package"; then echo "$package"; continue 2; fi
        done
        die "apt knows none of: ${alternatives//|/, }"
    done
}

# Test programs bring services (a registry on port 5000, podman's socket) that nobody asked for:
# while apt runs, a policy that forbids starting them stands in, unless the machine has a policy.
quietly() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    "$@" || status=$?
    as_root rm -f "$policy"
    return $status
}

install_packages() {
    local -a wanted chosen
    mapfile -t wanted < <(missing_packages)
    if [ ${#wanted[@]} = 0 ]; then say "Debian packages: all there"; return; fi
    command -v apt-get >/dev/null || die "this is no Debian; install by hand: ${wanted[*]}"
    say "Debian packages missing: ${wanted[*]}"
    say "apt-get update"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update \
        || say "apt-get update had errors; going on with the lists that are there"
    # In two steps, so that a failure inside the substitution ends the script.
    local text
    text=$(choose "${wanted[@]}")
    mapfile -t chosen <<<"$text"
    say "apt-get install ${chosen[*]}"
    local -a apt=(as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l
        apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "${chosen[@]}")
    local log
    log=$(mktemp)
    if ! quietly "${apt[@]}" >"$log" 2>&1; then tail -n 30 "$log" >&2; die "apt-get install failed (log: $log)"; fi
    rm -f "$log"
    if [ -d /run/systemd/system ]; then
        if printf '%s\n' "${chosen[@]}" | grep -qx docker-registry; then
            as_root systemctl -q disable docker-registry.service || true
        fi
        if printf '%s\n' "${chosen[@]}" | grep -qx libvirt-daemon-system; then
            say "starting libvirtd (its sockets)"
            as_root systemctl -q start libvirtd.socket virtlogd.socket || say "libvirtd did not start; labctl will start a private one"
        fi
    fi
}

# /usr/bin/python3 and not a shim of pyenv: Debian's `libvirt` module belongs to it, and it starts faster.
python=/usr/bin/python3

install_venv() {
    [ -x "$python" ] || die "$python is missing: apt-get install python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || die "$python is older than 3.11: labctl runs on Debian 12 or newer"
    local stamp=.venv/.labctl-setup want
    want=$( { cat pyproject.toml; "$python" -VV; pwd; } | sha256sum | cut -d' ' -f1)
    if [ -x .venv/bin/labctl ] && [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then
        say "Python environment: up to date"
    else
        if [ "$(sed -n 's/^home = //p' .venv/pyvenv.cfg 2>/dev/null)" != /usr/bin ] || ! .venv/bin/python -c pass 2>/dev/null; then
            say "making .venv with $("$python" -V)"
            "$python" -m venv --clear --system-site-packages .venv
        fi
        rm -f .venv/bin/labrun
        say "pip install -e .[dev,bench] (a minute or two the first time)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -e '.[dev,bench]' \
            || die "pip install failed"
        echo "$want" >$stamp
    fi
    ln -sf ../../scripts/labrun .venv/bin/labrun  # instead of pip's, which starts more slowly
    # An editable install is compiled on first import only, and not at all where
    # PYTHONDONTWRITEBYTECODE is set; the command line should be quick from the first call on.
    .venv/bin/python -m compileall -q labctl >/dev/null || say "some files did not compile; the linters will say which"
}

install_packages
install_venv
say "ready: .venv/bin/labctl and .venv/bin/labrun"
