#!/usr/bin/env bash
# Runs in the guest: case.sh FILE. Runs that case; any command that fails is its end.
# shellcheck source=/dev/null
source "$(dirname "$0")/helpers.sh"
source "$(dirname "$0")/ours.sh"
source "$1"
set -Eeuo pipefail
trap 'printf "FAILED: %s (%s)\n" "$BASH_COMMAND" "${FUNCNAME[*]}" >&2' ERR
run
