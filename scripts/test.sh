#!/usr/bin/env bash
# Sets up and runs the tests: all suites, or those named.
#
#   scripts/test.sh                       everything that CI runs
#   scripts/test.sh SUITE…                lint, unit, sim, planted, net, fio, fuzz, faults, vm, spdk
#   scripts/test.sh --long [SUITE…]       the thorough variant
#   scripts/test.sh sim --from S --seeds N   replay simulator seeds (also --long, --haunted,
#                                         --lingering)
#   scripts/test.sh vm CASE…              cases of test/vm (test/vm/run --list)
#   scripts/test.sh spdk [--prefix DIR]   with the SPDK that is in DIR, or that pkg-config finds
#
# Every suite ends in one line; the last line of all is "N passed, N failed, N skipped".
source "$(dirname "$0")/common.sh"

long=false
suites=()
sim_args=()
spdk_args=()
vm_cases=()
while [ $# -gt 0 ]; do
    case "$1" in
        --long) long=true ;;
        --haunted | --lingering) sim_args+=("$1") ;;
        --from | --seeds) sim_args+=("$1" "${2:?$1 needs a number}"); shift ;;
        --prefix) spdk_args+=(--prefix "${2:?--prefix needs a directory}"); shift ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) die "unknown option $1 (see --help)" ;;
        *)
            if [ "${suites[*]: -1}" = vm ] && [ -e "$repo/test/vm/cases/$1.sh" ]; then
                vm_cases+=("$1")
            else
                suites+=("$1")
            fi ;;
    esac
    shift
done
[ ${#suites[@]} -gt 0 ] || suites=(lint unit sim planted net fio fuzz vm)

cd "$repo"
export RUST_BACKTRACE=1
passed=0 failed=0 skipped=0

# Counts what the test runners of a log say, as "N tests".
count_tests() {
    awk '/^test result:/ {n += $4} /^Ran [0-9]+ tests in/ {n += $2} END {printf "%d tests", n}' "$1"
}

suite_lint() {
    need_rust
    need_rdma_core
    need_fio_source
    cargo fmt --version >/dev/null 2>&1 || { echo "rustfmt is not installed"; return 77; }
    cargo clippy --version >/dev/null 2>&1 || { echo "clippy is not installed"; return 77; }
    cargo fmt --all --check &&
        cargo clippy --workspace --all-targets --features rdma,fio --locked --quiet -- -D warnings &&
        RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet &&
        scripts/check_repo.sh
}

suite_unit() {
    need_rust
    need_rdma_core
    need_fio_source
    need_packages nbdinfo=libnbd-bin nbdcopy=libnbd-bin qemu-img=qemu-utils fio=fio
    need_python spdk
    cargo test --workspace --exclude rnbd-net-tests --exclude rnbd-sim --features rdma,fio --locked \
        --no-fail-fast &&
        cargo build --quiet -p rnbd-rpc --example echo_methods --locked &&
        "$cache/venv/bin/python" scripts/test_rnbd_plugin.py target/debug/examples/echo_methods
}

suite_sim() {
    need_rust
    if [ ${#sim_args[@]} -gt 0 ]; then
        ! $long || sim_args+=(--long)
        play_seeds "${sim_args[@]}"
        return
    fi
    cargo test --release -p rnbd-sim --locked || return 1
    local ordinary=500 haunted=100
    ! $long || { ordinary=10000; haunted=1000; }
    play_seeds --from 1 --seeds "$ordinary" &&
        play_seeds --haunted --from 1 --seeds "$haunted" &&
        play_seeds --lingering --from 1 --seeds "$haunted"
}

play_seeds() {
    cargo run --release --quiet -p rnbd-sim --locked -- "$@"
}

suite_planted() {
    need_rust
    need_packages patch=patch git=git
    test/sim/planted/run.sh
}

suite_net() {
    need_rust
    need_packages nbdinfo=libnbd-bin nbdcopy=libnbd-bin qemu-img=qemu-utils fio=fio \
        mkfs.ext4=e2fsprogs debugfs=e2fsprogs
    need_python spdk
    build_release
    cargo test --release -p rnbd-net-tests --locked --no-fail-fast -- --test-threads=1
}

suite_fio() {
    test/fio/run
}

suite_fuzz() {
    need_rust
    need_packages c++=g++
    local seconds=10
    $long && seconds=600
    cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz
    cd test/fuzz
    # Coverage needs only stable flags; address checks are left to miri and the types.
    cargo fuzz build --fuzz-dir . --sanitizer none || return 1
    echo "fuzzing each target for $seconds s"
    cargo fuzz list --fuzz-dir . | xargs -P "$(nproc)" -I TARGET \
        cargo fuzz run --fuzz-dir . --sanitizer none TARGET -- \
        -max_total_time="$seconds" -verbosity=0 -print_final_stats=1
}

suite_faults() {
    need_rust
    [ "$(id -u)" = 0 ] || { echo "network namespaces need root"; return 77; }
    need_packages ip=iproute2 tc=iproute2 nft=nftables python3=python3
    build_release
    local rounds=1
    $long && rounds=5
    echo "=== time without service"
    python3 test/faults/faults.py table --rounds "$rounds"
}

suite_vm() {
    $long && vm_cases=(--long "${vm_cases[@]}")
    test/vm/run "${vm_cases[@]}"
}

suite_spdk() {
    test/spdk/run "${spdk_args[@]}"
}

run_suite() {
    local name=$1 log="$cache/test-$1.log" started=$SECONDS status=0
    say "suite $name …"
    # A subshell of its own: `set -e` is off inside a condition, and a suite may `cd`.
    ("suite_$name") >"$log" 2>&1 || status=$?
    local seconds=$((SECONDS - started))
    case $status in
        0)
            passed=$((passed + 1))
            # What a suite has to tell even when all is well follows such a line.
            sed -n '/^=== /,$p' "$log"
            echo "suite $name: passed ($(count_tests "$log"), $seconds s)" ;;
        77)
            # On a developer's machine a suite may lack its tools; in CI that is a failure.
            if [ "${CI:-}" = true ]; then
                failed=$((failed + 1)); echo "suite $name: FAILED: cannot run: $(tail -1 "$log")"
            else
                skipped=$((skipped + 1)); echo "suite $name: SKIPPED: $(tail -1 "$log")"
            fi ;;
        *)
            failed=$((failed + 1))
            tail -60 "$log"
            echo "suite $name: FAILED (status $status, $seconds s; whole log in ${log#"$repo"/})" ;;
    esac
}

for suite in "${suites[@]}"; do
    declare -F "suite_$suite" >/dev/null ||
        die "unknown suite $suite (lint unit sim planted net fio fuzz faults vm spdk)"
done
for suite in "${suites[@]}"; do
    run_suite "$suite"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
