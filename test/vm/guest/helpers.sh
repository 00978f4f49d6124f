# For cases and for the interactive guest: the kernel's modules, its devices, our programs, checks.
# shellcheck shell=bash
guest=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=kernel.sh
source "$guest/kernel.sh"
# shellcheck source=disks.sh
source "$guest/disks.sh"
# shellcheck source=exercise.sh
source "$guest/exercise.sh"
# shellcheck source=stamps.sh
source "$guest/stamps.sh"
# shellcheck source=cable.sh
source "$guest/cable.sh"
# shellcheck source=ours.sh
source "$guest/ours.sh"

fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
note() { printf -- '--- %s\n' "$*"; }

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# equal WHAT FOUND EXPECTED
equal() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }

# refused WHY COMMAND…: the command fails and says WHY, a regular expression.
refused() {
    local why=$1 said
    shift
    if said=$("$@" 2>&1); then
        fail "not refused: $*"
    fi
    grep -qE "$why" <<<"$said" || fail "'$*' was refused with '$said', not with '$why'"
    note "refused: $said"
}
