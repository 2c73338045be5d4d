#!/bin/bash
# The spectrum lab from nothing to nothing: up, a command in every node, the comparison, down.
# `make demo` runs it.  The lab is called `demo`, so that one of your own named `spectrum` stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
labctl=.venv/bin/labctl
name=demo

step() { printf '\n\033[1m$ labctl %s\033[0m\n' "$*"; "$labctl" "$@"; }
cleanup() {
    local status=$?
    trap - EXIT
    if [ $status != 0 ]; then
        echo "demo: failed with $status; taking the lab down" >&2
        "$labctl" down "$name" --quiet || true
    fi
    exit $status
}
trap cleanup EXIT

step up spectrum --name "$name" --skip-unavailable
step run "$name" -- uname -a
step compare "$name"
step down "$name"
echo
echo "demo: done; labctl up spectrum brings it up again, labctl --help shows the rest"
