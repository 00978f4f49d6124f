#!/usr/bin/env bash
# Shows that the simulator finds bugs. Builds a copy of the project with all patches of this folder,
# in which each bug waits for its switch, and plays seeds until the one that is on is found.
#
#   test/sim/planted/run.sh           all bugs
#   test/sim/planted/run.sh BUG...    these, named as their patches
#
# SEEDS says how many seeds may be needed for a bug.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../../.." && pwd)
work="$repo/target/planted"
seeds=${SEEDS:-300}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/build}

bugs=("$@")
if [ ${#bugs[@]} -eq 0 ]; then
    for patch in "$here"/*.patch; do
        name=$(basename "$patch" .patch)
        [ "$name" = switch ] || bugs+=("$name")
    done
fi

copy_and_patch() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree"
    (cd "$repo" && git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf -) |
        tar -xf - -C "$work/tree"
    for patch in "$here"/*.patch; do
        patch --quiet -p1 --fuzz=0 --directory="$work/tree" <"$patch" ||
            { echo "$(basename "$patch") does not fit the code any more"; exit 1; }
    done
    # What was patched differs from what was built before, whatever its time says.
    find "$work/tree" -name "*.rs" -exec touch {} +
}

# What the head of a patch says of the seeds to play.
head_of() {
    sed -n "s/^$2: //p" "$here/$1.patch" 2>/dev/null || true
}

# Plays seeds with one bug on, of the kind and from the one that its patch names; prints what was
# found.
play() {
    local kind from
    kind=$(head_of "$1" Seeds)
    from=$(head_of "$1" From)
    # shellcheck disable=SC2086
    { RNBD_PLANTED=$1 "$CARGO_TARGET_DIR/debug/rnbd-sim" $kind --from "${from:-1}" --seeds "$2" ||
        true; } \
        2>&1 >/dev/null |
        sed -n 's/^seed \([0-9]*\) of commit .* failed: /\1\t/p' | head -1
}

copy_and_patch
(cd "$work/tree" && cargo build --quiet --locked -p rnbd-sim)

missed=0
found=$(play none 50)
if [ -n "$found" ]; then
    echo "with no bug on, a seed fails: $found"
    exit 1
fi
printf '%-30s %6s  %s\n' bug seed 'found as'
for bug in "${bugs[@]}"; do
    found=$(play "$bug" "$seeds")
    [ -n "$found" ] || missed=$((missed + 1))
    printf '%-30s %6s  %.110s\n' "$bug" "${found%%$'\t'*}" "${found#*$'\t'}"
done
[ "$missed" -eq 0 ] || { echo "$missed of ${#bugs[@]} were not found in $seeds seeds"; exit 1; }
echo "all ${#bugs[@]} planted bugs were found"
