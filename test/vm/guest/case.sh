#!/usr/bin/env bash
# Runs in the guest: case.sh FILE. Runs that case; any command that fails is its end.
# shellcheck source=/dev/null
source "$(dirname "$0")/helpers.sh"
source "$1"
set -Eeuo pipefail
shopt -s inherit_errexit
trap 'printf "FAILED: %s (%s)\n" "$BASH_COMMAND" "${FUNCNAME[*]}" >&2; exit 1' ERR
run
